"""All that decides the next step, besides the data: variables and generators."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._commits import (
    ShardedArray,
    VariableEntry,
    decode,
    encode,
    list_variables,
)
from fmkit._job import Job
from fmkit._layer_state import assets_as_json
from fmkit._swap import replicas_of, walk
from fmkit.callbacks._resume._held import Held, find
from fmkit.callbacks._resume._shards import Layout, assign_shards, layout_of

__all__ = [
    "arrays_of",
    "held_by",
    "held_state",
    "layouts",
    "model_as_json",
    "restore_held",
    "restore_variables",
    "snapshot",
    "values_of",
]

Array = np.ndarray[Any, Any]


# Variables


def held_by(model: Any, data: Any = None) -> Held:
    """Return what model and data hold beside the variables that Keras lists."""
    return find(model, list_variables(model, metrics=True), data)


def snapshot(
    model: Any, *, metrics: bool, held: Held | None = None
) -> tuple[list[VariableEntry], dict[str, Array]]:
    """Copy every variable: a list that names them, and the arrays by name."""
    listed, parts = listed_variables(model, metrics=metrics, held=held)
    return listed, {
        name: np.array(_read(part), copy=True) for name, part in parts.items()
    }


def layouts(
    model: Any, job: Job, *, metrics: bool, held: Held | None = None
) -> tuple[list[VariableEntry], dict[str, Layout]]:
    """Return the list of `snapshot`, and how each array lies in the processes."""
    listed, parts = listed_variables(model, metrics=metrics, held=held)
    return listed, {name: layout_of(part, job) for name, part in parts.items()}


def listed_variables(
    model: Any, *, metrics: bool, held: Held | None = None
) -> tuple[list[VariableEntry], dict[str, Any]]:
    """Return a list that names every variable, and its replicas by name."""
    listed: list[VariableEntry] = []
    found: dict[str, Any] = {}
    of_metrics = {id(variable) for variable in model.metrics_variables}
    placed = _placed(model, held or held_by(model), metrics)
    for number, (place, variable) in enumerate(placed):
        parts = replicas_of(variable)
        names = [f"variable/{number}/{i}" for i in range(len(parts))]
        found.update(zip(names, parts, strict=True))
        listed.append(
            {
                "path": variable.path if place is None else place,
                "held": place,
                "metric": id(variable) in of_metrics,
                "arrays": names,
            }
        )
    return listed, found


def _placed(model: Any, held: Held, metrics: bool) -> list[tuple[str | None, Any]]:
    """Return all variables, those that the model merely holds with their places."""
    listed = [(None, variable) for variable in list_variables(model, metrics=metrics)]
    return [*listed, *sorted(held.variables.items(), key=lambda pair: pair[0])]


def arrays_of(variable: Any) -> list[Array]:
    """Return the value of each replica of a variable.

    On every backend these may be views of what the next step overwrites.
    """
    return [np.asarray(_read(part)) for part in replicas_of(variable)]


def _read(part: Any) -> Any:
    value = getattr(part, "value", part)
    if keras.backend.backend() == "jax" and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        # Shards of it are in other processes, all of which are here now.
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(value, tiled=True)
    return keras.ops.convert_to_numpy(part)


def restore_variables(
    model: Any,
    listed: list[VariableEntry],
    arrays: dict[str, Any],
    *,
    metrics: bool,
    held: Held | None = None,
    keep: Iterable[Any] = (),
) -> None:
    """Put the values of a snapshot back, bit for bit, but for the variables in `keep`.

    Raises:
        ValueError: If the model has other variables than the snapshot.
    """
    variables = _placed(model, held or held_by(model), metrics)
    if not metrics:
        listed = [entry for entry in listed if not entry["metric"]]
    kept = {id(variable) for variable in keep}
    places = [place for place, _ in variables]
    saved_places = [entry["held"] for entry in listed]
    if places != saved_places:
        raise ValueError(_other_variables(saved_places, places))
    for (_, variable), entry in zip(variables, listed, strict=True):
        parts = replicas_of(variable)
        saved = [arrays[name] for name in entry["arrays"]]
        if len(parts) != len(saved) or tuple(variable.shape) != saved[0].shape:
            raise ValueError(
                f"Variable {entry['path']!r} has {len(parts)} copies of shape "
                f"{tuple(variable.shape)}; the commit has {len(saved)} of shape "
                f"{saved[0].shape}."
            )
        if id(variable) in kept:
            continue
        for part, value in zip(parts, saved, strict=True):
            if isinstance(value, ShardedArray):
                assign_shards(part, value)
            else:
                # Copied once more: a backend may keep the array it is given.
                part.assign(value.copy())


def _other_variables(saved: list[str | None], here: list[str | None]) -> str:
    told = [
        f"The commit holds {saved.count(None)} variables of model, optimizer and "
        f"metrics; this program has {here.count(None)}."
    ]
    old, new = set(saved) - {None}, set(here) - {None}
    for names, where in ((old - new, "the commit"), (new - old, "this program")):
        if names:
            told.append(f"Only {where} has {sorted(map(str, names))[:5]}.")
    return (
        f"{' '.join(told)} Make and compile the model as before, or use another "
        "directory."
    )


# What a model holds beside them


def values_of(held: Held) -> dict[str, Any]:
    """Return what tells whether an attribute has changed since."""
    return {place: _comparable(value) for place, value in held.values.items()}


def _comparable(value: Any) -> Any:
    if keras.ops.is_tensor(value):
        return _Same(value)  # it can't be changed, only replaced
    arrays: dict[str, Array] = {}
    told = encode(value, arrays, "")
    return told, [(array.dtype, array.tobytes()) for array in arrays.values()]


class _Same:
    """Equal only to what holds the very same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]


def held_state(
    model: Any, held: Held, at_start: dict[str, Any], arrays: dict[str, Array]
) -> dict[str, Any]:
    """Return what a model holds that is no variable, as JSON with `arrays`.

    Args:
        model: The model.
        held: What it holds.
        at_start: What `values_of` returned before training: attributes that have not
            changed since are left out, so that the program may set them otherwise.
        arrays: Receives the arrays.
    """
    changed = {
        place: value
        for place, value in held.values.items()
        if at_start.get(place) != _comparable(value)
    }
    states = {place: state.get() for place, state in held.states.items()}
    return {
        "optimizers": {
            place: _trained_by(optimizer, place, model, held)
            for place, optimizer in held.optimizers.items()
            if optimizer.built
        },
        "values": _encode_each(changed, arrays),
        "states": _encode_each(states, arrays),
    }


def _encode_each(values: dict[str, Any], arrays: dict[str, Array]) -> dict[str, Any]:
    return {place: encode(value, arrays, place) for place, value in values.items()}


def _trained_by(optimizer: Any, place: str, model: Any, held: Held) -> list[int | str]:
    """Tell which variables an optimizer was built for, so that it can be again."""
    known = _by_identity(model, held)
    built_for = next(
        found
        for part in walk(optimizer)
        if (found := private.trainable_variables(part))
    )
    unknown = [v for v in built_for if id(v) not in known]
    if unknown:
        raise ValueError(
            f"{place} trains variables that don't belong to the model, so a commit "
            f"can't hold them: {[getattr(v, 'path', v) for v in unknown][:3]}. Make "
            "them, or the layers that own them, attributes of the model."
        )
    return [known[id(variable)] for variable in built_for]


def _by_identity(model: Any, held: Held) -> dict[int, int | str]:
    known: dict[int, int | str] = {}
    named: list[tuple[Any, Any]] = [*enumerate(model.variables)]
    for name, variable in [*named, *held.variables.items()]:
        known[id(variable)] = name
        if isinstance(variable, keras.Variable):
            known[id(variable.value)] = name  # TensorFlow's own variable
    return known


def restore_held(
    model: Any, saved: dict[str, Any], arrays: dict[str, Array], data: Any = None
) -> Held:
    """Put back what `held_state` returned; return what the model holds then.

    Optimizers that are built in the first step are built here, for their variables.

    Raises:
        ValueError: If the model does not hold what the commit does.
    """
    held = held_by(model, data)
    for place, names in saved["optimizers"].items():
        optimizer = _find(held.optimizers, place)
        if not optimizer.built:
            variables = model.variables
            with _scope_of(model):
                optimizer.build(
                    [
                        variables[n] if isinstance(n, int) else held.variables[n]
                        for n in names
                    ]
                )
    for place, value in saved["values"].items():
        owner, _, name = place.rpartition(".")
        old, value = held.values.get(place), decode(value, arrays)
        if old is not None and keras.ops.is_tensor(old):
            value = keras.ops.convert_to_tensor(value)
        setattr(_find(held.owners, owner), name, value)
    for place, value in saved["states"].items():
        _find(held.states, place).set(decode(value, arrays))
    return held_by(model, data)


def _find(found: dict[str, Any], place: str) -> Any:
    if place in found:
        return found[place]
    raise ValueError(
        f"The commit holds the state of {place}, which this program's model doesn't "
        "have. Build the model as before, or use another directory."
    )


def _scope_of(model: Any) -> contextlib.AbstractContextManager[Any]:
    if keras.backend.backend() == "tensorflow":
        return model.distribute_strategy.scope()  # type: ignore[no-any-return]
    return contextlib.nullcontext()


def model_as_json(model: Any) -> str | None:
    """Return the config that makes the model again, or `None` if it has none.

    As in a `.keras` file: layers, build shapes, and the arguments of `compile`; and
    the vocabularies of its layers, which are in no config. Another version of Keras may
    not know all of it: this one's is named.
    """
    try:
        config = keras.saving.serialize_keras_object(model)
        own = {"fmkit_assets": assets_as_json(model), "fmkit_keras": keras.__version__}
        return json.dumps({**config, **own})
    except Exception:  # noqa: BLE001 - what a user's get_config may raise
        return None
