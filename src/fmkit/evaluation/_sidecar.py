"""`SidecarEvaluator`: evaluates the checkpoints of a training run while it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import keras

from fmkit import _keras_private as private
from fmkit._checks import check_int, check_number, check_one_of, check_path, or_none
from fmkit._files import InUseError, Lock
from fmkit.evaluation._results import make_folder
from fmkit.evaluation._session import Session
from fmkit.evaluation._settings import (
    Settings,
    check_data,
    check_model,
    check_output,
)

__all__ = ["SidecarEvaluator"]


class SidecarEvaluator:
    r"""Evaluate the checkpoints of a training run while another process writes them.

    `run` polls `directory` and evaluates what it has not evaluated yet: the commits of
    `callbacks.ExactResume`, the `.weights.h5` and `.keras` files of Keras's
    `ModelCheckpoint`, and the steps of its `OrbaxCheckpoint` (they need the package
    orbax-checkpoint). It survives a training run that starts later, dies or is
    resumed; files that are half-written, deleted or damaged (a warning names each); and
    its own death: a checkpoint that has its line in `results.jsonl` is not evaluated
    again. A checkpoint is identified by its epoch, its step and the bits of its
    weights, so a step that a resumed run repeats with different bits counts as new.

    It ends when a commit says that the run has ended, after `max_evaluations`, after
    `idle_seconds`, or on Ctrl-C. Only numbers are read from a checkpoint; nothing in it
    is executed. The training never waits for it, and its files are not locked.

    Results go to `output`:

    - `results.jsonl`: one line per checkpoint, flushed to the disk. Numbers that are
      not finite are written as "NaN", "Infinity", "-Infinity".
    - `best.keras`: the model with the best weights so far, replaced by one rename.
    - `tensorboard/`: the runs `raw` and `averaged`, if asked for.

    Only regular files and folders are written there: a link, a pipe or anything else in
    their place is an error that names it. Only `output` itself may be a link, if you
    give it. Checkpoints may be links.

    Averaged weights are those of `optimizers.ExponentialMovingAverage`, or of Keras's
    `use_ema`, as the checkpoint's optimizer state holds them. Statistics of
    `BatchNormalization` remain as they are in the checkpoint.

    Args:
        model: The model that the run trains: built, compiled with the loss and the
            metrics to evaluate. For commits its optimizer may differ from the run's;
            from `ModelCheckpoint` files averages are read only if it is the same. The
            values in the model are overwritten.
        data: What to evaluate on: `(x, y)`, `(x, y, sample_weight)`, `data.Batches`,
            a dataset, or a dict of these by name. Without a dict the name is `"test"`.
        directory: Where the training writes. It need not exist yet.
        output: Where the results go; `directory/evaluation` by default.
        checkpoints: `"every"` evaluates each checkpoint that still exists when its
            turn comes, and warns of commits that don't (give `ExactResume` a larger
            `keep`); `"newest"` always takes the newest.
        weights: `"raw"`, `"averaged"`, or `"both"`: averages too where there are any.
            Of several averages, the results have the first as `"averaged"`, and the
            others by their names.
        monitor: What the best checkpoint is best in: the name of a result, such as
            `"loss"` or `"accuracy"`, on the first data set; or
            `"name of the data/accuracy"`.
        mode: `"min"`, `"max"`, or `"auto"`: Keras's own rule for its metrics.
        keep_best: Whether to write `best.keras`.
        tensorboard: Whether to write for TensorBoard (needs the package tensorboard).
        batch_size: Rows per batch for data given as arrays; by default Keras's own.
        max_evaluations: End when this many checkpoints have results, including those
            of earlier calls.
        idle_seconds: End after this many seconds without a new checkpoint.
        stop_with_run: Whether to end with the run. `False` waits for a finished run
            to be continued.
        poll_seconds: Seconds before the second look; each further wait is twice as
            long, until a new checkpoint comes.
        max_poll_seconds: The longest wait in seconds.
        verbose: 0 is silent, 1 prints one line per checkpoint.
        clock: Returns the time in seconds; replaced in tests.
        sleep: Waits for a number of seconds; replaced in tests.

    Attributes:
        results: All records, including those of earlier processes, oldest first.
        best: What the record of the best checkpoint says of it, a dict of `monitor`,
            `value` and `weights`; `None` before there is one.
        best_path: The file of the best model.
        ended_by: Why the last `run` ended: `"finished"`, `"max_evaluations"`,
            `"idle"` or `"interrupted"`.

    Raises:
        ValueError: If an argument is outside its range, the model is not built and
            compiled, or a commit is of another model.
        OSError: If another live evaluator uses `output`, if something in it is not
            what it should be, or if results can't be written.

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
        folder = check_path("directory", directory)
        poll_seconds = check_number("poll_seconds", poll_seconds, above=0)
        self._model = check_model(model)
        self._settings = Settings(
            data=check_data(data),
            directory=folder,
            output=check_output(output, folder),
            output_is_given=output is not None,
            checkpoints=check_one_of("checkpoints", checkpoints, ["every", "newest"]),
            weights=check_one_of("weights", weights, ["both", "raw", "averaged"]),
            monitor=monitor,
            mode=check_one_of("mode", mode, ["auto", "min", "max"]),
            keep_best=bool(keep_best),
            tensorboard=bool(tensorboard),
            batch_size=or_none(check_int, "batch_size", batch_size),
            max_evaluations=or_none(check_int, "max_evaluations", max_evaluations),
            idle_seconds=or_none(
                check_number, "idle_seconds", idle_seconds, at_least=0
            ),
            stop_with_run=bool(stop_with_run),
            poll_seconds=poll_seconds,
            max_poll_seconds=check_number(
                "max_poll_seconds", max_poll_seconds, at_least=poll_seconds
            ),
            verbose=verbose,
            clock=clock,
            sleep=sleep,
        )
        self.results: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.best_path = self._settings.output / "best.keras"
        self.ended_by: str | None = None

    def run(self) -> list[dict[str, Any]]:
        """Evaluate until there is a reason to end; return all records.

        A record is a dict: `checkpoint` (the file's name), `epoch` (completed),
        `step` (optimizer steps since the beginning), `digest`, `results` (by weights,
        data set and metric), `best` (if it was the best so far), `seconds` (that the
        evaluation took) and `time` (seconds since 1970). Ctrl-C ends it like any other
        reason.
        """
        with (
            _hold(self._settings),
            closing(Session(self._model, self._settings, self.best_path)) as session,
        ):
            self.results, self.best = session.records, session.best.entry
            with suppress(KeyboardInterrupt):
                for record in session.run():
                    self.best = session.best.entry
                    self._say(_describe(record))
        self.ended_by = session.ended_by
        self._say(
            f"ended ({self.ended_by}); {len(self.results)} checkpoints in "
            f"{self._settings.output / 'results.jsonl'}"
        )
        return self.results

    def _say(self, message: str) -> None:
        if self._settings.verbose:
            private.print_msg(f"SidecarEvaluator: {message}.")


@contextmanager
def _hold(settings: Settings) -> Iterator[None]:
    """Make the folder of the results, and keep other evaluators out of it."""
    # A folder that the caller names may be a link. The default is inside a folder that
    # others may write to: a link there is not followed.
    output = settings.output
    make_folder(output.resolve() if settings.output_is_given else output)
    try:
        lock = Lock(output / "lock", "run")
        lock.acquire()
    except InUseError as error:
        raise OSError(
            f"{output} is in use by another live evaluator ({error}). Stop it, or give "
            "this one another `output`."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _describe(record: dict[str, Any]) -> str:
    """Return a record as one line to read."""
    place = [record["checkpoint"]]
    place += [f"{k} {record[k]}" for k in ("epoch", "step") if record[k] is not None]
    results = [
        f"{weights} {name}: "
        + ", ".join(f"{k} {v:.5g}" for k, v in logs.items() if isinstance(v, float))
        for weights, by_data in record["results"].items()
        for name, logs in by_data.items()
    ]
    if record["best"]:
        results.append(f"best {record['best']['monitor']} so far")
    return f"{', '.join(place)}; {'; '.join(results)}"
