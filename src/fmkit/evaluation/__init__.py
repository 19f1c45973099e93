"""Evaluation during training in a second process, and of averaged weights.

`SidecarEvaluator` evaluates the checkpoints of a training run; the command is
`python -m fmkit.evaluation DIRECTORY`. `export_checkpoint` writes one of them as a
plain file of Keras's; the command is `python -m fmkit.evaluation export`. `synthesize`
makes averages of any length after training, `sweep_widths` evaluates them.
`update_batch_norm` recomputes the statistics of BatchNormalization for averaged
weights. `fit_temperature` calibrates the logits of a
trained model, and `with_temperature` makes the model that has them.
"""

from fmkit._batch_norm import update_batch_norm
from fmkit.evaluation._export import ExportedCheckpoint, export_checkpoint
from fmkit.evaluation._sidecar import SidecarEvaluator
from fmkit.evaluation._synthesize import Synthesis, sweep_widths, synthesize
from fmkit.evaluation._temperature import (
    TemperatureFit,
    TemperatureScaling,
    fit_temperature,
    with_temperature,
)

__all__ = [
    "ExportedCheckpoint",
    "SidecarEvaluator",
    "Synthesis",
    "TemperatureFit",
    "TemperatureScaling",
    "export_checkpoint",
    "fit_temperature",
    "sweep_widths",
    "synthesize",
    "update_batch_norm",
    "with_temperature",
]
