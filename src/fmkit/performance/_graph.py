"""A computation of PyTorch's as a graph of plain operations.

A layer's Python takes longer than the arithmetic of a small layer. `torch.fx` runs a
computation once and notes every operation that reached PyTorch's kernels: those of the
forward pass, of the gradients, of the update. Played again, these are the same kernels
on the same numbers, and so the same bits, without the Python in between.

What Python did between the operations is fixed in the graph: as in TensorFlow's and
JAX's tracing, an `if` is decided once. Where the decision depends on a number in a
tensor, a small graph of its own finds the number before each run.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _guards, fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fmkit._tracing import tracing

__all__ = ["Graph", "UntraceableError"]

Tensor = Any
_Function = Callable[..., list[Tensor]]

_ATEN = torch.ops.aten
_OVERLOADS = type(_ATEN.mm.default)
_PERMUTE = _ATEN.permute.default
_POOL_BACKWARD = _ATEN.max_pool2d_with_indices_backward.default
# Another tensor with the same memory and shape.
_FORWARDED = (_ATEN.detach.default, _ATEN.alias.default)
# Views that their schema doesn't tell of.
_UNTOLD_VIEWS = (
    _ATEN._unsafe_view.default,
    _ATEN.unsafe_split.Tensor,
    _ATEN.unsafe_split_with_sizes.default,
)
# Views of all that is in the memory.
_WHOLE_VIEWS = (
    _ATEN.view.default,
    _ATEN._unsafe_view.default,
    _PERMUTE,
    operator.getitem,
)
# A number that decides what Python does next.
_NUMBERS: dict[Any, Callable[[Any], Any]] = {
    torch.Tensor.__bool__: bool,
    torch.Tensor.__float__: float,
    torch.Tensor.__index__: int,
    torch.Tensor.__int__: int,
    torch.Tensor.item: lambda number: number,
}
# Memory in other hands: what they make of it is not seen.
_HANDED_OUT = {
    torch.Tensor.__array__,
    torch.Tensor.__dlpack__,
    torch.Tensor.data_ptr,
    torch.Tensor.numpy,
    torch.Tensor.tolist,
    torch.Tensor.untyped_storage,
}
# Its name before PyTorch 2.6.
_proxy_mode: Callable[[], Any] = (
    getattr(proxy_tensor, "get_proxy_mode", None)
    or proxy_tensor.get_innermost_proxy_mode
)
# Orders of a tensor's numbers in memory that don't depend on what is copied.
_ORDERS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
# What is found before a run must be quick to find.
_LARGEST_LOOK = 64
# A millisecond each to trace; one saves some microseconds in each run.
_MOST_OPERATIONS = 3000
# Python finds these in less time than `torch.ops` finds the same kernels.
_BY_NAME = (
    "abs add addcmul addmm amax amin argmax bitwise_and bitwise_not bitwise_or bmm "
    "cat clamp convolution cos div eq exp expm1 floor gather ge gt le log log1p "
    "logical_and logical_not logical_or lt maximum mean minimum mm mul ne neg "
    "ones_like pow reciprocal relu round rsqrt rsub scatter sigmoid sign sin "
    "slice_copy sqrt square squeeze stack sub sum t tanh transpose unsqueeze where "
    "zeros_like"
)


class UntraceableError(Exception):
    """A computation that can't be played again from a graph; says why."""


class Graph:
    """A computation, traced once.

    Args:
        function: Takes tensors, returns tensors; may change what it takes in place.
        inputs: What it is traced with. It is changed as by a call of `function`.

    Raises:
        UntraceableError: If `function` needs more of the values than an `if` does.
    """

    def __init__(self, function: _Function, inputs: Sequence[Tensor]) -> None:
        looks = _Looks()

        def traced(*values: Tensor) -> tuple[list[Tensor], list[Any]]:
            with looks, _NoWritesOutside(), tracing():
                outputs = function(*values)
            return outputs, [tensor for tensor, _ in looks.found]

        try:
            # One mode for the shapes of all nodes: else each node makes its own.
            shapes = _guards.TracingContext(FakeTensorMode(allow_fallback_kernels=True))
            with _guards.tracing(shapes):
                module = proxy_tensor.make_fx(traced)(*inputs)
            module, looking, self._constants = _simplified(module)
        except Exception as error:
            raise UntraceableError(_reason(error)) from error
        self._numbers = [number for _, number in looks.found]
        self._run: _Function = module.forward
        self._look: _Function | None = looking and looking.forward

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        """Whether Python would decide as it did when the graph was traced."""
        if self._look is None:
            return True
        found = self._look(*inputs, *self._constants)
        return [tensor.item() for tensor in found] == self._numbers

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute what `function` would, and change what it would change."""
        return self._run(*inputs, *self._constants)


def _reason(error: Exception) -> str:
    """Return what an error says, of what Keras's layers make of it, in one line."""
    within = re.search(r"\x1b\[1m(.+?)\x1b\[0m", str(error), re.DOTALL)
    told = (within.group(1) if within else str(error)).strip().partition("\n")[0]
    if "_local_scalar_dense" in told:
        return "PyTorch looks at a number that the step computes"
    if isinstance(error, UntraceableError):
        return told
    return f"{type(error).__name__}: {told}"


class _Looks(TorchFunctionMode):  # type: ignore[misc]
    """Notes which numbers in traced tensors Python asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Any]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _HANDED_OUT and _is_traced(args[0]):
            raise UntraceableError(f"Tensor.{func.__name__} takes values out of it")
        if func in _NUMBERS and _is_traced(args[0]):
            with proxy_tensor.disable_proxy_modes_tracing():
                number = args[0].item()
            self.found.append((args[0], number))
            return _NUMBERS[func](number)
        alpha: Any = kwargs.get("alpha")
        if _is_traced(alpha):
            with proxy_tensor.disable_proxy_modes_tracing():
                number = alpha.item()
            found = func(*args, **{**kwargs, "alpha": number})
            _read_each_time(_node_of(alpha))
            return found
        if kwargs.get("generator") is not None and _proxy_mode() is not None:
            return _drawn(func, args, kwargs)
        return func(*args, **kwargs)


class _NoWritesOutside(TorchDispatchMode):  # type: ignore[misc]
    """Refuses to change, while it is traced, what is not the computation's own.

    And to trace what takes longer to trace than the graph would save.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.operations += 1
        if self.operations > _MOST_OPERATIONS:
            raise UntraceableError(
                f"the step has more than {_MOST_OPERATIONS:,} operations, and would "
                "take seconds to trace"
            )
        if func._schema.is_mutable:
            for tensor in _changed(func, args, kwargs):
                if isinstance(tensor, torch.Tensor) and not _is_traced(tensor):
                    raise UntraceableError(
                        "the step changes a tensor that is no variable of the model"
                    )
        return func(*args, **kwargs)


def _is_traced(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and _node_of(tensor) is not None


def _node_of(tensor: Tensor) -> Any:
    """Return the node of a tensor in the graph that is being made, if it has one."""
    mode = _proxy_mode()
    if mode is None:
        return None
    slot = proxy_tensor.get_proxy_slot(tensor, mode.tracer, None)
    return None if slot is None else slot.proxy.node


def _drawn(func: Any, args: Any, kwargs: Any) -> Tensor:
    """Draw from a generator, which is no argument that a graph could note."""
    if func.__name__.endswith("_"):
        raise UntraceableError(f"a generator draws into a tensor ({func.__name__})")
    given = {key: value for key, value in kwargs.items() if key != "generator"}

    def draw(*args: Any, **given: Any) -> Tensor:
        return func(*args, **given, generator=kwargs["generator"])

    def noted(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        node = _node_of(leaf)
        if node is None:
            raise UntraceableError("a generator draws by a tensor of one's own")
        return node

    tracer = _proxy_mode().tracer
    parts = [tuple(map(noted, args)), {key: noted(each) for key, each in given.items()}]
    node = tracer.graph.call_function(draw, *parts)
    with proxy_tensor.disable_proxy_modes_tracing():
        found = draw(*args, **given)
    proxy_tensor.track_tensor_tree(
        found, fx.Proxy(node, tracer), constant=None, tracer=tracer
    )
    return found


def _read_each_time(tensor: Any) -> None:
    """Let the `alpha` of the operation noted last be a tensor's number in each run."""
    graph = tensor.graph
    node = next(node for node in reversed(graph.nodes) if "alpha" in node.kwargs)
    with graph.inserting_before(node):
        number = graph.call_function(_ATEN._local_scalar_dense.default, (tensor,))
    node.update_kwarg("alpha", number)


# What follows makes the graph shorter and lets it use less memory. No bit changes.


def _simplified(module: Any) -> tuple[Any, Any, list[Tensor]]:
    """Return a graph and the one of its looks with fewer operations, and constants."""
    graph = module.graph
    _forward_aliases(graph)
    _write_elsewhere(graph)
    owners = _owners(graph)
    written = _written(graph, owners)
    constants = _take_out_constants(module, written)
    _drop_unused(graph)
    _share_equal(graph, written)
    _pool_in_any_order(graph, written)
    _leave_out_copies(graph, written)
    _read_in_any_order(graph, written)
    (last,) = (node for node in graph.nodes if node.op == "output")
    outputs, looks = last.args[0]
    looking = _graph_of_looks(module, looks, owners) if looks else None
    last.args = (outputs,)
    _drop_unused(graph)
    _join_division(graph)
    _reuse_memory(graph)
    for node in graph.nodes:
        node.target = _QUICK.get(node.target, node.target)
    return fx.GraphModule(module, graph), looking, constants


def _forward_aliases(graph: Any) -> None:
    for node in list(graph.nodes):
        source = node
        if node.target in _FORWARDED:
            source = node.args[0]
        elif node.target is _PERMUTE and node.args[0].target is _PERMUTE:
            (there, turned), back = node.args[0].args, node.args[1]
            if [turned[place] for place in back] == list(range(len(back))):
                source = there
        if source is not node:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _owners(graph: Any) -> dict[Any, Any]:
    """Return, for each node, the one in whose memory its tensor may be."""
    owners: dict[Any, Any] = {}
    for node in graph.nodes:
        part = node.target is operator.getitem and _is_view(node.args[0])
        owners[node] = owners[node.args[0]] if part or _is_view(node) else node
    return owners


def _written(graph: Any, owners: dict[Any, Any]) -> set[Any]:
    """Return the nodes whose memory an operation changes."""
    changed = {owners[each] for node in graph.nodes for each in _changed_by(node)}
    return {node for node, owner in owners.items() if owner in changed}


def _changed_by(node: Any) -> list[Any]:
    if not isinstance(node.target, _OVERLOADS):
        return []
    found = _changed(node.target, node.args, node.kwargs)
    return [argument for argument in found if isinstance(argument, fx.Node)]


def _changed(operation: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return the arguments that an operation changes in place."""
    found: list[Any] = []
    for number, told in enumerate(operation._schema.arguments):
        if told.alias_info is not None and told.alias_info.is_write:
            given = args[number] if number < len(args) else kwargs.get(told.name)
            found += given if isinstance(given, (list, tuple)) else [given]
    return found


def _is_view(node: Any) -> bool:
    """Whether what it returns may share the memory of its first argument."""
    if not isinstance(node.target, _OVERLOADS) or not node.all_input_nodes:
        return False
    if node.target in _UNTOLD_VIEWS:
        return True
    return any(told.alias_info is not None for told in node.target._schema.returns)


def _is_pure(node: Any) -> bool:
    """Whether an operation does nothing but return what its arguments determine."""
    if node.op == "get_attr" or node.target is operator.getitem:
        return True
    if not isinstance(node.target, _OVERLOADS):
        return False
    schema = node.target._schema
    seeded = torch.Tag.nondeterministic_seeded in node.target.tags
    return bool(schema.returns) and not schema.is_mutable and not seeded


def _write_elsewhere(graph: Any) -> None:
    """Let an operation that changes a tensor return another one where nobody can tell.

    Keras copies, for the gradient, what its next operation changes. Copy and change
    each go through all of the memory; one operation does both. `_reuse_memory` changes
    tensors in place where that gains.
    """
    owners = _owners(graph)
    place = {node: number for number, node in enumerate(graph.nodes)}
    sharing: dict[Any, list[Any]] = {}
    for node, owner in owners.items():
        sharing.setdefault(owner, []).append(node)
    for node in list(graph.nodes):
        elsewhere = _ELSEWHERE.get(node.target)
        if elsewhere is None or owners[node].op != "call_function":
            continue
        old = [each for each in sharing[owners[node]] if place[each] < place[node]]
        if any(place[user] > place[node] for each in old for user in each.users):
            continue
        if _returns_alike(elsewhere, node):
            node.target = elsewhere


def _returns_alike(operation: Any, node: Any) -> bool:
    """Whether an operation would return a tensor as a node does, strides included."""
    if any("val" not in each.meta for each in node.all_input_nodes):
        return False
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda each: each.meta["val"]
    )
    made, told = operation(*args, **kwargs), node.meta["val"]
    return (made.dtype, made.stride()) == (told.dtype, told.stride())


def _pool_in_any_order(graph: Any, written: set[Any]) -> None:
    """Let max pooling read channels that come last in memory, and copy its results.

    Keras copies the whole image to bring the channels to the front. The results are
    smaller, the other kernel is faster, and the next convolution undoes the copy.
    """
    for pool in list(graph.nodes):
        if pool.target is not _ATEN.max_pool2d_with_indices.default:
            continue
        front, sides, *rest = pool.args
        back = [user for user in front.users if user is not pool]
        if (
            rest not in ([], [sides])  # else a number may be in two windows
            or not _is_brought_to_front(front, written)
            or any(user.target is not _POOL_BACKWARD for user in back)
        ):
            continue
        last, found = front.args[0], {part.args[1]: part for part in pool.users}
        for node in (pool, *back):
            node.replace_input_with(front, last)
        for part in [*found.values(), *back]:
            with graph.inserting_after(part):
                copy = graph.call_function(
                    _ATEN.clone.default,
                    (part,),
                    {"memory_format": torch.contiguous_format},
                )
            part.replace_all_uses_with(copy, lambda user, copy=copy: user is not copy)
            copy.meta["val"] = told = part.meta["val"]
            part.meta["val"] = told.contiguous(memory_format=torch.channels_last)
        for node in back:
            node.replace_input_with(node.args[-1], found[1])
    _drop_unused(graph)


def _is_brought_to_front(node: Any, written: set[Any]) -> bool:
    """Whether a node copies an image only so that its channels come first in memory."""
    if not _is_copy(node) or {node, node.args[0]} & written:
        return False
    new, old = node.meta["val"], node.args[0].meta["val"]
    last = old.is_contiguous(memory_format=torch.channels_last)
    on_cpu = old.device.type == "cpu"
    return bool(on_cpu and new.is_contiguous() and last and not old.is_contiguous())


def _leave_out_copies(graph: Any, written: set[Any]) -> None:
    """Use a tensor itself where a copy of it has the same numbers in the same order.

    Keras's convolutions turn the channels to the front, copy, turn them back in memory,
    and copy again.
    """
    for node in list(graph.nodes):
        source = node
        while _is_copy(source) and not {source, source.args[0]} & written:
            source = source.args[0]
        if source is node or any(user.op == "output" for user in node.users):
            continue
        if source.meta["val"].stride() == node.meta["val"].stride():
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif node.kwargs.get("memory_format") in _ORDERS:
            node.args = (source,)
    _drop_unused(graph)


def _read_in_any_order(graph: Any, written: set[Any]) -> None:
    """Let operations that don't mind the order read what was copied, not the copy."""
    for node in list(graph.nodes):
        # It makes the copy of the gradient that it needs.
        backward = node.target is _ATEN.convolution_backward.default
        pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        if not (backward or (pointwise and _is_pure(node))):
            continue
        for argument in [node.args[0]] if backward else node.all_input_nodes:
            turned = argument.target is _PERMUTE
            copy = argument.args[0] if turned else argument
            if not _is_copy(copy) or {copy, copy.args[0]} & written:
                continue
            source = copy.args[0]
            if turned:
                with graph.inserting_before(node):
                    source = graph.call_function(_PERMUTE, (source, argument.args[1]))
                source.meta["val"] = copy.args[0].meta["val"].permute(argument.args[1])
            node.replace_input_with(argument, source)
            if pointwise and not _returns_alike(node.target, node):
                node.replace_input_with(source, argument)
    _drop_unused(graph)


def _is_copy(node: Any) -> bool:
    """Whether an operation returns the numbers that it takes, in whatever order."""
    if node.target is _ATEN.pow.Tensor_Scalar:
        return bool(node.args[1] == 1 and node.meta["val"].is_floating_point())
    return node.target is _ATEN.clone.default


def _take_out_constants(module: Any, written: set[Any]) -> list[Tensor]:
    """Compute what depends on no input; make inputs of all that is constant.

    A tensor that was there before the computation is an input too: who owns it may
    change what is in it.
    """
    graph, value, held = module.graph, {}, {}
    for node in graph.nodes:
        if node.op == "get_attr":
            held[node] = operator.attrgetter(node.target)(module)
            if getattr(held[node], "requires_grad", False):
                raise UntraceableError(
                    "the step takes gradients by a tensor that is no variable of the "
                    "model"
                )
        elif node.target is _ATEN.lift_fresh_copy.default and node.args[0] in held:
            value[node] = held[node.args[0]].clone()
        elif node.op == "call_function" and _is_pure(node) and node not in written:
            inputs = node.all_input_nodes
            if all(each in value and each not in written for each in inputs):
                arguments = fx.node.map_arg((node.args, node.kwargs), value.get)
                with torch.no_grad():
                    value[node] = node.target(*arguments[0], **arguments[1])
    for node in written & value.keys():  # a fresh copy that is changed
        del value[node]
    constants: list[Tensor] = []
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for node in list(graph.nodes):
        users = [user for user in node.users if user not in value]
        if node not in value | held or not users:
            continue
        if not isinstance(value.get(node, held.get(node)), torch.Tensor):
            continue
        with graph.inserting_before(first):
            taken = graph.placeholder(f"constant_{len(constants)}")
        constants.append(value[node] if node in value else held[node])
        for user in users:
            user.replace_input_with(node, taken)
    return constants


def _drop_unused(graph: Any) -> None:
    for node in reversed(list(graph.nodes)):
        computed = node.op in ("call_function", "get_attr")
        if computed and not node.users and _is_pure(node):
            graph.erase_node(node)


def _share_equal(graph: Any, written: set[Any]) -> None:
    """Compute once what several nodes compute from the same tensors."""
    seen: dict[Any, Any] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _is_pure(node) or node in written:
            continue
        if any(each in written for each in node.all_input_nodes):
            continue
        key = repr((str(node.target), node.args, sorted(node.kwargs.items())))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _join_division(graph: Any) -> None:
    r"""Let the last line of Adam, $w \leftarrow w - (am)/d$, be one operation.

    Keras asks for three, which go through the memory of all weights three times. Both
    round $am$, then the quotient, then the difference.
    """
    for node in list(graph.nodes):
        quotients = _list_of(node, "_foreach_add_", "List", 1)
        if quotients is None or node.kwargs.get("alpha") != -1:
            continue
        products = _list_of(quotients, "_foreach_div", "List", 0)
        if products is None or _list_of(products, "_foreach_mul", "Tensor") is None:
            continue
        weights, factor = node.args[0], products.args[1]
        steps = [products, quotients, node]
        between = _nodes_between(products, node)
        # In half precision the one operation would round once, not three times.
        told = [each.meta["val"] for each in (factor, *weights, *products.args[0])]
        alike = told[0].device.type == "cpu" and len({each.dtype for each in told}) == 1
        wide = told[0].dtype in (torch.float32, torch.float64)
        if alike and wide and not any(map(_changed_by, between)):
            with graph.inserting_before(node):
                number = graph.call_function(
                    _ATEN._local_scalar_dense.default, (factor,)
                )
                negative = graph.call_function(operator.neg, (number,))
                graph.call_function(
                    _ATEN._foreach_addcdiv_.Scalar,
                    (weights, products.args[0], quotients.args[1], negative),
                )
            for step in reversed(steps):
                for part in list(step.users):
                    graph.erase_node(part)
                graph.erase_node(step)


def _list_of(node: Any, name: str, overload: str, place: int | None = None) -> Any:
    """Return what an operation on lists takes all of its argument `place` from.

    `None` if it is another operation, or if anything else uses that list. Without
    `place`, the node itself.
    """
    packet = getattr(_ATEN, name, None)
    if packet is None or node.target is not getattr(packet, overload, None):
        return None
    if place is None:
        return node
    parts = node.args[place]
    if not all(part.target is operator.getitem for part in parts):
        return None
    source = parts[0].args[0]
    same = all(part.args[0] is source and len(part.users) == 1 for part in parts)
    return source if same and len(source.users) == len(parts) else None


def _nodes_between(first: Any, last: Any) -> list[Any]:
    found, node = [], first.next
    while node is not last:
        found.append(node)
        node = node.next
    return found


def _reuse_memory(graph: Any) -> None:
    """Write results where an argument was that nothing needs any more.

    Fresh memory costs more than the arithmetic: the system has to map each page.
    """
    owners = _owners(graph)
    place = {node: number for number, node in enumerate(graph.nodes)}
    last_use: dict[Any, int] = {}
    for node, owner in owners.items():
        last_use[owner] = max(
            [last_use.get(owner, 0), *(place[user] for user in node.users)]
        )
    for node in list(graph.nodes):
        within = _IN_PLACE.get(node.target)
        if within is None:
            continue
        over, *others = [
            list(each) if isinstance(each, (list, tuple)) else [each]
            for each in node.args
        ]
        results = _results_of(node, len(over))
        if not all(
            result is not None
            and owners[argument].op == "call_function"
            and last_use[owners[argument]] <= place[node]
            and _is_whole(argument, owners)
            and _is_alike(argument, result)
            for argument, result in zip(over, results, strict=True)
        ) or _overlap(over, others):
            continue
        with graph.inserting_before(node):
            graph.call_function(within, node.args, node.kwargs)
        for argument, result in zip(over, results, strict=True):
            owner, old = owners[argument], owners[result]
            last_use[owner] = max(last_use[owner], last_use[old])
            for shared in [each for each in owners if owners[each] is old]:
                owners[shared] = owner
            result.replace_all_uses_with(argument)
        for result in {*results, node}:
            if result is not node:
                graph.erase_node(result)
        graph.erase_node(node)


def _results_of(node: Any, count: int) -> list[Any]:
    """Return the nodes of the tensors that an operation returns; `None` for unused."""
    if not isinstance(node.args[0], (list, tuple)):
        return [node]
    found = {part.args[1]: part for part in node.users}
    return [found.get(number) for number in range(count)]


def _is_whole(argument: Any, owners: dict[Any, Any]) -> bool:
    """Whether a tensor is all that is in its memory."""
    return argument is owners[argument] or argument.target in _WHOLE_VIEWS


def _overlap(over: list[Any], others: list[list[Any]]) -> bool:
    """Whether writing over some tensors could change what is still to be read."""

    def memory(node: Any) -> Any:
        listed = node.target is operator.getitem and _is_view(node.args[0])
        return memory(node.args[0]) if listed or _is_view(node) else node

    written = {memory(node) for node in over}
    read = [
        memory(node) in written
        and (len(other) != len(over) or node is not over[number])
        for other in others
        for number, node in enumerate(other)
        if isinstance(node, fx.Node)
    ]
    return len(written) < len(over) or any(read)


def _is_alike(one: Any, other: Any) -> bool:
    ours, theirs = one.meta.get("val"), other.meta.get("val")
    if not isinstance(ours, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return False
    same = (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    # What is like a tensor without gaps has its strides.
    dense = torch.empty_like(ours).stride() == ours.stride()
    return same and dense and ours.stride() == theirs.stride()


def _graph_of_looks(module: Any, looks: Sequence[Any], owners: dict[Any, Any]) -> Any:
    """Return a graph of the numbers that Python asked for, and of nothing else."""
    needed, waiting = set(), list(looks)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    changed: set[Any] = set()
    for node in module.graph.nodes:
        if node in needed and node.op == "call_function":
            old = all(owners.get(each) not in changed for each in node.all_input_nodes)
            if not old or not _is_pure(node):
                raise UntraceableError("an `if` looks at a value that the step changes")
        changed |= {owners.get(each) for each in _changed_by(node)}
    operations = [node for node in needed if node.op == "call_function"]
    if len(operations) > _LARGEST_LOOK:
        raise UntraceableError("an `if` looks at a value that the whole step computes")
    graph = fx.Graph()
    copies: dict[Any, Any] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[node] for node in looks])
    return fx.GraphModule(module, graph)


def _quick() -> dict[Any, Any]:
    """Return, for an operation of `torch.ops`, the same one that Python finds fastest.

    These read their arguments in C++, without PyTorch's search by a schema.
    """
    found: dict[Any, Any] = {
        _ATEN.copy_.default: torch.Tensor.copy_,
        _ATEN.expand.default: torch.Tensor.expand,
        _ATEN.view.default: torch.Tensor.view,
    }
    names = [name for name in dir(torch) if name.startswith("_foreach_")]
    names += [f"{name}_" for name in ["relu", "sqrt", "exp", "neg"]]
    for name in ["add_", "sub_", "mul_", "div_"]:
        for overload in getattr(_ATEN, name).overloads():
            found[getattr(getattr(_ATEN, name), overload)] = getattr(torch.Tensor, name)
    for name in [*_BY_NAME.split(), *names]:
        packet, function = getattr(_ATEN, name, None), getattr(torch, name, None)
        for overload in packet.overloads() if packet and function else ():
            if overload != "out":
                found[getattr(packet, overload)] = function
    return found


_QUICK = _quick()


def _in_place() -> dict[Any, Any]:
    """Return, for operations on each element, those that write over the first one."""
    found: dict[Any, Any] = {}
    names = [name for name in dir(torch) if re.fullmatch(r"_foreach_\w*[a-z]", name)]
    for name in [*["add", "sub", "mul", "div", "relu", "sqrt", "exp", "neg"], *names]:
        packet: Any = getattr(_ATEN, name, None)
        within: Any = getattr(_ATEN, f"{name}_", None)
        for overload in packet.overloads() if packet and within else ():
            if overload in within.overloads():
                found[getattr(packet, overload)] = getattr(within, overload)
    return found


def _threshold_backward_(gradient: Tensor, result: Tensor, threshold: Any) -> Tensor:
    return _ATEN.threshold_backward.grad_input(
        gradient, result, threshold, grad_input=gradient
    )


_IN_PLACE = _in_place()
_ELSEWHERE = {
    within: over
    for over, within in _IN_PLACE.items()
    if not within.__name__.startswith("_foreach")
}
_IN_PLACE[_ATEN.threshold_backward.default] = _threshold_backward_
