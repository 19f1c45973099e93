"""What an operation of a graph does: to whose memory, and to what else.

A graph is one of `torch.fx`; its operations are those of PyTorch's `aten`.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

__all__ = [
    "ATEN",
    "UntraceableError",
    "changed",
    "changed_by",
    "drop_unused",
    "find_owners",
    "find_written",
    "is_pure",
    "is_view",
    "returns_alike",
]

ATEN = torch.ops.aten
_OVERLOADS = type(ATEN.mm.default)
# Views that their schema doesn't tell of.
_UNTOLD_VIEWS = (
    ATEN._unsafe_view.default,
    ATEN.unsafe_split.Tensor,
    ATEN.unsafe_split_with_sizes.default,
)


class UntraceableError(Exception):
    """A computation that can't be played again from a graph; says why."""


def find_owners(graph: Any) -> dict[Any, Any]:
    """Return, for each node, the one in whose memory its tensor may be."""
    owners: dict[Any, Any] = {}
    for node in graph.nodes:
        part = node.target is operator.getitem and is_view(node.args[0])
        owners[node] = owners[node.args[0]] if part or is_view(node) else node
    return owners


def find_written(graph: Any) -> set[Any]:
    """Return the nodes whose memory an operation changes."""
    owners = find_owners(graph)
    memory = {owners[each] for node in graph.nodes for each in changed_by(node)}
    found = {node for node, owner in owners.items() if owner in memory}
    parts = [node for node in found if node.target is operator.getitem]
    return found | {part.args[0] for part in parts}


def changed_by(node: Any) -> list[Any]:
    """Return the nodes whose tensors an operation changes in place."""
    if not isinstance(node.target, _OVERLOADS):
        return []
    found = changed(node.target, node.args, node.kwargs)
    return [argument for argument in found if isinstance(argument, fx.Node)]


def changed(operation: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return the arguments that an operation changes in place."""
    found: list[Any] = []
    for number, told in enumerate(operation._schema.arguments):
        if told.alias_info is not None and told.alias_info.is_write:
            given = args[number] if number < len(args) else kwargs.get(told.name)
            found += given if isinstance(given, (list, tuple)) else [given]
    return found


def is_view(node: Any) -> bool:
    """Whether what it returns may share the memory of its first argument."""
    if not isinstance(node.target, _OVERLOADS) or not node.all_input_nodes:
        return False
    if node.target in _UNTOLD_VIEWS:
        return True
    return any(told.alias_info is not None for told in node.target._schema.returns)


def is_pure(node: Any) -> bool:
    """Whether an operation does nothing but return what its arguments determine."""
    if node.op == "get_attr" or node.target is operator.getitem:
        return True
    if not isinstance(node.target, _OVERLOADS):
        return False
    schema = node.target._schema
    seeded = torch.Tag.nondeterministic_seeded in node.target.tags
    return bool(schema.returns) and not schema.is_mutable and not seeded


def returns_alike(operation: Any, node: Any) -> bool:
    """Whether an operation would return a tensor as a node does, strides included."""
    if any("val" not in each.meta for each in node.all_input_nodes):
        return False
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda each: each.meta["val"]
    )
    made, told = operation(*args, **kwargs), node.meta["val"]
    return (made.dtype, made.stride()) == (told.dtype, told.stride())


def drop_unused(graph: Any) -> None:
    """Leave out what nothing needs."""
    for node in reversed(list(graph.nodes)):
        computed = node.op in ("call_function", "get_attr")
        if computed and not node.users and is_pure(node):
            graph.erase_node(node)
