"""The examples at a small setting, with their claims asserted."""

import importlib.util
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


def test_the_quickstart_without_matplotlib_says_what_would_draw(
    example, tmp_path, capsys, monkeypatch
):
    find_spec = importlib.util.find_spec

    def without_matplotlib(name, package=None):
        return None if name == "matplotlib" else find_spec(name, package)

    quickstart = example("quickstart")
    monkeypatch.setattr(importlib.util, "find_spec", without_matplotlib)
    quickstart.main(epochs=1, folder=tmp_path)
    assert "Type: pip install matplotlib" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart.keras"]


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
