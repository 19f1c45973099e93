"""What an issue report needs: `python -m fmkit` prints what is installed and found."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator

import keras

import fmkit
from fmkit import _keras_private as private
from fmkit.datasets import fashion_mnist, mnist

_BACKENDS = ("tensorflow", "jax", "torch")
_PACKAGES = ("numpy", "keras-tuner", "matplotlib", "pillow", "grain", "tensorboard")


def main() -> None:
    """Print the report."""
    sys.stdout.write("\n".join(report()) + "\n")


def report() -> Iterator[str]:
    """Yield the lines of the report."""
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield f"fmkit {fmkit.__version__}, Python {platform.python_version()}, {system}"
    backend = keras.backend.backend()
    others = [name for name in _BACKENDS if name != backend]
    yield f"Keras {keras.__version__} on {_with_version(backend)}: {_devices(backend)}"
    yield f"Other backends: {_listed(others)}"
    yield f"Packages: {_listed(_PACKAGES)}"
    for name, found, sample in (
        ("Fashion-MNIST", fashion_mnist.find(), "images"),
        ("MNIST", mnist.find(), "digits"),
    ):
        yield f"{name}: {found or f'not found; 7,000 {sample} of it are in fmkit'}"
    yield from _limits(backend)


def _with_version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        # TensorFlow has a name for each build; what is imported knows its version.
        version = getattr(sys.modules.get(name), "__version__", None)
        return f"{name} {version}" if version else f"{name} not installed"


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(map(_with_version, names))


def _devices(backend: str) -> str:
    if backend == "tensorflow":
        import tensorflow as tf

        found = [device.name for device in tf.config.get_visible_devices()]
    elif backend == "jax":
        import jax

        found = list(map(str, jax.devices()))
    else:
        import torch

        cards = range(torch.cuda.device_count())
        found = ["cpu", *(torch.cuda.get_device_name(card) for card in cards)]
    return ", ".join(found)


def _limits(backend: str) -> Iterator[str]:
    """Yield what does not work here, or that everything does."""
    release = ".".join(keras.__version__.split(".")[:2])
    if release not in private.CHECKED_ON:
        first, last = private.CHECKED_ON[0], private.CHECKED_ON[-1]
        yield f"Not tested on Keras {release}; {first} to {last} were."
    gone = private.missing_pieces()
    yield from (f"Missing on this Keras: {what}" for what in gone)
    if not gone:
        yield f"All of fmkit works on Keras's {backend} here, as far as can be seen."


if __name__ == "__main__":
    main()
