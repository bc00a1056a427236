"""P2's plots: what direction and length are worth apart, and whether κ and σ mean what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arlat_core.types import Value

from arlat_diag.figures import FAINT, INK, PALETTE, Values, bar, canvas, draw, room, svg
from arlat_diag.series import Line, curve, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIRECTION, LENGTH, WHOLE = PALETTE[0], PALETTE[1], PALETTE[5]
BARS = (
    ("dnll_dir_uniform", "direction\nagainst uniform", DIRECTION),
    ("dnll_dir_marginal", "… against marginal", DIRECTION),
    ("dnll_mag_marginal", "length\nagainst marginal", LENGTH),
    ("dnll_b0f", "both against\nmarginals (B0f)", WHOLE),
    ("dnll_b5", "both against\nno dynamics (B5)", WHOLE),
)


def decomposition(name: str, values: Values) -> bytes:
    """The row of panels of one representation as SVG."""
    with canvas(1, 4, 11.0, 3.3) as (figure, (grid,)):
        figure.set_layout_engine("constrained", w_pad=0.08)
        parts(grid[0], values)
        concentration(grid[1], values)
        spread(grid[2], values)
        transforms(grid[3], values)
        figure.suptitle(label(name, 90), x=0.008, ha="left", fontsize=10, fontweight="bold")
        return svg(figure)


def parts(axes: Axes, values: Values) -> None:
    """ΔNLL of direction, length and the whole, with intervals and floors."""
    for row, (key, _, colour) in enumerate(BARS):
        value, y = values.get(f"p2.{key}"), len(BARS) - 1 - row
        if value is None or value.value is None:
            continue
        axes.barh(y, value.value, color=colour, height=0.6, alpha=0.85, zorder=2)
        if value.low is not None and value.high is not None:
            axes.plot([value.low, value.high], [y, y], color=INK, linewidth=1.4, zorder=3)
        if value.floor:
            tick(axes, value.floor, y, ":", "mean reversion")
    beside = values.get("p2.var_dnll_dir_uniform")
    if beside is not None and beside.value is not None:
        tick(axes, beside.value, len(BARS) - 1, "-", "linear VAR")
    mixture = values.get("p1.h1.dnll_b5")
    if mixture is not None and mixture.value is not None:
        tick(axes, mixture.value, 0, "--", "P1's mixture")
    axes.set_yticks(range(len(BARS)), [text for _, text, _ in reversed(BARS)])
    axes.set_ylim(-0.6, len(BARS) - 0.4)
    axes.axvline(0, color=INK, linewidth=1)
    axes.grid(axis="y", visible=False)
    axes.set_title("what is known")
    axes.set_xlabel("ΔNLL, nats/frame")
    below(axes)


def tick(axes: Axes, x: float, y: float, style: str, text: str) -> None:
    """A short vertical line across one bar."""
    axes.plot([x, x], [y - 0.42, y + 0.42], style, color=INK, linewidth=1.5, label=text, zorder=4)


def below(axes: Axes) -> None:
    """A legend below the panel, where it hides nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, columnspacing=1.0, handlelength=1.4)


def concentration(axes: Axes, values: Values) -> None:
    """Mean cosine against the mean A(κ) that was promised, by bins of κ; the diagonal is calibrated."""
    promised = curve(values, "p2.calibration.kappa_expected")
    found = against(curve(values, "p2.calibration.kappa"), promised)
    draw(axes, found, DIRECTION, "o", "-", "found")
    ends = [x for x in (*found.x, *found.y) if x == x]
    if ends:
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=INK, linewidth=1, label="calibrated", zorder=1)
    null = values.get("p2.cosine_null")
    if null is not None and null.value is not None and ends and min(ends) < 2 * null.value:
        axes.axhspan(-null.value, null.value, color=FAINT, alpha=0.18, linewidth=0, label="unrelated ±1/√D")
    axes.set_title("does κ mean what it says?")
    axes.set_xlabel("cosine that κ promises, A(κ)")
    axes.set_ylabel("mean cosine")
    below(axes)


def against(found: Line, promised: Line) -> Line:
    """The points of `found` at the values of `promised`."""
    place: dict[float, Value] = dict(promised.pairs)
    known = tuple((x, v) for i, v in found.pairs if i in place and (x := place[i].value) is not None)
    return Line(known)


def spread(axes: Axes, values: Values) -> None:
    """Standard deviation of (log m − μ)/σ by bins of σ; 1 is calibrated."""
    found = against(curve(values, "p2.calibration.sigma"), curve(values, "p2.calibration.sigma_predicted"))
    draw(axes, found, LENGTH, "s", "-", "found")
    room(axes, 1.0)
    bar(axes, 1.0, "calibrated", "-")
    axes.set_title("does σ mean what it says?")
    axes.set_xlabel("σ of log length, predicted")
    axes.set_ylabel("standard deviation ÷ σ")


def transforms(axes: Axes, values: Values) -> None:
    """Density of the probability integral transforms; 1 everywhere is calibrated."""
    for key, colour, marker, text in (("cosine", DIRECTION, "o", "cosine"), ("length", LENGTH, "s", "log length")):
        line = curve(values, f"p2.calibration.{key}.pit")
        draw(axes, line.at([(x - 0.5) / len(line.x) for x in line.x]), colour, marker, "-", text)
    axes.axhline(1, color=INK, linewidth=1, label="calibrated", zorder=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max(1.5, axes.get_ylim()[1]))
    axes.set_title("… and the whole law?")
    axes.set_xlabel("quantile of the forecast")
    axes.set_ylabel("density of frames")
    below(axes)
