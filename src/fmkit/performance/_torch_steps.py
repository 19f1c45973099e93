"""The steps of a Keras model on PyTorch, each as one graph of plain operations.

What is traced is Keras's own step, or the user's: forward pass, losses, gradients,
update, metrics. Every variable is an input that the graph changes in place, as the step
would. A batch of a shape that has not been seen before is trained on as ever; with the
second one a graph is made, for that shape and for the weights that are trainable.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
from torch.fx.experimental import proxy_tensor

from fmkit import _keras_private as private
from fmkit._buffers import SHARED, Buffers, to_tensors
from fmkit._generators import random_state, restore_random_state, undisturbed
from fmkit.performance._graph import Graph, UntraceableError

__all__ = ["TorchSteps", "rows_of"]

Tensor = Any
_Layout = Any

# Graphs are made for so many shapes, and for so many ways through the `if`s of a step.
_SHAPES = 8
_WAYS = 8
_TRIALS = 3
# Shapes that have been seen once.
_REMEMBERED = 64
_OF_PYTHON, _OF_OTHERS = ("python", "numpy"), ("keras", "torch", "torch.cuda")
_NO_BATCH = "the batches hold something else than tensors of numbers"


class _DrawnError(UntraceableError):
    """Somebody drew random numbers while a step was traced: it, or another thread."""


class TorchSteps:
    """Makes steps of a model, from a graph where it can.

    Args:
        model: The model, which is built.
        step: One of its steps: takes a batch, returns tensors.
        training: Whether the step takes gradients.

    Attributes:
        why_not: Why the last step was not made from a graph; `None` if it was, or if
            there was no graph yet.
    """

    def __init__(
        self, model: Any, step: Callable[[Any], Any], *, training: bool
    ) -> None:
        self._model, self._step, self._training = model, step, training
        self._variables: list[Any] = []
        self._traced: dict[Any, list[_TracedStep]] = {}
        self._seen: set[Any] = set()
        self._refused: dict[Any, str] = {}
        self.why_not: str | None = None
        self.begin()

    def begin(self) -> None:
        """Read which variables there are: called before each `fit`."""
        model = self._model
        found = [*model.variables, *model.metrics_variables]
        if self._training and model.optimizer is not None:
            found += model.optimizer.variables
        variables = {id(each): each for each in found}
        if [*variables] != [*map(id, self._variables)]:
            self._traced, self._seen, self._refused = {}, set(), {}
        self._variables = list(variables.values())
        self._values = [variable.value for variable in self._variables]
        self._layers = private.all_layers(model)

    def __call__(self, batches: list[Any]) -> Any:
        """Make the steps of one execution; return what Keras expects of it."""
        found = [self._make(batch) for batch in batches]
        if self._training or len(found) == 1 or self._step == self._model.test_step:
            return found[-1]
        return keras.tree.map_structure(lambda *parts: torch.cat(parts), *found)

    def _make(self, batch: Any) -> Any:
        try:
            tensors: list[Tensor] = []
            layout = _layout_of(batch, tensors)
        except UntraceableError as error:
            self.why_not = str(error)
            return self._step_by_python(batch)
        flags = tuple([value.requires_grad for value in self._values])
        # Layers without weights to train look at it too, such as BatchNormalization.
        trainable = tuple([each.trainable for each in self._layers])
        key = (layout, flags, trainable)
        inputs = [*self._values, *tensors]
        for traced in self._traced.get(key, ()):
            if traced.graph.fits(inputs):
                self.why_not = None
                return traced(inputs)
        if key not in self._seen:
            if len(self._seen) > _REMEMBERED:
                self._seen.clear()
                self._refused.clear()
            self._seen.add(key)
            found = self._step_by_python(batch)
            self.begin()  # a first step may make variables
            return found
        self.why_not = self._refused.get(key)
        if self.why_not is None:
            try:
                return self._trace(key, layout, inputs)(inputs)
            except (UntraceableError, private.MissingPieceError) as error:
                self.why_not = self._refused[key] = str(error)
        return self._step_by_python(batch)

    def _step_by_python(self, batch: Any) -> Any:
        with torch.set_grad_enabled(self._training):
            return self._step(batch)

    def _trace(self, key: Any, layout: _Layout, inputs: list[Tensor]) -> _TracedStep:
        ways = self._traced.get(key, [])
        if not ways and len(self._traced) == _SHAPES:
            raise UntraceableError(
                f"there are graphs for {_SHAPES} shapes of batches already; `compile` "
                "begins anew"
            )
        if len(ways) == _WAYS:
            raise UntraceableError("an `if` looks at a number that keeps changing")
        made = self._traced_undisturbed(layout, inputs)
        self._traced[key] = [*ways, made]
        return made

    def _traced_undisturbed(self, layout: _Layout, inputs: list[Tensor]) -> _TracedStep:
        """Trace a step that draws nothing from the generators of Python and NumPy.

        A thread that reads data ahead may draw from them at the same time. It stops
        when nobody takes its batches; what it has drawn is not drawn again.
        """
        before, trials = random_state(_OF_PYTHON), 0
        while True:
            trials += 1
            try:
                return _TracedStep(
                    self._step_by_python, self._variables, layout, inputs
                )
            except UntraceableError as error:
                others = threading.active_count() > 1
                drawn = isinstance(error, _DrawnError)
                if not drawn or not others or trials == _TRIALS:
                    restore_random_state(before)
                    raise


class _TracedStep:
    """A step as a graph, for batches of one shape."""

    def __init__(
        self,
        step: Callable[[Any], Any],
        variables: list[Any],
        layout: _Layout,
        inputs: list[Tensor],
    ) -> None:
        self._draws: list[tuple[Callable[[Any], Any], Any, Any]] = []
        device = inputs[0].device
        flags = [value.requires_grad for value in inputs]
        count = len(variables)
        self._names: list[str] | None = None
        self._structure: Any = None

        def make(of_keras: Callable[[Any], Any], seed: Any) -> Any:
            generator = torch.Generator(device)
            self._draws.append((of_keras, seed, generator))
            return generator

        def function(*given: Tensor) -> list[Tensor]:
            own = [
                value.detach().requires_grad_(flag)
                for value, flag in zip(given[:count], flags, strict=False)
            ]
            rest = iter(given[count:])
            with _InPlace(zip(variables, own, strict=True), collect_losses=True):
                logs = step(_batch_of(layout, rest))
            if any(map(_adds_gradients, own, inputs)):
                raise UntraceableError(
                    "the step adds its gradients to those of the step before: it does "
                    "not call `zero_grad`"
                )
            found = self._leaves_of(logs)
            with proxy_tensor.disable_proxy_modes_tracing():
                expected.extend(each.detach().clone() for each in found)
            return found

        copies = [value.detach().clone() for value in inputs]
        expected: list[Tensor] = []
        with (
            undisturbed(*_OF_OTHERS),
            private.generators_made_by(make),
            warnings.catch_warnings(action="ignore"),  # Keras's own step has warned
        ):
            before, drawn = _python_state(), torch.get_rng_state()
            self.graph = Graph(function, copies)
            if _python_state() != before:
                raise _DrawnError(
                    "the step draws from Python's or NumPy's random, or a thread "
                    "beside it does"
                )
            if device.type == "cpu":
                torch.set_rng_state(drawn)
                again = [value.detach().clone() for value in inputs]
                self._check([*copies, *expected], again)

    def __call__(self, inputs: list[Tensor]) -> Any:
        for of_keras, seed, generator in self._draws:
            generator.set_state(of_keras(seed).get_state())
        with torch.no_grad():
            found = self.graph(inputs)
        if self._names is not None:
            return dict(zip(self._names, found, strict=True))
        return keras.tree.pack_sequence_as(self._structure, found)

    def _check(self, expected: list[Tensor], inputs: list[Tensor]) -> None:
        """Play the graph once, and refuse it if a bit differs from the step's.

        Args:
            expected: Variables and batch as the step has left them, and its logs.
            inputs: Variables and batch as they were before.
        """
        for _, _, generator in self._draws:
            generator.manual_seed(generator.initial_seed())
        try:
            with torch.no_grad():
                found = self.graph(inputs)
        except Exception as error:
            raise UntraceableError(
                f"its graph can't be played: {type(error).__name__}: {error}"
            ) from error
        finally:
            self.graph.put_back()
        for ours, theirs in zip([*inputs, *found], expected, strict=True):
            if not torch.equal(_bytes_of(ours), _bytes_of(theirs)):
                raise UntraceableError("its graph would change other bits")

    def _leaves_of(self, logs: Any) -> list[Tensor]:
        """Return the tensors of logs, and remember how they hang together."""
        self._names = self._structure = None
        leaves = keras.tree.flatten(logs)
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise UntraceableError("the logs of the step are not all tensors")
        values = list(logs.values()) if type(logs) is dict else []
        if values and all(isinstance(value, torch.Tensor) for value in values):
            self._names = list(logs)
            return values
        self._structure = keras.tree.map_structure(lambda leaf: None, logs)
        return leaves


def rows_of(arrays: list[Any]) -> Callable[[Any], list[Tensor]] | None:
    """Return what gathers rows of arrays as tensors, in memory that is used again.

    `None` for arrays of which Keras may make something else than their own numbers.
    What Keras does takes fresh memory for each batch, and copies it.
    """
    if not all(map(_is_shared, arrays)):
        return None
    buffers = Buffers()

    def gather(indices: Any) -> list[Tensor]:
        places = np.asarray(indices)
        return list(to_tensors([buffers.rows(array, places) for array in arrays]))

    return gather


def _is_shared(array: Any) -> bool:
    if type(array) is not np.ndarray or array.dtype not in SHARED:
        return False
    # Keras casts floats of another precision.
    kept = array.dtype.kind in "iu" or array.dtype == keras.config.floatx()
    return bool(kept and array.flags.c_contiguous and array.flags.aligned)


class _InPlace(keras.StatelessScope):
    """Variables have other tensors for values, which `assign` changes in place."""

    def add_update(self, update: tuple[Any, Tensor]) -> None:
        variable, value = update
        with torch.no_grad():
            self.get_current_value(variable).copy_(value)

    def get_current_value(self, variable: Any) -> Tensor:
        value = super().get_current_value(variable)
        if value is None:
            raise UntraceableError(
                f"the step uses the variable {variable.path}, which the model does not "
                "track"
            )
        return value


def _adds_gradients(traced: Tensor, value: Tensor) -> bool:
    """Whether a step that was just traced left the gradient of the one before."""
    return traced.grad is not None and value.is_leaf and value.grad is not None


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)


def _python_state() -> Any:
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2:]


def _layout_of(batch: Any, tensors: list[Tensor]) -> _Layout:
    """Return what a batch looks like, but for its numbers; append its tensors."""
    if isinstance(batch, torch.Tensor):
        tensors.append(batch)
        if batch.requires_grad:
            raise UntraceableError("a tensor of the batch requires a gradient")
        return (batch.shape, batch.stride(), batch.dtype, batch.device)
    if batch is None:
        return None
    if type(batch) in (tuple, list):
        return (type(batch), *[_layout_of(each, tensors) for each in batch])
    if type(batch) is dict:
        items = [(key, _layout_of(each, tensors)) for key, each in batch.items()]
        return (dict, *items)
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "fiub":
        if any(stride < 0 for stride in batch.strides):
            raise UntraceableError("an array of the batch is read backwards")
        return _layout_of(torch.as_tensor(batch), tensors)
    raise UntraceableError(_NO_BATCH)


def _batch_of(layout: _Layout, tensors: Any) -> Any:
    """Return a batch of this layout, with these tensors."""
    if layout is None:
        return None
    if layout[0] is dict:
        return {key: _batch_of(each, tensors) for key, each in layout[1:]}
    if layout[0] in (tuple, list):
        return layout[0](_batch_of(each, tensors) for each in layout[1:])
    return next(tensors)
