"""Evaluation during training in a second process, and of averaged weights.

`SidecarEvaluator` evaluates the checkpoints of a training run; the command is
`python -m fmkit.evaluation DIRECTORY`. `update_batch_norm` recomputes the statistics of
BatchNormalization for averaged weights.
"""

from fmkit._batch_norm import update_batch_norm
from fmkit.evaluation._sidecar import SidecarEvaluator

__all__ = ["SidecarEvaluator", "update_batch_norm"]
