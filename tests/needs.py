"""What a test needs that not every environment has, and why it is not there.

`@pytest.mark.needs("keras_tuner")` skips a test with that reason. A file that cannot
even be imported without a package says `needs.module("keras_tuner")` above the import.
What Keras itself may lack is in `conftest.py`.
"""

import importlib.util

import pytest

# Names to install, where they differ from the names to import.
PIP_NAMES = {"keras_tuner": "keras-tuner", "PIL": "pillow"}


def missing(name):
    """Return why a test that needs the package `name` can't run here, or `None`."""
    if importlib.util.find_spec(name) is not None:
        return None
    return f"needs {name}, not installed here: pip install {PIP_NAMES.get(name, name)}"


def reasons(item, abilities):
    """Return a reason for each package named in a `needs` mark that is missing."""
    names = [name for mark in item.iter_markers("needs") for name in mark.args]
    packages = [name for name in names if name not in abilities]
    return [reason for name in packages if (reason := missing(name))]


def module(name):
    """Skip the file that calls this, with the reason, if the package is missing."""
    reason = missing(name)
    if reason:
        pytest.skip(reason, allow_module_level=True)
