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
from fmkit.performance._graph._nodes import ATEN, UntraceableError, changed
from fmkit.performance._graph._simplify import simplified

__all__ = ["Graph"]

Tensor = Any
_Function = Callable[..., list[Tensor]]
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
# A millisecond each to trace; one saves some microseconds in each run.
_MOST_OPERATIONS = 3000


class Graph:
    """A computation, traced once.

    Attributes:
        generators: The generators of `function`'s own that it draws from, with their
            states before it was traced.

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
            module, looking, self._constants = simplified(module)
        except Exception as error:
            raise UntraceableError(_reason(error)) from error
        finally:
            self.generators = looks.generators
            self.put_back()
        self._numbers = [number for _, number in looks.found]
        self._run: _Function = module.forward
        self._look: _Function | None = looking and looking.forward

    def put_back(self) -> None:
        """Put the generators that `function` draws from back to where they were."""
        for generator, state in self.generators:
            generator.set_state(state)

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
    """Notes which numbers in traced tensors Python asks for, and who draws others."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Any]] = []
        self.generators: list[tuple[Any, Tensor]] = []  # and their states before

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
        generator: Any = kwargs.get("generator")
        if generator is not None and _proxy_mode() is not None:
            if all(generator is not each for each, _ in self.generators):
                self.generators.append((generator, generator.get_state()))
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
        if _is_sized_by_values(func, args):
            raise UntraceableError(
                f"the shape of what {func.__name__} returns depends on the batch"
            )
        if func._schema.is_mutable:
            for tensor in changed(func, args, kwargs):
                if isinstance(tensor, torch.Tensor) and not _is_traced(tensor):
                    raise UntraceableError(
                        "the step changes a tensor that is no variable of the model"
                    )
        return func(*args, **kwargs)


def _is_sized_by_values(func: Any, args: Any) -> bool:
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    if func is not ATEN.index.Tensor:
        return True
    masks = (torch.bool, torch.uint8)
    return any(each is not None and each.dtype in masks for each in args[1])


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
        number = graph.call_function(ATEN._local_scalar_dense.default, (tensor,))
    node.update_kwarg("alpha", number)
