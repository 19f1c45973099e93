"""Evaluation around training: beside it in a second process, or of averaged weights.

`SidecarEvaluator` evaluates the checkpoints of a running training; it can be started
as `python -m fmkit.evaluation DIRECTORY`. `update_batch_norm` gives averaged weights
fresh statistics.
"""

from fmkit._batch_norm import update_batch_norm
from fmkit.evaluation._sidecar import SidecarEvaluator

__all__ = ["SidecarEvaluator", "update_batch_norm"]
