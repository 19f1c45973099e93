"""Augmentation that is a pure function of seed, epoch and sample."""

from fmkit.augmentation._apply import augment
from fmkit.augmentation._draws import Draws

__all__ = ["Draws", "augment"]
