"""From raw arrays to what a network reads: the map function, checks, splits."""

from fmkit.preprocessing._arrays import ArrayReport, check_arrays
from fmkit.preprocessing._map import Preprocess, preprocess
from fmkit.preprocessing._picture import read_image
from fmkit.preprocessing._split import split

__all__ = [
    "ArrayReport",
    "Preprocess",
    "check_arrays",
    "preprocess",
    "read_image",
    "split",
]
