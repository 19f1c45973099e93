"""State of layers besides their weights: vocabularies, and values made from weights.

A layer with an `adapt` keeps more than its variables. `Normalization` calculates with
constants that it makes from its variables when these are loaded by Keras; assigning to
the variables leaves the constants as they are. `StringLookup`, `IntegerLookup` and
`TextVectorization` have a vocabulary, which neither their variables nor their configs
hold. All that is used here are the hooks by which Keras saves layers, and anybody's own
layers: `save_own_variables`, `load_own_variables`, `save_assets`, `load_assets`.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._describe import library_of

__all__ = [
    "adapted_state",
    "assets_as_json",
    "copy_state",
    "fingerprint",
    "refresh",
    "restore_assets",
]


# From layer to layer


def copy_state(source: Any, target: Any) -> None:
    """Give `target`, a clone of `source`, all that layers keep besides their weights.

    Raises:
        ValueError: If a layer that keeps something is not in the clone.
    """
    layers, copies = private.all_layers(source), private.all_layers(target)
    for place, layer in enumerate(layers):
        if not (_has_assets(layer) or _loads_its_own_way(layer)):
            continue
        copy = copies[place] if place < len(copies) else None
        if type(copy) is not type(layer):
            raise ValueError(
                f"The copy of {source.name!r} has no layer where {layer.name!r} is, "
                f"which keeps more than weights; {_name(copy)} was found."
            )
        _load(copy, _save(layer))


def _save(layer: Any) -> dict[str, Any]:
    """Return what Keras would save of one layer."""
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    arrays = {
        key: np.array(keras.ops.convert_to_numpy(value)) for key, value in store.items()
    }
    return {"variables": arrays, "assets": _read_assets(layer)}


def _load(layer: Any, saved: dict[str, Any]) -> None:
    """Load what `_save` returned; the weights keep their bits."""
    weights = [(v, keras.ops.copy(v)) for v in layer.variables]
    layer.load_own_variables(saved["variables"])
    for variable, value in weights:
        variable.assign(value)
    _write_assets(layer, saved["assets"])


def _has_assets(layer: Any) -> bool:
    return hasattr(layer, "save_assets") and hasattr(layer, "load_assets")


def _loads_its_own_way(layer: Any) -> bool:
    """Whether loading a layer's variables may do more than assign to its weights.

    Keras's own layers without an `adapt` load in ways of their own only what is
    quantised, which is in their weights.
    """
    own = type(layer).load_own_variables is not keras.layers.Layer.load_own_variables
    return own and (hasattr(layer, "adapt") or library_of(layer) != "keras")


def _name(layer: Any) -> str:
    return "nothing" if layer is None else f"{layer.name!r} ({type(layer).__name__})"


def adapted_state(layer: Any) -> str | None:
    """Return a digest of what `adapt` gave a layer of Keras's; `None` without any.

    Training does not change it, and two programs must have it in common.
    """
    if not hasattr(layer, "adapt") or library_of(layer) != "keras":
        return None
    saved = _save(layer)
    digest = hashlib.blake2b(digest_size=8)
    for part in ("variables", "assets"):
        for name, value in sorted(saved[part].items()):
            digest.update(name.encode() + b"=")
            digest.update(value if isinstance(value, bytes) else value.tobytes())
    return digest.hexdigest()


# After assigning to the weights of a model


def fingerprint(model: Any) -> list[bytes]:
    """Return the weights of all layers that make something of them when loaded."""
    return [
        np.asarray(keras.ops.convert_to_numpy(variable)).tobytes()
        for layer in private.all_layers(model)
        if _loads_its_own_way(layer)
        for variable in layer.variables
    ]


def refresh(model: Any) -> None:
    """Let layers make anew what they make of their weights when these are loaded.

    What `evaluate` and `predict` compiled before holds the old values: it is dropped.
    """
    for layer in private.all_layers(model):
        if _loads_its_own_way(layer):
            _load(layer, {"variables": _save(layer)["variables"], "assets": {}})
    model.make_test_function(force=True)
    model.make_predict_function(force=True)


# Files beside the weights


def assets_as_json(model: Any) -> list[dict[str, Any]]:
    """Return what layers save in files, and the variables that go with it."""
    described = []
    for place, layer in enumerate(private.all_layers(model)):
        if not _has_assets(layer):
            continue
        saved = _save(layer)
        described.append(
            {
                "layer": place,
                "class": type(layer).__name__,
                "variables": {
                    key: {"dtype": str(array.dtype), "values": array.tolist()}
                    for key, array in saved["variables"].items()
                },
                "assets": {
                    name: base64.b64encode(content).decode()
                    for name, content in saved["assets"].items()
                },
            }
        )
    return described


def restore_assets(model: Any, described: list[dict[str, Any]]) -> None:
    """Give a model made from its config what `assets_as_json` returned.

    Raises:
        ValueError: If it is of other layers, or is not whole.
    """
    by_place = {entry["layer"]: entry for entry in described}
    for place, layer in enumerate(private.all_layers(model)):
        if not _has_assets(layer):
            continue
        entry = by_place.get(place, {})
        if entry.get("class") == type(layer).__name__:
            _load(layer, _decode(entry))
        elif _read_assets(layer):  # else its config was enough
            raise ValueError(
                f"it has no vocabulary, nor other file, for layer {layer.name!r} "
                f"({type(layer).__name__})"
            )


def _decode(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "variables": {
            key: np.array(value["values"], value["dtype"])
            for key, value in entry["variables"].items()
        },
        "assets": {
            name: base64.b64decode(content) for name, content in entry["assets"].items()
        },
    }


def _read_assets(layer: Any) -> dict[str, bytes]:
    if not _has_assets(layer):
        return {}
    with tempfile.TemporaryDirectory(prefix="fmkit-") as folder:
        layer.save_assets(folder)
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in files
        }


def _write_assets(layer: Any, assets: dict[str, bytes]) -> None:
    if not assets:
        return
    with tempfile.TemporaryDirectory(prefix="fmkit-") as folder:
        for name, content in assets.items():
            path = Path(folder, name)
            if not path.resolve().is_relative_to(Path(folder).resolve()):
                raise ValueError(f"{name!r} is not the name of a file of a layer")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        layer.load_assets(folder)
