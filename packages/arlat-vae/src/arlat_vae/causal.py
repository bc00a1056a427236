"""Causal layers whose streaming state is a value: one code path for a whole clip and for a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, cast

from torch import Tensor, nn

S = TypeVar("S")


class Causal(nn.Module, ABC, Generic[S]):
    """A layer that never looks ahead; `forward` is one step from the initial state, so streamed = offline by construction."""

    @abstractmethod
    def initial(self, batch: int) -> S:
        """The state before the first input of `batch` streams."""

    @abstractmethod
    def step(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        """The next piece of the stream -> its output and the state after it; `state` itself stays as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """A whole clip at once."""
        return self.step(x, self.initial(len(x)))[0]


class Pointwise(Causal[tuple[()]]):
    """A function of each sample alone."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def initial(self, batch: int) -> tuple[()]:
        """Nothing."""
        return ()

    def step(self, x: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        """The function."""
        return self.function(x), state


class Chain(Causal[tuple[Any, ...]]):
    """Layers one after the other; the state is the tuple of theirs."""

    def __init__(self, layers: Iterable[Causal[Any]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def initial(self, batch: int) -> tuple[Any, ...]:
        """Every layer's initial state."""
        return tuple(cast(Causal[Any], layer).initial(batch) for layer in self.layers)

    def step(self, x: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """Every layer's step."""
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            x, new = cast(Causal[Any], layer).step(x, before)
            after.append(new)
        return x, tuple(after)


class Residual(Chain):
    """x + chain(x)."""

    def step(self, x: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """The chain's step, added to its input."""
        y, after = super().step(x, state)
        return x + y, after
