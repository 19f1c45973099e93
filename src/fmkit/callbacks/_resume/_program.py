"""What must be the same for a run to continue with the same bits."""

from __future__ import annotations

import inspect
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

import fmkit
from fmkit import _keras_private as private
from fmkit._arrays import as_array
from fmkit._describe import (
    ANYTHING,
    describe,
    digest_of_arrays,
    layer_names,
    library_of,
    uncounted,
)
from fmkit._layer_state import adapted_state
from fmkit.callbacks._resume._held import Held
from fmkit.data import Batches

__all__ = [
    "describe_fit",
    "describe_model",
    "describe_training_data",
    "distribution",
    "machine",
    "unset_settings",
]

_DATA = ("x", "y", "sample_weight")


# Descriptions


def describe_model(model: Any, held: Held) -> dict[str, Any]:
    """Describe layers, how they are connected, and the arguments of `compile`."""
    arguments = private.compile_arguments(model)
    return {
        "model": _weights(model),
        **_layers(model),
        "optimizer": _optimizer(model.optimizer),
        "optimizers": {k: _optimizer(each) for k, each in held.optimizers.items()},
        "functions": {k: describe(each) for k, each in held.functions.items()},
        "loss": describe(getattr(model, "loss", None)),
        "loss_weights": describe(arguments.get("loss_weights")),
        "metrics": _metrics(arguments.get("metrics")),
        "weighted_metrics": _metrics(arguments.get("weighted_metrics")),
        "run_eagerly": bool(model.run_eagerly),
        "jit_compile": bool(model.jit_compile),
        "steps_per_execution": getattr(model, "steps_per_execution", 1),
    }


def _weights(model: Any) -> list[str]:
    return [
        f"{uncounted(weight.path)} {weight.dtype}{list(weight.shape)}"
        for weight in model.weights
    ]


def _layers(model: Any) -> dict[str, Any]:
    layers = private.all_layers(model)
    named = list(zip(layer_names(layers), layers, strict=True))
    names = {layer.name: name for name, layer in named}
    described: dict[str, Any] = {}
    for name, layer in named:
        own = describe(layer)
        if isinstance(layer, keras.Model):
            # Its layers are described one by one; what is left is its own code, and
            # how it connects them.
            own = own if isinstance(own, dict) else {}
            connections = _connections(layer, names)
            own = {"code": own.get("code"), "connections": connections}
        adapted = adapted_state(layer)
        if adapted is not None:
            own = {"config": own, "adapted": adapted}
        described["the model" if layer is model else f"layer {name}"] = own
    return described


def _connections(model: Any, names: dict[str, str]) -> list[str]:
    """Tell which layers the layers of a functional model take their inputs from."""
    try:
        config = model.get_config()
    except Exception:  # noqa: BLE001 - what a user's `get_config` may raise
        return []
    found = []
    for layer in config.get("layers", ()):
        sources = list(_sources(layer.get("inbound_nodes", ()), names))
        found.append(f"{names.get(layer.get('name'))} of {', '.join(sources)}")
    return found


def _sources(value: Any, names: dict[str, str]) -> Iterator[str]:
    if isinstance(value, dict):
        if "keras_history" in value:
            name, *place = value["keras_history"]
            yield f"{names.get(name)}{place}"
        for item in value.values():
            yield from _sources(item, names)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _sources(item, names)


def _optimizer(optimizer: Any) -> dict[str, Any]:
    """Describe an optimizer's class and settings, one by one."""
    if optimizer is None:
        return {}
    described = describe(optimizer)
    described = described if isinstance(described, dict) else {"class": described}
    if int(keras.ops.convert_to_numpy(optimizer.iterations)) > 0:
        _forget_rates(described)
    return described


def _forget_rates(described: dict[str, Any]) -> None:
    # A callback may have changed it since: not a setting any more.
    for name, value in described.items():
        if name == "learning_rate" and isinstance(value, (int, float)):
            described[name] = ANYTHING
        elif isinstance(value, dict):
            _forget_rates(value)


def _metrics(metrics: Any) -> Any:
    """Describe metrics, with the names under which their values are logged."""
    if isinstance(metrics, dict):
        return {str(name): _metrics(each) for name, each in metrics.items()}
    if isinstance(metrics, (list, tuple)):
        return [_metrics(each) for each in metrics]
    described = describe(metrics)
    name = getattr(metrics, "name", None)
    if name is None or isinstance(metrics, str):
        return described
    described = described if isinstance(described, dict) else {"class": described}
    return {**described, "name": uncounted(name)}


def describe_fit(arguments: dict[str, Any]) -> dict[str, Any]:
    """Describe the arguments of `fit` beside the data that it trains on."""
    plain = [
        "class_weight",
        "validation_split",
        "validation_steps",
        "validation_batch_size",
        "validation_freq",
    ]
    described = {name: describe(arguments.get(name)) for name in plain}
    validation = arguments.get("validation_data")
    if not isinstance(validation, tuple):
        validation = (validation,)
    # What `fit` cuts off itself for `validation_split` is a part of the data.
    described["validation_data"] = [describe_data(each) for each in validation]
    return described


def describe_training_data(arguments: dict[str, Any]) -> dict[str, Any]:
    """Describe the data that `fit` trains on, when they are no `Batches`."""
    described = {name: describe_data(arguments[name]) for name in _DATA}
    return {
        **described,
        "batch_size": describe(arguments["batch_size"]),
        "shuffle": describe(arguments["shuffle"]),
    }


def describe_data(data: Any) -> Any:
    """Describe what `fit` is given as data: arrays by their bytes."""
    if isinstance(data, Batches):
        return data.describe()
    if data is None:
        return None
    leaves = keras.tree.flatten(data)
    if all(_is_array(leaf) for leaf in leaves):
        return digest_of_arrays([as_array(leaf) for leaf in leaves])
    described = {"class": f"{type(data).__module__}.{type(data).__qualname__}"}
    spec = getattr(data, "element_spec", None)
    return described if spec is None else {**described, "elements": str(spec)}


def _is_array(value: Any) -> bool:
    pandas = library_of(value) == "pandas"
    return isinstance(value, np.ndarray) or pandas or keras.ops.is_tensor(value)


def distribution() -> str | None:
    """Return how values are laid out over devices; `None` without a distribution."""
    found = keras.distribution.distribution()
    mesh = getattr(found, "device_mesh", None)
    if mesh is None:
        return None
    axes = zip(mesh.axis_names, mesh.shape, strict=True)
    named = ", ".join(f"{name} {size}" for name, size in axes)
    return f"{type(found).__name__}({named})"


def machine() -> dict[str, str]:
    """Return versions and the kind of processor, which may change the last bits."""
    backend = keras.backend.backend()
    return {
        "fmkit": fmkit.__version__,
        "keras": keras.__version__,
        backend: str(sys.modules[backend].__version__),
        "numpy": np.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "processor": _processor(),
        "device": _device(backend),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^(?:model name|CPU part)\s*:\s*(.*)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _device(backend: str) -> str:
    if backend == "jax":
        import jax

        return str(jax.devices()[0].device_kind)
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "cpu"
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name"))


def unset_settings(model: Any) -> dict[str, Any]:
    """Return settings of layers and optimizer at the defaults of their classes."""
    layers = private.all_layers(model)
    named = [
        (f"layer {name}{part}", layer)
        for name, layer in zip(layer_names(layers), layers, strict=True)
        for part in ("", ".config")
    ]
    return {
        f"{where}.{name}": describe(parameter.default)
        for where, owner in [*named, ("optimizer", model.optimizer)]
        for kind in reversed(type(owner).__mro__)
        if "__init__" in vars(kind)
        for name, parameter in inspect.signature(
            vars(kind)["__init__"]
        ).parameters.items()
        if parameter.default is not parameter.empty
    }
