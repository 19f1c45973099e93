"""Evaluation around training: fresh statistics for averaged weights."""

from fmkit._batch_norm import update_batch_norm

__all__ = ["update_batch_norm"]
