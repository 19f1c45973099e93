"""A computation of PyTorch's played from its graph: the same bits, the same changes."""

import numpy as np
import pytest

pytestmark = pytest.mark.backend("torch")

torch = pytest.importorskip("torch")

from fmkit.performance._graph import Graph, UntraceableError  # noqa: E402


def tensors(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def reads_between_writes(a, b):
    first = a * 2
    a.add_(b)
    again = a * 2
    a.mul_(b)
    return [first, again, a * 2]


def views_of_what_changes(a, b):
    row, column = a[0], a.t()[1]
    before = row + 1
    a.add_(1)
    return [before, row + 1, column * b[0, 0]]


def results_used_twice(a, b):
    total = a + b
    twice = total * 2
    view = total.view(-1)
    thrice = twice * 1.5
    return [total, twice, view.relu(), thrice.sqrt()]


def broadcast_and_promoted(a, b):
    wide = (a[:1] + b[:1]) * b
    exact = (a + b) * b.double()
    return [wide, exact, (a + b).to(torch.float16) * 2]


def constants(a, b):
    steps = torch.arange(4.0)
    steps.mul_(2)
    scale = torch.tensor(0.5)
    return [a * steps, b * torch.arange(4.0), a * scale, torch.ones(3)]


def lists(a, b):
    squares = torch._foreach_mul([a, b], [a, b])
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_([a, b], torch._foreach_div(squares, roots), alpha=-1)
    return [*squares, *roots]


def lists_that_cross(a, b):
    one, other = a + 1, b + 1
    products = torch._foreach_mul([one, other], [other, one])
    (part,) = torch._foreach_mul([a[:, :3]], 2.0)
    products = [*products, part * part.t()]
    third = a * 3
    square = third[:, :3] * third[:, :3].t()
    twice = a + 2
    sums = torch._foreach_add([twice, twice.view(3, 4)], [a, b])
    return [*products, square, *sums]


def adam(a, b):
    factor = a[0, 0] * 1e-3
    roots = torch._foreach_add(torch._foreach_sqrt([b.abs()]), 1e-7)
    quotients = torch._foreach_div(torch._foreach_mul([b], factor), roots)
    torch._foreach_add_([a], quotients, alpha=-1)
    return []


@pytest.mark.parametrize(
    "function",
    [
        reads_between_writes,
        views_of_what_changes,
        results_used_twice,
        broadcast_and_promoted,
        constants,
        lists,
        lists_that_cross,
        adam,
    ],
)
def test_results_and_changes_are_those_of_the_function(function):
    graph = Graph(function, tensors(0, (3, 4), (3, 4)))
    extremes = torch.tensor([0.0, -0.0, 1e-42, 3e38, torch.inf, -torch.inf, torch.nan])
    for seed in range(1, 5):
        ours, theirs = tensors(seed, (3, 4), (3, 4)), tensors(seed, (3, 4), (3, 4))
        for given in (ours, theirs) if seed > 2 else ():
            given[1].view(-1)[: len(extremes)] = extremes
        with torch.no_grad():
            found, expected = graph(ours), function(*theirs)
        for one, other in zip([*found, *ours], [*expected, *theirs], strict=True):
            assert one.dtype == other.dtype
            assert one.numpy().tobytes() == other.numpy().tobytes()


def test_equal_operations_are_made_once_and_unused_ones_never():
    def function(a):
        unused = a.exp()
        del unused
        return [(a + 1).sqrt(), (a + 1).sqrt()]

    nodes = Graph(function, tensors(0, (3,)))._run.__self__.graph.nodes
    assert [node.op for node in nodes].count("call_function") == 2


def test_a_tensor_that_was_there_before_is_read_in_each_run():
    scale = torch.ones(3)
    graph = Graph(lambda a: [a * (scale + 1)], [torch.ones(3)])
    scale.mul_(4)
    assert graph([torch.ones(3)])[0].tolist() == [5, 5, 5]


def test_random_numbers_are_drawn_in_each_run():
    def function(a):
        return [a + torch.rand(3), torch.rand(3), torch.nn.functional.dropout(a, 0.5)]

    graph = Graph(function, [torch.ones(3)])
    torch.manual_seed(1)
    found = [graph([torch.ones(3)]) for _ in range(2)]
    torch.manual_seed(1)
    expected = [function(torch.ones(3)) for _ in range(2)]
    for ours, theirs in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert not torch.equal(found[0][0], found[1][0])


def test_a_generator_draws_in_each_run():
    generator = torch.Generator()

    def function(a):
        chances = torch.full((3,), 0.5)
        return [
            torch.bernoulli(chances, generator=generator) * a,
            torch.rand((3,), generator=generator),
        ]

    graph = Graph(function, [torch.ones(3)])

    def runs(play):
        generator.manual_seed(2)
        return [torch.cat(play(torch.ones(3))) for _ in range(3)]

    found, expected = runs(lambda a: graph([a])), runs(function)
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(found[0], found[1])


def test_an_if_is_decided_before_a_run():
    def function(a, count):
        count.add_(1)
        return [a * 2 if a[0] > 0 else a * 3]

    up, down = torch.ones(2), -torch.ones(2)
    graph = Graph(function, [up, torch.tensor(0)])
    assert graph.fits([up, torch.tensor(5)])
    assert not graph.fits([down, torch.tensor(5)])


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda a: [a * 2 if a.add_(1)[0] > 0 else a], "a value that the step changes"),
        (lambda a: [a + float(np.asarray(a).sum())], "Tensor.__array__ takes values"),
        (
            lambda a: [a * a.clone().uniform_(generator=torch.Generator())],
            "a generator draws into a tensor",
        ),
        (lambda a: [a * a.tolist()[0]], "Tensor.tolist takes values out of it"),
        (lambda a: [torch.full((2,), a.sum())], "PyTorch looks at a number"),
        (lambda a: [sum([a + n for n in range(2000)])], "more than 3,000 operations"),
    ],
    ids=["changed", "NumPy", "in place", "list", "number", "many"],
)
def test_what_cannot_be_played_again_is_refused(function, reason):
    with pytest.raises(UntraceableError, match=reason):
        Graph(function, [torch.ones(2)])


def test_without_a_pass_the_order_would_be_lost(monkeypatch):
    """The control: operations that read what others change may not be shared."""
    from fmkit.performance import _graph

    monkeypatch.setattr(_graph, "_written", lambda graph, owners: set())
    graph = Graph(views_of_what_changes, tensors(0, (3, 4), (3, 4)))
    ours, theirs = tensors(1, (3, 4), (3, 4)), tensors(1, (3, 4), (3, 4))
    pairs = zip(graph(ours), views_of_what_changes(*theirs), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)
