"""All that decides the next step, besides the data: variables and generators."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._layer_state import assets_as_json

__all__ = [
    "ANYTHING",
    "check_program",
    "describe_model",
    "describe_optimizer",
    "model_as_json",
    "random_state",
    "restore_random_state",
    "restore_variables",
    "snapshot",
]

# A setting that two programs need not have in common.
ANYTHING = "anything"

Array = np.ndarray[Any, Any]


# Variables


def _variables(model: Any, metrics: bool) -> list[Any]:
    """Weights, BatchNorm and dropout states, optimizer, metrics: each once."""
    optimizer = [] if model.optimizer is None else model.optimizer.variables
    of_metrics = {id(variable): variable for variable in model.metrics_variables}
    # Not `model.weights`: that leaves out the seeds of dropout.
    found = {id(variable): variable for variable in [*model.variables, *optimizer]}
    kept = {key: value for key, value in found.items() if key not in of_metrics}
    return list((kept | of_metrics if metrics else kept).values())


def _parts(variable: Any, model: Any) -> list[Any]:
    """The copies of a variable: one, or one for each replica of a strategy.

    BatchNorm's averages and metrics differ from replica to replica.
    """
    if keras.backend.backend() != "tensorflow":
        return [variable]
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
        return [variable]
    return list(strategy.experimental_local_results(variable.value))


def snapshot(
    model: Any, *, metrics: bool
) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Copy every variable: a list that tells them, and the arrays by name."""
    listed, arrays = [], {}
    for number, variable in enumerate(_variables(model, metrics)):
        parts = _parts(variable, model)
        names = [f"variable/{number}/{place}" for place in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            # A copy: on every backend this may be a view of what training
            # goes on to overwrite.
            arrays[name] = np.array(_read(part), copy=True)
        listed.append({"path": variable.path, "arrays": names})
    return listed, arrays


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
    listed: list[dict[str, Any]],
    arrays: dict[str, Array],
    *,
    metrics: bool,
) -> None:
    """Put the values of a snapshot back, bit for bit.

    Raises:
        ValueError: If the model has other variables than the snapshot.
    """
    variables = _variables(model, metrics)
    if len(variables) != len(listed):
        raise ValueError(
            f"The commit holds {len(listed)} variables of model, optimizer and "
            f"metrics; this program has {len(variables)}. Compile the model as "
            "before, or use another directory."
        )
    for variable, entry in zip(variables, listed, strict=True):
        parts = _parts(variable, model)
        saved = [arrays[name] for name in entry["arrays"]]
        if len(parts) != len(saved) or tuple(variable.shape) != saved[0].shape:
            raise ValueError(
                f"Variable {variable.path!r} has {len(parts)} copies of shape "
                f"{tuple(variable.shape)}; the commit has {len(saved)} of shape "
                f"{saved[0].shape} (as {entry['path']!r})."
            )
        for part, value in zip(parts, saved, strict=True):
            # Copied once more: a backend may keep the array it is given.
            part.assign(value.copy())


def describe_model(model: Any) -> list[str]:
    """Tell every weight by path, shape and dtype, as far as programs fix them."""
    # Keras counts layers of a kind through a whole process: dense_1, dense_2.
    return [
        f"{re.sub(r'_[0-9]+(?=/|$)', '', weight.path)} "
        f"{weight.dtype}{list(weight.shape)}"
        for weight in model.weights
    ]


def describe_optimizer(optimizer: Any) -> dict[str, Any]:
    """Tell the optimizer's class and settings in plain values."""
    if optimizer is None:
        return {}
    described: dict[str, Any] = {"class": type(optimizer).__name__}
    try:
        config = optimizer.get_config()
    except NotImplementedError:
        return described
    started = int(keras.ops.convert_to_numpy(optimizer.iterations)) > 0
    flat = keras.tree.flatten_with_path(config)
    for path, value in flat:
        if path[-1] == "name":  # counted through a whole process: adam, adam_1
            continue
        if started and path[-1] == "learning_rate":
            # A callback may have changed it since: not a setting any more.
            value = ANYTHING
        simple = isinstance(value, (bool, int, float, str))
        described[".".join(map(str, path))] = value if simple else str(value)
    return described


def check_program(
    saved: dict[str, Any], program: dict[str, Any], directory: str
) -> None:
    """Refuse what another program saved, naming what differs.

    Raises:
        ValueError: If anything does.
    """
    differences: list[str] = []
    _compare("", saved, program, differences)
    if differences:
        told = "\n".join(f"  {line}" for line in differences[:8])
        more = len(differences) - 8
        raise ValueError(
            f"The commits in {directory} were made by another program, so this one "
            f"cannot go on from them exactly:\n{told}\n"
            + (f"  and {more} more\n" if more > 0 else "")
            + "Set these as before, or give another directory."
        )


def _compare(where: str, old: Any, new: Any, out: list[str]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{where}.{key}" if where else str(key)
            _compare(inner, old.get(key), new.get(key), out)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (a, b) in enumerate(zip(old, new, strict=True)):
            _compare(f"{where}[{place}]", a, b, out)
    elif isinstance(old, list) and isinstance(new, list):
        out.append(f"{where}: {len(old)} entries in the commit, {len(new)} here")
    elif old != new and ANYTHING not in (old, new):
        out.append(f"{where}: {old!r} in the commit, {new!r} here")


def model_as_json(model: Any) -> str | None:
    """Return the config that makes the model again, or `None` if it has none.

    As in a `.keras` file: layers, build shapes, and the arguments of `compile`; and
    the vocabularies of its layers, which are in no config.
    """
    try:
        config = keras.saving.serialize_keras_object(model)
        return json.dumps({**config, "fmkit_assets": assets_as_json(model)})
    except Exception:  # noqa: BLE001 - what a user's get_config may raise
        return None


# Generators


def random_state() -> dict[str, Any]:
    """Return the state of every global generator that Keras may draw from."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": [version, np.array(words, np.uint64), gauss],
        "numpy": list(np.random.get_state()),
    }
    seed = private.global_seed_variable()
    if seed is not None:
        state["keras"] = np.array(keras.ops.convert_to_numpy(seed))
    if keras.backend.backend() == "torch":
        import torch

        state["torch"] = torch.get_rng_state().numpy().copy()
        if torch.cuda.is_available():
            devices = torch.cuda.get_rng_state_all()
            state["torch.cuda"] = [device.numpy().copy() for device in devices]
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every generator back to where `random_state` found it."""
    if "keras" in state:
        # Making the generator draws from Python's: before that is restored.
        variable = private.global_seed_variable(create=True)
        assert variable is not None
        variable.assign(state["keras"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(int(word) for word in words), gauss))
    np.random.set_state(tuple(state["numpy"]))
    if "torch" in state:
        import torch

        torch.set_rng_state(torch.from_numpy(state["torch"]))
        if "torch.cuda" in state and torch.cuda.is_available():
            devices = [torch.from_numpy(device) for device in state["torch.cuda"]]
            torch.cuda.set_rng_state_all(devices)
