"""The model that a run's `model.json` describes."""

from __future__ import annotations

from typing import Any

import keras

from fmkit._layer_state import restore_assets

__all__ = ["NotDescribedError", "model_from_json"]


class NotDescribedError(ValueError):
    """A `model.json` does not tell enough to make the model."""


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
            f"model.json is not enough to rebuild the model: {error}. Save the "
            "model with model.save('model.keras'), and give --model model.keras."
        ) from error
    return model
