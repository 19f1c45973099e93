"""The examples at a small setting, with their claims asserted."""

import ast
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from fmkit import datasets

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.needs("matplotlib")
def test_the_quickstart_judges_draws_saves_and_reloads(example, tmp_path, capsys):
    accuracy = example("quickstart").main(epochs=6, target=0.8, folder=tmp_path)
    printed = capsys.readouterr().out
    assert "from the sample that ships with fmkit" in printed
    assert "No problem found." in printed
    assert "stopped the run in epoch" in printed
    assert f"Test accuracy {accuracy:.4f}" in printed
    assert all(name in printed for name in datasets.fashion_mnist.CLASS_NAMES)
    assert "predicts the same bits" in printed
    # The sample is a tenth of the data: a few epochs bring it near 80 %.
    assert accuracy > 0.75
    for picture in ("learning_curves.png", "predictions.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert keras.saving.load_model(tmp_path / "quickstart.keras").count_params() == (
        244_522
    )


# What each needs to run for a moment.
SHORT = {
    "quickstart": {"epochs": 1},
    "ema_fashion_mnist": {"epochs": 1},
    "keras_stop_at_threshold": {"epochs": 1},
    "paddle_lenet": {"epochs": 1},
    "tf1_read_digits": {"epochs": 1},
    "tf1_optimizers": {"steps": 4, "batch_sizes": (32, 64)},
    "tf1_regularization": {"steps": 20},
    "tf1_two_layers": {"steps": 8, "every": 4},
    "tf1_yogurt": {"steps": 400, "squared_steps": 400},
    "tf2_gradient_tape": {"epochs": 1},
    "tune_mlp": {"trials": 1, "epochs": 1, "questions": {"units": [8]}},
}
QUICK = {"quickstart", "tf1_two_layers"}
DRAWING = [
    path.stem
    for path in sorted(EXAMPLES.glob("*.py"))
    if ".savefig(" in path.read_text(encoding="utf-8")
]


def marks(name):
    if name in QUICK:
        yield pytest.mark.backend("torch")
    else:
        yield from (pytest.mark.backend("tensorflow"), pytest.mark.long)
    if name == "tune_mlp":
        yield pytest.mark.needs("keras_tuner")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[*marks(name)]) for name in SHORT]
)
def test_without_matplotlib_an_example_runs_and_says_what_would_draw(
    name, example, tmp_path, capsys, monkeypatch
):
    for source in (datasets.fashion_mnist, datasets.mnist):
        (x, y), (x_test, y_test) = source.load_sample()
        few = (x[:600], y[:600]), (x_test[:100], y_test[:100])
        monkeypatch.setattr(source, "load_sample", lambda few=few: few)
    # Python then neither finds nor imports it.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    example(name).main(**SHORT[name], folder=tmp_path)
    assert "Type: pip install matplotlib" in capsys.readouterr().out
    assert list(tmp_path.iterdir())
    assert not list(tmp_path.glob("*.png"))


def imports(tree):
    """Yield what the statements of a program import, those in functions left out."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            for part in ast.walk(node):
                if isinstance(part, ast.Import | ast.ImportFrom):
                    yield ast.unparse(part)


@pytest.mark.backend("torch")
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_nothing_imports_matplotlib_before_an_example_draws(path):
    text = path.read_text(encoding="utf-8")
    assert not [line for line in imports(ast.parse(text)) if "matplotlib" in line]
    asks = 'if importlib.util.find_spec("matplotlib"):' in text
    assert asks == (path.stem in DRAWING)


@pytest.mark.backend("torch")
def test_a_program_that_imports_matplotlib_at_its_top_would_be_seen():
    at_its_top = "import keras\ntry:\n  import matplotlib.pyplot as plt\nfinally: 1"
    assert list(imports(ast.parse(at_its_top)))[1:] == [
        "import matplotlib.pyplot as plt"
    ]
    assert not list(imports(ast.parse("def picture():\n    import matplotlib")))


@pytest.mark.backend("torch")
def test_every_example_that_draws_is_tried_without_matplotlib():
    # The processes that this one starts are tried where it is tried itself.
    assert set(DRAWING) - set(SHORT) == {"tf1_mnist_ema"}


def test_the_quickstart_is_one_page():
    lines = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 80


@pytest.mark.long
@pytest.mark.needs("matplotlib")
def test_averages_are_judged_beside_raw_weights_and_saved(example, tmp_path, capsys):
    seen = example("ema_fashion_mnist").main(epochs=2, folder=tmp_path)
    picture = tmp_path / "averages-fashion-mnist.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    # A stair is 5400 / 128 = 42.19 steps, an epoch 43: the second ends past two stairs.
    assert seen["learning_rate"] == pytest.approx([0.2, 0.2 * 0.95**2])
    assert seen["test_raw"] != seen["test_averaged"]
    # The file holds the weights that its score was measured with: the averages.
    best = int(np.argmax(seen["val_accuracy"]))
    saved = f"best.keras, chosen by validation: {seen['test_averaged'][best]:.4f}"
    assert saved in capsys.readouterr().out
