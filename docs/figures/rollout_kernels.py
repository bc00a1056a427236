"""Draws the mechanism of the fused rollout for docs/kernels.md: `python docs/figures/rollout_kernels.py` writes rollout_kernels.svg."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl
from arlat_diag.figures import FAINT, INK, PALETTE, STYLE, svg
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

CHIP, AUTOGRAD, BACK, WEIGHTS = PALETTE[0], PALETTE[2], PALETTE[1], PALETTE[3]
STEPS = (("step 1", 3.0), ("step k", 36.0), ("step K", 69.0))  # name and left edge
STEP_WIDTH = 28.0
Box = tuple[float, float, float, float]  # left, bottom, width, height


def box(axes: Axes, at: Box, text: str, colour: str, tint: float = 0.12, size: float = 8.0) -> None:
    """A box with a text in its middle."""
    x, y, width, height = at
    face = (*mpl.colors.to_rgb(colour), tint)
    shape = "round,pad=0,rounding_size=0.8"
    axes.add_patch(FancyBboxPatch((x, y), width, height, shape, facecolor=face, edgecolor=colour, linewidth=0.9))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=INK, linespacing=1.25)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    """An arrow from one point to another."""
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    )


def title(axes: Axes, y: float, head: str, rest: str, colour: str) -> None:
    """The heading of a stage, which leaves the right margin to an arrow."""
    axes.text(1, y, head, fontsize=9.5, fontweight="bold", color=colour, va="center")
    axes.text(94, y, rest, fontsize=8, color=INK, va="center", ha="right")


def memory(axes: Axes, y: float, arrays: tuple[tuple[Box, str], ...]) -> None:
    """A strip of arrays in the device's memory."""
    axes.add_patch(Rectangle((0, y - 1), 100, 8.6, facecolor="#eef0f3", edgecolor="none", zorder=0))
    axes.text(0.6, y + 3.3, "memory", rotation=90, fontsize=7.5, color=FAINT, ha="left", va="center")
    for (x, _, width, height), text in arrays:
        box(axes, (x, y, width, height), text, FAINT, tint=0.0, size=7.6)


def recurrence(axes: Axes, y: float, parts: tuple[str, str, str], colour: str, backward: bool, carried: str) -> None:
    """The steps of one program, each of three parts, and what goes from step to step."""
    shares = (0.23, 0.48, 0.29)
    for name, x in STEPS:
        box(axes, (x, y, STEP_WIDTH, 9.0), "", colour, tint=0.05)
        axes.text(x + 0.8, y + 7.7, name, fontsize=7.6, fontweight="bold", color=colour, va="center")
        left = x + 0.8
        for share, part in zip(shares, parts, strict=True):
            width = share * (STEP_WIDTH - 1.6)
            box(axes, (left + 0.2, y + 0.8, width - 0.4, 5.6), part, colour, size=7.0)
            left += width
    for (_, x), (_, after) in itertools.pairwise(STEPS):
        earlier, later = (x + STEP_WIDTH, y + 3.6), (after, y + 3.6)
        arrow(axes, later if backward else earlier, earlier if backward else later, colour)
        axes.text((x + STEP_WIDTH + after) / 2, y + 5.0, carried, fontsize=8, ha="center", color=colour)


def forward(axes: Axes) -> None:
    """The first stage and what it leaves."""
    title(
        axes,
        98.5,
        "1  forward_kernel",
        "one launch; a program takes a tile of rows of one model through all K steps",
        CHIP,
    )
    axes.text(
        3,
        95.2,
        "on chip: the stream x of 64 rows in registers, 64 hidden units at a time, weights passing through shared memory (bfloat16)",
        fontsize=7.8,
    )
    recurrence(
        axes,
        84.5,
        ("window\n→ enter\n→ x", "l blocks: x ← x +\ndown·act(up·norm(x))", "head → v,\nκ, μ, log σ,\nthe step"),
        CHIP,
        False,
        "z",
    )
    memory(axes, 73.0, (
        ((3.0, 0, 22, 6.6), "states z\n[m b k d]"),
        ((28.0, 0, 34, 6.6), "κ, μ, log σ, 1 − cosine, squared error\nfive of [m b k]"),
        ((65.0, 0, 33, 6.6), "kept: norm(x) and its scale, before\neach block and the head [m l+1 k b s]"),
    ))  # fmt: skip
    for x in (14.0, 45.0, 81.5):
        arrow(axes, (x, 84.5), (x, 79.6), CHIP)


def losses(axes: Axes) -> None:
    """The second stage: what is not a kernel."""
    title(
        axes, 68.2, "2  plain autograd", "torch on small arrays: any loss, and no Bessel function in a kernel", AUTOGRAD
    )
    box(
        axes,
        (3, 59.5, 59, 6.0),
        "densities · masks of rows that ended · curricula · weights of teacher and state  →  loss",
        AUTOGRAD,
    )
    arrow(axes, (22, 73), (22, 65.5), AUTOGRAD)
    arrow(axes, (42, 73), (42, 65.5), AUTOGRAD)
    arrow(axes, (57, 59.5), (57, 47.0), AUTOGRAD)
    axes.text(56, 56.4, "gradients of states and of the five fields", fontsize=7.8, color=INK, va="center", ha="right")


def sweep(axes: Axes) -> None:
    """The third stage and what it leaves."""
    title(axes, 51.8, "3  sweep_kernel", "one launch; the same rows from the last step to the first", BACK)
    axes.text(3, 48.6, "hidden units are computed again; states gather from later steps", fontsize=7.8)
    recurrence(
        axes,
        38.0,
        ("∂ window\n→ ∂z", "blocks, last first:\nact(up·norm(x))\nonce more → ∂x", "∂ step and\nhead → ∂x"),
        BACK,
        True,
        "∂x",
    )
    arrow(axes, (96, 73), (96, 47.0), BACK)
    axes.text(95, 62.5, "norm(x), scale", fontsize=7.8, color=INK, va="center", ha="right")
    memory(axes, 26.5, (
        ((3.0, 0, 22, 6.6), "∂z of the states\n[m b k d]"),
        ((28.0, 0, 34, 6.6), "∂v of the direction [m k b d],\n∂κ, ∂μ, ∂log σ: three of [m k b]"),
        ((65.0, 0, 33, 6.6), "∂x before the first block and\nafter each [m l+1 k b s]"),
    ))  # fmt: skip
    for x in (14.0, 45.0, 81.5):
        arrow(axes, (x, 38.0), (x, 33.1), BACK)


def weights(axes: Axes) -> None:
    """The fourth stage: sums over steps and rows, in parts."""
    title(
        axes,
        21.7,
        "4  blocks_kernel, window_kernel",
        "no recurrence is left: all steps and rows at once, from ∂x with norm(x), and with the states",
        WEIGHTS,
    )
    columns, rows, left, bottom, width, height = 4, 3, 9.0, 4.0, 6.0, 4.0
    for column in range(columns):
        for row in range(rows):
            at = (left + column * width, bottom + row * height)
            face = (*mpl.colors.to_rgb(WEIGHTS), 0.12)
            axes.add_patch(Rectangle(at, width - 0.5, height - 0.5, facecolor=face, edgecolor=WEIGHTS, linewidth=0.8))
    axes.text(left + 12, 17.4, "chunks of hidden units  →", fontsize=7.6, ha="center", va="center")
    axes.text(6.6, bottom + 6, "parts of\nk·b rows", fontsize=7.6, ha="center", va="center", rotation=90)
    axes.text(left + 12, 2.0, "each field: one program, which sums its part", fontsize=7.6, ha="center", va="center")
    arrow(axes, (33.5, 10), (38, 10), WEIGHTS)
    box(axes, (38, 5.5, 21, 9.0), "partial sums\n[parts m l h s], …\n→ sum over parts", WEIGHTS)
    arrow(axes, (59, 10), (63, 10), WEIGHTS)
    box(axes, (63, 2.8, 35, 14.4), "gradients of up, its bias and down (blocks),\nenter (window); of head and other biases by\none product or sum of torch each.\nNo atomics, and the number of parts is fixed by\nshapes: same inputs, same bits.", WEIGHTS, size=7.6)  # fmt: skip


def mechanism() -> Figure:
    """The figure."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the bytes
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(9.6, 9.2), facecolor="white")
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.set(xlim=(0, 100), ylim=(0, 100))
        axes.axis("off")
        for stage in (forward, losses, sweep, weights):
            stage(axes)
    return figure


def main() -> None:
    """Writes the figure, on white, beside this file."""
    drawing = svg(mechanism()).decode()
    start = drawing.index(">", drawing.index("<svg")) + 1
    white = '<rect width="100%" height="100%" fill="white"/>'
    path = Path(__file__).parent / "rollout_kernels.svg"
    path.write_text(drawing[:start] + white + drawing[start:], encoding="utf-8")


if __name__ == "__main__":
    main()
