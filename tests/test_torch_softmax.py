"""Softmax as one node on PyTorch: its bits against float64, and where it gives way."""

import numpy as np
import pytest

pytestmark = pytest.mark.backend("torch")

RNG = np.random.default_rng(5)
ULP = 2.0**-24


def logits(*shape):
    import torch

    scale = 10.0 ** RNG.uniform(-6, 2, (*shape[:-1], 1))
    values = (RNG.standard_normal(shape) * scale).astype("float32")
    return torch.tensor(values, requires_grad=True)


def composed(z, axis):
    """Return the same from single operations, in the dtype of `z`."""
    from fmkit import _math

    xp = _math.namespace(z)
    return _math._softmax(z, *_math._dominance(z, axis, xp), xp)


def both(z, axis):
    from fmkit import _math

    return _math.softmax(z, axis, _math.namespace(z))


def gradient(function, z, axis, by_p, by_nll, **options):
    import torch

    p, nll = function(z, axis)
    outputs = [(each, g) for each, g in ((p, by_p), (nll, by_nll)) if g is not None]
    total = sum((each * g.to(each.dtype)).sum() for each, g in outputs)
    return torch.autograd.grad(total, z, **options)[0]


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("used", ["p", "nll", "both"])
def test_values_and_gradients_are_those_of_float64(axis, used):
    import torch

    z = logits(6, 4, 5)
    wide = z.detach().double().requires_grad_()
    for ours, true in zip(both(z, axis), composed(wide, axis), strict=True):
        assert ours.dtype == torch.float32
        assert ((ours - true).abs() <= 2 * ULP * true.abs() + 1e-45).all()
    by_p = torch.tensor(RNG.standard_normal((6, 4, 5)).astype("float32"))
    given = (
        None if used == "nll" else by_p,
        None if used == "p" else by_p.flip(0) ** 3,
    )
    ours = gradient(both, z, axis, *given)
    true = gradient(composed, wide, axis, *given)
    largest = true.abs().amax(axis, keepdim=True)
    assert ((ours - true).abs() <= 8 * ULP * largest).all()


def test_one_less_the_largest_probability_is_not_lost():
    import torch

    z = torch.tensor([[60.0, 0.0, -1.0]], requires_grad=True)
    g = torch.tensor([[1.0, 0.0, 0.0]])
    nll = both(z, 1)[1]
    lacks = float(np.exp(-60.0) + np.exp(-61.0))
    assert abs(nll[0, 0].item() / lacks - 1) < 2 * ULP
    found = gradient(both, z, 1, None, g)[0]
    assert abs(found[0].item() / -lacks - 1) < 4 * ULP
    # The control: PyTorch's own softmax has lost it.
    assert torch.log_softmax(z, 1)[0, 0] == 0.0


def test_a_block_at_a_time_gives_the_same_bits(monkeypatch):
    from fmkit._math import _torch_softmax

    z, g = logits(7, 3, 5), logits(7, 3, 5).detach()
    outputs, found = both(z, 1), gradient(both, z, 1, g, g)
    monkeypatch.setattr(_torch_softmax, "_BLOCK", 12)
    for whole, in_blocks in zip(outputs, both(z, 1), strict=True):
        assert in_blocks.shape == whole.shape
        assert (in_blocks == whole).all()
    assert (gradient(both, z, 1, g, g) == found).all()


@pytest.mark.parametrize("used", ["p", "nll", "both"])
def test_a_gradient_has_a_gradient(used):
    import torch

    z = logits(3, 4)
    wide = z.detach().double().requires_grad_()
    g = torch.tensor(RNG.standard_normal((3, 4)).astype("float32"))
    given = (None if used == "nll" else g, None if used == "p" else g)
    second = []
    for function, x in ((both, z), (composed, wide)):
        first = gradient(function, x, 1, *given, create_graph=True)
        second.append(torch.autograd.grad((first**2).sum(), x)[0])
    assert torch.allclose(second[0].double(), second[1], rtol=1e-4, atol=1e-6)
    assert second[1].abs().max() > 0


def test_torch_func_differentiates_each_row():
    import torch

    z = logits(3, 4).detach()
    per_row = torch.func.vmap(torch.func.grad(lambda row: both(row, 0)[1][1]))(z)
    true = torch.softmax(z.double(), 1)
    true[:, 1] -= 1.0
    assert torch.allclose(per_row.double(), true, rtol=1e-5, atol=1e-7)


def test_other_dtypes_are_computed_operation_by_operation():
    import torch

    from fmkit import _math

    for dtype, taken in ((torch.float32, True), (torch.float64, False)):
        z = torch.zeros((1, 2), dtype=dtype)
        assert _math.in_one_node(z, _math.namespace(z)) is taken
