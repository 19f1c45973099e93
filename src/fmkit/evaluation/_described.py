"""The model of a run, made from what the run has written of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras

from fmkit._files import read_regular
from fmkit._layer_state import restore_assets
from fmkit.evaluation._listing import list_checkpoints
from fmkit.evaluation._orbax_reader import read_model_config

__all__ = ["NotDescribedError", "find_description", "make_model", "model_from_json"]


class NotDescribedError(ValueError):
    """A `model.json` does not tell enough to make the model."""


def find_description(directory: Path) -> Path | None:
    """Return what describes the model of a run, or `None`.

    That is `model.json` of `ExactResume`, or the oldest `.keras` file or step of Orbax.
    """
    if (directory / "model.json").is_file():
        return directory / "model.json"
    for file in list_checkpoints(directory):
        if file.path.suffix == ".keras" or (file.path / "model_config").is_dir():
            return file.path
    return None


def make_model(path: Path) -> Any:
    """Make a model from numbers and JSON; code in them is refused.

    Args:
        path: As `find_description` returns it, or any `.keras` file.

    Raises:
        ModuleNotFoundError: If it is a step of Orbax, which is not installed.
        NotDescribedError: If no model can be made from it.
    """
    try:
        if path.is_dir():
            return model_from_json(json.loads(read_model_config(path)))
        if path.name == "model.json":
            return model_from_json(json.loads(read_regular(path)))
        return keras.saving.load_model(path, safe_mode=True)
    except (ImportError, NotDescribedError):
        raise
    except Exception as error:
        raise NotDescribedError(
            f"No model could be built from {path}: {error}\nIf it has layers, losses "
            "or metrics of your own, decorate them with "
            "@keras.saving.register_keras_serializable() and import their module first "
            "(in the command: --import MODULE)."
        ) from error


def model_from_json(config: dict[str, Any]) -> Any:
    """Make a model from numbers and JSON; code in it is refused.

    Args:
        config: What `ExactResume` has written.

    Raises:
        NotDescribedError: If another Keras wrote it, or a layer needs more.
    """
    # Absent if an earlier version wrote it.
    assets = config.pop("fmkit_assets", [])
    written = config.pop("fmkit_keras", keras.__version__)
    try:
        model = keras.saving.deserialize_keras_object(config, safe_mode=True)
    except (TypeError, ValueError) as error:
        if written == keras.__version__:
            raise
        raise NotDescribedError(
            f"No model could be built from model.json: Keras {written} wrote it, and "
            f"this is {keras.__version__}, which does not know all of it: "
            f"{str(error).splitlines()[-1]}. Evaluate under Keras {written}; or build "
            "the model in a program, and pass it to "
            "fmkit.evaluation.SidecarEvaluator, which needs the weights only."
        ) from error
    try:
        restore_assets(model, assets)
    except (KeyError, TypeError, ValueError) as error:
        raise NotDescribedError(
            f"The run's description is not enough to rebuild the model: {error}. Save "
            "the model with model.save('model.keras'), and give --model model.keras."
        ) from error
    return model
