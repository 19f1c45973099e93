"""What training can change in a model beside the variables that Keras lists of it.

Keras lists the variables of layers, metrics and `model.optimizer`. A model may hold
more: the second optimizer of a GAN, the states of a stateful recurrent layer,
generators of random numbers, counters. They are attributes, or stand in lists and dicts
that are; here they are found and named by the way that leads to them.
"""

from __future__ import annotations

import collections
import enum
import functools
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._commits import is_storable
from fmkit._describe import layer_names, library_of

__all__ = ["Held", "State", "find", "find_in_data", "large_arrays", "state_of"]

# They can't change, or what they hold is the program and no state.
_CONSTANT = (
    types.NoneType,
    bool,
    int,
    float,
    complex,
    str,
    enum.Enum,
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
    np.dtype,
    np.generic,
    keras.DTypePolicy,
    keras.KerasTensor,
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.callbacks.Callback,
)
_VALUES = (types.NoneType, bool, int, float, str, bytes, np.generic, np.ndarray)
# A commit makes of any other subclass what it is a subclass of.
_CONTAINERS = (dict, list, tuple, collections.Counter, collections.OrderedDict)
# Larger ones are named instead: to compare them at each commit would cost.
_LARGEST_VALUE = 4096
# Of data: their order may be a list or an array of indices.
_LARGEST_ORDER = 2**24
# Objects in objects in objects; what lies deeper is not looked for.
_DEPTH = 4
_LIBRARIES = ("tensorflow", "jax", "jaxlib", "torch", "numpy", "pandas")


class State(NamedTuple):
    """Something with a state of its own, and how to read and set it."""

    get: Callable[[], Any]
    set: Callable[[Any], None]


@dataclass
class Held:
    """What a model holds, each by the way that leads to it, such as `model.step`.

    Attributes:
        variables: Variables that Keras does not list.
        optimizers: Optimizers other than `model.optimizer`.
        states: Generators, and objects with `get_state` and `set_state` or with
            `state_dict` and `load_state_dict`.
        values: Attributes of a user's own classes: numbers, strings, small arrays,
            lists and dicts of them, and tensors.
        owners: The objects that those attributes are of.
        functions: Functions and losses of a user's own: a part of the program.
        unreadable: The class of each object that may have a state nobody can read.
    """

    variables: dict[str, Any] = field(default_factory=dict)
    optimizers: dict[str, Any] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    owners: dict[str, Any] = field(default_factory=dict)
    functions: dict[str, Any] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def find(model: Any, listed: Iterable[Any], data: Any = None) -> Held:
    """Find what `model` and its layers hold beside the variables in `listed`.

    Args:
        model: The model.
        listed: Its variables that Keras lists.
        data: What Keras makes iterators of, which may hold generators and counters.
    """
    search = _Search(listed)
    layers = private.all_layers(model)
    search.seen |= {id(layer) for layer in layers}
    search.seen.add(id(model.optimizer))
    for name, layer in zip(layer_names(layers), layers, strict=True):
        search.look_into(layer, "model" if layer is model else f"layer {name}", 0)
    search.look_at(getattr(model, "loss", None), "model.loss", 0)
    of_data = find_in_data(data)
    # Its generators are read with each batch.
    search.held.values |= of_data.values
    search.held.owners |= of_data.owners
    return search.held


def _parts_of(data: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of data that may have a state, with their names."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(data, torch.utils.data.DataLoader):
        for name in ("generator", "sampler", "batch_sampler", "dataset"):
            if library_of(getattr(data, name)) != "datasets":  # Hugging Face's
                yield f"data.{name}", getattr(data, name)
        for name in ("sampler", "batch_sampler"):
            # Of PyTorch's own classes, in which nothing is looked for.
            part = getattr(data, name)
            for each in (part, getattr(part, "sampler", None)):
                yield f"data.{name}.generator", getattr(each, "generator", None)
    elif isinstance(data, keras.utils.PyDataset):
        yield "data", data


def find_in_data(data: Any, without: Any = None) -> Held:
    """Find what data hold that may change: generators, counters, an order.

    Args:
        data: What Keras makes iterators of.
        without: A part that is left out.
    """
    search = _Search(() if without is None else (without,), largest=_LARGEST_ORDER)
    for place, part in _parts_of(data):
        search.look_at(part, place, 0)
    return search.held


def large_arrays(data: Any) -> dict[str, Any]:
    """Return the arrays of a `PyDataset` that are too large to be kept in a commit."""
    if not isinstance(data, keras.utils.PyDataset):
        return {}
    return {
        f"data.{name}": value
        for name, value in vars(data).items()
        if isinstance(value, np.ndarray) and not _is_value(value, _LARGEST_ORDER)
    }


class _Search:
    """One walk over the attributes of a model and its layers."""

    def __init__(self, listed: Iterable[Any], *, largest: int = _LARGEST_VALUE) -> None:
        self.held = Held()
        self.largest = largest
        listed = list(listed)
        self.seen = {id(variable) for variable in listed}
        if keras.backend.backend() == "torch":
            # Their tensors are attributes too.
            self.seen |= {id(getattr(each, "value", None)) for each in listed}

    def look_into(self, owner: Any, where: str, depth: int) -> None:
        """Look at each attribute of a layer or of another object."""
        ours = library_of(owner) not in ("keras", "fmkit")
        layer = isinstance(owner, keras.layers.Layer)
        skip = private.attributes_of_every_layer() if layer else frozenset()
        if ours:
            self.held.owners[where] = owner
        for name, value in list(vars(owner).items()):
            if name in skip:
                continue
            if not ours:
                # The user's things in it are looked at, Keras's own are no state.
                self.look_at(value, f"{where}.{name}", depth, named=False)
            elif _is_value(value, self.largest) or _is_constant_tensor(value):
                self.held.values[f"{where}.{name}"] = value
            else:
                if isinstance(value, (types.FunctionType, keras.losses.Loss)):
                    self.held.functions[f"{where}.{name}"] = value
                self.look_at(value, f"{where}.{name}", depth)
        if layer and keras.backend.backend() == "torch":
            for name, buffer in owner.named_buffers():
                self.look_at(buffer, f"{where}.{name}", depth)

    def look_at(
        self, value: Any, place: str, depth: int, *, named: bool = True
    ) -> None:
        """Note `value` if it has a state, else what it holds that has one.

        `named` says whether to name what has a state that can't be read.
        """
        if isinstance(value, _CONSTANT) or id(value) in self.seen or depth > _DEPTH:
            return
        if isinstance(value, bytes) and _is_value(value, self.largest):
            return
        self.seen.add(id(value))
        items = _items(value)
        if items is not None and len(items) <= _LARGEST_VALUE:
            for key, item in items:
                self.look_at(item, f"{place}[{key!r}]", depth, named=named)
            unreadable = bool(items) and (
                isinstance(value, set) or self._is_lost(value, items)
            )
        elif self._look_at_keras(value, place):
            unreadable = False
        elif named and (state := state_of(value)) is not None:
            self.held.states[place] = state
            unreadable = False
        else:
            # A long container is none of Keras's objects, even if Keras tracks it.
            unreadable = items is not None or self._look_at_other(value, place, depth)
        if unreadable and named:
            self.held.unreadable[place] = type(value).__name__

    def _is_lost(self, value: Any, items: list[tuple[Any, Any]]) -> bool:
        """Whether what a container holds could be committed, but not the container."""
        return not _is_value(value, self.largest) and all(
            _is_value(item, self.largest) for _, item in items
        )

    def _look_at_keras(self, value: Any, place: str) -> bool:
        if isinstance(value, keras.Variable) or _is_tensorflow(value, "Variable"):
            self.held.variables[place] = value
        elif isinstance(value, keras.optimizers.Optimizer):
            self.held.optimizers[place] = value
            self._add_all(value.variables, place)
        elif isinstance(value, keras.random.SeedGenerator) or _is_tensorflow(
            value, "random", "Generator"
        ):
            self._add_all([value.state], place)
        elif isinstance(
            value, (keras.layers.Layer, keras.metrics.Metric)
        ) or _is_tensorflow(value, "Module"):
            # Of a kind that Keras tracks, but held where it does not look.
            self._add_all(value.variables, place)
        else:
            return False
        return True

    def _add_all(self, variables: Iterable[Any], place: str) -> None:
        for number, variable in enumerate(variables):
            if id(variable) not in self.seen:
                self.seen.add(id(variable))
                self.held.variables[f"{place}/{number}"] = variable

    def _look_at_other(self, value: Any, place: str, depth: int) -> bool:
        """Look into an object; return whether it may have a state beside."""
        library = library_of(value)
        if hasattr(value, "__next__") or not hasattr(value, "__dict__"):
            return True
        if library in _LIBRARIES:
            return not callable(value)
        if library not in ("keras", "fmkit") or isinstance(value, keras.losses.Loss):
            self.look_into(value, place, depth + 1)
        return False


def _items(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the keys and items of a container; `None` of anything else."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(enumerate(value))
    return None


def _is_value(value: Any, largest: int) -> bool:
    """Whether `value` is plain and small: numbers, strings, arrays, nested.

    Above 4,096 elements, an array must have one dimension.
    """
    left, waiting = largest, [value]
    while waiting and left > 0:
        each = waiting.pop()
        if _is_container(each):
            waiting.extend(each)
            if isinstance(each, dict):
                waiting.extend(each.values())
        elif not isinstance(each, _VALUES) or not _can_be_stored(each):
            return False
        size = len(each) if isinstance(each, bytes) else getattr(each, "size", 1)
        if size > _LARGEST_VALUE and getattr(each, "ndim", 1) > 1:
            return False
        left -= size
    return left > 0


def _is_container(value: Any) -> bool:
    """Whether `value` comes back from a commit as it was."""
    kind = value.__class__  # TensorFlow wraps dicts and tuples, and says so here
    # Keras and TensorFlow track lists and dicts, and will again. PyTorch has `Size`.
    tracked = kind.__module__.partition(".")[0] in ("keras", "tensorflow", "torch")
    return kind in _CONTAINERS or (tracked and issubclass(kind, (dict, list, tuple)))


def _can_be_stored(value: Any) -> bool:
    return not isinstance(value, (np.ndarray, np.generic)) or is_storable(value)


def _is_tensorflow(value: Any, *names: str) -> bool:
    """Whether `value` is of the class `tensorflow.<names>`, if that is loaded."""
    kind: Any = sys.modules.get("tensorflow")
    for name in names:
        kind = getattr(kind, name, None)
    return kind is not None and isinstance(value, kind)


def _is_constant_tensor(value: Any) -> bool:
    """Whether `value` is a tensor that can only be replaced, not changed."""
    # PyTorch's can be changed: they are read as what has a state.
    if keras.backend.backend() == "torch" or isinstance(value, keras.Variable):
        return False
    return keras.ops.is_tensor(value) and not _is_tensorflow(value, "Variable")


def state_of(value: Any) -> State | None:
    """Return how to read and set the state of a generator, or of one by convention."""
    if isinstance(value, random.Random):
        return State(value.getstate, value.setstate)
    if isinstance(value, np.random.RandomState):
        return State(value.get_state, value.set_state)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return State(
            functools.partial(getattr, bits, "state"),
            functools.partial(setattr, bits, "state"),
        )
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Generator):
        return State(
            lambda: value.get_state().numpy(),
            lambda state: value.set_state(torch.from_numpy(state)),
        )
    if torch is not None and isinstance(value, torch.nn.Module):
        return _state_of_module(value)
    if torch is not None and isinstance(value, torch.Tensor):
        return _state_of_tensor(value)
    for get, put in (("get_state", "set_state"), ("state_dict", "load_state_dict")):
        if hasattr(value, get) and hasattr(value, put):
            return State(getattr(value, get), getattr(value, put))
    return None


def _state_of_module(module: Any) -> State:
    import torch

    def put(state: dict[str, Any]) -> None:
        tensors = {name: torch.as_tensor(value) for name, value in state.items()}
        module.load_state_dict(tensors)

    return State(module.state_dict, put)


def _state_of_tensor(tensor: Any) -> State:
    import torch

    def put(value: Any) -> None:
        with torch.no_grad():
            tensor.copy_(torch.as_tensor(value))

    return State(lambda: tensor, put)
