"""Softmax and costs as one node on PyTorch, and where plain operations are taken."""

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
    from fmkit._math import _torch_nodes

    z, g = logits(7, 3, 5), logits(7, 3, 5).detach()
    outputs, found = both(z, 1), gradient(both, z, 1, g, g)
    monkeypatch.setattr(_torch_nodes, "_BLOCK", 12)
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
        p, nll = function(x, 1)
        total = sum(
            (f.to(g.dtype) * g)
            for f, g in zip((p**2 + p, nll**2 + nll), given, strict=True)
            if g is not None
        )
        first = torch.autograd.grad(total.sum(), x, create_graph=True)[0]
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
        assert (_math._nodes(_math.namespace(z), z) is not None) is taken


def costs():
    """Return for each rule a loss, and targets for logits of shape (6, 5)."""
    from fmkit import losses

    labels = np.array([0, 4, 2, 3, 1, 0])
    q = RNG.dirichlet(np.ones(5), 6).astype("float32")
    q[0] = np.eye(5)[2]
    labelled = losses.MeanSquaredErrorFromLogits(activation="softmax", k=2.0)
    reverse = losses.KLDivergenceFromLogits(direction="reverse")
    return {
        "label": (losses.CrossentropyFromLogits(), labels),
        "distribution": (losses.CrossentropyFromLogits(label_smoothing=0.1), q),
        "divergence": (losses.KLDivergenceFromLogits(), q),
        "squared": (labelled, q),
        "entropy": (losses.ConfidencePenalty(weight=-1.0), labels),
        "binary": (losses.BinaryFocalCrossentropyFromLogits(), q),
        "asymmetric": (losses.AsymmetricLossFromLogits(), q),
        "binary_divergence": (losses.BinaryKLDivergenceFromLogits(), q),
        None: (reverse, q),  # the control: no rule
    }


def cost_and_gradient(loss, target, z, power=0.0, **options):
    import torch

    dtype = str(z.dtype).removeprefix("torch.")
    loss = type(loss).from_config({**loss.get_config(), "dtype": dtype})
    cost = loss._function(torch.tensor(target), z, **loss._options())
    total = (cost + power * cost**2).sum()
    return cost, torch.autograd.grad(total, z, **options)[0]


def used(monkeypatch):
    """Return a list that will hold the rules that were used."""
    from fmkit._math import _torch_nodes

    names = []
    for name, rule in _torch_nodes.RULES.items():

        def noted(*given, name=name, rule=rule):
            names.append(name)
            return rule(*given)

        monkeypatch.setitem(_torch_nodes.RULES, name, noted)
    return names


RULES = [
    *("label", "distribution", "divergence", "squared", "entropy"),
    *("binary", "asymmetric", "binary_divergence", None),
]


@pytest.mark.parametrize("rule", RULES)
def test_a_cost_and_its_gradient_are_those_of_float64(rule, monkeypatch):
    loss, target = costs()[rule]
    z = logits(6, 5)
    wide = z.detach().double().requires_grad_()
    names = used(monkeypatch)
    cost, found = cost_and_gradient(loss, target, z)
    assert names == ([] if rule is None else [rule])
    if rule is None:
        return
    true_cost, true = cost_and_gradient(loss, target, wide)
    assert len(names) < 2  # float64 is computed operation by operation
    assert cost.dtype == found.dtype == z.dtype
    assert ((cost - true_cost).abs() <= 4 * ULP * true_cost.abs() + 1e-45).all()
    largest = true.abs().amax(-1, keepdim=True)
    assert ((found - true).abs() <= 8 * ULP * largest + 1e-45).all()


@pytest.mark.parametrize("power", [0.0, 0.5])
@pytest.mark.parametrize("rule", RULES[:-1])
def test_the_gradient_of_a_cost_has_a_gradient(rule, power):
    import torch

    loss, target = costs()[rule]
    z = torch.tensor(RNG.standard_normal((6, 5)).astype("float32"), requires_grad=True)
    second = []
    for x in (z, z.detach().double().requires_grad_()):
        _, first = cost_and_gradient(loss, target, x, power, create_graph=True)
        second.append(torch.autograd.grad((first**2).sum(), x)[0].double())
    assert torch.allclose(*second, rtol=1e-4, atol=1e-6)
    assert second[1].abs().max() > 0


@pytest.mark.parametrize("rule", ["label", "divergence", "squared", "binary"])
def test_blocks_of_rows_cost_the_same_bits(rule, monkeypatch):
    from fmkit._math import _torch_nodes

    loss, target = costs()[rule]
    z = logits(6, 5)
    whole = cost_and_gradient(loss, target, z)
    monkeypatch.setattr(_torch_nodes, "_BLOCK", 12)
    names = used(monkeypatch)
    in_blocks = cost_and_gradient(loss, target, z)
    assert names == [rule] * 3
    assert all((a == b).all() for a, b in zip(whole, in_blocks, strict=True))


def test_many_classes_are_computed_operation_by_operation(monkeypatch):
    from fmkit._math import _torch_nodes

    names, found = used(monkeypatch), []
    for rule in ("label", "distribution", "divergence"):
        loss, target = costs()[rule]
        z = logits(6, 5)
        for largest in (2**15, 12):
            monkeypatch.setattr(_torch_nodes, "_SMALL", largest)
            found.append(cost_and_gradient(loss, target, z))
        one, plain = found[-2:]
        for a, b in zip(one, plain, strict=True):
            assert ((a - b).abs() <= 16 * ULP * b.abs().amax(-1, keepdim=True)).all()
    # The divergence has so many operations that one of them is faster at any size.
    assert names == ["label", "distribution", "divergence", "divergence"]


def test_another_class_axis_and_torch_func_give_the_same(monkeypatch):
    import torch

    from fmkit import losses

    z, target = logits(2, 3, 5), torch.tensor(RNG.integers(0, 5, (2, 3)))
    names = used(monkeypatch)
    last = losses.crossentropy_from_logits(target, z)
    first = losses.crossentropy_from_logits(target, z.movedim(-1, 0), axis=0)
    assert (first == last).all()
    true = torch.autograd.grad(last.sum(), z)[0]
    assert (torch.autograd.grad(first.sum(), z)[0] == true).all()

    def cost(row, label):
        return losses.crossentropy_from_logits(label, row)

    rows = torch.func.vmap(torch.func.grad(cost))
    found = rows(z.detach().reshape(6, 5), target.reshape(6))
    assert torch.allclose(found.reshape(2, 3, 5), true, rtol=1e-6, atol=1e-9)
    assert set(names) == {"label"}


def test_targets_get_their_gradient_operation_by_operation(monkeypatch):
    import torch

    from fmkit import losses

    z = logits(6, 5)
    # No target is 0: there the gradient is 0, as that of 0 log 0.
    drawn = torch.tensor(RNG.standard_normal((6, 5)).astype("float32"))
    q = torch.softmax(drawn, -1).requires_grad_()
    names = used(monkeypatch)
    cost = losses.crossentropy_from_logits(q, z, sum_tolerance=None).sum()
    assert not names
    found = torch.autograd.grad(cost, q)[0]
    surprisals = -torch.log_softmax(z.detach().double(), -1)
    assert torch.allclose(found.double(), surprisals, rtol=1e-5)
