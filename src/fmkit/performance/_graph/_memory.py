"""Results of a graph where an argument was that nothing needs any more."""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
from torch import fx

from fmkit.performance._graph._nodes import ATEN, find_owners

__all__ = ["IN_PLACE", "reuse_memory"]

Tensor = Any
# Views of all that is in the memory.
_WHOLE_VIEWS = (
    ATEN.view.default,
    ATEN._unsafe_view.default,
    ATEN.permute.default,
    ATEN.t.default,
    ATEN.transpose.int,
    ATEN.unsqueeze.default,
    operator.getitem,
)


def reuse_memory(graph: Any) -> None:
    """Write results where an argument was that nothing needs any more.

    Fresh memory costs more than the arithmetic: the system has to map each page.
    """
    owners = find_owners(graph)
    place = {node: number for number, node in enumerate(graph.nodes)}
    last_use: dict[Any, int] = {}
    for node, owner in owners.items():
        last_use[owner] = max(
            [last_use.get(owner, 0), *(place[user] for user in node.users)]
        )
    for node in list(graph.nodes):
        within = IN_PLACE.get(node.target)
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
        ) or _overlap(over, others, owners):
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


def _overlap(over: list[Any], others: list[list[Any]], owners: dict[Any, Any]) -> bool:
    """Whether writing over some tensors could change what is still to be read."""
    written = {owners[node] for node in over}
    read = [
        owners[node] in written
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
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return False
    # What is like a tensor without gaps has its strides.
    same = ours.stride() == theirs.stride()
    return bool(same and torch.empty_like(ours).stride() == ours.stride())


def _in_place() -> dict[Any, Any]:
    """Return, for operations on each element, those that write over the first one."""
    found: dict[Any, Any] = {}
    names = [name for name in dir(torch) if re.fullmatch(r"_foreach_\w*[a-z]", name)]
    for name in [*["add", "sub", "mul", "div", "relu", "sqrt", "exp", "neg"], *names]:
        packet: Any = getattr(ATEN, name, None)
        within: Any = getattr(ATEN, f"{name}_", None)
        for overload in packet.overloads() if packet and within else ():
            if overload in within.overloads():
                found[getattr(packet, overload)] = getattr(within, overload)
    return found


def _threshold_backward_(gradient: Tensor, result: Tensor, threshold: Any) -> Tensor:
    return ATEN.threshold_backward.grad_input(
        gradient, result, threshold, grad_input=gradient
    )


IN_PLACE = _in_place()
IN_PLACE[ATEN.threshold_backward.default] = _threshold_backward_
