"""Augmentation that is a pure function of seed, epoch and sample.

`Batches(augment=[...])` takes these functions of `(x, y, draws)`, and your own. Those
here take NumPy arrays of pictures, `(rows, height, width)` with or without channels at
the end, bytes or floats, and return the same shape and dtype.
"""

from fmkit.augmentation._apply import augment
from fmkit.augmentation._draws import Draws
from fmkit.augmentation._erase import Cutout, RandomErasing
from fmkit.augmentation._mirror import AlternatingFlip, HorizontalFlip
from fmkit.augmentation._mix import CutMix, Mixup
from fmkit.augmentation._move import RotateScale, Shift
from fmkit.augmentation._values import Brightness, Contrast, GaussianNoise

__all__ = [
    "AlternatingFlip",
    "Brightness",
    "Contrast",
    "CutMix",
    "Cutout",
    "Draws",
    "GaussianNoise",
    "HorizontalFlip",
    "Mixup",
    "RandomErasing",
    "RotateScale",
    "Shift",
    "augment",
]
