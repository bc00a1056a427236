"""The report's plots: SVG bytes that are the same for the same figures, one colour and marker per representation."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from arlat_core.types import Value

from arlat_diag.series import Line, curve, horizons, label, numbered, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#3566a8", "#c4622d", "#3b8a68", "#84569c", "#a8842a", "#3f8f9e", "#a3455c", "#5f6670")
MARKERS = "osD^vPX*"
MODES = {"A": "#3b8a68", "B": "#3566a8", "C": "#a8842a", "D": "#c4622d", "S": "#84569c", "E": "#3f8f9e"}
INK, FAINT = "#2b3038", "#8b919b"
Values = Mapping[str, Value]
Look = Mapping[str, tuple[str, str]]  # name -> colour, marker

STYLE: Any = {
    "svg.hashsalt": "arlat",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a name that holds $ is a name
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9dce1",
    "grid.linewidth": 0.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def canvas(rows: int, columns: int, width: float, height: float, **options: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure of `rows` × `columns` axes under the report's style, without pyplot's global state."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the bytes
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def svg(figure: Figure) -> bytes:
    """The figure's SVG, without a date."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "arlat"})
    return buffer.getvalue()


def colours(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Name -> (colour, marker), the same in every figure of a report."""
    size = len(PALETTE)
    return {name: (PALETTE[i % size], MARKERS[(i + i // size) % len(MARKERS)]) for i, name in enumerate(names)}


def draw(axes: Axes, line: Line, colour: str, marker: str = "o", style: str = "-", text: str | None = None) -> None:
    """One series with its interval as a band; nothing, and no entry in a legend, where there is no point."""
    if not line.pairs:
        return
    axes.plot(line.x, line.y, style, color=colour, marker=marker, label=text, zorder=3)
    if line.has_band:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0, zorder=2)


def width_of(columns: int) -> float:
    """Inches of a row of small panels, so that they fill the page and no more."""
    return min(11.0, 1.6 + 2.6 * columns)


def bar(axes: Axes, y: float, text: str, style: str = ":") -> None:
    """A horizontal line that says what it is."""
    axes.axhline(y, color=INK, linestyle=style, linewidth=1, zorder=1)
    axes.annotate(
        text, (1, y), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7.5, color=INK, zorder=4,
        xytext=(0, 1.5), textcoords="offset points",
    )  # fmt: skip


def room(axes: Axes, *levels: float) -> None:
    """Widens the y range so that `levels` and their labels are inside."""
    low, high = axes.get_ylim()
    low, high = min(low, *levels), max(high, *levels)
    margin = 0.1 * (high - low or 1)
    axes.set_ylim(low - margin, high + margin)


def trap(results: Mapping[str, Values], look: Look) -> bytes:
    """The first figure: ΔNLL_B0 above, ΔNLL_B5 below, against the horizon, one column per representation."""
    with canvas(2, len(results), width_of(len(results)), 5.0, sharex=True) as (figure, grid):
        for column, (name, values) in enumerate(results.items()):
            steps = horizons(values)
            for row, baseline in enumerate(("dnll_b0", "dnll_b5")):
                axes = grid[row][column]
                colour, marker = look[name]
                draw(axes, points(values, f"p1.h{{}}.{baseline}", steps), colour, marker, "-", "network")
                draw(axes, points(values, f"p1.h{{}}.var_{baseline}", steps), FAINT, marker, "--", "linear VAR")
                floor = values.get(f"p1.h{steps[0]}.dnll_b0") if steps and row == 0 else None
                level = floor.floor if floor is not None else None
                if row == 0 and level is not None:
                    axes.axhline(level, color=INK, linestyle=":", linewidth=1, label="floor: white noise alone")
                if row == 1:
                    room(axes, 0.0)
                    bar(axes, 0.0, "the past tells nothing", "-")
                axes.set_xscale("log", base=2)
                axes.set_xticks(steps, [str(step) for step in steps])
                axes.minorticks_off()
            grid[0][column].set_title(label(name, 26))
            grid[1][column].set_xlabel("horizon h, frames")
        grid[0][0].set_ylabel("ΔNLL_B0, nats/frame\n(lower looks easier)")
        grid[1][0].set_ylabel("ΔNLL_B5, nats/frame\n(what is really known)")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.align_ylabels()
        return svg(figure)


def rates(results: Mapping[str, Values], look: Look) -> bytes:
    """Information rate at horizon 1 of each representation, with intervals."""
    found = {name: value for name, values in results.items() if (value := values.get("p1.h1.information_rate"))}
    found = {name: value for name, value in found.items() if value.value is not None}
    with canvas(1, 1, 8.2, 0.6 + 0.42 * max(1, len(found))) as (figure, grid):
        axes = grid[0][0]
        for row, (name, value) in enumerate(found.items()):
            y = len(found) - 1 - row
            axes.barh(y, value.value, color=look[name][0], height=0.55, alpha=0.85, zorder=2)
            if value.low is not None and value.high is not None:
                axes.plot([value.low, value.high], [y, y], color=INK, linewidth=1.4, zorder=3)
        axes.set_yticks(range(len(found)), [label(name, 44) for name in reversed(found)])
        axes.set_ylim(-0.6, max(1, len(found)) - 0.4)
        axes.axvline(0, color=INK, linewidth=1)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("bit/s that the past tells of the next frame (floor 0)")
        return svg(figure)


def cosines(results: Mapping[str, Values], look: Look) -> bytes:
    """Direction cosine against the horizon: network, VAR, floor and null spread, one panel per representation."""
    with canvas(1, len(results), width_of(len(results)), 2.7, sharey=True) as (figure, grid):
        for column, (name, values) in enumerate(results.items()):
            axes, steps = grid[0][column], horizons(values)
            draw(axes, points(values, "p1.h{}.cosine", steps), *look[name], "-", "network")
            draw(axes, points(values, "p1.h{}.var_cosine", steps), FAINT, look[name][1], "--", "linear VAR")
            draw(axes, points(values, "p1.h{}.cosine_floor", steps), INK, "", ":", "floor: mean reversion")
            null = values.get("p1.h1.cosine_null")
            if null is not None and null.value is not None:
                axes.axhspan(-null.value, null.value, color=FAINT, alpha=0.18, linewidth=0, label="unrelated ±1/√D")
            axes.set_xscale("log", base=2)
            axes.set_xticks(steps, [str(step) for step in steps])
            axes.minorticks_off()
            axes.set_title(label(name, 26))
            axes.set_xlabel("horizon h, frames")
        room(grid[0][0], 0.0)
        grid[0][0].set_ylabel("direction cosine")
        figure.legend(
            *grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2 if len(results) == 1 else 4
        )
        return svg(figure)


def geometry(
    results: Mapping[str, Values], look: Look, rates_hz: Mapping[str, float], bins: Mapping[str, list[float]]
) -> bytes:
    """Autocorrelation against time, and power relative to white noise against frequency, all representations together."""
    with canvas(1, 2, 9.2, 3.2) as (figure, (panels,)):
        for name, values in results.items():
            rho = curve(values, "p4.rho")
            draw(panels[0], rho.scaled(1000 / rates_hz[name]), *look[name], "-", label(name, 40))
            power = curve(values, "p4.spectrum")
            hertz = bins.get(name, [])
            known = power.take([i for i, x in enumerate(power.x) if int(x) < len(hertz)])
            known = known.at([hertz[int(x)] for x in known.x])
            draw(panels[1], known, *look[name], "-", None)
        bar(panels[0], 0.0, "white noise", "-")
        panels[0].set_xlabel("lag, ms")
        panels[0].set_ylabel("autocorrelation ρ")
        panels[1].set_yscale("log")
        numbered(panels[1].yaxis)
        bar(panels[1], 1.0, "white noise", "-")
        panels[1].set_xlabel("frequency of the latents, Hz")
        panels[1].set_ylabel("power ÷ white noise")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return svg(figure)


def rollout(name: str, values: Values, prefix: str = "r1") -> bytes:
    """Per-step curves under `prefix` of one representation, with ceilings, floors and the null spread.

    Beside a model that was trained on rollouts (R2) stands the one-step predictor's D.
    """
    panels = (
        ("cosine", "direction cosine"),
        ("magnitude_ratio", "step length ÷ true length"),
        ("state_error", "state error"),
        ("dnll_b5", "ΔNLL_B5, nats/frame"),
    )
    with canvas(1, 4, 11.0, 3.1) as (figure, (grid,)):
        for axes, (key, text) in zip(grid, panels, strict=True):
            for mode, colour in MODES.items():
                draw(axes, curve(values, f"{prefix}.{mode}.{key}"), colour, "", "-", MODE_TEXT[mode])
            if prefix != "r1":
                before = curve(values, f"r1.D.{key}")
                axes.plot(before.x, before.y, "-.", color=MODES["D"], linewidth=1.1, label="D of P1's predictor")
            perfect = curve(values, f"{prefix}.var.D.{key}")
            axes.plot(perfect.x, perfect.y, "--", color=INK, linewidth=1.1, label="D of the linear VAR", zorder=2)
            decorate(axes, key, values, prefix)
            axes.set_title(text)
            axes.set_xlabel("step")
            last = max([16.0, *perfect.x])
            axes.set_xticks([1, *(round(last * part / 4) for part in (1, 2, 3, 4))])
        figure.suptitle(label(name, 90), x=0.008, ha="left", fontsize=10, fontweight="bold")
        shown = {text: line for axes in grid for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=5)
        return svg(figure)


MODE_TEXT = {
    "A": "A: truth after every step",
    "B": "B: truth after 4, 8, 12",
    "C": "C: truth after 1",
    "D": "D: never (mean rollout)",
    "S": "S: never (sampled)",
    "E": "E: truth + noise of D's size",
}


def decorate(axes: Axes, key: str, values: Values, prefix: str) -> None:
    """What a perfect and an ignorant model would do, drawn into one panel of `rollout`."""
    if key == "cosine":
        floor = [(x, v.floor) for x, v in curve(values, f"{prefix}.D.cosine").pairs if v.floor is not None]
        axes.plot(
            [x for x, _ in floor], [y for _, y in floor], ":", color=INK, linewidth=1.1, label="D of mean reversion"
        )
        null = values.get("r1.cosine_null")
        if null is not None and null.value is not None:
            axes.axhspan(-null.value, null.value, color=FAINT, alpha=0.18, linewidth=0, label="unrelated ±1/√D")
    elif key == "magnitude_ratio":
        room(axes, 0.0, 1.0)
        bar(axes, 1.0, "true length")
    elif key == "state_error":
        far = values.get(f"{prefix}.D.state_error[1]")
        if far is not None and far.floor is not None:
            room(axes, 0.0, far.floor)
            bar(axes, far.floor, "random frames", "-")
        for forecaster, style in (("persistence", (0, (1, 1))), ("analog", (0, (4, 1, 1, 1)))):
            known = curve(values, f"r3.{forecaster}.state_error")
            if known.pairs:
                axes.plot(known.x, known.y, linestyle=style, color=FAINT, linewidth=1.1, label=forecaster)
        if axes.get_ylim()[1] > 50 * (far.floor if far is not None and far.floor else 1e9):
            axes.set_yscale("symlog", linthresh=far.floor if far is not None and far.floor else 1.0)
            numbered(axes.yaxis)
    else:
        room(axes, 0.0)
        bar(axes, 0.0, "knows nothing", "-")


GROUPS = {
    "ΔNLL_B0, nats": ("dnll_b0",),
    "ΔNLL_B5, nats": ("dnll_b5", "dnll_b5_gaussian"),
    "cosine and ρ": ("cosine", "var_cosine", "cosine_floor", "rho"),
    "length ratio, R²": ("logmag_r2", "magnitude_ratio", "magnitude_ratio_median"),
    "state error": ("state_error",),
}


def calibration(entries: Sequence[tuple[str, Value, bool]]) -> bytes:
    """Measured against true value of (key, value, agrees), a panel per quantity; the diagonal is agreement."""
    grouped = {
        title: [(v, good) for key, v, good in entries if key.split(".")[-1].split("[")[0] in kinds]
        for title, kinds in GROUPS.items()
    }
    grouped = {title: rows for title, rows in grouped.items() if rows}
    with canvas(1, max(1, len(grouped)), width_of(len(grouped)), 2.8) as (figure, (grid,)):
        for axes, (title, rows) in zip(grid, grouped.items(), strict=False):
            for verdict, colour, text in ((True, PALETTE[2], "holds"), (False, "#b3261e", "does not hold")):
                some = [v for v, good in rows if good is verdict and v.truth is not None and v.value is not None]
                axes.scatter(
                    [v.truth for v in some], [v.value for v in some], s=14, color=colour, label=text, alpha=0.7,
                    linewidths=0, zorder=3, marker="o" if verdict else "X",
                )  # fmt: skip
            ends = [number for v, _ in rows for number in (v.truth, v.value) if number is not None] or [0.0, 1.0]
            low, high = min(ends), max(ends)
            axes.plot([low, high], [low, high], color=INK, linewidth=0.9, zorder=1)
            if high - low > 100:
                for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
                    scale("symlog", linthresh=1.0)
                    numbered(axis)
            axes.set_title(title)
            axes.set_xlabel("closed form")
        grid[0].set_ylabel("measured")
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return svg(figure)
