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


def parts_of_equal_pairs(a, b):
    one, other = a.max(0).values, a.max(0).values
    other.clamp_(min=0)
    first = b.max(0).values
    first.clamp_(min=0)
    return [one, other, first, b.max(0).values]


def powers_of_whole_numbers(a, b):
    whole = (a > 0).long()
    return [(whole**1.0) * 2, (a**1.0) * 2, b * 1]


def copies_of_views_returned(a, b):
    result = (a.clone().view(-1), b.clone().t())
    return [*result, a * 1]


def written_from_itself(a, b):
    x, y = a * 1, b * 1
    x.sub_(x[:, :1])
    y.mul_(y)
    return [x, y]


def pooled_in_other_precisions(a, b):
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        image = torch.cat([a, b]).nan_to_num(0, 9, -9).to(dtype).view(1, 4, 2, 3)
        front = image.permute(0, 3, 1, 2).contiguous()
        found += [torch.nn.functional.max_pool2d(front, 2).double() * 2]
    return found


def adam(a, b):
    factor = a[0, 0] * 1e-3
    roots = torch._foreach_add(torch._foreach_sqrt([b.abs()]), 1e-7)
    quotients = torch._foreach_div(torch._foreach_mul([b], factor), roots)
    torch._foreach_add_([a], quotients, alpha=-1)
    return []


def turned(a):
    """Return an image of four pixels and three channels, which come last in memory."""
    return a.view(1, 2, 2, 3).permute(0, 3, 1, 2)


def copies(a, b):
    last = turned(a * 2)
    front = last.contiguous()
    again = front.contiguous(memory_format=torch.channels_last)
    written = last.clone()
    written.add_(b[0, 0])
    late = (a + 1).clone()
    kept = a.clone()
    a.mul_(b)
    power = (a * b) ** 1.0
    return [
        front,
        again * last,
        again.sum(),
        written,
        late * 2,
        kept * 3,
        a.clone(),
        power,
    ]


def flattened(a, b):
    image = (a * 2).view(1, 3, 2, 2)
    flat = image.contiguous(memory_format=torch.channels_last).reshape(-1)
    more = flat + 1
    return [more, image * 3, b * 1]


def pooled(a, b):
    image = torch.cat([a, b]).view(1, 4, 2, 3)
    front = image.permute(0, 3, 1, 2).contiguous()
    value, places = torch.ops.aten.max_pool2d_with_indices(front, [2, 2], [2, 2])
    slope = torch.ops.aten.max_pool2d_with_indices_backward(
        value * 2, front, [2, 2], [2, 2], [0, 0], [1, 1], False, places
    )
    mixed, turned = slope.permute(0, 2, 3, 1) * image, value.permute(0, 2, 3, 1)
    return [turned.sum((0, 1)), (turned * 2).sum((0, 1)), slope * 3, mixed, places * 1]


def changes_that_nobody_sees(a, b):
    centred = a - b
    kept = centred.clone()
    scaled = centred.mul_(b).add_(1)
    seen = a + b
    view = seen.view(-1)
    seen.mul_(2)
    half = a.half()
    half.mul_(b)
    part = (a * 3)[:, :2]
    part.sub_(1)
    return [scaled.relu(), kept, view + 1, half, part, part.sum()]


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
        parts_of_equal_pairs,
        powers_of_whole_numbers,
        copies_of_views_returned,
        written_from_itself,
        pooled_in_other_precisions,
        copies,
        flattened,
        pooled,
        changes_that_nobody_sees,
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
            assert (one.dtype, one.stride()) == (other.dtype, other.stride())
            assert one.numpy().tobytes() == other.numpy().tobytes()


def test_equal_operations_are_made_once_and_unused_ones_never():
    def function(a):
        unused = a.exp()
        del unused
        return [(a + 1).sqrt(), (a + 1).sqrt()]

    nodes = Graph(function, tensors(0, (3,)))._run.__self__.graph.nodes
    assert [node.op for node in nodes].count("call_function") == 2


def operations(function, *shapes):
    nodes = Graph(function, tensors(0, *shapes))._run.__self__.graph.nodes
    return [str(node.target) for node in nodes if node.op == "call_function"]


def test_a_copy_of_the_same_order_is_left_out():
    def function(x, kernel):
        front = x.permute(0, 3, 1, 2).contiguous()
        last = front.contiguous(memory_format=torch.channels_last)
        return [torch.conv2d(last, kernel).permute(0, 2, 3, 1) ** 1.0 * 2]

    names = operations(function, (2, 5, 5, 3), (4, 3, 2, 2))
    assert not [name for name in names if "clone" in name or "pow" in name]
    front_only = operations(
        lambda x: [x.permute(0, 3, 1, 2).contiguous() * 2], (2, 5, 5, 3)
    )
    assert [name for name in front_only if "clone" in name]


def test_a_network_with_pooling_keeps_its_channels_where_they_are():
    def function(x, one, two):
        first = turned_and_copied(x)
        hidden = torch.conv2d(first, turned_and_copied(one)).relu()
        small = torch.nn.functional.max_pool2d(hidden.contiguous(), 2)
        small = small.contiguous(memory_format=torch.channels_last)
        result = torch.conv2d(small, turned_and_copied(two)).sum()
        return [*torch.autograd.grad(result, [one, two])]

    def turned_and_copied(tensor):
        front = tensor.permute(0, 3, 1, 2).contiguous()
        return front.contiguous(memory_format=torch.channels_last)

    given = tensors(0, (2, 9, 9, 3), (4, 2, 2, 3), (5, 2, 2, 4))
    for each in given[1:]:
        each.requires_grad_()
    graph = Graph(function, given)
    nodes = [str(node.target) for node in graph._run.__self__.graph.nodes]
    assert not [name for name in nodes if "clone" in name]
    with torch.no_grad():
        found = graph(given)
    for ours, theirs in zip(found, function(*given), strict=True):
        assert torch.equal(ours, theirs)


def test_a_result_has_no_memory_of_what_was_given():
    def function(a):
        return [a.clone().view(-1)]

    given = torch.ones(2, 2)
    (found,) = Graph(function, [torch.ones(2, 2)])([given])
    given.zero_()
    assert found.tolist() == [1, 1, 1, 1]


def test_bytes_are_pooled_in_images_of_any_size():
    def function(a):
        front = a.permute(0, 3, 1, 2).contiguous()
        return [torch.nn.functional.max_pool2d(front, 2) + 1]

    image = torch.arange(2 * 32 * 32 * 3).remainder(251).to(torch.uint8)
    image = image.view(2, 32, 32, 3)
    assert torch.equal(Graph(function, [image])([image])[0], function(image)[0])


def test_a_copy_of_a_tensor_that_was_there_before_is_traced():
    scale = torch.ones(3)
    graph = Graph(lambda a: [a * scale.clone()], [torch.ones(3)])
    scale.mul_(4)
    assert graph([torch.ones(3)])[0].tolist() == [4, 4, 4]


def test_what_may_round_otherwise_reads_the_copy():
    def function(a):
        return [torch.sigmoid(a[:, :3].contiguous()) * 2]

    names = operations(function, (1000, 5))
    assert [name for name in names if "clone" in name]


def test_what_is_copied_for_the_gradient_and_then_changed_is_written_elsewhere():
    def function(a, b):
        centred = a - b
        kept = centred.clone()
        return [centred.mul_(b).add_(1) * 1.5, kept * 2]

    names = operations(function, (3, 4), (3, 4))
    assert not [name for name in names if "clone" in name]
    assert len(names) == 5


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


@pytest.mark.parametrize("function", [views_of_what_changes, copies])
def test_without_a_pass_the_order_would_be_lost(function, monkeypatch):
    """The control: operations that read what others change may not be shared."""
    from fmkit.performance._graph import _simplify

    monkeypatch.setattr(_simplify, "find_written", lambda graph: set())
    graph = Graph(function, tensors(0, (3, 4), (3, 4)))
    ours, theirs = tensors(1, (3, 4), (3, 4)), tensors(1, (3, 4), (3, 4))
    pairs = zip(graph(ours), function(*theirs), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)
