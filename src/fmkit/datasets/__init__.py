"""Data sets by name, as in `keras.datasets`, with files that are checked."""

from fmkit.datasets import fashion_mnist, mnist, toy
from fmkit.datasets._files import DatasetFileError

__all__ = ["DatasetFileError", "fashion_mnist", "mnist", "toy"]
