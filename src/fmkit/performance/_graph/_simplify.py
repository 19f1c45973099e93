"""A graph with fewer operations, which uses less memory. No bit changes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fmkit.performance._graph._copies import (
    leave_out_copies,
    leave_out_turns,
    pool_in_any_order,
    read_in_any_order,
    write_elsewhere,
)
from fmkit.performance._graph._memory import reuse_memory
from fmkit.performance._graph._nodes import (
    ATEN,
    UntraceableError,
    changed_by,
    drop_unused,
    find_owners,
    find_written,
    is_pure,
)

__all__ = ["simplified"]

Tensor = Any
# Another tensor with the same memory and shape.
_FORWARDED = (ATEN.detach.default, ATEN.alias.default)
# What is found before a run must be quick to find.
_LARGEST_LOOK = 64
# Python finds these in less time than `torch.ops` finds the same kernels.
_BY_NAME = (
    "abs add addcmul addmm amax amin argmax bitwise_and bitwise_not bitwise_or bmm "
    "cat clamp convolution cos div eq exp expm1 floor gather ge gt le log log1p "
    "logical_and logical_not logical_or lt maximum mean minimum mm mul ne neg "
    "ones_like pow reciprocal relu round rsqrt rsub scatter sigmoid sign sin "
    "slice_copy sqrt square squeeze stack sub sum t tanh transpose unsqueeze where "
    "zeros_like"
)


def simplified(module: Any) -> tuple[Any, Any, list[Tensor]]:
    """Return a graph and the one of its looks with fewer operations, and constants."""
    graph = module.graph
    _forward_aliases(graph)
    leave_out_turns(graph)
    write_elsewhere(graph)
    written = find_written(graph)
    constants = _take_out_constants(module, written)
    drop_unused(graph)
    _share_equal(graph, written)
    pool_in_any_order(graph, written)
    leave_out_copies(graph, written)
    read_in_any_order(graph, written)
    (last,) = (node for node in graph.nodes if node.op == "output")
    outputs, looks = last.args[0]
    looking = _graph_of_looks(module, looks) if looks else None
    last.args = (outputs,)
    drop_unused(graph)
    _join_division(graph)
    reuse_memory(graph)
    for node in graph.nodes:
        node.target = _QUICK.get(node.target, node.target)
    return fx.GraphModule(module, graph), looking, constants


def _forward_aliases(graph: Any) -> None:
    for node in list(graph.nodes):
        if node.target in _FORWARDED:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


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
        elif node.target is ATEN.lift_fresh_copy.default and node.args[0] in held:
            value[node] = held[node.args[0]].clone()
        elif node.op == "call_function" and is_pure(node) and node not in written:
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


def _share_equal(graph: Any, written: set[Any]) -> None:
    """Compute once what several nodes compute from the same tensors."""
    seen: dict[Any, Any] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_pure(node) or node in written:
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
        if alike and wide and not any(map(changed_by, between)):
            with graph.inserting_before(node):
                number = graph.call_function(
                    ATEN._local_scalar_dense.default, (factor,)
                )
                negative = graph.call_function(operator.neg, (number,))
                graph.call_function(
                    ATEN._foreach_addcdiv_.Scalar,
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
    packet = getattr(ATEN, name, None)
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


def _graph_of_looks(module: Any, looks: Sequence[Any]) -> Any:
    """Return a graph of the numbers that Python asked for, and of nothing else."""
    owners = find_owners(module.graph)
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
            if not old or not is_pure(node):
                raise UntraceableError("an `if` looks at a value that the step changes")
        changed |= {owners.get(each) for each in changed_by(node)}
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
        ATEN.copy_.default: torch.Tensor.copy_,
        ATEN.expand.default: torch.Tensor.expand,
        ATEN.view.default: torch.Tensor.view,
    }
    names = [name for name in dir(torch) if name.startswith("_foreach_")]
    names += [f"{name}_" for name in ["relu", "sqrt", "exp", "neg"]]
    for name in ["add_", "sub_", "mul_", "div_"]:
        for overload in getattr(ATEN, name).overloads():
            found[getattr(getattr(ATEN, name), overload)] = getattr(torch.Tensor, name)
    for name in [*_BY_NAME.split(), *names]:
        packet, function = getattr(ATEN, name, None), getattr(torch, name, None)
        for overload in packet.overloads() if packet and function else ():
            if overload != "out":
                found[getattr(packet, overload)] = function
    return found


_QUICK = _quick()
