"""The oldest libraries that fmkit works with; older ones are refused at import.

The only place where version numbers are compared: what newer versions can do is found
out by trying, in `_keras_private`.
"""

from __future__ import annotations

import re
import sys

import keras

__all__ = ["refuse_other_versions"]

_OLDEST = {"tensorflow": (2, 18), "jax": (0, 5), "torch": (2, 4)}
_NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def refuse_other_versions() -> None:
    """Refuse a Keras, or a backend of it, that would give wrong results.

    Of the backends, only the one that Keras runs on is looked at.

    Raises:
        ImportError: If one is too old, or Keras has another first number than 3.
    """
    reason = _reason_against_keras(_first_two(keras.__version__))
    if reason:
        raise ImportError(
            f"fmkit needs Keras 3.12 or later, below 4, and found {keras.__version__}: "
            f'{reason}. Type: pip install -U "keras>=3.12,<4"'
        )
    backend = keras.backend.backend()
    oldest = _OLDEST.get(backend)
    # Keras has imported it already.
    version = str(getattr(sys.modules.get(backend), "__version__", ""))
    if oldest and version and _first_two(version) < oldest:
        shown = ".".join(map(str, oldest))
        raise ImportError(
            f"fmkit needs {_NAMES[backend]} {shown} or later, and found {version}: "
            f'older ones were never tested. Type: pip install -U "{backend}>={shown}"'
        )


def _first_two(version: str) -> tuple[int, int]:
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    return numbers[0], numbers[1] if len(numbers) > 1 else 0


def _reason_against_keras(version: tuple[int, int]) -> str | None:
    if version >= (4, 0):
        return "this version of fmkit does not know Keras 4"
    if version >= (3, 12):
        return None
    if version == (3, 11):
        return "metrics of masked outputs come out wrong there"
    if version == (3, 10):
        return "its steps are numbered otherwise, so a run would stop at another one"
    if version >= (3, 0):
        return "it was never tested"
    return "Keras 2 is another library"
