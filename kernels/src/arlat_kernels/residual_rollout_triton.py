"""The Triton twin of `residual_rollout`: memory, launches and gradients around the kernels of its two neighbours.

Imported only where Triton is installed. Sums over steps and rows that are one matrix product each (the head's and the
window's weights, the biases) are torch's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from arlat_kernels.mixture_triton import on_device
from arlat_kernels.residual_block import narrowed
from arlat_kernels.residual_rollout import (
    BOUND,
    LONGEST,
    SCALARS,
    ResidualRollout,
    ResidualWeights,
    check_options,
    check_shapes,
)
from arlat_kernels.residual_rollout_forward_triton import forward_kernel
from arlat_kernels.residual_rollout_gradient_triton import blocks_kernel, sweep_kernel, window_kernel
from arlat_kernels.residual_rollout_launch import (
    constants,
    drawing,
    gradient_tile,
    law,
    only,
    operand_dtype,
    sweep_tile,
    tile,
    window_tile,
)
from arlat_kernels.vmf_nll import SHORTEST, inverse, result_dtype, unit

FIELDS = SCALARS + 2  # κ, mu, log_sigma, gap, squared error
PROGRAMS = 512  # of the weight gradients, where there are rows enough; no device's figure, so that bits repeat


class Operands(NamedTuple):
    """Copies of the weights as the kernels read them; what is multiplied is in the operands' dtype."""

    enter: Tensor  # [M W D S]
    up: Tensor  # [M L H S]
    down: Tensor  # [M L H S]
    direction: Tensor  # [M S D]


def operands_of(net: ResidualWeights, operands: str) -> Operands:
    """The copies."""
    dim = net.enter.shape[-1]
    each = (net.enter.mT, net.up, net.down.mT, net.head[:, :dim].mT)
    dtype = operand_dtype(net.up.dtype, operands)
    return Operands(*(narrowed(tensor, operands).to(dtype).contiguous() for tensor in each))


@torch.library.custom_op("arlat::residual_rollout", mutates_args=())
def rollout_forward(
    frames: Tensor, given: Tensor, enter: Tensor, enter_bias: Tensor, up: Tensor, up_bias: Tensor, down: Tensor,
    down_bias: Tensor, head: Tensor, head_bias: Tensor, activation: str, bound: float, longest: float, operands: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Predicted [M B K D], fields [5 M K B] and, where `save`, what the backward pass needs; all of one float dtype."""
    net = ResidualWeights(enter, enter_bias, up, up_bias, down, down_bias, head, head_bias)
    return launch_forward(frames, given, net, activation, bound, longest, operands, save, (None, None, None))


def launch_forward(
    frames: Tensor, given: Tensor, net: ResidualWeights, activation: str, bound: float, longest: float, operands: str,
    save: bool, draws: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The results of `rollout_forward`; `draws` are the noise [M K B], seed and spread of a sampled rollout."""
    predicted, fields, normed, scale = empty_results(frames, given, net, operands, save)
    m, b, k = given.shape
    if predicted.numel() == 0:
        return predicted, fields, normed, scale
    frames = dense_rows(frames)
    copies = operands_of(net, operands)
    (layers, hidden, stream), dim = net.up.shape[1:], frames.shape[-1]
    fixed, sizes = constants(dim, stream, hidden, frames.dtype, activation, operands), tile(dim, stream, operands)
    with on_device(frames):
        forward_kernel[(triton.cdiv(b, sizes["ROWS"]), m)](
            frames, steps_first(given), copies.enter, net.enter_bias.contiguous(), copies.up, net.up_bias.contiguous(),
            copies.down, net.down_bias.contiguous(), copies.direction, net.head.contiguous(), net.head_bias.contiguous(),
            predicted, fields, normed, scale, *draws, b, k, net.enter.shape[1], layers, frames.stride(0),
            frames.stride(1), **fixed, **sizes, **law(bound, longest), SAVE=save,
            **drawing(draws[0] is not None, frames.dtype),
        )  # fmt: skip
    return predicted, fields, normed, scale


def empty_results(
    frames: Tensor, given: Tensor, net: ResidualWeights, operands: str, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for the four results; nothing of the two last where they are not to be saved."""
    m, b, k = given.shape
    layers, stream = net.up.shape[1] + 1, net.up.shape[-1]
    kept = (m, layers, k, b) if save else (0, layers, k, b)
    return (
        frames.new_empty(m, b, k, frames.shape[-1]),
        frames.new_empty(FIELDS, m, k, b),
        frames.new_empty(*kept, stream, dtype=operand_dtype(frames.dtype, operands)),
        frames.new_empty(kept),
    )


def dense_rows(frames: Tensor) -> Tensor:
    """`frames` itself where the frames of a row follow each other without gaps (models may share them), else a copy."""
    dense = frames.stride(-1) == 1 and frames.stride(-2) == frames.shape[-1]
    return frames if dense else frames.contiguous()


def steps_first(given: Tensor) -> Tensor:
    """given [m b k] as int8 [m k b]."""
    return given.mT.to(torch.int8).contiguous()


@rollout_forward.register_fake
def _(
    frames: Tensor, given: Tensor, enter: Tensor, enter_bias: Tensor, up: Tensor, up_bias: Tensor, down: Tensor,
    down_bias: Tensor, head: Tensor, head_bias: Tensor, activation: str, bound: float, longest: float, operands: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    net = ResidualWeights(enter, enter_bias, up, up_bias, down, down_bias, head, head_bias)
    return empty_results(frames, given, net, operands, save)


@torch.library.custom_op("arlat::residual_rollout_backward", mutates_args=())
def rollout_backward(
    grad_predicted: Tensor, grad_fields: Tensor, inputs: list[Tensor], saved: list[Tensor], activation: str,
    bound: float, longest: float, operands: str, of_frames: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of frames (nothing unless `of_frames`) and the eight weights; `saved` are the forward pass's results."""
    frames, given, *weights = inputs
    if grad_predicted.numel() == 0:
        return [tensor.new_zeros(tensor.shape) for tensor in (frames if of_frames else frames.new_empty(0), *weights)]
    net = ResidualWeights(*weights)
    frames = dense_rows(frames)
    predicted, fields, normed, scale = saved
    m, b, k = given.shape
    dim, stream = frames.shape[-1], net.up.shape[-1]
    w, layers, hidden = net.enter.shape[1], net.up.shape[1], net.up.shape[2]
    fixed = constants(dim, stream, hidden, frames.dtype, activation, operands)
    sizes, copies = sweep_tile(dim, stream, operands), operands_of(net, operands)
    grad_state, grad_stream = torch.empty_like(predicted), torch.empty_like(normed)
    grad_direction, grad_scalars = normed.new_empty(m, k, b, dim), fields.new_empty(SCALARS, m, k, b)
    with on_device(frames):
        sweep_kernel[(triton.cdiv(b, sizes["ROWS"]), m)](
            frames, steps_first(given), copies.enter, copies.up, net.up_bias.contiguous(), copies.down, copies.direction,
            net.head.contiguous(), net.head_bias.contiguous(), predicted, fields, normed, scale,
            grad_predicted.contiguous(), grad_fields.contiguous(), grad_state, grad_stream, grad_direction,
            grad_scalars, b, k, w, layers, frames.stride(0), frames.stride(1), **fixed, **sizes,
            **law(bound, longest),
        )  # fmt: skip
    of_blocks = block_gradients(net, copies, normed, grad_stream, fixed, operands)
    last = normed[:, -1].to(frames.dtype).flatten(1, 2)
    of_head = torch.cat([grad_direction.to(frames.dtype).flatten(1, 2).mT, grad_scalars.movedim(0, 1).flatten(2)], 1)
    return [
        frames_gradient(frames, given, net, saved, grad_fields, grad_state, grad_stream[:, 0], operands)
        if of_frames
        else frames.new_empty(0),
        window_gradient(frames, given, predicted, grad_stream, net.enter, operands, fixed),
        grad_stream[:, 0].sum((1, 2), dtype=frames.dtype),
        *of_blocks,
        grad_stream[:, 1:].sum((2, 3), dtype=frames.dtype),
        of_head @ last,
        of_head.sum(-1),
    ]


@rollout_backward.register_fake
def _(
    grad_predicted: Tensor, grad_fields: Tensor, inputs: list[Tensor], saved: list[Tensor], activation: str,
    bound: float, longest: float, operands: str, of_frames: bool,
) -> list[Tensor]:  # fmt: skip
    frames, _, *weights = inputs
    return [tensor.new_empty(tensor.shape) for tensor in (frames if of_frames else frames.new_empty(0), *weights)]


def block_gradients(
    net: ResidualWeights, copies: Operands, normed: Tensor, grad_stream: Tensor, fixed: dict[str, Any], operands: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of up [m l h s], up_bias [m l h] and down [m l s h], summed in parts of a size that shapes alone decide."""
    m, layers, hidden, stream = net.up.shape
    rows = normed.shape[2] * normed.shape[3]
    sizes = gradient_tile(stream, operands)
    columns = hidden // sizes["CHUNK"]
    each, parts = shares(rows, sizes["ROWS"], max(1, columns * layers * m))
    up, down = (net.up.new_empty(parts, *net.up.shape) for _ in range(2))
    bias = net.up_bias.new_empty(parts, *net.up_bias.shape)
    if layers:
        with on_device(up):
            blocks_kernel[(columns, m * layers, parts)](
                normed, grad_stream, copies.up, net.up_bias.contiguous(), copies.down, up, bias, down, rows, layers, each,
                **only(blocks_kernel, fixed), **sizes,
            )  # fmt: skip
    return up.sum(0), bias.sum(0), down.sum(0).mT


def window_gradient(
    frames: Tensor, given: Tensor, predicted: Tensor, grad_stream: Tensor, enter: Tensor, operands: str,
    fixed: dict[str, Any],
) -> Tensor:  # fmt: skip
    """The gradient [m w s d] of enter, summed in parts like those of the blocks."""
    m, w, stream, dim = enter.shape
    b, k = given.shape[1:]
    sizes = window_tile(dim, stream, operands)
    each, parts = shares(b * k, sizes["ROWS"], w * m)
    total = enter.new_empty(parts, *enter.shape)
    with on_device(frames):
        window_kernel[(w, m, parts)](
            frames, predicted, steps_first(given), grad_stream, total, b, k, w, grad_stream.shape[1] - 1, each,
            frames.stride(0), frames.stride(1), **only(window_kernel, fixed), **sizes,
        )  # fmt: skip
    return total.sum(0)


def shares(rows: int, tile_rows: int, columns: int) -> tuple[int, int]:
    """Tiles of rows that one part sums, and parts, where each part takes `columns` programs."""
    tiles = triton.cdiv(rows, tile_rows)
    each = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, columns)))
    return each, triton.cdiv(tiles, each)


def frames_gradient(
    frames: Tensor, given: Tensor, net: ResidualWeights, saved: list[Tensor], grad_fields: Tensor, grad_state: Tensor,
    grad_entering: Tensor, operands: str,
) -> Tensor:  # fmt: skip
    """The gradient [m b w+k d] of the frames: as the true steps, and where they are given as states and in windows."""
    predicted, _, normed, _ = saved
    w, k, dim = net.enter.shape[1], given.shape[-1], frames.shape[-1]
    total, grad = torch.zeros_like(frames), grad_entering.to(frames.dtype)
    total[:, :, w - 1 : w - 1 + k] += grad_state
    for j, matrix in enumerate(narrowed(net.enter, operands).unbind(1)):
        of_feature, newer = (grad @ matrix[:, None]).transpose(1, 2), w - 1 - max(0, j - 1)
        total[:, :, newer : newer + k] += of_feature
        if j > 0:
            total[:, :, newer - 1 : newer - 1 + k] -= of_feature
    total[:, :, w:] *= given[..., None]
    of_gap, of_error = (part.mT[..., None] for part in grad_fields[SCALARS:])
    direction = narrowed(net.head[:, None, :dim], operands).mT
    v = normed[:, -1].to(frames.dtype) @ direction + net.head_bias[:, None, None, :dim]
    v, v_length = (part.transpose(1, 2) for part in unit(v))
    u, length = unit(frames[:, :, w:] - frames[:, :, w - 1 : -1])
    away = torch.where((v_length > SHORTEST)[..., None], u - v, 0.0)
    away = away - (away * u).sum(-1, keepdim=True) * u
    of_step = of_gap * inverse(length)[..., None] * away
    total[:, :, w:] += of_step - 2 * of_error * (predicted - frames[:, :, w:])
    total[:, :, w - 1 : -1] -= of_step
    return total


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:10], *output)
    ctx.options = inputs[10:14]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_predicted: Tensor | None, grad_fields: Tensor | None, *_: Any) -> tuple[Any, ...]:
    *inputs, predicted, fields, normed, scale = ctx.saved_tensors
    saved = [predicted, fields, normed, scale]
    upstream = [
        tensor.new_zeros(tensor.shape) if grad is None else grad
        for grad, tensor in ((grad_predicted, predicted), (grad_fields, fields))
    ]
    of_frames = ctx.needs_input_grad[0]
    first, *others = rollout_backward(*upstream, list(inputs), saved, *ctx.options, of_frames)
    return first if of_frames else None, None, *others, None, None, None, None, None


rollout_forward.register_autograd(_gradients, setup_context=_save)


def residual_rollout_triton(
    *inputs: Tensor,
    activation: str = "silu",
    bound: float = BOUND,
    longest: float = LONGEST,
    operands: str = "float32",
) -> tuple[Tensor, ...]:
    """What `residual_rollout_reference` gives; once differentiable."""
    frames, given, *weights = inputs
    check_shapes(frames, given, ResidualWeights(*weights))
    check_options(activation, bound, longest, operands)
    dtype = result_dtype(frames)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    predicted, fields, _, _ = rollout_forward(
        frames.to(dtype), given, *(tensor.to(dtype) for tensor in weights), activation, bound, longest, operands, save
    )
    return ResidualRollout(predicted, *fields.mT.unbind(0))
