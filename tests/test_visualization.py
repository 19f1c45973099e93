"""Pictures: what is drawn, in which direction, under which name; and how it looks.

`python tests/test_visualization.py` draws the baselines anew. Look at each of them
before committing it.
"""
# ruff: noqa: E402 - imports of matplotlib follow the question if it is there

import ast
import csv
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import needs
import numpy as np
import pytest

needs.module("matplotlib")

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb

from fmkit import metrics
from fmkit import visualization as pictures
from fmkit.visualization._sweep import _turn_if_crowded

pytestmark = pytest.mark.backend("torch")  # what is drawn depends on no backend

BASELINE = Path(__file__).parent / "baseline"


@pytest.fixture(autouse=True)
def closed_figures():
    plt.close("all")
    with mpl.rc_context():
        mpl.rcdefaults()
        yield
    plt.close("all")


# --- data for every picture -------------------------------------------------------

EPOCHS = np.arange(12)
HISTORY = {
    "loss": (0.3 + 0.7 * np.exp(-EPOCHS / 3)).tolist(),
    "val_loss": (0.5 + 0.4 * np.exp(-EPOCHS / 2) + 0.02 * EPOCHS).tolist(),
}
# The letter F has no symmetry, so that a turned or mirrored image shows.
LETTER = np.zeros((7, 7), "uint8")
LETTER[1:6, 1] = LETTER[1, 1:6] = LETTER[3, 1:4] = 255
LETTERS = np.stack([LETTER, LETTER // 2, LETTER // 3 * 2, LETTER, LETTER // 4, LETTER])
TRUE, GUESS = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 0, 0, 2, 2])
NAMES = ["bag", "coat", "shirt"]
MANY_TRUE = np.repeat([0, 1, 2], [30, 20, 10])
MANY_GUESS = np.concatenate([[0] * 21, [1] * 9, [1] * 20, [0] * 8, [2] * 2]).ravel()
POINTS = np.random.RandomState(2).randn(300, 2)
INSIDE = ((POINTS**2).sum(axis=1) < 2).astype(int)
STEPS = np.arange(1, 16) * 100
RAW = 0.85 - 0.3 * np.exp(-STEPS / 400) + 0.02 * np.cos(STEPS)
AVERAGED = 0.88 - 0.3 * np.exp(-STEPS / 500)
RATES = 10.0 ** np.linspace(-4, 0.5, 60)
SMOOTHED = 2.3 - 1.5 / (1 + (0.01 / RATES) ** 1.5) + 3.0 * RATES**2 / 10
LOSSES = SMOOTHED + 0.15 * np.cos(7 * np.arange(60))
SCORES = np.random.RandomState(0).randn(300, 3) * 4
CLASSES = (SCORES / 3 + np.random.RandomState(1).gumbel(size=SCORES.shape)).argmax(1)
RUNS = [
    {"batch_size": size, "optimizer": kind, "accuracy": base - 0.02 * k + 0.01 * seed}
    for k, size in enumerate([8, 64, 512])
    for kind, base in [("adam", 0.9), ("sgd", 0.8)]
    for seed in (-1, 0, 1)
]


def circle(points, radius2=2.0, shift=0.5):
    """A score of 0.5 on a circle that is not in the middle."""
    return 0.5 + 0.2 * (radius2 - (points[:, 0] - shift) ** 2 - points[:, 1] ** 2)


def rate(step, decay=0.7):
    return 0.1 * decay ** (step // 100)


def reliability(ax, before=SCORES, after=SCORES / 3):
    """Draw a model before and after its calibration."""
    for name, z in (("before", before), ("after", after)):
        ax = pictures.reliability_diagram(CLASSES, z, bins=8, label=name, ax=ax)
    return ax


# Each picture, and the same with one mistake that a reader would be misled by.
PICTURES = {
    "learning_curves": (
        lambda ax: pictures.learning_curves(HISTORY, best="min", ax=ax),
        lambda ax: pictures.learning_curves(
            {"loss": HISTORY["val_loss"], "val_loss": HISTORY["loss"]},
            best="min",
            ax=ax,
        ),
    ),
    "image_grid": (
        lambda ax: pictures.image_grid(LETTERS, TRUE, GUESS, class_names=NAMES, ax=ax),
        lambda ax: pictures.image_grid(LETTERS, TRUE, TRUE, class_names=NAMES, ax=ax),
        lambda ax: pictures.image_grid(
            LETTERS[:, :, ::-1], TRUE, GUESS, class_names=NAMES, ax=ax
        ),
        lambda ax: pictures.image_grid(
            LETTERS[:, ::-1], TRUE, GUESS, class_names=NAMES, ax=ax
        ),
    ),
    "confusion_matrix": (
        lambda ax: pictures.confusion_matrix(
            MANY_TRUE, MANY_GUESS, class_names=NAMES, ax=ax
        ),
        lambda ax: pictures.confusion_matrix(
            MANY_GUESS, MANY_TRUE, class_names=NAMES, ax=ax
        ),
    ),
    "decision_boundary": (
        lambda ax: pictures.decision_boundary(circle, POINTS, INSIDE, ax=ax),
        lambda ax: pictures.decision_boundary(
            lambda p: circle(p[:, ::-1]), POINTS, INSIDE, ax=ax
        ),
        lambda ax: pictures.decision_boundary(circle, POINTS, 1 - INSIDE, ax=ax),
        lambda ax: pictures.decision_boundary(
            lambda p: 1 - circle(p), POINTS, INSIDE, ax=ax
        ),
    ),
    "learning_rate_curve": (
        lambda ax: pictures.learning_rate_curve(
            rate, 1000, steps_per_epoch=100, label="staircase", ax=ax
        ),
        lambda ax: pictures.learning_rate_curve(
            lambda step: 0.1 * 0.7 ** (step / 100),
            1000,
            steps_per_epoch=100,
            label="staircase",
            ax=ax,
        ),
    ),
    "loss_by_learning_rate": (
        lambda ax: pictures.loss_by_learning_rate(
            RATES, LOSSES, smoothed=SMOOTHED, suggestion=0.01, ax=ax
        ),
        lambda ax: pictures.loss_by_learning_rate(
            RATES**0.5, LOSSES, smoothed=SMOOTHED, suggestion=0.01, ax=ax
        ),
        lambda ax: pictures.loss_by_learning_rate(
            RATES, SMOOTHED, smoothed=SMOOTHED[::-1], suggestion=0.01, ax=ax
        ),
    ),
    "raw_against_averaged": (
        lambda ax: pictures.raw_against_averaged(RAW, AVERAGED, steps=STEPS, ax=ax),
        lambda ax: pictures.raw_against_averaged(AVERAGED, RAW, steps=STEPS, ax=ax),
    ),
    "reliability_diagram": (
        reliability,
        lambda ax: reliability(ax, SCORES / 3, SCORES),
        lambda ax: reliability(ax, SCORES, SCORES),
    ),
    "sweep": (
        lambda ax: pictures.sweep(
            RUNS, "batch_size", "accuracy", group="optimizer", log=True, ax=ax
        ),
        lambda ax: pictures.sweep(
            RUNS[::-1], "batch_size", "accuracy", group="optimizer", log=True, ax=ax
        ),
        lambda ax: pictures.sweep(
            RUNS, "batch_size", "accuracy", group="optimizer", ax=ax
        ),
    ),
}


def drawn(draw):
    """Draw into axes at a fixed place of a small figure; pixels in [0, 1]."""
    figure = plt.figure(figsize=(4.2, 3.2), dpi=60)
    draw(figure.add_axes((0.16, 0.17, 0.58, 0.74)))
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255.0
    plt.close(figure)
    return pixels


def distance(a, b, block=10):
    """Largest difference of the means of blocks, where a shift of two pixels is free.

    Another version of matplotlib or FreeType moves a letter's edge by a fraction of
    a pixel, and a name by a pixel or two. A mean over 10 by 10 pixels, at the best of
    25 shifts, hardly sees that; it does see a curve that is somewhere else, of
    another colour or not there.
    """
    assert a.shape == b.shape
    height, width = (side // block * block for side in a.shape[:2])
    best = np.inf
    for shift in itertools.product(range(-2, 3), repeat=2):
        difference = (a - np.roll(b, shift, axis=(0, 1)))[:height, :width]
        blocks = difference.reshape(height // block, block, width // block, block, 3)
        best = np.minimum(best, np.abs(blocks.mean(axis=(1, 3))).max(axis=-1))
    return float(best.max())


TOLERANCE = 0.1


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_looks_as_it_did_when_someone_looked_at_it(name):
    baseline = plt.imread(BASELINE / f"{name}.png")[..., :3]
    right, *misleading = PICTURES[name]
    assert distance(drawn(right), baseline) < TOLERANCE
    for wrong in misleading:
        assert distance(drawn(wrong), baseline) > 1.5 * TOLERANCE


@pytest.mark.parametrize("name", PICTURES)
def test_the_comparison_bears_letters_drawn_in_another_way(name):
    baseline = plt.imread(BASELINE / f"{name}.png")[..., :3]
    for other in (
        {"text.hinting": "none", "text.antialiased": False},
        {"text.hinting": "force_autohint"},
        {"font.family": "DejaVu Serif"},
    ):
        with mpl.rc_context(other):
            assert distance(drawn(PICTURES[name][0]), baseline) < TOLERANCE


# --- promises of every picture ------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_draws_into_the_axes_it_is_given(name):
    figure, (left, right) = plt.subplots(1, 2)
    before = [len(axes.get_children()) for axes in (left, right)]
    assert PICTURES[name][0](right) is right
    assert len(right.get_children()) > before[1]
    assert len(left.get_children()) == before[0]
    assert figure.axes == [left, right]
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_makes_one_figure_and_neither_shows_nor_saves_it(name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a plot must not do that")

    for owner in (plt, mpl.figure.Figure):
        monkeypatch.setattr(owner, "show", refuse)
        monkeypatch.setattr(owner, "savefig", refuse)
    ax = PICTURES[name][0](None)
    assert plt.get_fignums() == [ax.figure.number]
    assert ax.figure.axes == [ax]


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_that_is_drawn_leaves_the_figure(name):
    ax = PICTURES[name][0](None)
    ax.figure.canvas.draw()
    drawn_box, figure = ax.get_tightbbox(), ax.figure.bbox
    assert figure.x0 - 1 <= drawn_box.x0 < drawn_box.x1 <= figure.x1 + 1
    assert figure.y0 - 1 <= drawn_box.y0 < drawn_box.y1 <= figure.y1 + 1


@pytest.mark.long
def test_pictures_need_no_display():
    code = (
        "import sys, fmkit.visualization as v; "
        "v.learning_curves({'loss': [2, 1]}).figure.savefig(sys.stdout.buffer)"
    )
    hidden = {"DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    assert run.stdout.startswith(b"\x89PNG")


def test_matplotlib_is_imported_inside_functions_only():
    for path in Path(pictures.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "matplotlib" not in ast.unparse(node), path.name


# --- colours ------------------------------------------------------------------------


def linear(colour):
    value = np.asarray(to_rgb(colour))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """Ratio of luminances, from 1 to 21, as WCAG 2 defines it."""
    bright, dark = sorted(
        (float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b)), reverse=True
    )
    return (bright + 0.05) / (dark + 0.05)


# Vienot, Brettel and Mollon, 1999: what is left of linear RGB without red or
# without green receptors.
RED_BLIND = [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]
GREEN_BLIND = [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]


def seen_apart(a, b, matrix):
    return float(np.abs(np.asarray(matrix) @ (linear(a) - linear(b))).max())


@pytest.mark.parametrize("matrix", [RED_BLIND, GREEN_BLIND])
def test_the_two_colours_of_a_pair_are_seen_apart_by_colour_blind_readers(matrix):
    curves = pictures.learning_curves(HISTORY).lines
    assert seen_apart(*[line.get_color() for line in curves], matrix) > 0.3
    # Negative control: a usual red and green are not.
    assert seen_apart("#D62728", "#7F6000", matrix) < 0.15


def looks(ax):
    return [(line.get_linestyle(), line.get_marker()) for line in ax.lines]


def test_series_are_told_apart_without_colour():
    curves = pictures.learning_curves(HISTORY)
    pair = pictures.raw_against_averaged(RAW, AVERAGED)
    rates = pictures.learning_rate_curve(rate, 300, label="a")
    pictures.learning_rate_curve(lambda step: 0.05, 300, label="b", ax=rates)
    for ax in (curves, pair, rates, reliability(None)):
        (dash, marker), (other_dash, other_marker) = looks(ax)[-2:]
        assert dash != other_dash
        assert marker != other_marker or marker == "None"
    groups = pictures.sweep(RUNS, "batch_size", "accuracy", group="optimizer")
    first, second = (bars.lines[0] for bars in groups.containers)
    assert first.get_marker() != second.get_marker()
    assert first.get_linestyle() != second.get_linestyle()


# --- learning curves ----------------------------------------------------------------


def test_learning_curves_draw_training_and_validation_from_epoch_one():
    ax = pictures.learning_curves(HISTORY, threshold=0.4, title="Overfitting")
    training, validation, goal = ax.lines
    np.testing.assert_array_equal(training.get_xdata(), EPOCHS + 1)
    np.testing.assert_array_equal(training.get_ydata(), HISTORY["loss"])
    np.testing.assert_array_equal(validation.get_ydata(), HISTORY["val_loss"])
    assert list(goal.get_ydata()) == [0.4, 0.4]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["training", "validation", "goal 0.4"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    assert ax.get_title() == "Overfitting"
    assert all(tick == round(tick) for tick in ax.get_xticks())


def test_learning_curves_read_what_fit_returns_with_its_first_epoch():
    history = keras.callbacks.History()
    history.on_train_begin()
    history.set_model(keras.Sequential())
    for epoch in (4, 5):
        history.on_epoch_end(epoch, {"mean_squared_error": 1.0 / epoch})
    ax = pictures.learning_curves(history, "mean_squared_error")
    assert ax.lines[0].get_xdata().tolist() == [5, 6]
    assert ax.lines[0].get_ydata().tolist() == [0.25, 0.2]
    assert ax.get_ylabel() == "mean squared error"
    assert len(ax.lines) == 1


def keras_log(path, rows):
    """Let Keras's own logger write `rows`."""
    log = keras.callbacks.CSVLogger(str(path), append=path.exists())
    log.set_model(keras.Sequential())
    log.on_train_begin()
    for epoch, values in rows:
        log.on_epoch_end(epoch, values)
    log.on_train_end()


def test_learning_curves_leave_out_epochs_without_a_value():
    history = {"loss": [3, 2, 1], "val_loss": [None, 2.5, None], "bad": [None] * 3}
    training, validation = pictures.learning_curves(history).lines
    assert training.get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert validation.get_xydata().tolist() == [[2, 2.5]]
    with pytest.raises(ValueError, match="must be in the history, got 'bad'"):
        pictures.learning_curves(history, "bad")


def test_learning_curves_of_nothing_but_nan_are_empty():
    ax = pictures.learning_curves({"loss": [np.nan, np.nan]})
    assert np.isnan(ax.lines[0].get_ydata()).all()
    ax.figure.canvas.draw()


def test_learning_curves_pass_over_series_of_several_numbers(tmp_path):
    scores = {"f1": [[0.1, 0.2], [0.3, 0.4]], "names": ["a", "b"]}
    history = {"loss": [1.0, 0.5], **scores}
    path = tmp_path / "log.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["epoch", "loss", "f1"], [0, 1.0, "[0.1 0.2]"], [1, 0.5, "[0.3 0.4]"]]
        )
    for source in (history, path):
        (line,) = pictures.learning_curves(source).lines
        assert line.get_xydata().tolist() == [[1, 1.0], [2, 0.5]]
        with pytest.raises(ValueError, match=r"f1|\[0\.1 0\.2\]"):
            pictures.learning_curves(source, "f1")


def test_learning_curves_of_a_validation_metric_are_called_validation():
    ax = pictures.learning_curves({"loss": [2, 1], "val_loss": [3, 2]}, "val_loss")
    assert [line.get_label() for line in ax.lines] == ["validation"]


def test_learning_curves_read_a_csv_log_with_gaps_and_repeated_epochs(tmp_path):
    path = tmp_path / "log.csv"
    keras_log(
        path,
        [
            (0, {"loss": 3.0, "val_loss": 4.0}),
            (1, {"loss": 2.0}),
            (2, {"loss": 9.0, "val_loss": 3.5}),
        ],
    )
    keras_log(path, [(2, {"loss": 1.0, "val_loss": 3.0})])  # resumed in epoch 2
    ax = pictures.learning_curves(path)
    training, validation = ax.lines
    assert training.get_xdata().tolist() == [1, 2, 3]
    assert training.get_ydata().tolist() == [3.0, 2.0, 1.0]
    assert validation.get_xdata().tolist() == [1, 3]
    assert validation.get_ydata().tolist() == [4.0, 3.0]


@pytest.mark.parametrize(
    ("best", "values", "note"),
    [
        ("min", [0.5, np.nan, 0.25, 0.4], "0.25 at epoch 3"),
        ("max", [0.5, np.nan, 0.25, 0.4], "0.5 at epoch 1"),
    ],
)
def test_the_best_epoch_is_ringed_in_the_direction_that_is_asked(best, values, note):
    ax = pictures.learning_curves({"val_a": values, "a": [1.0] * 4}, "a", best=best)
    assert [text.get_text() for text in ax.texts] == [note]
    epoch, value = int(note[-1]), float(note.split()[0])
    assert ax.lines[-1].get_xydata().tolist() == [[epoch, value]]


def test_several_metrics_are_named_and_told_apart():
    ax = pictures.learning_curves({**HISTORY, "mse": HISTORY["loss"]}, ["loss", "mse"])
    labels = [line.get_label() for line in ax.lines]
    assert labels == ["loss, training", "loss, validation", "mse, training"]
    assert len({line.get_marker() for line in ax.lines}) == 3


@pytest.mark.parametrize(
    ("history", "metric", "error", "message"),
    [
        (HISTORY, "los", ValueError, "Did you mean 'loss'?"),
        ([1, 2], "loss", TypeError, "got list"),
        ({"loss": [1, 2], "val_loss": [1]}, "loss", ValueError, "CSVLogger"),
        ({"loss": []}, "loss", ValueError, "at least one number"),
    ],
)
def test_a_history_that_cannot_be_drawn_is_refused(history, metric, error, message):
    with pytest.raises(error, match=message):
        pictures.learning_curves(history, metric)


def test_a_file_that_is_no_log_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["step", "loss"], [1, 2]])
    with pytest.raises(ValueError, match=r"other\.csv must be a table with a column"):
        pictures.learning_curves(path)


# --- image grid ---------------------------------------------------------------------


def captions(ax):
    return [text.get_text() for text in ax.texts]


def test_the_grid_shows_every_image_upright_in_reading_order():
    ax = pictures.image_grid(LETTERS, columns=3)
    for image, picture in zip(LETTERS, ax.images, strict=True):
        np.testing.assert_array_equal(picture.get_array(), image)
        assert picture.get_clim() == (0, 255)
    corners = [picture.get_extent() for picture in ax.images]
    lefts, tops = [c[0] for c in corners], [c[3] for c in corners]
    assert lefts[:3] == sorted(lefts[:3])
    assert lefts[0] == lefts[3]
    # Downwards is positive here, and the second row is below the first.
    assert tops[0] == tops[2] < tops[3] == tops[5]
    bottom, top = ax.get_ylim()
    assert bottom > top
    assert ax.get_xlim()[0] < ax.get_xlim()[1]


def test_right_and_wrong_predictions_are_marked_by_sign_frame_weight_and_colour():
    ax = pictures.image_grid(LETTERS, TRUE, GUESS, class_names=NAMES)
    assert captions(ax) == [
        "✓ bag",
        "✓ coat",
        "✗ bag",
        "is shirt",
        "✓ bag",
        "✗ shirt",
        "is coat",
        "✓ shirt",
    ]
    wrong = [frame.get_linewidth() > 2 for frame in ax.patches]
    assert wrong == (TRUE != GUESS).tolist()
    for text in ax.texts:
        bold = text.get_fontweight() == "bold"
        assert bold == (text.get_text()[0] in "✗i")
        assert contrast(text.get_color(), "white") > 3.5


@pytest.mark.backend("tensorflow", "jax", "torch")
def test_predictions_may_be_scores_of_any_backend():
    scores = keras.ops.convert_to_tensor(np.eye(3, dtype="float32")[GUESS] * 7 - 3)
    tensor = keras.ops.convert_to_tensor(LETTERS[..., None])
    ax = pictures.image_grid(tensor, keras.ops.convert_to_tensor(TRUE), scores)
    assert captions(ax)[:3] == ["✓ 0", "✓ 1", "✗ 0"]


def test_names_alone_and_colour_images_are_drawn_as_they_are():
    rgb = np.random.default_rng(0).random((2, 4, 6, 3))
    ax = pictures.image_grid(rgb, labels=[1, 0], class_names=NAMES)
    assert captions(ax) == ["coat", "bag"]
    np.testing.assert_array_equal(ax.images[1].get_array(), rgb[1])
    left, right, bottom, top = ax.images[0].get_extent()
    assert (bottom - top) / (right - left) == pytest.approx(4 / 6)
    assert captions(pictures.image_grid(LETTERS[:1])) == []


def test_a_grid_writes_the_shares_of_mixed_labels():
    labels = [[0, 1, 0], [0.25, 0.05, 0.7], [0.004, 0.996, 0]]
    ax = pictures.image_grid(LETTERS[:3], labels, class_names=NAMES)
    names = [NAMES[1], f"0.70 {NAMES[2]}", f"0.25 {NAMES[0]}", NAMES[1]]
    assert captions(ax) == names


def test_a_pixel_of_nan_leaves_the_scale_to_the_others():
    images = np.linspace(0, 1, 8).reshape(2, 2, 2)
    images[0, 0, 0] = np.nan
    ax = pictures.image_grid(images)
    assert {image.get_clim() for image in ax.images} == {(1 / 7, 1.0)}


def test_images_of_minus_one_to_one_share_one_scale():
    ax = pictures.image_grid(LETTERS / 127.5 - 1.0)
    assert {picture.get_clim() for picture in ax.images} == {(-1.0, 1.0)}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros((3, 784)),), {}, r"Write images\.reshape\(-1, 28, 28\)"),
        ((np.zeros((3, 20)),), {}, r"write images\[None\]"),
        ((np.zeros((0, 5, 5)),), {}, "n at least 1"),
        ((LETTERS, [0, 1]), {}, "each of the 6 images, got 2"),
        ((LETTERS, [0] * 5 + [3]), {"class_names": NAMES}, "at least 4"),
        ((LETTERS, [0.5] * 6), {}, "must be class numbers"),
        ((LETTERS, [-1] * 6), {}, "must be class numbers"),
        ((LETTERS,), {"columns": 0}, "at least 1"),
    ],
)
def test_a_grid_that_cannot_be_drawn_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        pictures.image_grid(*arguments, **options)


# --- confusion matrix ---------------------------------------------------------------


def test_rows_of_the_confusion_matrix_are_true_and_columns_predicted():
    ax = pictures.confusion_matrix(MANY_TRUE, MANY_GUESS, class_names=NAMES)
    counts = [
        [sum((t, g) == pair for t, g in zip(MANY_TRUE, MANY_GUESS, strict=True))]
        for pair in itertools.product(range(3), repeat=2)
    ]
    matrix = np.array(counts).reshape(3, 3)
    assert matrix[0, 1] != matrix[1, 0]
    np.testing.assert_array_equal(ax.images[0].get_array(), matrix)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    assert [t.get_text() for t in ax.get_yticklabels()] == NAMES
    assert [t.get_text() for t in ax.get_xticklabels()] == NAMES
    # Each number stands in its own cell, the first row at the top.
    for text in ax.texts:
        column, row = map(int, text.get_position())
        assert text.get_text() == str(matrix[row, column])
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_percentages_are_of_each_true_class_and_an_empty_class_is_zero():
    ax = pictures.confusion_matrix(
        [0, 0, 0, 2], [0, 0, 1, 2], class_names=NAMES, normalize=True
    )
    expected = [[200 / 3, 100 / 3, 0], [0, 0, 0], [0, 0, 100]]
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    assert ax.get_ylabel() == "true (percent of each row)"
    assert captions(ax)[:2] == ["67", "33"]


@pytest.mark.parametrize("normalize", [True, False])
def test_numbers_in_the_matrix_can_be_read_on_their_shade(normalize):
    rng = np.random.default_rng(0)
    true, guess = rng.integers(0, 12, (2, 900))
    guess = np.where(rng.random(900) < 0.4, true, guess)
    ax = pictures.confusion_matrix(true, guess, normalize=normalize)
    image = ax.images[0]
    for text in ax.texts:
        column, row = map(int, text.get_position())
        shade = image.cmap(image.norm(image.get_array()[row, column]))
        assert contrast(text.get_color(), shade[:3]) > 4.5


def test_scores_name_classes_that_nobody_predicted():
    ax = pictures.confusion_matrix([0, 1], np.eye(4)[[0, 1]])
    assert ax.images[0].get_array().shape == (4, 4)


@pytest.mark.parametrize(
    ("true", "guess", "message"),
    [
        (["bag"], ["bag"], r"class_names\.index\(name\) for name in labels"),
        ([0], np.array([None]), "`predictions` must be class numbers.* dtype object"),
        ([0, 1], [0], "got 2 and 1"),
        ([], [], "got 0 and 0"),
        ([0, 5], [0, 1], "class number 5 occurs"),
    ],
)
def test_a_matrix_that_cannot_be_counted_is_refused(true, guess, message):
    with pytest.raises(ValueError, match=message):
        pictures.confusion_matrix(true, guess, class_names=NAMES)


# --- decision boundary --------------------------------------------------------------


def contour(ax):
    """The points of the line, and not of the shaded side."""
    lines = [c for c in ax.collections if not isinstance(c, PathCollection)]
    (line,) = [c for c in lines if not c.filled]
    return np.concatenate([path.vertices for path in line.get_paths()])


def test_the_boundary_lies_where_the_score_is_the_level():
    ax = pictures.decision_boundary(circle, POINTS, INSIDE, level=0.5)
    line = contour(ax)
    assert len(line) > 50
    radii = np.hypot(line[:, 0] - 0.5, line[:, 1])
    np.testing.assert_allclose(radii, np.sqrt(2.0), atol=2e-3)
    # Negative control: another level is another circle.
    inner = contour(pictures.decision_boundary(circle, POINTS, INSIDE, level=0.7))
    np.testing.assert_allclose(np.hypot(inner[:, 0] - 0.5, inner[:, 1]), 1.0, atol=2e-3)


def test_the_points_of_each_class_are_drawn_as_its_own_sign():
    ax = pictures.decision_boundary(
        circle, POINTS, INSIDE[:, None], class_names=("blue ○", "red ▲")
    )
    zero, one = [c for c in ax.collections if isinstance(c, PathCollection)]
    np.testing.assert_allclose(zero.get_offsets(), POINTS[INSIDE == 0], rtol=1e-6)
    np.testing.assert_allclose(one.get_offsets(), POINTS[INSIDE == 1], rtol=1e-6)
    assert len(zero.get_paths()[0].vertices) != len(one.get_paths()[0].vertices)
    assert len(zero.get_facecolor()) == 0 < len(one.get_facecolor())
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["blue ○", "red ▲", "score 0.5"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$x_0$", "$x_1$")
    assert ax.get_aspect() == 1.0


@pytest.mark.backend("tensorflow", "jax", "torch")
def test_a_keras_model_is_asked_for_its_scores():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.set_weights([np.array([[2.0], [0.0]]), np.array([-1.5])])
    ax = pictures.decision_boundary(
        model, [[0.0, 0.0], [2.0, 1.0]], [0, 1], resolution=12
    )
    # 2 x0 - 1.5 = 0.5 at x0 = 1, whatever x1: a vertical line.
    np.testing.assert_allclose(contour(ax)[:, 0], 1.0, atol=1e-5)
    assert np.ptp(contour(ax)[:, 1]) > 1.0


def test_where_there_is_no_boundary_the_picture_says_so():
    for constant, words in [(0.1, "at most 0.5"), (0.9, "at least 0.5")]:
        ax = pictures.decision_boundary(
            lambda points, c=constant: np.full(len(points), c), POINTS, INSIDE
        )
        last = ax.get_legend().get_texts()[-1].get_text()
        assert last == f"no boundary:\nall {words}"
        assert all(isinstance(c, PathCollection) for c in ax.collections)


def test_scores_that_are_not_finite_are_holes_in_the_plane():
    def score(points):
        scores = circle(points).ravel().copy()
        scores[:2] = np.nan, np.inf
        return scores

    ax = pictures.decision_boundary(score, POINTS, INSIDE)
    radii = np.hypot(contour(ax)[:, 0] - 0.5, contour(ax)[:, 1])
    np.testing.assert_allclose(radii, np.sqrt(2.0), atol=2e-3)
    ax = pictures.decision_boundary(
        lambda points: np.full(len(points), np.nan), POINTS, INSIDE
    )
    last = ax.get_legend().get_texts()[-1].get_text()
    assert last == "no boundary:\nno score is finite"


def test_a_plane_needs_two_names():
    with pytest.raises(ValueError, match=r"class 0 and class 1, got \['a'\]"):
        pictures.decision_boundary(circle, POINTS, INSIDE, class_names=["a"])


def test_the_extent_is_around_the_points_unless_given():
    ax = pictures.decision_boundary(circle, [[0, 0], [10, 2]], [0, 1], resolution=5)
    np.testing.assert_allclose(ax.get_xlim(), (-1, 11), rtol=1e-6)
    np.testing.assert_allclose(ax.get_ylim(), (-0.2, 2.2), rtol=1e-6)
    ax = pictures.decision_boundary(circle, POINTS, INSIDE, extent=(-3, 3, -2, 1))
    assert (ax.get_xlim(), ax.get_ylim()) == ((-3, 3), (-2, 1))


@pytest.mark.parametrize(
    ("predict", "x", "y", "message"),
    [
        (circle, np.zeros((3, 3)), [0, 1, 0], r"got \(3, 3\)"),
        (circle, POINTS, INSIDE + 1, r"values \[1, 2\]"),
        (circle, POINTS, [0, 1], "each of the 300 points, got 2"),
        (lambda p: p, POINTS, INSIDE, r"predict\(points\)\[:, 1\]"),
    ],
)
def test_a_plane_that_cannot_be_drawn_is_refused(predict, x, y, message):
    with pytest.raises(ValueError, match=message):
        pictures.decision_boundary(predict, x, y)


# --- learning rate ------------------------------------------------------------------


@pytest.mark.backend("tensorflow", "jax", "torch")
def test_a_schedule_is_drawn_at_its_steps():
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5, staircase=True)
    ax = pictures.learning_rate_curve(decay, 40, steps_per_epoch=20, label="halved")
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_xdata(), np.arange(40) / 20)
    expected = [0.1 * 0.5 ** (step // 10) for step in range(40)]
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
    assert line.get_drawstyle() == "steps-post"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "learning rate")
    assert ax.get_ylim()[0] == 0


def test_a_long_schedule_is_drawn_from_its_first_to_its_last_step():
    asked = []
    ax = pictures.learning_rate_curve(lambda s: asked.append(s) or 1.0, 50_000)
    assert len(asked) == 500
    assert (asked[0], asked[-1]) == (0, 49_999)
    assert all(type(step) is int for step in asked)
    assert ax.get_xlabel() == "step"
    assert ax.get_legend() is None
    asked.clear()
    pictures.learning_rate_curve(lambda s: asked.append(s) or 1.0, 50_000, points=1000)
    assert len(asked) == 1000


def test_rates_themselves_are_drawn_and_may_be_logarithmic():
    ax = pictures.learning_rate_curve([0.1, 0.01, 0.001], log=True)
    assert ax.lines[0].get_ydata().tolist() == [0.1, 0.01, 0.001]
    assert ax.get_yscale() == "log"
    with pytest.raises(ValueError, match="steps=epochs"):
        pictures.learning_rate_curve(rate)


def test_losses_over_the_rates_are_drawn_with_the_suggestion():
    ax = pictures.loss_by_learning_rate(
        RATES, LOSSES, smoothed=SMOOTHED, suggestion=0.01
    )
    points, line, mark = ax.lines
    np.testing.assert_array_equal(points.get_ydata(), LOSSES)
    np.testing.assert_array_equal(line.get_ydata(), SMOOTHED)
    assert (points.get_linestyle(), line.get_linestyle()) == ("None", "-")
    assert (mark.get_xdata(), mark.get_linestyle()) == ([0.01, 0.01], "--")
    assert (ax.get_xlabel(), ax.get_xscale()) == ("learning rate", "log")
    plain = pictures.loss_by_learning_rate([0.1, 1.0], [2.0, 2.0])
    assert [each.get_ydata().tolist() for each in plain.lines] == [[2.0, 2.0]]
    assert plain.get_legend() is None
    with pytest.raises(ValueError, match="got 2, 1 and 1"):
        pictures.loss_by_learning_rate([0.1, 1.0], [2.0])
    with pytest.raises(ValueError, match="`rates` must be a finite number above 0"):
        pictures.loss_by_learning_rate([0.0, 1.0], [2.0, 1.0])


def test_a_loss_that_is_not_finite_is_a_gap():
    for last in (np.nan, np.inf):
        ax = pictures.loss_by_learning_rate([0.1, 1.0, 10.0], [2.0, 1.0, last])
        assert ax.get_ylim() == pytest.approx((0.9, 2.1))
        ax.figure.canvas.draw()
    pictures.loss_by_learning_rate([0.1], [np.nan]).figure.canvas.draw()


# --- reliability --------------------------------------------------------------------


def test_a_bin_is_drawn_at_its_mean_confidence_and_accuracy():
    p = [[0.85, 0.15], [0.75, 0.25], [0.4, 0.6]]
    ax = pictures.reliability_diagram([0, 1, 1], p, form="probabilities", bins=3)
    straight, curve = ax.lines
    assert straight.get_xydata().tolist() == [[0, 0], [1, 1]]
    np.testing.assert_allclose(curve.get_xydata(), [[0.6, 1.0], [0.8, 0.5]])
    small, large = ax.collections[0].get_sizes()
    assert large == pytest.approx(2 * small)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["calibrated", "ECE 0.333"]  # (2 * 0.3 + 0.4) / 3
    assert ax.get_ylabel() == "accuracy"
    assert ax.get_xlabel().startswith("confidence")
    assert ax.get_aspect() == 1.0


def test_the_error_in_the_legend_is_that_of_the_metrics():
    one_hot = np.eye(3)[CLASSES]
    error = float(metrics.expected_calibration_error(CLASSES, SCORES, bins=8))
    for labels in (CLASSES, one_hot):
        line = pictures.reliability_diagram(labels, SCORES, bins=8).lines[-1]
        assert line.get_label() == f"ECE {error:.3f}"
    options = {"activation": "sigmoid", "bins": 8}
    ax = pictures.reliability_diagram(one_hot, SCORES, label="several", **options)
    each = metrics.binary_expected_calibration_error(one_hot, SCORES, bins=8)
    assert ax.lines[-1].get_label() == f"several, ECE {float(each.mean()):.3f}"
    assert ax.get_ylabel() == "share of yes"
    assert sum(ax.collections[0].get_sizes()) == pytest.approx(2000)
    one = pictures.reliability_diagram(one_hot[:, 0], SCORES[:, 0], **options)
    error = metrics.binary_expected_calibration_error(
        one_hot[:, 0], SCORES[:, 0], bins=8
    )
    assert one.lines[-1].get_label() == f"ECE {float(error[0]):.3f}"


@pytest.mark.parametrize(
    ("labels", "predictions", "options", "message"),
    [
        ([0, 1], np.eye(3), {}, r"got shape \(3, 3\) for 2 labels"),
        ([0, 1], [0.2, 0.8], {}, 'pass activation="sigmoid"'),
        ([0, 1], [[1, 0], [np.nan, 1]], {}, "1 of 2 rows are not, the first is row 1"),
        ([0, 1], [0.5, np.nan], {"activation": "sigmoid"}, "must be finite"),
        ([0, 2], np.eye(2), {}, "go up to 2, and `predictions` have 2 columns"),
        ([0, 1], np.eye(2), {"activation": "sigmoid"}, r"shapes \(2,\) and \(2, 2\)"),
        ([0, 1], np.eye(2), {"activation": "relu"}, "`activation` must be one of"),
        ([0, 1], np.eye(2), {"form": "logit"}, "Did you mean 'logits'"),
        ([0, 1], np.eye(2), {"bins": 0}, "`bins` must be at least 1"),
    ],
)
def test_a_diagram_of_what_does_not_fit_is_refused(
    labels, predictions, options, message
):
    with pytest.raises(ValueError, match=message):
        pictures.reliability_diagram(labels, predictions, **options)


# --- averages and sweeps ------------------------------------------------------------


def test_raw_and_averaged_are_drawn_under_their_own_names():
    ax = pictures.raw_against_averaged(RAW, AVERAGED, steps=STEPS, metric="accuracy")
    raw, averaged = ax.lines
    np.testing.assert_array_equal(raw.get_ydata(), RAW)
    np.testing.assert_array_equal(averaged.get_ydata(), AVERAGED)
    assert (raw.get_label(), averaged.get_label()) == (
        "raw weights",
        "averaged weights",
    )
    assert averaged.get_linewidth() > raw.get_linewidth()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "accuracy")
    plain = pictures.raw_against_averaged([1.0], [2.0], metric="loss")
    assert plain.get_xlabel() == "evaluation"
    with pytest.raises(ValueError, match="got 2, 1 and 2"):
        pictures.raw_against_averaged([1, 2], [1])


def test_a_sweep_draws_means_and_bars_from_the_lowest_to_the_highest():
    ax = pictures.sweep(RUNS, "batch_size", "accuracy", group="optimizer", log=True)
    for bars, base in zip(ax.containers, (0.9, 0.8), strict=True):
        line, _, (whiskers,) = bars.lines
        assert list(line.get_xdata()) == [8, 64, 512]
        means = [base, base - 0.02, base - 0.04]
        np.testing.assert_allclose(line.get_ydata(), means)
        for mean, segment in zip(means, whiskers.get_segments(), strict=True):
            np.testing.assert_allclose(segment[:, 1], [mean - 0.01, mean + 0.01])
    assert [bars.get_label() for bars in ax.containers] == ["adam", "sgd"]
    assert ax.get_legend().get_title().get_text() == "optimizer"
    assert ax.get_xscale() == "log"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["8", "64", "512"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("batch size", "accuracy")


@pytest.mark.parametrize(("count", "slant"), [(3, 0), (9, 30)])
def test_names_of_places_are_slanted_only_where_they_would_overlap(count, slant):
    rows = [{"weights": f"average {i}", "loss": float(i)} for i in range(count)]
    ax = pictures.sweep(rows, "weights", "loss")
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {slant}


def test_a_sweep_over_names_places_them_in_order_of_appearance():
    rows = [{"nesterov": flag, "loss": loss} for flag, loss in [(True, 1), (False, 2)]]
    ax = pictures.sweep(rows, "nesterov", "loss")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["True", "False"]
    line = ax.containers[0].lines[0]
    assert line.get_xydata().tolist() == [[0, 1], [1, 2]]
    assert line.get_linestyle() == "None"  # nothing lies between two names
    beside = pictures.sweep(RUNS, "optimizer", "accuracy", group="batch_size")
    places = [bars.lines[0].get_xdata()[0] for bars in beside.containers]
    assert places == sorted(set(places))


def test_names_in_a_subfigure_are_measured_without_the_newest_matplotlib():
    part = plt.figure(figsize=(5, 4)).subfigures(1, 2)[1]
    rows = [{"weights": f"average {i}", "loss": float(i)} for i in range(9)]
    ax = pictures.sweep(rows, "weights", "loss", ax=part.subplots())
    names = ax.get_xticklabels()
    assert {name.get_rotation() for name in names} == {30}
    for name in names:
        name.set(rotation=0)
    # Only what axes have before Matplotlib 3.10: `get_figure` knew no `root`.
    _turn_if_crowded(SimpleNamespace(figure=part, get_xticklabels=lambda: names))
    assert {name.get_rotation() for name in names} == {30}


def test_a_sweep_leaves_out_rows_without_a_result():
    rows = [{"u": 1, "score": None}, {"u": 2, "score": 0.5}]
    ax = pictures.sweep(rows, "u", "score")
    assert ax.containers[0].lines[0].get_xydata().tolist() == [[2, 0.5]]
    with pytest.raises(ValueError, match=r"has a value of 'score': all are None"):
        pictures.sweep(rows[:1], "u", "score")


def test_a_sweep_takes_lists_as_names_of_places_and_groups():
    rows = [{"u": [k, k], "g": {"a": k % 2}, "score": k} for k in (3, 1, 2)]
    ax = pictures.sweep(rows, "u", "score", group="g")
    assert [t.get_text() for t in ax.get_xticklabels()] == [
        "[3, 3]",
        "[1, 1]",
        "[2, 2]",
    ]
    odd, even = (bars.lines[0].get_ydata().tolist() for bars in ax.containers)
    assert (odd, even) == ([3, 1], [2])


def test_a_logarithmic_sweep_refuses_a_place_of_zero():
    rows = [{"rate": rate, "score": 1.0} for rate in (0.1, 0.0)]
    with pytest.raises(ValueError, match=r"values of 'rate' above 0, got 0\.0"):
        pictures.sweep(rows, "rate", "score", log=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "is empty"), ([{"x": 1, "accurracy": 2}], "Did you mean 'accurracy'?")],
)
def test_a_sweep_without_results_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        pictures.sweep(rows, "x", "accuracy")


# --- fonts --------------------------------------------------------------------------

CLOTHES = "衣服"


@pytest.fixture
def only_the_usual_font(monkeypatch):
    """Whatever is installed on this machine, matplotlib sees DejaVu Sans only."""
    manager = font_manager.fontManager
    usual = [entry for entry in manager.ttflist if entry.name.startswith("DejaVu")]
    monkeypatch.setattr(manager, "ttflist", usual)
    return manager


@pytest.fixture
def chinese_font(tmp_path, only_the_usual_font):
    """A font with two characters, both drawn as a full square, made on the spot."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in [(0, 900), (900, 900), (900, 0)]:
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(character): "square" for character in CLOTHES})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": square})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Two Clothes", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900, usWinAscent=900, usWinDescent=100)
    builder.setupPost()
    builder.save(tmp_path / "clothes.ttf")
    only_the_usual_font.addfont(tmp_path / "clothes.ttf")


def grid_of_clothes():
    pictures.image_grid(LETTERS[:2], [0, 1], class_names=[CLOTHES, "coat"])


@pytest.mark.parametrize(
    "draw",
    [
        grid_of_clothes,
        lambda: pictures.confusion_matrix([0, 1], [0, 1], class_names=[CLOTHES, "b"]),
        lambda: pictures.learning_curves(HISTORY, title=CLOTHES),
        lambda: pictures.learning_rate_curve([1, 2], label=CLOTHES),
        lambda: pictures.decision_boundary(
            circle, POINTS, INSIDE, class_names=[CLOTHES, "b"]
        ),
        lambda: pictures.sweep([{CLOTHES: CLOTHES, "y": 1}], CLOTHES, "y"),
        lambda: pictures.reliability_diagram(CLASSES, SCORES, label=CLOTHES),
    ],
)
@pytest.mark.usefixtures("chinese_font")
def test_chinese_names_are_drawn_with_a_font_that_has_them(draw):
    draw()  # warnings are errors: "Glyph ... missing from font(s)" would fail here
    plt.gcf().canvas.draw()


@pytest.mark.usefixtures("only_the_usual_font")
def test_without_such_a_font_matplotlib_warns_of_boxes():
    # Negative control of the test above.
    grid_of_clothes()
    with pytest.warns(UserWarning, match="missing from (current )?font"):
        plt.gcf().canvas.draw()


@pytest.mark.usefixtures("chinese_font")
def test_latin_letters_keep_the_usual_font():
    grid_of_clothes()
    plain, chinese = "coat", CLOTHES
    families = {t.get_text(): t.get_fontfamily() for t in plt.gca().texts}
    assert families[plain] == families[chinese] == ["sans-serif", "Two Clothes"]
    assert mpl.rcParams["font.family"] == ["sans-serif"]
    pictures.image_grid(LETTERS[:1], [0], class_names=[plain])
    assert plt.gca().texts[0].get_fontfamily() == ["sans-serif"]


if __name__ == "__main__":
    mpl.rcdefaults()
    BASELINE.mkdir(exist_ok=True)
    for picture_name, (draw_it, *_) in PICTURES.items():
        plt.imsave(BASELINE / f"{picture_name}.png", drawn(draw_it))
