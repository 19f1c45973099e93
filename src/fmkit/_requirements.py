"""Packages that fmkit can do without: TensorFlow, Keras Tuner, matplotlib, Pillow.

They are imported where they are used, through `require`, so that a program that
doesn't need one neither waits for it nor fails without it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__all__ = ["ipython_shell", "require"]

# Names to install, where they differ from the names to import.
_PIP_NAMES = {
    "PIL": "pillow",
    "keras_tuner": "keras-tuner",
    "orbax": "orbax-checkpoint",
}


def require(name: str, user: str) -> Any:
    """Import `name` for `user`, or say what to install.

    Args:
        name: A package, or a module in one: `"matplotlib.pyplot"`.
        user: What can't work without it, to begin the message with.

    Raises:
        ModuleNotFoundError: If the package, or one that it imports, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package, missing = name.partition(".")[0], error.name or name
        if "." in missing:
            raise  # a package that is installed, but not whole or of another version
        reason = f"{user} needs {package}"
        if missing != package:
            reason += f", and {package} needs {missing}"
        raise ModuleNotFoundError(
            f"{reason}, which is not installed. "
            f"Type: pip install {_PIP_NAMES.get(missing, missing)}",
            name=missing,
        ) from None


def ipython_shell() -> Any:
    """Return the shell of IPython that runs this process; `None` if none does.

    IPython is not imported to ask: where it runs it is there already.
    """
    ipython: Any = sys.modules.get("IPython")
    return ipython.get_ipython() if hasattr(ipython, "get_ipython") else None
