"""What one `run` of the evaluator knows: what it has seen, and what is recorded."""

from __future__ import annotations

import os
import re
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from fmkit._checks import did_you_mean
from fmkit._files import open_regular, sync_directory
from fmkit._layer_state import fingerprint, refresh
from fmkit._monitor import greater_is_better
from fmkit.evaluation._checkpoints import (
    Checkpoint,
    CheckpointFile,
    CheckpointReader,
    NotReadableError,
    assign,
    list_checkpoints,
)
from fmkit.evaluation._results import ResultsFile, TensorBoardWriter

if TYPE_CHECKING:
    from fmkit.evaluation._sidecar import SidecarEvaluator

__all__ = ["Session"]

Results = dict[str, dict[str, dict[str, Any]]]

# A file that is unreadable and has not changed for so many seconds is damaged.
_SETTLE = 5.0


class Session:
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
        self._clear_place_of_best()
        settings.best = self._recorded_best()
        # By path: signature, whether it could be read, whether the run ended with it.
        self.seen: dict[Path, tuple[Any, bool, bool]] = {}
        # Unreadable, and perhaps still being written: signature, time of first look.
        self.unsettled: dict[Path, tuple[Any, float]] = {}
        self.postponed: set[Path] = set()
        self.last_number = self._recorded_number()
        self.rises: bool | None = None
        # The weights of which layers made what the model now calculates with.
        self.made_of: list[bytes] = []
        self.active = settings.clock()

    def close(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()

    def _clear_place_of_best(self) -> None:
        """Remove what a kill left behind; refuse what can't be a model's file."""
        output, best = self.settings.output, self.settings.best_path
        for path in [best, *output.glob(".best.*.keras")]:
            with suppress(FileNotFoundError, PermissionError):
                os.close(open_regular(path, os.O_RDONLY))
            if path != best:
                path.unlink()

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
        files = self._list()
        if self.settings.checkpoints == "every":
            return next((f for f in files if self._is_new(f)), None)
        # Commits and other files are two series, each with a newest of its own.
        for commits in (True, False):
            for file in reversed(files):
                if (file.number is not None) == commits:
                    if self._is_new(file):
                        return file
                    if self._has_read(file):
                        break
        return None

    def _has_read(self, file: CheckpointFile) -> bool:
        signature, readable, _ = self.seen.get(file.path, (None, False, False))
        return readable and signature == file.signature

    def _is_new(self, file: CheckpointFile) -> bool:
        signature, *_ = self.seen.get(file.path, (None, False, False))
        return signature != file.signature and not self._is_unsettled(file)

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
            self._put_in(checkpoint, averages=kind == "averaged")
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

    def _put_in(self, checkpoint: Checkpoint, *, averages: bool) -> None:
        """Let the model hold a checkpoint, and layers what they make of its values."""
        assign(checkpoint.raw)
        if averages:
            assign(checkpoint.averages)
        found = fingerprint(self.settings.model)
        if found != self.made_of:
            refresh(self.settings.model)
            self.made_of = found

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
        return greater_is_better(self.monitor.partition("/")[2], self.settings.model)

    def _save(self) -> None:
        """Put the model as it is in the place of the best, by one rename."""
        path = self.settings.best_path
        temporary = path.with_name(f".best.{os.getpid()}.keras")
        # Made here first: Keras would write through a link.
        os.close(open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            self.settings.model.save(temporary)
            with os.fdopen(open_regular(temporary, os.O_RDWR), "r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)

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
        self.settings.say(f"{', '.join(where)}; {'; '.join(told)}")
