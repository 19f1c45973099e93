"""LivePlot: curves that are redrawn while a model trains, in a share of its time."""
# ruff: noqa: E402 - imports of matplotlib follow the question if it is there

import io
import sys
import types
from pathlib import Path

import keras
import needs
import numpy as np
import pytest
from resuming import StopAt, StopError

needs.module("matplotlib")

import matplotlib as mpl
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fmkit.callbacks import ExactResume, LivePlot, _live_plot
from fmkit.data import Batches

pytestmark = pytest.mark.backend("torch")  # it stands outside of the steps

X = np.linspace(-1, 1, 24, dtype="float32").reshape(12, 2)
Y = (X.sum(axis=1, keepdims=True) > 0).astype("float32")


def fit(*callbacks, epochs=3, **given):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    batches = Batches(X, Y, batch_size=4, map=None)
    return model.fit(
        batches, epochs=epochs, verbose=0, callbacks=list(callbacks), **given
    )


@pytest.fixture
def pictures(monkeypatch):
    """What is drawn, as the names of the axes and copies of their values."""
    drawn = []
    make = _live_plot.picture

    def look(history, names):
        values = {name: list(history.history[name]) for name in history.history}
        drawn.append((list(history.epoch), names, values))
        return make(history, names)

    monkeypatch.setattr(_live_plot, "picture", look)
    return drawn


@pytest.fixture
def every_epoch(monkeypatch):
    """Draw each epoch, whatever it takes."""
    monkeypatch.setattr(_live_plot.Budget, "is_enough", lambda self, guess, left: True)


def at_epoch(number, work):
    """Return a callback that does something when an epoch begins."""
    return keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: work() if epoch == number else None
    )


# --- what is drawn ------------------------------------------------------------------


def test_draws_the_values_of_the_history_and_leaves_one_png(tmp_path, pictures):
    live = LivePlot(tmp_path / "new" / "curves.png")
    history = fit(live, validation_data=(X, Y))
    assert live.history == history.history
    assert live.epoch == history.epoch == [0, 1, 2]
    epochs, names, values = pictures[-1]
    assert (epochs, values) == ([0, 1, 2], history.history)
    assert names == ["loss", "mae"]  # each with its validation
    assert [path.name for path in live.path.parent.iterdir()] == ["curves.png"]
    pixels = image.imread(live.path)
    assert pixels.shape == (360, 1000, 4)
    assert pixels[..., :3].std() > 0.05  # not an empty page


def axes_of(history, names, monkeypatch):
    """Return the lines of each axes: name, then epochs and values by label."""
    figures = []
    save = FigureCanvasAgg.print_png
    monkeypatch.setattr(
        FigureCanvasAgg,
        "print_png",
        lambda self, file: (figures.append(self.figure), save(self, file))[1],
    )
    live = LivePlot()
    live.set_state(history)
    assert _live_plot.picture(live, names).startswith(b"\x89PNG")
    return {
        ax.get_ylabel(): {
            line.get_label(): line.get_xydata().tolist() for line in ax.lines
        }
        for ax in figures[0].axes
    }


def test_training_and_validation_share_their_axes(monkeypatch):
    state = {
        "epoch": [4, 5],
        "history": {"loss": [1.0, 0.5], "rate": [2.0, 2.0], "val_loss": [None, 0.75]},
    }
    assert axes_of(state, ["loss", "rate"], monkeypatch) == {
        "loss": {"training": [[5, 1], [6, 0.5]], "validation": [[6, 0.75]]},
        "rate": {"training": [[5, 2], [6, 2]]},
    }


def test_nan_is_a_gap_even_if_there_is_nothing_else(monkeypatch):
    nan = float("nan")
    state = {
        "epoch": [0, 1, 2],
        "history": {"loss": [1.0, nan, 2.0], "bad": [nan] * 3},
    }
    axes = axes_of(state, ["loss", "bad"], monkeypatch)
    np.testing.assert_equal(axes["loss"]["training"], [[1, 1], [2, nan], [3, 2]])
    np.testing.assert_equal(axes["bad"]["training"], [[1, nan], [2, nan], [3, nan]])


@pytest.mark.parametrize(
    ("names", "metrics", "expected"),
    [
        (["loss", "val_loss", "val_raw_loss"], None, ["loss", "val_raw_loss"]),
        (["loss", "mae", "val_mae"], ["mae"], ["mae"]),
        (["loss", "mae"], "mae", ["mae"]),
        (["loss"], ["loss", "val_raw_loss"], ["loss"]),  # validation may follow
    ],
)
def test_each_metric_has_one_axes(names, metrics, expected):
    live = LivePlot(metrics=metrics)
    live.set_state({"epoch": [0], "history": {name: [1.0] for name in names}})
    assert live._names() == expected


def test_validation_in_every_second_epoch_is_drawn_where_it_was(tmp_path):
    live = LivePlot(tmp_path / "curves.png")
    history = fit(live, epochs=4, validation_data=(X, Y), validation_freq=2)
    first, second = history.history["val_loss"]
    assert live.history["val_loss"] == [None, first, None, second]


def test_what_is_not_one_number_is_left_out(tmp_path):
    def add(epoch, logs):
        logs |= {"text": "a", "many": np.ones(3), "none": None, "one": np.float32(2)}

    live = LivePlot(tmp_path / "curves.png")
    fit(keras.callbacks.LambdaCallback(on_epoch_end=add), live, epochs=1)
    assert list(live.history) == ["loss", "mae", "one"]
    assert live.history["one"] == [2.0]


def test_a_metric_that_is_not_in_the_logs_is_refused_after_one_epoch(tmp_path):
    live = LivePlot(tmp_path / "curves.png", ["loss", "mea"])
    with pytest.raises(ValueError, match=r"got 'mea'; .*Did you mean 'mae'\?"):
        fit(live)
    assert live.epoch == [0]


def test_no_figure_of_pyplots_is_left_and_the_training_is_the_same(tmp_path):
    import matplotlib.pyplot as plt

    before, backend = plt.get_fignums(), mpl.get_backend()
    drawn = fit(LivePlot(tmp_path / "curves.png"), epochs=2).history
    assert plt.get_fignums() == before
    assert mpl.get_backend() == backend
    assert fit(epochs=2).history == drawn


# --- when it is drawn ---------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def share_of(epochs, seconds, cost, share=0.02, compiling=0.0):
    """Train in thought; return the share of the drawings and when they are."""
    clock, drawn = Clock(), []
    budget = _live_plot.Budget(share, clock)

    def draw(epoch):
        with budget.spending():
            clock.now += cost(len(drawn))
        drawn.append(epoch)

    clock.now += compiling
    for epoch in range(epochs):
        clock.now += seconds
        if budget.is_enough(0.2, epochs - epoch - 1):
            draw(epoch)
    draw(epochs)
    return budget.spent / clock.now, drawn


@pytest.mark.parametrize("seconds", [0.21, 1.0, 60.0])
@pytest.mark.parametrize("compiling", [0.0, 9.0])
@pytest.mark.parametrize("cost", [lambda n: 0.2, lambda n: 0.1 + 1e-3 * n])
def test_all_drawings_together_keep_within_the_share(seconds, cost, compiling):
    share, drawn = share_of(100, seconds, cost, compiling=compiling)
    assert drawn[0] in (0, 1)
    assert drawn[-1] == 100
    assert share <= 0.02
    if seconds > 0.9:
        assert len(drawn) > 2


def test_a_slow_machine_is_noticed_at_the_first_drawing():
    # Guessed at 0.2 seconds.
    share, drawn = share_of(1000, 1.0, lambda n: 3.0)
    assert drawn[0] == 1
    assert len(drawn) > 3
    assert share <= 0.02


def test_drawing_each_epoch_would_exceed_the_share():
    # Negative control.
    share, drawn = share_of(100, 0.3, lambda n: 0.1, share=1.0)
    assert len(drawn) > 90
    assert share > 0.2


def test_a_training_too_short_for_two_drawings_has_one_at_its_end():
    assert share_of(100, 0.15, lambda n: 0.2)[1] == [100]
    # Compiling in the first epoch is not taken for the time of all others.
    assert share_of(100, 0.01, lambda n: 0.2, compiling=9.0)[1] == [100]


def test_a_short_fit_is_drawn_at_its_end(tmp_path, pictures):
    fit(LivePlot(tmp_path / "curves.png", share=1e-9), epochs=3)
    assert [epochs for epochs, _, _ in pictures] == [[0, 1, 2]]


def test_fit_draws_early_if_the_epochs_to_come_allow_it(
    tmp_path, pictures, monkeypatch
):
    monkeypatch.setattr(_live_plot, "GUESS", 1e-9)
    fit(LivePlot(tmp_path / "curves.png"), epochs=3)
    assert [epochs for epochs, _, _ in pictures] == [[0], [0, 1, 2]]


def test_the_last_epoch_is_drawn_once(tmp_path, pictures, every_epoch):
    fit(LivePlot(tmp_path / "curves.png"), epochs=1)
    assert [epochs for epochs, _, _ in pictures] == [[0]]


# --- where it goes on ---------------------------------------------------------------


def test_a_resumed_run_has_the_curves_of_all_epochs(tmp_path, pictures):
    def run(*callbacks):
        live = LivePlot(tmp_path / "curves.png")
        resume = ExactResume(tmp_path / "run", every=1, verbose=0)
        fit(live, resume, *callbacks, epochs=4)
        return live

    with pytest.raises(StopError):
        run(StopAt(2, 1))
    live = run()
    assert live.epoch == [0, 1, 2, 3]
    whole = fit(epochs=4).history
    assert live.history == whole
    assert pictures[-1][2] == whole


def test_an_epoch_that_is_trained_again_replaces_what_came_after(tmp_path):
    live = LivePlot(tmp_path / "curves.png")
    live.set_state({"epoch": [0, 1, 2], "history": {"loss": [3.0, 2.0, 1.0]}})
    history = fit(live, initial_epoch=1, epochs=2).history
    assert live.epoch == [0, 1]
    assert live.history["loss"] == [3.0, *history["loss"]]
    assert live.history["mae"] == [None, *history["mae"]]


# --- files --------------------------------------------------------------------------


@pytest.fixture
def small_files():
    """A switch: from then on this process writes no file of more than 100 bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (100, before[1])
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(live):
    """Return the message with which `fit` is refused before its first epoch."""
    begun = []
    with pytest.raises(OSError, match="LivePlot can't write") as caught:
        fit(live, at_epoch(0, lambda: begun.append(True)))
    assert not begun
    return str(caught.value)


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    assert "in a folder that can be written" in refused(LivePlot(tmp_path / "file/a"))


def test_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "curves.png").mkdir()
    assert "a folder was found there" in refused(LivePlot(tmp_path / "curves.png"))


def test_a_full_disk_is_told_before_training(tmp_path, small_files):
    small_files()
    message = refused(LivePlot(tmp_path / "curves.png"))
    assert "has room" in message
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_leaves_the_earlier_picture_whole(
    tmp_path, small_files, every_epoch, recwarn
):
    live = LivePlot(tmp_path / "curves.png")
    seen = []

    def fill():
        seen.append(live.path.read_bytes())
        small_files()

    assert len(fit(live, at_epoch(1, fill), epochs=3).epoch) == 3
    (told,) = (each for each in recwarn if each.category is RuntimeWarning)  # once
    assert "can't write" in str(told.message)
    assert "The training continues" in str(told.message)
    assert live.path.read_bytes() == seen[0]
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    image.imread(live.path)


class WithoutMatplotlib:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_matplotlib_it_is_said_before_training(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutMatplotlib, *sys.meta_path])
    live = LivePlot(tmp_path / "curves.png")
    with pytest.raises(ModuleNotFoundError, match="Type: pip install matplotlib"):
        fit(live)
    assert live.epoch == []


def test_the_default_file_is_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    live = LivePlot()
    fit(live, epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"path": 3}, TypeError, "`path` must be a path"),
        ({"share": 0}, ValueError, "above 0"),
        ({"share": 2}, ValueError, "at most 1"),
    ],
)
def test_other_arguments_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        LivePlot(**given)


# --- notebooks ----------------------------------------------------------------------


class Page:
    """As much of IPython as there is in a notebook, and what is on its page."""

    def __init__(self, shell):
        self.shown, self.updates = [], 0
        self.module = types.ModuleType("IPython")
        self.module.get_ipython = lambda: shell
        self.display = types.ModuleType("IPython.display")
        self.display.Image = lambda data, format: (format, data)
        self.display.display = self.show

    def show(self, picture, display_id):
        assert display_id is True
        self.shown.append(picture)
        return types.SimpleNamespace(update=self.replace)

    def replace(self, picture):
        self.shown[-1] = picture
        self.updates += 1


@pytest.fixture
def page(request, monkeypatch, tmp_path):
    page = Page(types.SimpleNamespace(kernel=getattr(request, "param", "a kernel")))
    monkeypatch.setitem(sys.modules, "IPython", page.module)
    monkeypatch.setitem(sys.modules, "IPython.display", page.display)
    monkeypatch.chdir(tmp_path)
    return page


def size_of(png):
    return image.imread(io.BytesIO(png)).shape[:2]


def test_in_a_notebook_one_picture_is_replaced_in_place(page, pictures, every_epoch):
    live = LivePlot()
    fit(live, epochs=3)
    assert len(page.shown) == 1
    assert page.updates == len(pictures) - 1 == 2
    assert page.shown[0][0] == "png"
    assert size_of(page.shown[0][1]) == (360, 1000)
    assert list(Path.cwd().iterdir()) == []
    fit(live, epochs=1)  # the next cell has its own
    assert len(page.shown) == 2


def test_in_a_notebook_a_path_is_written_too(page):
    live = LivePlot("curves.png")
    fit(live, epochs=1)
    assert live.path.read_bytes() == page.shown[0][1]


@pytest.mark.parametrize("page", [None], indirect=True)
def test_ipython_in_a_terminal_gets_a_file(page):
    # Negative control: there is a shell, but no page.
    fit(LivePlot(), epochs=1)
    assert page.shown == []
    assert Path("curves.png").exists()
