"""Copies that a graph does without.

Keras keeps the channels of an image last, and PyTorch's kernels name them first. So
convolutions and pooling copy an image there and back, though the kernels take either
order. Where the numbers that are summed keep their order, no bit depends on the copies.
"""

from __future__ import annotations

from typing import Any

import torch

from fmkit.performance._graph._memory import IN_PLACE
from fmkit.performance._graph._nodes import (
    ATEN,
    drop_unused,
    find_owners,
    is_view,
    returns_alike,
)

__all__ = [
    "leave_out_copies",
    "leave_out_turns",
    "pool_in_any_order",
    "read_in_any_order",
    "write_elsewhere",
]

_PERMUTE = ATEN.permute.default
_POOL_BACKWARD = ATEN.max_pool2d_with_indices_backward.default
# Orders of a tensor's numbers in memory that don't depend on what is copied.
_ORDERS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
# Operations on each number that round once at most, and so alike in every kernel.
_EXACT = (
    ATEN.add.Tensor,
    ATEN.clone.default,
    ATEN.div.Tensor,
    ATEN.mul.Tensor,
    ATEN.sub.Tensor,
    ATEN.threshold_backward.default,
)
_ELSEWHERE = {
    within: over
    for over, within in IN_PLACE.items()
    if not within.__name__.startswith("_foreach")
}


def leave_out_turns(graph: Any) -> None:
    """Use a tensor itself where its axes are turned twice, and so are as they were."""
    for node in list(graph.nodes):
        if node.target is _PERMUTE and node.args[0].target is _PERMUTE:
            (tensor, there), back = node.args[0].args, node.args[1]
            if [there[axis] for axis in back] == list(range(len(back))):
                node.replace_all_uses_with(tensor)
                graph.erase_node(node)


def write_elsewhere(graph: Any) -> None:
    """Let an operation that changes a tensor return another one where nobody can tell.

    Keras copies, for the gradient, what its next operation changes. Copy and change
    each go through all of the memory; one operation does both. `reuse_memory` changes
    tensors in place where that gains.
    """
    owners = find_owners(graph)
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
        _, *others = node.all_input_nodes
        if any(owners[other] is owners[node] for other in others):
            continue  # the order in which it writes may tell
        if returns_alike(elsewhere, node):
            node.target = elsewhere


def pool_in_any_order(graph: Any, written: set[Any]) -> None:
    """Let max pooling read channels that come last in memory, and copy its results.

    Keras copies the whole image to bring the channels to the front. The results are
    smaller, the other kernel is faster, and the next convolution undoes the copy.
    """
    for pool in list(graph.nodes):
        if pool.target is not ATEN.max_pool2d_with_indices.default:
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
                    ATEN.clone.default,
                    (part,),
                    {"memory_format": torch.contiguous_format},
                )
            part.replace_all_uses_with(copy, lambda user, copy=copy: user is not copy)
            copy.meta["val"] = told = part.meta["val"]
            part.meta["val"] = torch.empty_like(told, memory_format=torch.channels_last)
        for node in back:
            node.replace_input_with(node.args[-1], found[1])
    drop_unused(graph)


def _is_brought_to_front(node: Any, written: set[Any]) -> bool:
    """Whether a node copies an image only so that its channels come first in memory."""
    if not _is_copy(node, written):
        return False
    new, old = node.meta["val"], node.args[0].meta["val"]
    last = old.is_contiguous(memory_format=torch.channels_last)
    # Of whole numbers the other kernel takes small images only, and of half precision
    # it returns another NaN.
    known = old.device.type == "cpu" and old.dtype in (torch.float32, torch.float64)
    return bool(known and new.is_contiguous() and last and not old.is_contiguous())


def leave_out_copies(graph: Any, written: set[Any]) -> None:
    """Use a tensor itself where a copy of it has the same numbers in the same order.

    Keras's convolutions turn the channels to the front, copy, turn them back in memory,
    and copy again.
    """
    for node in list(graph.nodes):
        source = node
        while _is_copy(source, written):
            source = source.args[0]
        if source is node or _is_returned(node):
            continue
        if source.meta["val"].stride() == node.meta["val"].stride():
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif node.kwargs.get("memory_format") in _ORDERS:
            node.args = (source,)
    drop_unused(graph)


def _is_returned(node: Any) -> bool:
    """Whether the graph returns a tensor in the memory of a node."""
    return any(
        user.op == "output" or (is_view(user) and _is_returned(user))
        for user in node.users
    )


def read_in_any_order(graph: Any, written: set[Any]) -> None:
    """Let operations that don't mind the order read what was copied, not the copy."""
    for node in list(graph.nodes):
        exact = node.target in _EXACT and "alpha" not in node.kwargs
        arguments = node.all_input_nodes if exact else []
        if node.target is ATEN.convolution_backward.default and not node.args[-1][2]:
            # It makes the copy of the gradient that it needs, unless it sums it.
            arguments = [node.args[0]]
        for argument in arguments:
            turned = argument.target is _PERMUTE
            copy = argument.args[0] if turned else argument
            shared = len(copy.users) > 1 or len(argument.users) > 1
            if shared or not _is_copy(copy, written):
                continue
            source = copy.args[0]
            if turned:
                with graph.inserting_before(node):
                    source = graph.call_function(_PERMUTE, (source, argument.args[1]))
                source.meta["val"] = copy.args[0].meta["val"].permute(argument.args[1])
            node.replace_input_with(argument, source)
            if exact and not returns_alike(node.target, node):
                node.replace_input_with(source, argument)
    drop_unused(graph)


def _is_copy(node: Any, written: set[Any]) -> bool:
    """Whether a tensor has and keeps the numbers of another one, in whatever order."""
    power = node.target is ATEN.pow.Tensor_Scalar and node.args[1] == 1
    if not power and node.target is not ATEN.clone.default:
        return False
    if {node, node.args[0]} & written:
        return False
    new, old = node.meta.get("val"), node.args[0].meta.get("val")
    if new is None or old is None or new.dtype != old.dtype:
        return False
    return bool(new.is_floating_point() or not power)
