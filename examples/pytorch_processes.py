"""Train one network in several PyTorch processes, with `fit` and exact resume.

    python examples/pytorch_processes.py

starts two processes on this machine. On several machines, start one process on each:

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=first-machine MASTER_PORT=29500 \
        python examples/pytorch_processes.py

(`torchrun` sets these variables too). Each process reads its own half of every batch.
The gradients are averaged over the processes, so all of them hold the same weights: by
Keras itself from 3.16 on, by the optimizer below before.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from torch import distributed

import fmkit
from fmkit.callbacks import ExactResume
from fmkit.data import Batches
from fmkit.optimizers import ExponentialMovingAverage


def averages_by_itself(model):
    """Whether Keras averages gradients and logs over the processes in `fit`.

    If so, its trainer has a place for the `DistributedDataParallel` that it puts around
    the model. A `train_step` of your own that calls `self(x)` goes past it.
    """
    return hasattr(model, "ddp_model")


class MeanGradient:
    """Mixin for an optimizer class: it applies the mean of all processes' gradients."""

    def apply(self, grads, trainable_variables=None):
        """Average the gradients over the processes, then apply the optimizer."""
        flat = torch.cat([gradient.reshape(-1) for gradient in grads])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        parts = flat.split([gradient.numel() for gradient in grads])
        mean = [part.view_as(g) for part, g in zip(parts, grads, strict=True)]
        return super().apply(mean, trainable_variables)


class Adam(MeanGradient, keras.optimizers.Adam):
    """Adam on the mean of the gradients of all processes."""


class MeanLogs(keras.callbacks.Callback):
    """Average an epoch's logs, so that later callbacks decide alike everywhere."""

    def on_epoch_end(self, epoch, logs=None):
        """Replace each value by its mean over the processes."""
        values = torch.tensor(list(logs.values()), dtype=torch.float64)
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
        logs.update(zip(logs, values.tolist(), strict=True))


def train(folder="run", epochs=3):
    """Train as one process of the job; return the history and the weights."""
    distributed.init_process_group("gloo")
    rank, count = distributed.get_rank(), distributed.get_world_size()
    keras.utils.set_random_seed(1)  # the same initial weights everywhere
    (x, y), _ = fmkit.datasets.fashion_mnist.load_sample()
    batches = Batches(x, y, batch_size=128 // count, shard=(rank, count))
    model = fmkit.models.mlp()
    by_keras = averages_by_itself(model)
    adam = (keras.optimizers.Adam if by_keras else Adam)(1e-3)
    model.compile(
        ExponentialMovingAverage(adam, decay=0.99),
        fmkit.losses.CrossentropyFromLogits(),
    )
    resume = ExactResume(folder, every=20, verbose=int(rank == 0))
    history = model.fit(
        batches,
        epochs=epochs,
        verbose=0,
        callbacks=[resume] if by_keras else [MeanLogs(), resume],
    )
    weights = np.concatenate([w.ravel() for w in model.get_weights()])
    distributed.destroy_process_group()
    return history.history, weights


def main(folder="run", epochs=3, processes=2):
    """Start the processes here and wait for them; raise if one of them failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    job["WORLD_SIZE"] = str(processes)
    command = [sys.executable, str(Path(__file__).resolve()), folder, str(epochs)]
    running = [
        subprocess.Popen(  # noqa: S603 - this very file
            command, env=os.environ | job | {"RANK": str(rank)}
        )
        for rank in range(processes)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"The processes exited with codes {codes}.")


if __name__ == "__main__":
    arguments = dict(zip(("folder", "epochs"), sys.argv[1:], strict=False))
    if "epochs" in arguments:
        arguments["epochs"] = int(arguments["epochs"])
    if "RANK" not in os.environ:
        main(**arguments)
    else:
        found, final = train(**arguments)
        if os.environ["RANK"] == "0":
            losses = ", ".join(f"{loss:.4f}" for loss in found["loss"])
            print(f"Losses {losses}; the weights' sum is {final.sum():.6f}.")
