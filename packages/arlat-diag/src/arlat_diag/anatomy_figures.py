"""R4's page of plots: what a perfect model would do, what this one does, and where the gap comes from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from arlat_core.types import Value

from arlat_diag.figures import FAINT, INK, PALETTE, Values, bar, canvas, draw, room, svg
from arlat_diag.series import Line, curve, label, numbered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OWN = PALETTE[0]
PARTS = {
    "intrinsic": (FAINT, "nobody could know"),
    "one_step": ("#3566a8", "errors of single steps"),
    "amplification": ("#b3261e", "made longer by the model's map"),
    "collapse": ("#84569c", "movement that is missing"),
}


def anatomy(name: str, values: Values, verdict: str, prefix: str = "r4") -> bytes:
    """The page of one model as SVG."""
    with canvas(2, 3, 11.0, 6.2) as (figure, grid):
        compose(figure, grid, label(name, 60), values, verdict, prefix)
        return svg(figure)


def compose(figure: Figure, grid: list[list[Axes]], name: str, values: Values, verdict: str, prefix: str) -> None:
    """Draws the six panels into a canvas of two rows and three columns."""
    figure.set_layout_engine("constrained", w_pad=0.1)
    (size, parts, moves), (spread, distance, spectrum) = grid
    steps = len(curve(values, f"{prefix}.error.total").pairs)
    errors(size, values, prefix)
    split(parts, values, prefix)
    movement(moves, values, prefix)
    ratios(spread, values, prefix)
    manifold(distance, values, prefix)
    frequencies(spectrum, values, prefix)
    for axes in (size, parts, moves, spread, distance):
        axes.set_xticks([1, *range(4, steps + 1, 4)])
        axes.set_xlabel("step")
    size.set_ylabel("mean rollout")
    spread.set_ylabel("sample rollouts")
    figure.suptitle(f"{name}: {verdict}", x=0.008, ha="left", fontsize=10, fontweight="bold")


def legend(axes: Axes) -> None:
    """A legend below the panel, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, columnspacing=1.0, handlelength=1.4)


def floors(line: Line) -> tuple[list[float], list[float]]:
    """The floors of a curve, by step."""
    known = [(x, v.floor) for x, v in line.pairs if v.floor is not None]
    return [x for x, _ in known], [y for _, y in known]


def ceilings(line: Line) -> tuple[list[float], list[float]]:
    """The ceilings of a curve, by step."""
    known = [(x, v.ceiling) for x, v in line.pairs if v.ceiling is not None]
    return [x for x, _ in known], [y for _, y in known]


def decades(axes: Axes) -> None:
    """A logarithmic y axis over whole decades, so that it has at least two numbers."""
    axes.set_yscale("log")
    low, high = (math.log10(end) for end in axes.get_ylim())
    axes.set_ylim(10 ** math.floor(low), 10 ** math.ceil(high))
    numbered(axes.yaxis)


def errors(axes: Axes, values: Values, prefix: str) -> None:
    """Root mean squared error of the model, of the ideal forecast, and of the training mean."""
    own = curve(values, f"{prefix}.error.root")
    axes.plot(*floors(own), ":", color=INK, linewidth=1.2, label="always saying the mean")
    draw(axes, own, OWN, "o", "-", "this model")
    axes.plot(*ceilings(own), "--", color=INK, linewidth=1.2, label="best known forecast", zorder=4)
    linear = curve(values, f"{prefix}.var.error.root")
    if linear.pairs:
        axes.plot(linear.x, linear.y, "-", color=PALETTE[1], linewidth=1.1, label="linear VAR, rolled out")
    top = max([y for y in own.y if y == y], default=1.0)
    mean = max(floors(own)[1], default=top)
    if top > 5 * mean:
        decades(axes)
    else:
        axes.set_ylim(bottom=0)
    axes.set_title("How far from the truth?\n(root mean squared error)")
    legend(axes)


def split(axes: Axes, values: Values, prefix: str) -> None:
    """The squared error's parts, stacked per step, in squared errors of the training mean."""
    total = curve(values, f"{prefix}.error.total")
    scale = {x: v.floor or 1.0 for x, v in total.pairs}
    above, below = dict.fromkeys(scale, 0.0), dict.fromkeys(scale, 0.0)
    for part, (colour, text) in PARTS.items():
        found = {x: v.value / scale[x] for x, v in curve(values, f"{prefix}.error.{part}").pairs if v.value is not None}
        base = [(above if y >= 0 else below)[x] for x, y in found.items()]
        axes.bar(list(found), list(found.values()), 0.78, bottom=base, color=colour, label=text, zorder=2, linewidth=0)
        for x, y in found.items():
            (above if y >= 0 else below)[x] += y
    room(axes, 1.0)
    axes.set_ylim(bottom=min(0.0, 1.05 * min(below.values(), default=0.0)))
    axes.axhline(1.0, color=INK, linestyle=":", linewidth=1, zorder=3)
    axes.set_title("Where does the error come from?\n(÷ squared error of the mean; perfect: all grey)")
    legend(axes)


def movement(axes: Axes, values: Values, prefix: str) -> None:
    """How much of the ideal movement the rollout makes, and whether its map stretches errors."""
    draw(axes, curve(values, f"{prefix}.movement"), OWN, "o", "-", "along the best path")
    draw(axes, curve(values, f"{prefix}.travel"), PALETTE[1], "s", "-", "length of the path")
    room(axes, 0.0, 1.25)
    bar(axes, 1.0, "moves as far as it should")
    bar(axes, 0.0, "does not move", "-")
    exponent = values.get(f"{prefix}.lyapunov")
    told = "" if exponent is None or exponent.value is None else f"\n(one step scales errors ×{factor(exponent)})"
    axes.set_title(f"Does it move?{told}")
    legend(axes)


def factor(exponent: Value) -> str:
    """exp of an exponent per step."""
    return f"{math.exp(min(exponent.value or 0.0, 50.0)):.2f}"


def ratios(axes: Axes, values: Values, prefix: str) -> None:
    """Spread–skill ratio: 1 where samples differ from each other as much as from the truth."""
    found = curve(values, f"{prefix}.spread_skill")
    draw(axes, found, OWN, "o")
    room(axes, 0.0, 1.3)
    axes.set_ylim(bottom=0)
    bar(axes, 1.0, "perfect: spread = error")
    axes.set_title("Do samples know their error?\n(spread ÷ error; below 1: too sure)")


def manifold(axes: Axes, values: Values, prefix: str) -> None:
    """Fréchet distance of samples to the truth beside that of truth to truth."""
    found = curve(values, f"{prefix}.frechet")
    draw(axes, found, OWN, "o", "-", "samples to true frames")
    axes.plot(*ceilings(found), "--", color=INK, linewidth=1.2, label="true to true frames", zorder=4)
    top = max([y for y in found.y if y == y], default=1.0)
    if top > 8 * max(ceilings(found)[1], default=top):
        decades(axes)
    else:
        axes.set_ylim(0, 1.2 * max([y for y in (*found.high, *found.y, *ceilings(found)[1]) if y == y], default=1.0))
    axes.set_title("Do samples look like true frames?\n(Fréchet distance between speakers)")
    legend(axes)


def frequencies(axes: Axes, values: Values, prefix: str) -> None:
    """Power of sampled against true trajectories, with the difference of two halves of the truth as a band."""
    found = curve(values, f"{prefix}.spectrum")
    halves = values.get(f"{prefix}.spectral_halves")
    if halves is not None and halves.value is not None:
        axes.axhspan(-halves.value, halves.value, color=FAINT, alpha=0.3, linewidth=0, label="two halves of the truth")
    draw(axes, found, OWN, "o", "-", "samples")
    room(axes, -1.0, 1.0)
    bar(axes, 0.0, "as the truth", "-")
    axes.set_xlabel("frequency, cycles in the rollout")
    axes.set_title("Do samples move like the truth?\n(power ÷ true power, dB)")
    legend(axes)
