"""What the evaluator beside a run costs: from commit to result, and for the training.

Run it alone with `python -m benchmarks.evaluator [--quick]`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import interleave, row
from benchmarks.resume import network
from fmkit.callbacks import ExactResume
from fmkit.data import Batches
from fmkit.evaluation import SidecarEvaluator


def _images(count: int, batch_size: int = 1000) -> Batches:
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (count, 28, 28), dtype=np.uint8)
    return Batches(x, rng.randint(0, 10, count).astype(np.uint8), batch_size)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measure the way from a commit to its results, and a training beside it."""
    return [result_row(quick), polling_row(quick)]


def result_row(quick: bool) -> dict[str, Any]:
    """Listing, reading, checking, evaluating and recording against `evaluate`."""
    data = _images(2000 if quick else 10_000)
    model = network()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.fit(
            _images(1000), verbose=0, callbacks=[ExactResume(folder / "run", verbose=0)]
        )

        def evaluate() -> None:
            model.evaluate(data, verbose=0)

        def sidecar() -> None:
            # An output of its own each time, or the commit would be known.
            SidecarEvaluator(
                model,
                data,
                folder / "run",
                output=folder / str(time.perf_counter_ns()),
                weights="raw",  # averages would be a second evaluation
                keep_best=False,
                verbose=0,
            ).run()

        contestants = {"commit to results": sidecar, "evaluate alone": evaluate}
        times = interleave(contestants, 3 if quick else 15, warm_up=1 if quick else 2)
    return row(
        "evaluator: from a commit to its results",
        times,
        "commit to results",
        "evaluate alone",
    )


def polling_row(quick: bool) -> dict[str, Any]:
    """`fit` while an evaluator looks for commits ten times a second, against alone."""
    batches = _images(128 * (150 if quick else 469), 128)
    model = network()

    def fit() -> None:
        model.fit(batches, epochs=1, verbose=0)

    with tempfile.TemporaryDirectory() as name:
        run = Path(name, "run")
        resume = ExactResume(run, verbose=0)
        network().fit(_images(1000), verbose=0, callbacks=[resume])
        evaluator = _start(run, Path(name, "test.npz"))

        def beside() -> None:
            evaluator.send_signal(signal.SIGCONT)
            fit()
            evaluator.send_signal(signal.SIGSTOP)

        evaluator.send_signal(signal.SIGSTOP)
        contestants = {"fit beside an evaluator": beside, "fit alone": fit}
        times = interleave(contestants, 3 if quick else 15)
        evaluator.kill()
        evaluator.wait()
    return row(
        "fit while an evaluator polls ten times a second",
        times,
        "fit beside an evaluator",
        "fit alone",
        target="at most 1.05",
    )


def _start(run: Path, test: Path) -> subprocess.Popen[bytes]:
    """Start the command, and wait until it has evaluated what there is."""
    np.savez(test, x=np.zeros((10, 28, 28), np.uint8), y=np.zeros(10, np.uint8))
    command = [sys.executable, "-m", "fmkit.evaluation", str(run), "--keep-waiting"]
    command += ["--data", f"test={test}", "--poll", "0.1", "--max-poll", "0.1"]
    process = subprocess.Popen([*command, "--no-best", "--quiet"])
    while not (run / "evaluation" / "results.jsonl").exists():
        if process.poll() is not None:
            raise RuntimeError(f"the evaluator ended with status {process.returncode}")
        time.sleep(0.1)
    return process


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    print("\n".join(map(json.dumps, rows(parser.parse_args().quick))))
