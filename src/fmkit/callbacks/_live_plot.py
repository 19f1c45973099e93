"""Learning curves that are redrawn while a model trains."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from fmkit._checks import check_number, check_path, did_you_mean, or_none
from fmkit._files import open_regular, whole_file
from fmkit._job import current_job
from fmkit._requirements import ipython_shell, require
from fmkit.callbacks._restored import Restored
from fmkit.visualization import learning_curves

__all__ = ["LivePlot"]

COLUMNS = 3  # of axes, at most
GUESS = 0.2  # seconds for one axes, on the safe side
# A picture has some ten thousand bytes, one of many metrics some hundred thousand.
ENOUGH = 2**18


class LivePlot(keras.callbacks.Callback):
    """Redraws the learning curves while a model trains.

    In a notebook the picture appears below the cell and is replaced in place. Elsewhere
    it is a PNG, which is always whole: a viewer that watches the file never reads half
    of one, and what a full disk or a crash interrupts leaves the earlier picture. Each
    metric has axes of its own, with training and validation together; a value that is
    NaN is a gap.

    All drawings together, measured, take at most `share` of the training time. There is
    always one at the end of training; one as soon as the time of an epoch and their
    number promise room for it, mostly after the second epoch; and others in between, as
    often as the time since training began allows. A training too short for two (below
    half a minute or so, with the default) has the one at the end only.

    With `ExactResume` the curves of a resumed run have all epochs. Of several processes
    that train together the first one draws.

    Args:
        path: The PNG file, with its folder if that is missing. By default
            `curves.png` in the working directory, or no file in a notebook.
        metrics: Names of the metrics to draw, without `val_`. By default all that are
            in the logs of an epoch, those of other callbacks before this one too.
        share: Largest fraction of the training time that drawing may take.

    Attributes:
        epoch: Number of each epoch, the first being 0.
        history: The values of each name in the logs, one for each epoch; `None` if an
            epoch had none. `visualization.learning_curves` takes this callback as it
            takes Keras's `History`.

    Raises:
        TypeError: If `path` is not a path or `share` not a number.
        ValueError: If `share` is not above 0 and at most 1; at the end of the first
            epoch, if one of `metrics` is not in the logs.
        ModuleNotFoundError: As training begins, if matplotlib is not installed.
        OSError: As training begins, if the file can't be written. (If that fails
            later, there is a warning and the training continues.)

    Examples:
        >>> import keras, numpy as np, tempfile
        >>> from pathlib import Path
        >>> from fmkit.callbacks import LivePlot
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     live = LivePlot(Path(folder, "curves.png"))
        ...     history = model.fit(
        ...         np.ones((4, 1)), np.ones((4, 1)), epochs=3, verbose=0,
        ...         callbacks=[live])
        ...     live.path.read_bytes()[1:4]
        b'PNG'
        >>> live.history == history.history
        True
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        metrics: str | Sequence[str] | None = None,
        *,
        share: float = 0.02,
    ) -> None:
        super().__init__()
        self.path = or_none(check_path, "path", path)
        self.metrics = [metrics] if isinstance(metrics, str) else metrics
        self.share = check_number("share", share, above=0, at_most=1)
        self._restored = Restored()
        self._reset()

    def _reset(self) -> None:
        self.epoch: list[int] = []
        self.history: dict[str, list[float | None]] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that a picture can be made; forget the last run, unless restored."""
        if not self._restored.take(self):
            self._reset()
        self._budget = Budget(self.share)
        self._drawn = self._warned = False
        self._handle: Any = None
        job = current_job()
        self._draws = job.index == 0
        job.together(self._prepare if self._draws else lambda: None)

    def _prepare(self) -> None:
        require("matplotlib.figure", "callbacks.LivePlot")
        self._file = self.path
        if self._file is None and notebook_display() is None:
            self._file = check_path("path", "curves.png")
        if self._file is not None:
            check_writable(self._file)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the epoch's values, and draw if there is time for it."""
        self._append(epoch, numbers_of(logs or {}))
        names = self._names()
        self._drawn = False
        epochs = (self.params or {}).get("epochs") or 0
        enough = self._budget.is_enough(GUESS * len(names), epochs - epoch - 1)
        if self._draws and names and enough:
            self._draw(names)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Draw the whole run."""
        names = self._names()
        if self._draws and names and not self._drawn:
            self._draw(names)

    def _append(self, epoch: int, values: dict[str, float]) -> None:
        # A run that begins again at an earlier epoch replaces what came after it.
        count = sum(earlier < epoch for earlier in self.epoch)
        self.epoch = [*self.epoch[:count], epoch]
        names = dict.fromkeys([*self.history, *values])
        earlier = {n: self.history.get(n, [None] * count)[:count] for n in names}
        self.history = {n: [*earlier[n], values.get(n)] for n in names}

    def _names(self) -> list[str]:
        """Return the metric of each axes."""
        drawn = [n for n in self.history if any(v is not None for v in self.history[n])]
        if self.metrics is None:
            # What has a name of its own draws its validation too.
            return [n for n in drawn if n.removeprefix("val_") not in {*drawn} - {n}]
        for name in self.metrics:
            # Validation may follow in a later epoch; training is in each of them.
            if self.epoch and name not in drawn and not name.startswith("val_"):
                raise ValueError(
                    f"`metrics` must be in the logs of an epoch, got {name!r}; they "
                    f"have {sorted(drawn)}.{did_you_mean(name, drawn)}"
                )
        return [name for name in self.metrics if name in drawn]

    def _draw(self, names: list[str]) -> None:
        with self._budget.spending():
            self._show(picture(self, names))
        self._drawn = True

    def _show(self, png: bytes) -> None:
        display = notebook_display()
        if display is not None:
            image = display.Image(data=png, format="png")
            if self._handle is None:
                self._handle = display.display(image, display_id=True)
            else:
                self._handle.update(image)
        if self._file is None:
            return
        try:
            with whole_file(self._file) as file:
                file.write(png)
        except OSError as error:
            # A training is worth more than its picture.
            if not self._warned:
                warnings.warn(
                    f"LivePlot can't write {self._file} any more: {error}. The "
                    "training continues, and it is tried again at each drawing.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self._warned = True

    def get_state(self) -> dict[str, Any]:
        """Return the curves until now, for an exact resume."""
        history = {name: list(values) for name, values in self.history.items()}
        return {"epoch": list(self.epoch), "history": history}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue the curves that `get_state` returned."""
        self._restored.note()
        self.epoch = list(state["epoch"])
        self.history = {name: list(each) for name, each in state["history"].items()}


class Budget:
    """Seconds for drawing: a share of those since it was made.

    Args:
        share: The largest fraction of the time.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, share: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.share, self.clock = share, clock
        self.began = clock()
        self.spent = self.latest = 0.0
        self.epoch_end = 0.0  # of the latest
        self.shortest = math.inf

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time of what is within."""
        start = self.clock()
        yield
        self.latest = self.clock() - start
        self.spent += self.latest

    def is_enough(self, guess: float, left: int) -> bool:
        """Whether, as an epoch ends, there is time to draw now and at the very end.

        Args:
            guess: Seconds of a drawing, until one has been measured.
            left: Epochs that are left.
        """
        now = self.clock()
        total = now - self.began
        if self.epoch_end:  # the first epoch compiles: it is no measure of the others
            self.shortest = min(self.shortest, now - self.epoch_end)
            if not self.spent:  # the first drawing may count on the time to come
                total += left * self.shortest
        self.epoch_end = now
        return self.spent + 2 * (self.latest or guess) <= self.share * total


def numbers_of(logs: dict[str, Any]) -> dict[str, float]:
    """Return the entries that are one number."""
    found = {}
    for name, value in logs.items():
        with contextlib.suppress(TypeError, ValueError):
            found[name] = float(value)
    return found


def notebook_display() -> Any:
    """Return `IPython.display` if a kernel runs this, whose page shows pictures."""
    kernel = getattr(ipython_shell(), "kernel", None)
    if kernel is None:  # IPython in a terminal has none
        return None
    return importlib.import_module("IPython.display")


def check_writable(file: Path) -> None:
    """Refuse a file that can't be written or replaced, before hours of training."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.close(open_regular(file, os.O_RDONLY))
        with tempfile.TemporaryFile(dir=file.parent) as probe:
            probe.write(bytes(ENOUGH))
            probe.flush()
    except OSError as error:
        raise OSError(
            f"LivePlot can't write {file}: {error}. Give a path in a folder that can "
            "be written and has room, as LivePlot('outputs/curves.png')."
        ) from error


def picture(history: Any, names: Sequence[str]) -> bytes:
    """Return a PNG with one axes for each metric.

    The figure is no figure of pyplot: nothing keeps it, and no backend is asked.
    """
    rows = math.ceil(len(names) / COLUMNS)
    columns = math.ceil(len(names) / rows)
    width, height = 5.0 * columns, 3.6 * rows
    figure = require("matplotlib.figure", "callbacks.LivePlot").Figure((width, height))
    for place, name in enumerate(names, start=1):
        learning_curves(history, name, ax=figure.add_subplot(rows, columns, place))
    # Margins in inches. A layout that is computed takes as long as all the drawing.
    figure.subplots_adjust(
        left=0.8 / width,
        right=1 - 0.1 / width,
        bottom=0.55 / height,
        top=1 - 0.15 / height,
        wspace=0.9 / 4.1,
        hspace=0.7 / 2.9,
    )
    # Not `savefig`, which draws everything once before it draws.
    agg = require("matplotlib.backends.backend_agg", "callbacks.LivePlot")
    file = io.BytesIO()
    agg.FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
