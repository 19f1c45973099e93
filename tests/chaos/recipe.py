"""Runs `examples/pytorch_processes.py` as one process of a job."""

import os

import numpy as np
from trainer import example


def train(options):
    """Do what a launcher does, and return what the example returns."""
    os.environ |= {
        "RANK": str(options["rank"]),
        "WORLD_SIZE": str(options["processes"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(options["port"]),
    }
    module = example("pytorch_processes")
    history, weights = module.train(os.path.join(options["folder"], "run"), epochs=2)
    return {"loss": np.array(history["loss"]), "weights": weights}
