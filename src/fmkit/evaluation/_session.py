"""One `run` of the evaluator: look, evaluate and wait until a reason to end."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmkit._commits import number_in
from fmkit._layer_state import fingerprint, refresh
from fmkit.evaluation._best import BestModel
from fmkit.evaluation._checkpoint import Checkpoint, NotReadableError, Target, assign
from fmkit.evaluation._commit_reader import read_commit_file
from fmkit.evaluation._keras_reader import read_keras_file
from fmkit.evaluation._listing import CheckpointFile
from fmkit.evaluation._orbax_reader import read_orbax_step
from fmkit.evaluation._results import Record, ResultsFile, TensorBoardWriter
from fmkit.evaluation._settings import Settings
from fmkit.evaluation._watch import Watch

__all__ = ["Session", "read_checkpoint"]


def read_checkpoint(file: CheckpointFile, target: Target) -> Checkpoint:
    """Read a checkpoint, and check all that its format allows to check.

    Raises:
        NotReadableError: If it is damaged, half-written or hostile.
        FileNotFoundError: If it has been deleted.
        ValueError: If it is a sound commit of another model.
    """
    if file.number is not None:
        return read_commit_file(file, target)
    if file.orbax_step is not None:
        return read_orbax_step(file, target)
    return read_keras_file(file, target)


class Session:
    """What one `run` knows, from its settings and the results that are there.

    Args:
        model: The model that is evaluated.
        settings: What to evaluate, and when to end.
        best_path: Where the best model is kept.

    Attributes:
        records: All records, those of earlier processes too, oldest first.
        best: The best model.
        ended_by: Why `run` ended; "interrupted" until it ends by itself.
    """

    def __init__(self, model: Any, settings: Settings, best_path: Path) -> None:
        self._model = model
        self._settings = settings
        self._target = Target.of(model)
        self._file = ResultsFile(settings.output / "results.jsonl")
        self._tensorboard = (
            TensorBoardWriter(settings.output / "tensorboard")
            if settings.tensorboard
            else None
        )
        self.records = self._file.records
        self.best = BestModel(best_path, settings, self.records)
        numbers = [number_in(record["checkpoint"]) for record in self.records]
        self._watch = Watch(
            settings.directory,
            newest_only=settings.checkpoints == "newest",
            last_number=next((n for n in reversed(numbers) if n is not None), None),
            clock=settings.clock,
        )
        # The weights from which layers have derived what they compute with now.
        self._made_of: list[bytes] = []
        self._active = settings.clock()
        self.ended_by = "interrupted"

    def close(self) -> None:
        """Close the event files of TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    # Looking and waiting

    def run(self) -> Iterator[Record]:
        """Yield each record when it is on the disk, until there is a reason to end."""
        settings = self._settings
        wait = settings.poll_seconds
        while True:
            if (yield from self._evaluate_new()):
                wait = settings.poll_seconds
            reason = self._reason_to_end()
            if reason is not None:
                self.ended_by = reason
                return
            if settings.idle_seconds is not None:
                # Not beyond the end.
                left = self._active + settings.idle_seconds - settings.clock()
                settings.sleep(max(0.0, min(wait, left)))
            else:
                settings.sleep(wait)
            wait = min(2 * wait, settings.max_poll_seconds)

    def _evaluate_new(self) -> Generator[Record, None, bool]:
        """Evaluate all that is new; return whether anything was."""
        self._watch.begin_look()
        any_new = False
        while not self._is_enough():
            # Listed anew each time: meanwhile some may have come and gone.
            file = self._watch.next()
            if file is None:
                break
            checkpoint = self._read(file)
            if checkpoint is not None:
                wanted = self._wanted(checkpoint)
                if not self._is_recorded(checkpoint, wanted):
                    yield self._evaluate(checkpoint, wanted)
            if self._watch.is_settled(file):
                any_new = True
                self._active = self._settings.clock()
        return any_new

    def _is_enough(self) -> bool:
        most = self._settings.max_evaluations
        return most is not None and len(self.records) >= most

    def _reason_to_end(self) -> str | None:
        settings = self._settings
        if self._is_enough():
            return "max_evaluations"
        if settings.stop_with_run and self._watch.run_has_ended():
            return "finished"
        idle = settings.idle_seconds
        if idle is not None and settings.clock() - self._active >= idle:
            return "idle"
        return None

    # One checkpoint

    def _read(self, file: CheckpointFile) -> Checkpoint | None:
        """Read a file, if it can be read by now."""
        self._watch.warn_of_missed(file)
        try:
            checkpoint = read_checkpoint(file, self._target)
        except FileNotFoundError:
            self._watch.note_deleted(file)
        except NotReadableError as error:
            self._watch.note_unreadable(file, error)
        else:
            self._watch.note_read(file, finished=checkpoint.finished)
            return checkpoint
        return None

    def _wanted(self, checkpoint: Checkpoint) -> list[str]:
        weights = self._settings.weights
        if weights == "averaged" and not checkpoint.averages:
            raise ValueError(
                f"weights='averaged', but {checkpoint.name} holds no averages that "
                "this model could take. Train with fmkit.optimizers."
                "ExponentialMovingAverage (for ModelCheckpoint files, compile this "
                "model with it too), or give weights='raw'."
            )
        wanted = [] if weights == "averaged" else ["raw"]
        if weights != "raw" and checkpoint.averages:
            wanted += checkpoint.averages
        return wanted

    def _is_recorded(self, checkpoint: Checkpoint, wanted: list[str]) -> bool:
        key = (checkpoint.epoch, checkpoint.step, checkpoint.digest)
        return any(
            (record["epoch"], record["step"], record["digest"]) == key
            and all(
                set(self._settings.data) <= set(record["results"].get(weights, ()))
                for weights in wanted
            )
            for record in self.records
        )

    def _evaluate(self, checkpoint: Checkpoint, wanted: list[str]) -> Record:
        started = time.perf_counter()
        results, best = {}, None
        for weights in wanted:
            self._put_in(checkpoint, weights)
            by_data = {
                name: _results_on(data, self._model, self._settings.batch_size)
                for name, data in self._settings.data.items()
            }
            if self._settings.keep_best:
                best = self.best.offer(self._model, weights, by_data) or best
            results[weights] = by_data
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
        if self._tensorboard is not None:
            # By step; for files that don't have it by epoch, or in their order.
            places = (checkpoint.step, checkpoint.epoch, len(self.records) + 1)
            self._tensorboard.write(next(p for p in places if p is not None), results)
        self._file.append(record)
        return record

    def _put_in(self, checkpoint: Checkpoint, weights: str) -> None:
        """Put a checkpoint into the model; let layers derive from it what they need."""
        assign(checkpoint.raw)
        assign(checkpoint.averages.get(weights, []))
        found = fingerprint(self._model)
        if found != self._made_of:
            refresh(self._model)
            self._made_of = found


def _results_on(data: Any, model: Any, batch_size: int | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {"verbose": 0, "return_dict": True}
    if isinstance(data, tuple):
        names = ("x", "y", "sample_weight")
        arguments |= dict(zip(names, data, strict=False))
        if batch_size is not None:
            arguments["batch_size"] = batch_size
    else:
        arguments["x"] = data
    logs = model.evaluate(**arguments)
    # Scalars as floats; a metric by class as a list of them.
    return {
        name: np.asarray(keras.ops.convert_to_numpy(value), np.float64).tolist()
        for name, value in logs.items()
    }
