"""The TensorFlow 1 course's MNIST program: averages, exact resume, an evaluator.

784-500-10, batches of 200, momentum 0.9, a learning rate of 0.1 multiplied by 0.99 each
epoch, L2 of 1e-4, averages with decay 0.99. This program starts training and the
evaluator as two processes, kills training with SIGKILL halfway, starts it again, and
compares the result bit by bit with a run that was never killed.

Writes `tf1_mnist_ema.png` and `tf1_mnist_ema.md`. It needs no network: it uses the
full MNIST if this machine has it, and otherwise the sample that ships with fmkit;
`--data` names another source. The course trains with `--steps 50000`.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import keras
import numpy as np

from fmkit import callbacks, data, datasets, losses, models, optimizers, schedules
from fmkit import visualization as draw

BATCH_SIZE = 200


def load(source: str) -> tuple:
    """Return the training and the test images named by `source`."""
    if source == "sample":
        return datasets.mnist.load_sample()
    if source == "fashion_mnist":
        return datasets.fashion_mnist.load_data()
    return datasets.mnist.load_data(None if source == "mnist" else source)


def rate(num_examples: int) -> schedules.ExponentialDecay:
    """Return the course's learning rate, which drops once per epoch."""
    return schedules.ExponentialDecay.from_epochs(
        0.1, 0.99, num_examples=num_examples, batch_size=BATCH_SIZE, staircase=True
    )


def train(source: str, steps: int, every: int, directory: str) -> None:
    """Train for `steps` steps, or resume the run in `directory`."""
    keras.utils.set_random_seed(0)
    (x, y), _ = load(source)
    batches = data.Batches(x, y, batch_size=BATCH_SIZE, seed=0)
    model = models.mlp(
        (500,),
        input_shape=x.shape[1:],
        l2=1e-4,
        half_l2=True,
        kernel_initializer=("truncated_normal", {"stddev": 0.1}),
        seed=0,
    )
    descent = keras.optimizers.SGD(rate(len(x)), momentum=0.9)
    model.compile(
        optimizers.ExponentialMovingAverage(descent, decay=0.99),
        losses.CrossentropyFromLogits(),
        metrics=["accuracy"],
    )
    # With this callback, a killed run continues where it was.
    resume = callbacks.ExactResume(directory, every=every, keep=20)
    per_epoch = min(len(batches), steps)
    model.fit(
        batches,
        epochs=-(-steps // per_epoch),
        steps_per_epoch=per_epoch,
        callbacks=[resume],
        verbose=0,
    )


def main(
    steps: int = 1500, source: str | None = None, folder: str = "outputs"
) -> tuple[list[dict], bool]:
    """Run everything; return the evaluations, and whether the bits are equal."""
    output = Path(folder)
    killed, unkilled = (
        output / "tf1_mnist_ema_killed",
        output / "tf1_mnist_ema_unkilled",
    )
    for directory in (killed, unkilled):
        shutil.rmtree(directory, ignore_errors=True)
    killed.mkdir(parents=True)
    if source is None:
        source = "mnist" if datasets.mnist.find() else "sample"
    every = max(1, steps // 20)

    evaluator = start_evaluator(source, killed)
    try:
        killed_after = kill_in_the_middle(source, steps, every, killed)
        finish(start_training(source, steps, every, killed), "the resumed run")
        finish(evaluator, "the evaluator")
    finally:
        evaluator.kill()
    train(source, steps, every, str(unkilled))
    equal = same_bits(last_commit(killed), last_commit(unkilled))
    lines = (killed / "evaluation" / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]

    size = len(load(source)[0][0])
    table = report(records, killed_after, equal, size)
    print(table)
    (output / "tf1_mnist_ema.md").write_text(table + "\n", encoding="utf-8")
    if importlib.util.find_spec("matplotlib"):
        picture(records, killed_after, size, output / "tf1_mnist_ema.png")
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    return records, equal


def start_training(
    source: str, steps: int, every: int, directory: Path
) -> subprocess.Popen:
    """Start this program as a training process."""
    options = ["--train", str(directory), "--data", source]
    options += ["--steps", str(steps), "--every", str(every)]
    return subprocess.Popen([sys.executable, __file__, *options])  # noqa: S603


def start_evaluator(source: str, directory: Path) -> subprocess.Popen:
    """Start the evaluator of `directory`, which waits for commits and reports each."""
    named = source if source in ("mnist", "fashion_mnist") else f"mnist={source}"
    options = ["--data", named, "--poll", "1"]
    command = [sys.executable, "-m", "fmkit.evaluation", str(directory), *options]
    return subprocess.Popen([*command, "--monitor", "accuracy"])  # noqa: S603


def kill_in_the_middle(source: str, steps: int, every: int, directory: Path) -> int:
    """Train, and SIGKILL the process halfway; return the step of its last commit."""
    training = start_training(source, steps, every, directory)
    try:
        while training.poll() is None:
            commit = last_commit(directory)
            if commit is not None and step_of(commit) >= steps // 2:
                training.kill()  # SIGKILL on Linux and macOS: no cleanup can run
                break
            time.sleep(0.02)
    finally:
        training.kill()
    if training.wait() == 0:
        raise RuntimeError("Training ended before it was killed: use more steps")
    # Look again: there may have been a commit between the check and the kill.
    step = step_of(last_commit(directory))
    print(f"Killed; the last commit is of step {step} of {steps}.")
    return step


def finish(process: subprocess.Popen, name: str) -> None:
    """Wait for a process to end, and raise if it failed."""
    if process.wait() != 0:
        raise RuntimeError(f"{name} ended with status {process.returncode}")


def last_commit(directory: Path) -> Path | None:
    """Return the file of the newest commit."""
    commits = sorted(directory.glob("commit-*.npz"))
    return commits[-1] if commits else None


def step_of(commit: Path) -> int:
    """Return the number of steps before a commit, from the JSON in its archive."""
    with zipfile.ZipFile(commit) as archive:
        meta = json.loads(archive.read("meta.json"))
    return meta["steps_before"] + meta["step"]


def same_bits(a: Path, b: Path) -> bool:
    """Compare everything in two commits: weights, momenta, averages, counters."""
    with np.load(a) as left, np.load(b) as right:
        names = [name for name in left.files if name != "meta.json"]
        print(
            f"Comparing {len(names)} arrays with those of a run that was never killed."
        )
        return set(left.files) == set(right.files) and all(
            left[name].tobytes() == right[name].tobytes() for name in names
        )


def accuracies(records: list[dict], kind: str) -> list[float]:
    """Return the test accuracy of the raw or averaged weights at each commit."""
    return [next(iter(r["results"][kind].values()))["accuracy"] for r in records]


def report(records: list[dict], killed_after: int, equal: bool, size: int) -> str:
    """Return a table of the evaluations, and the result of the comparison."""
    rows = zip(
        [record["step"] for record in records],
        accuracies(records, "raw"),
        accuracies(records, "averaged"),
        strict=True,
    )
    bits = "every bit equal to" if equal else "NOT the same bits as"
    return "\n".join(
        [
            "| step | test accuracy, raw weights | averaged weights |",
            "|---:|---:|---:|",
            *[f"| {step} | {raw:.4f} | {mean:.4f} |" for step, raw, mean in rows],
            "",
            f"Trained on {size:,} images. Killed after the commit of step "
            f"{killed_after} and started again; at the end, {bits} the training that "
            "was never killed.",
        ]
    )


def picture(records: list[dict], killed_after: int, size: int, file: Path) -> None:
    """Plot the evaluator's accuracies and the learning rate."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    steps = [record["step"] for record in records]
    left.axvline(killed_after, color="grey", linestyle="--", label="killed, resumed")
    draw.raw_against_averaged(
        accuracies(records, "raw"),
        accuracies(records, "averaged"),
        steps=steps,
        metric="test accuracy",
        title="what the evaluator saw",
        ax=left,
    )
    draw.learning_rate_curve(
        rate(size), steps[-1], title="a stair for each epoch", ax=right
    )
    right.set_ylim(None, None, auto=True)
    right.relim()
    right.autoscale_view()
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--data", help="mnist, sample, fashion_mnist, or a path")
    parser.add_argument("--train", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--every", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given.data, given.steps, given.every, given.train)
    else:
        main(given.steps, given.data)
