"""What a test needs that not every environment has, and why it is not there.

`@pytest.mark.needs("keras_tuner")` skips a test with that reason: a package that is not
installed, or something that the installed Keras has not. A file that cannot even be
imported without a package says `needs.module("keras_tuner")` above the import.
"""

import importlib.util
import re

import keras
import pytest

# What a supported Keras may lack, and where a test would find it.
ABILITIES = {
    "CategoricalGeneralizedCrossEntropy": (
        keras.losses,
        "CategoricalGeneralizedCrossEntropy",
    ),
    "MultiOptimizer": (keras.optimizers, "MultiOptimizer"),  # since Keras 3.15
    "OrbaxCheckpoint": (keras.callbacks, "OrbaxCheckpoint"),  # since Keras 3.14
}

# Names to install, where they differ from the names to import.
PIP_NAMES = {
    "PIL": "pillow",
    "keras_tuner": "keras-tuner",
    "orbax": "orbax-checkpoint",
}


def missing(name):
    """Return why a test that needs the package or ability can't run here, or `None`."""
    if name in ABILITIES:
        owner, attribute = ABILITIES[name]
        if hasattr(owner, attribute):
            return None
        return f"needs {owner.__name__}.{attribute}, not in Keras {keras.__version__}"
    if importlib.util.find_spec(name) is not None:
        return None
    return f"needs {name}, not installed here: pip install {PIP_NAMES.get(name, name)}"


def reasons(item):
    """Return a reason for each thing that is named in a `needs` mark and missing."""
    names = [name for mark in item.iter_markers("needs") for name in mark.args]
    return [reason for name in names if (reason := missing(name))]


def module(name):
    """Skip the file that calls this, with the reason, if the package is missing."""
    reason = missing(name)
    if reason:
        pytest.skip(reason, allow_module_level=True)


def is_open(first: str, last: str = "999") -> bool:
    """Return whether a trap of Keras's is open on the installed version."""

    def numbers(version):
        return tuple(map(int, re.findall(r"\d+", version)[:2]))

    return numbers(first) <= numbers(keras.__version__) <= numbers(last)
