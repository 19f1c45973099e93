"""Runs `examples/pytorch_processes.py` as one process of a job."""

import os

import keras
import numpy as np
from trainer import example


def train(options):
    """Do what a launcher does, and return what the example returns.

    And who averaged the gradients: Keras (0 or 1), how often the optimizer, in how
    many steps. With the option `average` off, nobody does.
    """
    os.environ |= {
        "RANK": str(options["rank"]),
        "WORLD_SIZE": str(options["processes"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(options["port"]),
    }
    module = example("pytorch_processes")
    models, averaged = [], []
    average, build = module.MeanGradient.apply, module.fmkit.models.mlp

    def apply(self, grads, trainable_variables=None):
        averaged.append(1)
        return average(self, grads, trainable_variables)

    module.MeanGradient.apply = apply
    module.fmkit.models.mlp = lambda: models.append(build()) or models[0]
    if not options.get("average", True):
        module.MeanGradient.apply = keras.optimizers.Adam.apply
        keras.Model._initialize_ddp = lambda self: None
    history, weights = module.train(os.path.join(options["folder"], "run"), epochs=2)
    by_keras = getattr(models[0], "ddp_model", None) is not None
    steps = int(models[0].optimizer.iterations)
    return {
        "loss": np.array(history["loss"]),
        "weights": weights,
        "averaged": np.array([by_keras, len(averaged), steps]),
    }
