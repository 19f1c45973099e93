"""fmkit: exact add-ons for Keras 3.

The names follow Keras: `fmkit.losses`, `fmkit.callbacks`, `fmkit.models` and so
on. Import what you need and compose it inside your own `model.compile` and
`model.fit`.
"""

from fmkit._versions import refuse_other_versions

refuse_other_versions()  # before anything could fail in a stranger way

from fmkit import (  # noqa: E402
    augmentation,
    callbacks,
    compare,
    data,
    datasets,
    evaluation,
    information,
    losses,
    metrics,
    models,
    optimizers,
    performance,
    preprocessing,
    schedules,
    visualization,
)
from fmkit._determinism import enable_op_determinism  # noqa: E402
from fmkit._generators import set_random_seed  # noqa: E402
from fmkit.preprocessing import preprocess  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "augmentation",
    "callbacks",
    "compare",
    "data",
    "datasets",
    "enable_op_determinism",
    "evaluation",
    "information",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "performance",
    "preprocess",
    "preprocessing",
    "schedules",
    "set_random_seed",
    "visualization",
]
