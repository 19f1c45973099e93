"""Evaluate a running training from the command line: `python -m fmkit.evaluation`.

`python -m fmkit.evaluation export` writes one of its checkpoints as a plain file.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import keras

from fmkit import _keras_private as private
from fmkit._npz import read_npz
from fmkit.data import Batches
from fmkit.datasets import fashion_mnist, mnist
from fmkit.evaluation import SidecarEvaluator, export_checkpoint
from fmkit.evaluation._described import (
    NotDescribedError,
    find_description,
    make_model,
)
from fmkit.evaluation._listing import list_checkpoints
from fmkit.preprocessing import preprocess

_DESCRIPTION = """\
Evaluate the checkpoints of a training run while it runs in another process: the
commits of fmkit's ExactResume, the .weights.h5 and .keras files of Keras's
ModelCheckpoint, and the steps of its OrbaxCheckpoint. Raw and averaged weights are
evaluated and the best are kept. No checkpoint is evaluated twice, however often this is
stopped and started.
"""

_EPILOG = """\
examples:
  python -m fmkit.evaluation run
      evaluate on the test images of Fashion-MNIST until the run ends
  python -m fmkit.evaluation run --newest --poll 5 --idle 600
      look every five seconds at first, and only at the newest commit; give up after
      ten minutes without one
  python -m fmkit.evaluation checkpoints --model model.keras \\
      --data test=test.npz --data other=other.npz --monitor test/accuracy
      two data sets of your own, in .npz files with the arrays x and y

python -m fmkit.evaluation export --help
    about writing a checkpoint as a plain .keras or .weights.h5 file
"""

_EXPORT = """\
Write a checkpoint of a training run as a .keras or .weights.h5 file that plain Keras
loads, on any backend: the model and its weights, without the state of the training. The
file appears whole or not at all.
"""

_EXPORT_EPILOG = """\
examples:
  python -m fmkit.evaluation export run model.keras
      the newest intact checkpoint of a run
  python -m fmkit.evaluation export run/commit-00000012.npz model.weights.h5 \\
      --weights averaged
      one commit of ExactResume, with the averages of its weights
  python -m fmkit.evaluation export checkpoints/7 model.keras
      one step of keras.callbacks.OrbaxCheckpoint
"""


class _UsageError(ValueError):
    """A mistake in the command, with what to write instead."""


_ERRORS = (ImportError, OSError, TypeError, ValueError)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["export"]:
        return _export(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _import(options.imports)
        data = _data(options.data, options.map, options.batch_size)
        evaluator = SidecarEvaluator(
            _model(options),
            data,
            options.directory,
            output=options.output,
            checkpoints="newest" if options.newest else "every",
            weights=options.weights,
            monitor=options.monitor,
            mode=options.mode,
            keep_best=not options.no_best,
            tensorboard=options.tensorboard,
            max_evaluations=options.max_evaluations,
            idle_seconds=options.idle,
            stop_with_run=not options.keep_waiting,
            poll_seconds=options.poll,
            max_poll_seconds=max(options.poll, options.max_poll),
            verbose=0 if options.quiet else 1,
        )
        evaluator.run()
    except _ERRORS as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    return 130 if evaluator.ended_by == "interrupted" else 0


def _export(arguments: list[str]) -> int:
    parser = _export_parser()
    options = parser.parse_args(arguments)
    try:
        _import(options.imports)
        written = export_checkpoint(
            options.checkpoint,
            options.path,
            weights=options.weights,
            model=_build(options.model) if options.model else None,
            overwrite=options.overwrite,
        )
    except _ERRORS as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    if not options.quiet:
        where = [f"{k} {n}" for k in ("epoch", "step") if (n := getattr(written, k))]
        what = ", ".join([written.checkpoint, *where])
        private.print_msg(f"{what}: {options.weights} weights are in {options.path}.")
    return 0


def _import(modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fmkit.evaluation",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("directory", type=Path, help="where the training writes its checkpoints")
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="a .keras file of the compiled model; without it, the model that "
        "ExactResume describes in DIRECTORY/model.json, or the oldest .keras file or "
        "step of OrbaxCheckpoint in DIRECTORY",
    )
    add(
        "--data",
        action="append",
        metavar="DATA",
        help="fashion_mnist (default: its test images), fashion_mnist=PATH, "
        "fashion_mnist=sample (the 1,000 test images in fmkit); mnist, mnist=PATH, "
        "mnist=sample; or NAME=FILE.npz with arrays x and y; may be given several "
        "times",
    )
    add(
        "--map",
        choices=["auto", "preprocess", "none"],
        default="auto",
        help="how x and y are mapped: fmkit.preprocess divides pixels by 255; auto "
        "does so if x is uint8",
    )
    add("--batch-size", type=int, default=1000, help="default: %(default)s")
    _add_what(add)
    _add_when(add)
    return parser


def _add_what(add: Any) -> None:
    add("--newest", action="store_true", help="only the newest checkpoint each time")
    add("--weights", choices=["both", "raw", "averaged"], default="both")
    add("--monitor", default="loss", help="the metric that best.keras is best in")
    add("--mode", choices=["auto", "min", "max"], default="auto")
    add("--no-best", action="store_true", help="don't keep best.keras")
    add("--output", type=Path, help="default: DIRECTORY/evaluation")
    add("--tensorboard", action="store_true", help="also write for TensorBoard")
    _add_import(add)


def _add_import(add: Any) -> None:
    add(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="import a module first: your own registered layers, losses and metrics",
    )


def _add_when(add: Any) -> None:
    add("--max-evaluations", type=int, metavar="N", help="end after N checkpoints")
    add("--idle", type=float, metavar="S", help="end after S seconds without a new one")
    add("--keep-waiting", action="store_true", help="don't end with the run")
    add(
        "--poll",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds before looking again",
    )
    add(
        "--max-poll",
        type=float,
        default=30.0,
        metavar="S",
        help="waits double up to S seconds while nothing is new (default: 30)",
    )
    add("--quiet", action="store_true", help="print nothing")


def _export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fmkit.evaluation export",
        description=_EXPORT,
        epilog=_EXPORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="the directory of a run, or a checkpoint in it")
    add("path", type=Path, help="the file to write: FILE.keras or FILE.weights.h5")
    add(
        "--weights",
        default="raw",
        help="raw (default), averaged, or the name of one of several averages",
    )
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="a .keras file of the model; without it, what the run has written of it",
    )
    add("--overwrite", action="store_true", help="replace a file that is there")
    _add_import(add)
    add("--quiet", action="store_true", help="print nothing")
    return parser


# The model


def _model(options: argparse.Namespace) -> Any:
    path = options.model or _described(options.directory, options.idle, options.poll)
    model = _build(path)
    if not isinstance(model, keras.Model) or not model.compiled:
        raise _UsageError(
            f"{path} holds no compiled model. Compile the model with loss and metrics, "
            "save it with model.save('model.keras'), and give --model model.keras."
        )
    return model


def _build(path: Path) -> Any:
    """Rebuild the model from numbers and JSON; code in a file is refused."""
    if not path.exists():
        raise _UsageError(f"There is no file {path}. Give --model FILE.keras.")
    try:
        return make_model(path)
    except NotDescribedError as error:
        raise _UsageError(str(error)) from error


def _described(directory: Path, idle: float | None, poll: float) -> Path:
    """Find the file that describes the model; wait for a run that has not begun."""
    started = time.monotonic()
    while True:
        found = find_description(directory)
        if found is not None:
            return found
        waited = time.monotonic() - started
        if list_checkpoints(directory) or (idle is not None and waited >= idle):
            raise _UsageError(
                f"Nothing in {directory} describes the model (no model.json of "
                "ExactResume, no .keras file, no whole step of OrbaxCheckpoint). Give "
                "--model FILE.keras, as written by model.save('FILE.keras')."
            )
        if waited < poll:
            private.print_msg(f"Waiting for a training run to begin in {directory}.")
        time.sleep(poll)


# The data


def _data(given: list[str] | None, map_: str, batch_size: int) -> dict[str, Any]:
    data = {}
    for text in given or ["fashion_mnist"]:
        name, _, path = text.partition("=")
        if name in data:
            raise _UsageError(f"--data {name} is given twice. Give each its own name.")
        x, y = _arrays(name, path)
        scale = map_ == "preprocess" or (map_ == "auto" and x.dtype == "uint8")
        data[name] = Batches(x, y, batch_size, map=preprocess if scale else None)
    return data


def _arrays(name: str, path: str) -> tuple[Any, Any]:
    if name in ("fashion_mnist", "mnist"):
        source = fashion_mnist if name == "fashion_mnist" else mnist
        splits = (
            source.load_sample() if path == "sample" else source.load_data(path or None)
        )
        return splits[1]
    if not path.endswith(".npz"):
        raise _UsageError(
            f"--data {name}{'=' + path if path else ''} is not known. Give "
            "fashion_mnist or mnist, alone or with =PATH or =sample, or NAME=FILE.npz "
            "with the arrays x and y."
        )
    arrays = read_npz(Path(path), ["x", "y"])
    return arrays["x"], arrays["y"]


if __name__ == "__main__":
    sys.exit(main())
