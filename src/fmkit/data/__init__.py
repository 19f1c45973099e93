"""Deterministic batches: the order of an epoch is a function of (seed, epoch)."""

from fmkit.data._batches import Batches

__all__ = ["Batches"]
