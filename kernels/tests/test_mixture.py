"""The mixture's negative log-density against torch.distributions, at its edges, and by finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from arlat_kernels import mixture_nll
from arlat_kernels.mixture import make_inputs, mixture_nll_reference, whole
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def inputs(n: int, m: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    made = make_inputs(n, m, d, generator=torch.Generator().manual_seed(seed))
    return [tensor.to(dtype) for tensor in made.values()]


def oracle(logits: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    law = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(mean, log_scale.exp()), 1))
    log_density: Tensor = law.log_prob(x)  # type: ignore[no-untyped-call]
    return -log_density


@pytest.mark.parametrize(("n", "m", "d"), [(4, 1, 1), (7, 3, 5), (3, 8, 129)])
def test_agrees_with_torch_distributions(n: int, m: int, d: int) -> None:
    given = inputs(n, m, d)
    torch.testing.assert_close(mixture_nll_reference(*given), oracle(*given), rtol=1e-12, atol=1e-12)


def test_float32_is_within_a_part_in_a_million() -> None:
    given = inputs(64, 8, 512, torch.float32)
    truth = oracle(*(tensor.double() for tensor in given))
    assert float(((mixture_nll(*given) - truth).abs() / truth.abs()).max()) < 1e-6


def test_gradients_by_finite_differences_twice() -> None:
    given = [tensor.requires_grad_() for tensor in inputs(3, 2, 3)]
    assert torch.autograd.gradcheck(mixture_nll_reference, given)
    assert torch.autograd.gradgradcheck(mixture_nll_reference, given)


def test_leading_axes_are_free() -> None:
    logits, mean, log_scale, x = inputs(6, 3, 4)
    flat = mixture_nll(logits, mean, log_scale, x)
    shaped = mixture_nll(
        logits.reshape(2, 3, 3), mean.reshape(2, 3, 3, 4), log_scale.reshape(2, 3, 3, 4), x.reshape(2, 3, 4)
    )
    assert torch.equal(flat.reshape(2, 3), shaped)
    assert mixture_nll(logits[0], mean[0], log_scale[0], x[0]).shape == ()


def test_far_points_and_narrow_components_stay_finite() -> None:
    logits, mean, log_scale, x = inputs(5, 4, 8, torch.float32)
    given = [logits * 100, mean, log_scale - 8, x * 1e4]
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    value = mixture_nll(*leaves)
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert bool(torch.isfinite(value).all())
    assert all(leaf.grad is not None and bool(torch.isfinite(leaf.grad).all()) for leaf in leaves)
    truth = oracle(*(tensor.double() for tensor in given))
    torch.testing.assert_close(value.detach().double(), truth, rtol=2e-6, atol=0)


def test_a_component_of_weight_zero_is_not_there() -> None:
    logits, mean, log_scale, x = inputs(5, 3, 4)
    closed = logits.clone()
    closed[:, 1] = -torch.inf
    closed.requires_grad_()
    keep = [0, 2]
    value = mixture_nll(closed, mean, log_scale, x)
    torch.testing.assert_close(value, mixture_nll(logits[:, keep], mean[:, keep], log_scale[:, keep], x))
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert closed.grad is not None
    assert bool((closed.grad[:, 1] == 0).all())


def test_narrow_floats_are_computed_in_float32() -> None:
    given = inputs(9, 3, 64, torch.bfloat16)
    assert torch.equal(mixture_nll(*given), mixture_nll(*(tensor.float() for tensor in given)))


@pytest.mark.parametrize("bad", range(4))
def test_shapes_that_do_not_fit_are_named(bad: int) -> None:
    given = inputs(5, 3, 4)
    given[bad] = given[bad][..., :-1]
    with pytest.raises(ValueError, match=r"logits .* must be \[\.\.\. m\]"):
        mixture_nll(*given)


class Sizes(TorchDispatchMode):
    """Counts the tensors of `size` entries that are made, views apart."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.stores = size, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves(args) if isinstance(tensor, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.numel() >= self.size:
                self.stores |= {tensor.untyped_storage().data_ptr()} - before
        return out


def test_nothing_of_all_components_is_made_but_the_two_gradients() -> None:
    n, m, d = 6, 8, 512
    leaves = [tensor.requires_grad_() for tensor in inputs(n, m, d)]
    with Sizes(n * m * d) as forward:
        value = mixture_nll_reference(*leaves)
    assert forward.stores == set()
    with Sizes(n * m * d) as backward:
        torch.autograd.grad(value.sum(), leaves)
    assert len(backward.stores) == 2
    with Sizes(n * m * d) as naive:
        whole(*leaves)
    assert len(naive.stores) >= 3
