"""Time to accuracy: the tutorial's program against `examples/time_to_accuracy.py`.

    python -m benchmarks.accuracy [--seeds 5] [--residual-seeds 2] [--tutorial-seeds 1]
    python -m benchmarks.accuracy --only mirrored     # the other rows stay
    python -m benchmarks.accuracy --only mirrored --seeds 3 --more  # so do its runs

Every run is a fresh process, timed from its first line, compile time included; seeds
take turns. The tutorial's program runs for real, 20 epochs. The recipes look at the
test images once, at their end, so their time is that of the whole program. This takes
tens of minutes, so `python -m benchmarks` names the command and does not run it. The
table goes between the marks of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._measure import machine, put_between
from fmkit import models

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"
# What each recipe is run on: matrix products start sooner on JAX, which does not
# import TensorFlow; convolutions are faster on TensorFlow's CPU kernels.
RECIPES = {
    "short, on JAX": ("short", "jax"),
    "dense, on JAX": ("dense", "jax"),
    "two_strided": ("two_strided", "tensorflow"),
    "three_strided": ("three_strided", "tensorflow"),
    "mirrored": ("mirrored", "tensorflow"),
    "moved": ("moved", "tensorflow"),
    "wide": ("wide", "tensorflow"),
    "residual_8": ("residual_8", "tensorflow"),
    "residual_16": ("residual_16", "tensorflow"),
    "residual_36": ("residual_36", "tensorflow"),
}
TOLD = re.compile(r"accuracy ([0-9.]+) after ([0-9.]+) s")


def run(command: list[str], backend: str) -> str:
    """Return what a fresh process printed."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    path = [str(ROOT / "src"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def tutorial(seed: int, epochs: int) -> list[dict[str, float]]:
    """Return what the tutorial's program told after each epoch."""
    command = ["benchmarks/_tutorial_program.py", "--seed", str(seed)]
    told = run([*command, "--epochs", str(epochs)], "tensorflow")
    return [json.loads(line) for line in told.splitlines() if line.startswith("{")]


def recipe(name: str, backend: str, seed: int) -> tuple[float, float]:
    """Return accuracy and seconds of one run."""
    told = run(["examples/time_to_accuracy.py", name, "--seed", str(seed)], backend)
    found = TOLD.search(told)
    if found is None:
        raise RuntimeError(f"{name} on {backend} printed no accuracy: {told!r}")
    return float(found[1]), float(found[2])


def measure(
    seeds: dict[str, int], epochs: int, results: dict[str, Any]
) -> Iterator[None]:
    """Run what `results` lack, seed by seed, in turn; every second seed backwards.

    Yields after each run, which is then in `results`.
    """
    names = ["tutorial", *RECIPES]
    for seed in range(max(seeds.values())):
        for name in names if seed % 2 == 0 else names[::-1]:
            runs = results.setdefault(name, []) if name in seeds else []
            if not len(runs) <= seed < seeds.get(name, 0):
                continue
            if name == "tutorial":
                runs.append(tutorial(seed, epochs))
            else:
                runs.append(recipe(*RECIPES[name], seed))
            told = runs[-1]
            print(name, seed, told[-1] if name == "tutorial" else told, flush=True)
            yield


def _first(epochs: list[dict[str, float]], accuracy: float) -> float | None:
    """Return the seconds at which a run of the tutorial first had an accuracy."""
    return next((e["seconds"] for e in epochs if e["accuracy"] >= accuracy), None)


def _all(accuracies: list[float]) -> str:
    return ", ".join(f"{accuracy:.4f}" for accuracy in accuracies)


def number_of_weights() -> dict[str, int]:
    """Return how many weights each program's network has, statistics included."""
    path = ROOT / "examples" / "time_to_accuracy.py"
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    example = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    counts = {
        name: example.build(kind, 0).count_params()
        for name, (kind, _) in RECIPES.items()
    }
    # The tutorial's five layers, written out there as variables.
    return {"tutorial": models.mlp((256, 128, 64, 32)).count_params(), **counts}


def table(results: dict[str, Any], command: str) -> str:
    """Return the table as Markdown."""
    lines = [
        "| program | weights | runs | test accuracy, median (all) | seconds, median "
        "| sooner |",
        "|---|---|---|---|---|---|",
    ]
    weights = number_of_weights()
    ends = [run[-1] for run in results["tutorial"]]
    final = statistics.median(end["accuracy"] for end in ends)
    took = statistics.median(end["seconds"] for end in ends)
    everyone = _all([end["accuracy"] for end in ends])
    lines.append(
        f"| the tutorial's, {len(results['tutorial'][0])} epochs "
        f"| {weights['tutorial']:,} | {len(ends)} | {final:.4f} ({everyone}) "
        f"| {took:.0f} | 1 |"
    )
    for name in RECIPES:
        runs = results.get(name)
        if not runs:
            continue
        accuracies = [accuracy for accuracy, _ in runs]
        median = statistics.median(accuracies)
        seconds = statistics.median(seconds for _, seconds in runs)
        firsts = [_first(epochs, median) for epochs in results["tutorial"]]
        # A run that never got there needs at least as long as it ran.
        pairs = zip(firsts, ends, strict=True)
        times = [end["seconds"] if t is None else t for t, end in pairs]
        times_sooner = statistics.median(times) / seconds
        sooner = f"{times_sooner:.{0 if times_sooner >= 1 else 2}f} ×"
        never = firsts.count(None)
        sooner += f"; {never} of {len(ends)} never" if never else ""
        told = f"{median:.4f} ({_all(accuracies)})"
        lines.append(
            f"| {name} | {weights[name]:,} | {len(runs)} | {told} | {seconds:.1f} "
            f"| {sooner} |"
        )
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    if not importlib.util.find_spec("sklearn"):
        about += ", without scikit-learn, which `import keras` would import too"
    told = (
        "The last column: how much sooner than the tutorial's program first reached "
        "the median accuracy of the row (median of its runs; one that never did "
        "counts with its whole length), and how many of its runs never did."
    )
    return "\n".join([*lines, "", told, "", f"Measured with `{command}` on {about}."])


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Say where this is measured: it takes longer than the whole suite may."""
    del quick
    return [
        {
            "name": "time to accuracy",
            "ratio": None,
            "target": "the tutorial's accuracy at least 50 times sooner",
            "detail": "tens of minutes: `python -m benchmarks.accuracy`",
        }
    ]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--residual-seeds", type=int, default=2)
    parser.add_argument("--tutorial-seeds", type=int, default=1)
    parser.add_argument("--tutorial-epochs", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=["tutorial", *RECIPES])
    parser.add_argument("--more", action="store_true", help="keep the runs there are")
    given = parser.parse_args()
    seeds = {"tutorial": given.tutorial_seeds} | {
        name: given.residual_seeds if name.startswith("residual") else given.seeds
        for name in RECIPES
    }
    record = PAGE.with_name("time_to_accuracy.json")
    results = {}
    if given.only:
        saved = json.loads(record.read_text(encoding="utf-8"))
        results = {
            name: saved[name] for name in ("tutorial", *RECIPES) if name in saved
        }
        seeds = {name: seeds[name] for name in given.only}
        if not given.more:
            results |= {name: [] for name in given.only}
    for _ in measure(seeds, given.tutorial_epochs, results):
        # Runs take minutes: one that is broken off loses none of those before.
        text = json.dumps(results, indent=1) + "\n"
        record.write_text(text, encoding="utf-8")
    command = "python -m benchmarks.accuracy " + " ".join(sys.argv[1:])
    text = table(results, command.strip())
    put_between(PAGE, BEGIN, END, text)
    print(text)


if __name__ == "__main__":
    main()
