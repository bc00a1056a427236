"""One step of a rollout as one compiled program, and the gradient of each weight as one product over all steps and rows.

Autograd makes the gradient of a weight that is used k times of k products and k − 1 sums. Here a step is given each layer's bias as
a tensor [rows out] of its own, whose gradient is the one at the layer's output; it hands back the layer's inputs. When all are
known, inputs and gradients of all steps meet in one product. Nothing of the model is written down a second time: a mode of
torch's own function protocol stands where `linear` is called, in any model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from arlat_dynamics.base import Dynamics, State
from arlat_dynamics.rolled import Step, one_step, point

BACKEND = "inductor"
NOTED: WeakKeyDictionary[Dynamics, dict[tuple[object, ...], list[Call]]] = WeakKeyDictionary()
VARIANTS = 64  # programs that the compiler keeps of the step: of models, batches, precisions, and of a first step


class Call(NamedTuple):
    """A call of `linear` in a step: its parameters, the rows of its input, and the type that it computes in."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    rows: int
    dtype: torch.dtype


class Linears(TorchFunctionMode):
    """Stands in for calls of `linear` with trained weights. Without biases it notes them; with biases it makes their products.

    Attributes:
        calls: What was noted, in order.
        biases: [rows out] for each call, in order.
        weights: [out in] for each call, which get no gradient here.
        inputs: [rows in] of the calls that were made, without gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.biases: list[Tensor] | None = None
        self.weights: list[Tensor] = []
        self.inputs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every function of torch comes by here while the mode is on."""
        kwargs = kwargs or {}
        if func is not linear or not isinstance(args[1], nn.Parameter):
            return func(*args, **kwargs)
        x, rows = args[0], args[0].numel() // args[0].shape[-1]
        if self.biases is None:
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            self.calls.append(Call(args[1], bias, rows, computed_in(x.device.type, args[1].dtype)))
            return func(*args, **kwargs)
        weight, bias = self.weights[len(self.inputs)], self.biases[len(self.inputs)]
        flat = x.reshape(rows, x.shape[-1]).to(weight.dtype)
        self.inputs.append(flat.detach())
        return torch.addmm(bias, flat, weight.mT).view(*x.shape[:-1], weight.shape[0])


def computed_in(device: str, dtype: torch.dtype) -> torch.dtype:
    """The type of products of weights of `dtype` here and now."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


@dataclass
class Uses:
    """What the k uses of one weight had, first to last: inputs [rows in], and gradients [rows out] at the outputs."""

    inputs: list[Tensor] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def products(self) -> tuple[Tensor, Tensor]:
        """The gradients of the weight and of the bias; the uses are forgotten."""
        known = sorted(self.gradients)
        x, g = torch.cat([self.inputs[at] for at in known]), torch.cat([self.gradients[at] for at in known])
        self.inputs.clear()
        self.gradients.clear()
        return g.mT @ x, g.sum(0)


class Together(torch.autograd.Function):
    """A layer's bias [out] (zeros where it has none), whose backward pass, after that of all uses, makes both gradients."""

    @staticmethod
    def forward(ctx: Any, call: Call, uses: Uses, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The bias, in the type of the products."""
        ctx.uses, ctx.like = uses, (weight, bias)
        return weight.new_zeros(len(weight), dtype=call.dtype) if bias is None else bias.to(call.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        """The products; a weight whose uses had no gradient has none."""
        weight, bias = ctx.like
        if not ctx.uses.gradients:
            return None, None, None, None
        of_weight, of_bias = ctx.uses.products()
        return None, None, of_weight.to(weight.dtype), None if bias is None else of_bias.to(bias.dtype)


class Use(torch.autograd.Function):
    """The bias [out] for every row of the `at`-th use; its backward pass keeps the gradient of each."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, uses: Uses, at: int, rows: int) -> Tensor:
        """[rows out]."""
        ctx.uses, ctx.at = uses, at
        ctx.set_materialize_grads(False)
        return bias.detach().expand(rows, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[None, ...]:
        """Nothing goes on from here: `Together` has all."""
        if gradient is not None:
            ctx.uses.gradients[ctx.at] = gradient
        return None, None, None, None


class CompiledStep:
    """`arlat_dynamics.rolled.one_step` of a mean rollout, for the steps of one rollout.

    The calls of `linear` are noted at a model's first step, by making it once. A state must keep its shapes, or every step is
    compiled anew.
    """

    def __init__(self, model: Dynamics, longest: float | None, scored: bool) -> None:
        self.model, self.longest, self.scored = model, longest, scored
        self.layers: list[Layer] | None = None
        self.program = stepping(longest, scored)

    def __call__(self, state: State, x: Tensor, true_step: Tensor) -> Step:
        """The next step from x [b d]."""
        inputs = (self.model, state, x, true_step)
        if self.layers is None:
            self.layers = [opened(call) for call in noted(*inputs)]
        biases = [
            Use.apply(each.bias, each.uses, len(each.uses.inputs), each.call.rows)  # type: ignore[no-untyped-call]
            for each in self.layers
        ]
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            out, seen = self.program(inputs, [each.weight for each in self.layers], biases)
        for each, entered in zip(self.layers, seen, strict=True):
            each.uses.inputs.append(entered)
        return out


class Layer(NamedTuple):
    """A call in all steps of a rollout: its uses, and its weight and bias as they are used."""

    call: Call
    uses: Uses
    weight: Tensor
    bias: Tensor


def opened(call: Call) -> Layer:
    """The call before its first use; gradients of both parameters are made from the uses."""
    uses = Uses()
    bias: Tensor = Together.apply(call, uses, call.weight, call.bias)  # type: ignore[no-untyped-call]
    return Layer(call, uses, call.weight.detach().to(call.dtype), bias)


def stepped(longest: float | None, scored: bool, model: Dynamics, *rest: Any) -> Step:
    """`one_step` to the law's point."""
    return one_step(model, point, longest, scored, *rest)


@torch.no_grad()
def noted(model: Dynamics, *rest: Any) -> list[Call]:
    """The calls of `linear` in a step of the model. They are kept: what is captured shall not make a step more."""
    known = NOTED.setdefault(model, {})
    about = *rest[1].shape, computed_in(rest[1].device.type, rest[1].dtype)
    if about not in known:
        mode = Linears()
        with mode:
            stepped(None, True, model, *rest)
        known[about] = mode.calls
    return known[about]


Program = Callable[[tuple[Any, ...], list[Tensor], list[Tensor]], tuple[Step, list[Tensor]]]


def replaced(step: Callable[..., Step], mode: Linears) -> Program:
    """(inputs, weights, biases) to step(*inputs) with these in the place of its layers' own, and the layers' inputs."""

    def run(inputs: tuple[Any, ...], weights: list[Tensor], biases: list[Tensor]) -> tuple[Step, list[Tensor]]:
        mode.weights, mode.biases = weights, biases
        mode.inputs.clear()
        with mode:
            out = step(*inputs)
        return out, list(mode.inputs)

    return run


@cache
def stepping(longest: float | None, scored: bool) -> Program:
    """The compiled program, one for all models."""
    program: Program = torch.compile(
        replaced(partial(stepped, longest, scored), Linears()), backend=BACKEND, dynamic=False
    )
    return program
