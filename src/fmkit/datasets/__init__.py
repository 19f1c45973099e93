"""Data sets by name, as in `keras.datasets`, with files that are checked."""

from fmkit._untrusted_files import DatasetFileError
from fmkit.datasets import fashion_mnist, mnist, toy

__all__ = ["DatasetFileError", "fashion_mnist", "mnist", "toy"]
