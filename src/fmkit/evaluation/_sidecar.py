"""`SidecarEvaluator`: evaluates what a training leaves on disk while it goes on."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._checks import check_int, check_number, check_one_of, did_you_mean
from fmkit.callbacks._commits import _InUseError, _open_locked, _sync_directory
from fmkit.callbacks._conditions import keras_rises
from fmkit.evaluation._checkpoints import (
    Checkpoint,
    CheckpointFile,
    CheckpointReader,
    NotReadableError,
    assign,
    list_checkpoints,
)
from fmkit.evaluation._results import ResultsFile, TensorBoardWriter

__all__ = ["SidecarEvaluator"]

Results = dict[str, dict[str, dict[str, Any]]]

# A file that is unreadable and has not changed for so many seconds is damaged.
_SETTLE = 5.0


class SidecarEvaluator:
    r"""Evaluate the checkpoints of a training while another process makes them.

    `run` looks into `directory` again and again, and evaluates what it has not
    evaluated yet: the commits of `callbacks.ExactResume`, and the `.weights.h5` and
    `.keras` files of Keras's `ModelCheckpoint`. It survives a training that starts
    later, dies, or is resumed, files that are half-written, deleted or damaged (each
    is named in a warning), and its own death: what has its line in `results.jsonl`
    is not evaluated again. A checkpoint is known by its epoch, its step and the bits
    of its weights; a step that a resumed run did again with other bits counts as new.

    It ends when a commit says that the run has ended, after `max_evaluations`, after
    `idle_seconds`, or on Ctrl-C. Of a checkpoint only numbers are read; nothing in it
    is executed. The training never waits for it, and its files are not locked.

    Results go to `output`:

    - `results.jsonl`: a line for each checkpoint, flushed to the disk. Numbers that
      are not finite stand as "NaN", "Infinity", "-Infinity".
    - `best.keras`: the model with the best weights so far, replaced by one rename.
    - `tensorboard/`: the runs `raw` and `averaged`, if asked for.

    Averaged weights are those of `optimizers.ExponentialMovingAverage`, or of Keras's
    `use_ema`, as the checkpoint's optimizer state holds them. Statistics of
    `BatchNormalization` stay as they are in the checkpoint.

    Args:
        model: The model that the run trains: built, compiled with the loss and the
            metrics to evaluate. Its optimizer need not be the run's for commits; for
            `ModelCheckpoint` files averages are read only if it is. What the model
            holds is overwritten.
        data: What to evaluate on: `(x, y)`, `(x, y, sample_weight)`, `data.Batches`,
            a dataset, or a dict of such by name. Data without a name are `"test"`.
        directory: Where the training writes. It need not be there yet.
        output: Where the results go; `directory/evaluation` by default.
        checkpoints: `"every"` evaluates each checkpoint that is still there when its
            turn comes, and warns of commits that were not (give `ExactResume` a larger
            `keep`); `"newest"` always goes to the newest.
        weights: `"raw"`, `"averaged"`, or `"both"`: averages too where there are any.
        monitor: What the best checkpoint is best in: a result's name, as `"loss"` or
            `"accuracy"`, of the first data set; or `"name of the data/accuracy"`.
        mode: `"min"`, `"max"`, or `"auto"`: Keras's own rule for its metrics.
        keep_best: Whether to write `best.keras`.
        tensorboard: Whether to write for TensorBoard (needs the package tensorboard).
        batch_size: For data given as arrays; Keras's default without it.
        max_evaluations: End when so many checkpoints have their results, those of
            earlier calls included.
        idle_seconds: End after so many seconds without a new checkpoint.
        stop_with_run: Whether to end with the run. `False` waits for a finished run
            to be continued.
        poll_seconds: Seconds before the second look; each further one waits twice as
            long, until a new checkpoint comes.
        max_poll_seconds: The longest wait in seconds.
        verbose: 0 is silent, 1 says a line for each checkpoint.
        clock: Tells the time in seconds; replaced in tests.
        sleep: Waits so many seconds; replaced in tests.

    Attributes:
        results: All records, those of earlier processes too, oldest first.
        best: The best checkpoint's record entry, a dict of `monitor`, `value` and
            `weights`; `None` before there is one.
        best_path: The file of the best model.
        ended_by: Why the last `run` ended: `"finished"`, `"max_evaluations"`,
            `"idle"` or `"interrupted"`.

    Raises:
        ValueError: If an argument is outside its range, the model is not built and
            compiled, or a commit is of another model.
        OSError: If another live evaluator uses `output`.

    Examples:
        >>> import keras, numpy as np, tempfile
        >>> from fmkit.callbacks import ExactResume
        >>> from fmkit.data import Batches
        >>> from fmkit.evaluation import SidecarEvaluator
        >>> x = np.linspace(0, 1, 20).reshape(10, 2)
        >>> batches = Batches(x, x[:, 0], 5, map=None)
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> with tempfile.TemporaryDirectory() as run:
        ...     resume = ExactResume(run, every=2, keep=9, verbose=0)
        ...     history = model.fit(batches, epochs=3, callbacks=[resume], verbose=0)
        ...     results = SidecarEvaluator(model, (x, x[:, 0]), run, verbose=0).run()
        >>> [record["step"] for record in results]
        [2, 4, 6]
    """

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        directory: str | os.PathLike[str],
        *,
        output: str | os.PathLike[str] | None = None,
        checkpoints: str = "every",
        weights: str = "both",
        monitor: str = "loss",
        mode: str = "auto",
        keep_best: bool = True,
        tensorboard: bool = False,
        batch_size: int | None = None,
        max_evaluations: int | None = None,
        idle_seconds: float | None = None,
        stop_with_run: bool = True,
        poll_seconds: float = 1.0,
        max_poll_seconds: float = 10.0,
        verbose: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.model = _check_model(model)
        self.data = _check_data(data)
        self.directory = Path(directory)
        self.output = (
            Path(output) if output is not None else self.directory / "evaluation"
        )
        if self.output.resolve() == self.directory.resolve():
            raise ValueError(
                f"`output` must not be `directory` itself ({self.directory}): "
                "best.keras would be taken for a checkpoint. Leave it out, or give "
                "another folder."
            )
        self.checkpoints = check_one_of("checkpoints", checkpoints, ["every", "newest"])
        self.weights = check_one_of("weights", weights, ["both", "raw", "averaged"])
        self.monitor = monitor
        self.mode = check_one_of("mode", mode, ["auto", "min", "max"])
        self.keep_best = bool(keep_best)
        self.tensorboard = bool(tensorboard)
        self.batch_size = (
            None if batch_size is None else check_int("batch_size", batch_size)
        )
        self.max_evaluations = (
            None
            if max_evaluations is None
            else check_int("max_evaluations", max_evaluations)
        )
        self.idle_seconds = (
            None
            if idle_seconds is None
            else check_number("idle_seconds", idle_seconds, at_least=0)
        )
        self.stop_with_run = bool(stop_with_run)
        self.poll_seconds = check_number("poll_seconds", poll_seconds, above=0)
        self.max_poll_seconds = check_number(
            "max_poll_seconds", max_poll_seconds, at_least=self.poll_seconds
        )
        self.verbose = verbose
        self.clock = clock
        self.sleep = sleep
        self.results: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.best_path = self.output / "best.keras"
        self.ended_by: str | None = None

    def run(self) -> list[dict[str, Any]]:
        """Evaluate until there is a reason to end; return all records.

        A record is a dict: `checkpoint` (the file's name), `epoch` (completed),
        `step` (optimizer steps since the beginning), `digest`, `results` (by weights,
        data set and metric), `best` (if it was the best so far), `seconds` (that the
        evaluation took) and `time` (seconds since 1970). Ctrl-C ends it as any other
        reason does.
        """
        with self._held_output():
            session = _Session(self)
            try:
                self.ended_by = session.loop()
            except KeyboardInterrupt:
                self.ended_by = "interrupted"
            finally:
                session.close()
        self._say(
            f"ended ({self.ended_by}); {len(self.results)} checkpoints in "
            f"{self.output / 'results.jsonl'}"
        )
        return self.results

    @contextmanager
    def _held_output(self) -> Iterator[None]:
        self.output.mkdir(parents=True, exist_ok=True)
        try:
            lock = _open_locked(self.output / "lock")
        except _InUseError as error:
            raise OSError(
                f"{self.output} is in use by another live evaluator ({error}). Stop "
                "it, or give this one another `output`."
            ) from None
        with lock:
            yield

    def _say(self, message: str) -> None:
        if self.verbose:
            private.print_msg(f"SidecarEvaluator: {message}.")


class _Session:
    """One `run`: what has been seen of the directory, and what is known of it."""

    def __init__(self, settings: SidecarEvaluator) -> None:
        self.settings = settings
        self.reader = CheckpointReader(settings.model)
        self.file = ResultsFile(settings.output / "results.jsonl")
        self.tensorboard = (
            TensorBoardWriter(settings.output / "tensorboard")
            if settings.tensorboard
            else None
        )
        settings.results = self.file.records
        settings.best = self._recorded_best()
        for left_behind in settings.output.glob(".best.*.keras"):
            left_behind.unlink()
        # By path: signature, whether it could be read, whether the run ended with it.
        self.seen: dict[Path, tuple[Any, bool, bool]] = {}
        # Unreadable, and perhaps still being written: signature, time of first look.
        self.unsettled: dict[Path, tuple[Any, float]] = {}
        self.postponed: set[Path] = set()
        self.last_number = self._recorded_number()
        self.rises: bool | None = None
        self.active = settings.clock()

    def close(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()

    def _recorded_best(self) -> dict[str, Any] | None:
        """Return the last best of the same monitor, if its file is there."""
        if not self.settings.best_path.exists():
            return None
        bests = [record["best"] for record in self.file.records if record.get("best")]
        return next(
            (best for best in reversed(bests) if best["monitor"] == self.monitor), None
        )

    def _recorded_number(self) -> int | None:
        names = [record["checkpoint"] for record in self.file.records]
        found = [re.fullmatch(r"commit-(\d{1,18})\.npz", name) for name in names]
        numbers = [int(match[1]) for match in found if match]
        return numbers[-1] if numbers else None

    # Looking and waiting

    def loop(self) -> str:
        """Look, evaluate and wait in turn; return the reason to end."""
        settings = self.settings
        wait = settings.poll_seconds
        while True:
            if self._evaluate_new():
                wait = settings.poll_seconds
            reason = self._reason_to_end()
            if reason is not None:
                return reason
            if settings.idle_seconds is not None:
                # Not beyond the end.
                left = self.active + settings.idle_seconds - settings.clock()
                settings.sleep(max(0.0, min(wait, left)))
            else:
                settings.sleep(wait)
            wait = min(2 * wait, settings.max_poll_seconds)

    def _evaluate_new(self) -> bool:
        """Handle all that is new; tell whether anything was."""
        self.postponed.clear()
        any_new = False
        while not self._is_enough():
            # Listed anew each time: meanwhile some may have come and gone.
            file = self._next()
            if file is None:
                break
            if self._handle(file):
                any_new = True
                self.active = self.settings.clock()
        return any_new

    def _is_enough(self) -> bool:
        most = self.settings.max_evaluations
        return most is not None and len(self.file.records) >= most

    def _reason_to_end(self) -> str | None:
        settings = self.settings
        if self._is_enough():
            return "max_evaluations"
        if settings.stop_with_run and self._run_has_ended():
            return "finished"
        idle = settings.idle_seconds
        if idle is not None and settings.clock() - self.active >= idle:
            return "idle"
        return None

    def _run_has_ended(self) -> bool:
        commits = [f for f in self._list() if f.number is not None]
        if not commits:
            return False
        signature, _, finished = self.seen.get(commits[-1].path, (None, False, False))
        return finished and signature == commits[-1].signature

    def _list(self) -> list[CheckpointFile]:
        return list_checkpoints(self.settings.directory)

    def _next(self) -> CheckpointFile | None:
        newest_only = self.settings.checkpoints == "newest"
        files = self._list()
        for file in reversed(files) if newest_only else files:
            signature, readable, _ = self.seen.get(file.path, (None, False, False))
            if signature == file.signature:
                if newest_only and readable:
                    return None
            elif not self._is_unsettled(file):
                return file
        return None

    def _is_unsettled(self, file: CheckpointFile) -> bool:
        if file.path in self.postponed:
            return True
        signature, since = self.unsettled.get(file.path, (None, 0.0))
        same = signature == file.signature
        return same and self.settings.clock() - since < _SETTLE

    # One file

    def _handle(self, file: CheckpointFile) -> bool:
        """Read a file, and evaluate it if it is new; tell whether it was settled."""
        self._note_number(file)
        try:
            checkpoint = self.reader.read(file)
        except FileNotFoundError:
            self.postponed.add(file.path)
            return False
        except NotReadableError as error:
            return self._skip(file, error)
        self.unsettled.pop(file.path, None)
        self.seen[file.path] = (file.signature, True, checkpoint.finished)
        wanted = self._wanted(checkpoint)
        if not self._is_recorded(checkpoint, wanted):
            self._evaluate(checkpoint, wanted)
        return True

    def _note_number(self, file: CheckpointFile) -> None:
        """Warn of commits that came and went between two looks."""
        if file.number is None:
            return
        last, self.last_number = self.last_number, file.number
        if self.settings.checkpoints == "newest" or last is None:
            return
        if file.number > last + 1:
            missed = f"{last + 1} to {file.number - 1}"
            if file.number == last + 2:
                missed = str(last + 1)
            warnings.warn(
                f"Missed in {self.settings.directory}: commit {missed}, deleted before "
                "it was evaluated. Give ExactResume a larger `keep`, commit less "
                "often, or evaluate on less data.",
                stacklevel=6,
            )

    def _skip(self, file: CheckpointFile, error: NotReadableError) -> bool:
        """Leave an unreadable file: for now, if it may be half-written, or for good."""
        signature, since = self.unsettled.get(file.path, (None, 0.0))
        if not error.final:
            now = self.settings.clock()
            if signature != file.signature:
                self.unsettled[file.path] = (file.signature, now)
                self.postponed.add(file.path)
                return False
            if now - since < _SETTLE:
                self.postponed.add(file.path)
                return False
        self.unsettled.pop(file.path, None)
        self.seen[file.path] = (file.signature, False, False)
        warnings.warn(f"Skipping a checkpoint: {error}", stacklevel=6)
        return True

    def _wanted(self, checkpoint: Checkpoint) -> list[str]:
        weights = self.settings.weights
        if weights == "averaged" and not checkpoint.averages:
            raise ValueError(
                f"weights='averaged', but {checkpoint.name} holds no averages that "
                "this model could take. Train with fmkit.optimizers."
                "ExponentialMovingAverage (for ModelCheckpoint files, compile this "
                "model with it too), or give weights='raw'."
            )
        kinds = {"raw": weights != "averaged", "averaged": weights != "raw"}
        if not checkpoint.averages:
            kinds["averaged"] = False
        return [kind for kind, wanted in kinds.items() if wanted]

    def _is_recorded(self, checkpoint: Checkpoint, wanted: list[str]) -> bool:
        key = (checkpoint.epoch, checkpoint.step, checkpoint.digest)
        return any(
            (record["epoch"], record["step"], record["digest"]) == key
            and all(
                set(self.settings.data) <= set(record["results"].get(kind, ()))
                for kind in wanted
            )
            for record in self.file.records
        )

    # Evaluating

    def _evaluate(self, checkpoint: Checkpoint, wanted: list[str]) -> None:
        started = time.perf_counter()
        results: Results = {}
        best = None
        for kind in wanted:
            assign(checkpoint.raw)
            if kind == "averaged":
                assign(checkpoint.averages)
            results[kind] = {
                name: self._results_on(data)
                for name, data in self.settings.data.items()
            }
            best = self._keep_if_best(kind, results[kind]) or best
        record = {
            "checkpoint": checkpoint.name,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
            "digest": checkpoint.digest,
            "results": results,
            "best": best,
            "seconds": time.perf_counter() - started,
            "time": time.time(),
        }
        if self.tensorboard is not None:
            # By steps; files that don't tell them by epochs, or in their order.
            places = (checkpoint.step, checkpoint.epoch, len(self.file.records) + 1)
            self.tensorboard.write(next(p for p in places if p is not None), results)
        self.file.append(record)
        self._tell(record)

    def _results_on(self, data: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {"verbose": 0, "return_dict": True}
        if isinstance(data, tuple):
            names = ("x", "y", "sample_weight")
            arguments |= dict(zip(names, data, strict=False))
            if self.settings.batch_size is not None:
                arguments["batch_size"] = self.settings.batch_size
        else:
            arguments["x"] = data
        logs = self.settings.model.evaluate(**arguments)
        # Scalars as floats; a metric by class as a list of them.
        return {
            name: np.asarray(keras.ops.convert_to_numpy(value), np.float64).tolist()
            for name, value in logs.items()
        }

    @property
    def monitor(self) -> str:
        """The monitored value as "data set/metric"."""
        name, slash, _ = self.settings.monitor.partition("/")
        if slash and name in self.settings.data:
            return self.settings.monitor
        return f"{next(iter(self.settings.data))}/{self.settings.monitor}"

    def _keep_if_best(
        self, kind: str, by_data: dict[str, dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Save the model if its weights are the best so far; return what to record."""
        if not self.settings.keep_best:
            return None
        value = self._monitored(by_data)
        if self.rises is None:
            self.rises = self._resolve_mode()
        best = self.settings.best
        if np.isnan(value) or (
            best is not None
            and not (value > best["value"] if self.rises else value < best["value"])
        ):
            return None
        self._save()
        self.settings.best = {"monitor": self.monitor, "value": value, "weights": kind}
        return self.settings.best

    def _monitored(self, by_data: dict[str, dict[str, Any]]) -> float:
        name, _, metric = self.monitor.partition("/")
        # Names of data sets have no slash; names of metrics might.
        logs = by_data[name]
        value = logs.get(metric)
        if not isinstance(value, float):
            options = [
                key if len(by_data) == 1 else f"{data}/{key}"
                for data, found in by_data.items()
                for key, number in found.items()
                if isinstance(number, float)
            ]
            raise ValueError(
                f"monitor={self.settings.monitor!r} is not among the results, which "
                f"are {options}.{did_you_mean(self.settings.monitor, options)}"
            )
        return value

    def _resolve_mode(self) -> bool:
        if self.settings.mode != "auto":
            return self.settings.mode == "max"
        return keras_rises(self.monitor.partition("/")[2], self.settings.model)

    def _save(self) -> None:
        """Put the model as it is in the place of the best, by one rename."""
        path = self.settings.best_path
        temporary = path.with_name(f".best.{os.getpid()}.keras")
        try:
            self.settings.model.save(temporary)
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)

    def _tell(self, record: dict[str, Any]) -> None:
        where = [record["checkpoint"]]
        where += [
            f"{k} {record[k]}" for k in ("epoch", "step") if record[k] is not None
        ]
        told = [
            f"{kind} {name}: "
            + ", ".join(f"{k} {v:.5g}" for k, v in logs.items() if isinstance(v, float))
            for kind, by_data in record["results"].items()
            for name, logs in by_data.items()
        ]
        if record["best"]:
            told.append(f"best {record['best']['monitor']} so far")
        self.settings._say(f"{', '.join(where)}; {'; '.join(told)}")


# Arguments


def _check_model(model: Any) -> Any:
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model, got {type(model).__name__}.")
    if not model.built:
        raise ValueError(
            "`model` must be built: start it with keras.Input(shape), or call it on "
            "one batch."
        )
    if not model.compiled:
        raise ValueError(
            "`model` must be compiled with the loss and the metrics to evaluate: "
            "model.compile(loss=..., metrics=[...])."
        )
    return model


def _check_data(data: Any) -> dict[str, Any]:
    named = dict(data) if isinstance(data, Mapping) else {"test": data}
    if not named:
        raise ValueError("`data` is an empty dict: give at least one data set.")
    for name, value in named.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(
                "`data` must be a dict of data sets by name, the names texts without "
                f"a slash; got the name {name!r}."
            )
        if isinstance(value, list):
            value = named[name] = tuple(value)
        if isinstance(value, tuple) and not 2 <= len(value) <= 3:
            raise ValueError(
                f"`data` {name!r} must be (x, y) or (x, y, sample_weight), got "
                f"{len(value)} parts."
            )
        if hasattr(value, "__next__"):
            raise TypeError(
                f"`data` {name!r} is a {type(value).__name__}, which can be read once "
                "only. Give arrays, fmkit.data.Batches, or a dataset."
            )
    return named
