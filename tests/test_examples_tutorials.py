"""The programs of the GradientTape, Keras and Paddle tutorials, at a small setting."""

import gzip
import json
import re
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

from fmkit import callbacks, datasets, models

pytestmark = [pytest.mark.backend("tensorflow"), pytest.mark.needs("matplotlib")]
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
STOPPING = "keras_stop_at_threshold"


def rows_of(path):
    """Return the cells of a Markdown table, a list for each row below the head."""
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def is_a_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


@pytest.mark.long
def test_the_loop_and_fit_train_the_same_network(example, tmp_path, capsys):
    module = example("tf2_gradient_tape")
    columns = module.main(epochs=1, folder=tmp_path)
    printed = capsys.readouterr().out
    loop, fit, other = columns.values()
    # One image of 1,000 may tip over where two ways to compile round differently.
    assert abs(loop[0] - fit[0]) <= 0.001
    assert loop[0] > 0.6
    # The other loss trains another network: the agreement is not that of anything.
    assert abs(loop[0] - other[0]) > 0.001
    first = module.data.Batches(*datasets.fashion_mnist.load_sample()[0]).peek()
    expected = pytest.approx(first_losses(module.start()[0], first), abs=1e-4)
    shown = re.findall(r"step   0  mse (\S+)  crossentropy (\S+)", printed)
    assert len(shown) == 3
    assert all([float(mse), float(ce)] == expected for mse, ce in shown)
    gap = float(re.search(r"differ by (\S+) at most", printed)[1])
    assert gap < 0.01
    assert is_a_picture(tmp_path / "tf2_gradient_tape.png")
    assert rows_of(tmp_path / "tf2_gradient_tape.md") == [
        ["1", *(f"{column[0]:.4f}" for column in columns.values())]
    ]


def first_losses(model, batch):
    """Return both losses of a network by the tutorial's formulas, in float64."""
    x, y = batch
    hidden = x.reshape(len(x), -1).astype(np.float64)
    weights = [w.astype(np.float64) for w in model.get_weights()]
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        hidden = np.maximum(hidden @ kernel + bias, 0)
    logits = hidden @ weights[-2] + weights[-1]
    one_hot = np.eye(10)[y]
    log_sum = np.log(np.exp(logits).sum(axis=1))
    crossentropy = np.mean(log_sum - (one_hot * logits).sum(axis=1))
    return np.mean((one_hot - logits) ** 2), crossentropy


@pytest.mark.long
def test_the_tutorials_thresholds_are_told_truly(example, tmp_path, capsys):
    low_loss, accurate = example(STOPPING).main(epochs=10, folder=tmp_path)
    assert low_loss.reason == callbacks.StopReason.THRESHOLD
    assert low_loss.value < 0.4
    # 95 % takes longer than this on the sample: nothing may claim to have stopped it.
    assert accurate is None
    rows = {(row[0], row[1]): row[2:] for row in rows_of(tmp_path / f"{STOPPING}.md")}
    stopped = rows["loss < 0.4", str(low_loss.epoch + 1)]
    assert stopped[0] == f"{low_loss.value:.4f}"
    assert low_loss.message in capsys.readouterr().out
    # The same network from the same start learns less from pixels nobody scaled.
    plain, raw = rows["128 units", "5"], rows["not normalised", "5"]
    assert float(raw[0]) > float(plain[0])
    assert {"wider: 512", "deeper: 512, 256"} <= {name for name, _ in rows}
    # Overfitting: the distance between test and training loss grows.
    late = [float(cell) for cell in rows["128 units", "10"]]
    assert late[1] - late[0] > float(plain[1]) - float(plain[0])
    assert is_a_picture(tmp_path / f"{STOPPING}.png")


def test_the_tutorials_two_mistakes_are_named_before_any_training(example):
    labels = np.arange(10)
    flat, five = example(STOPPING).mistakes(labels)
    assert "(None, 28, 10)" in flat
    assert "keras.layers.Flatten()" in flat
    assert "which needs 10 outputs" in five
    assert "`num_classes=10`" in five
    # The tutorial's own network is not refused.
    models.check_outputs(models.mlp((128,)), labels)


@pytest.mark.long
def test_the_paddle_program_goes_from_json_to_a_loaded_lenet(example, tmp_path, capsys):
    module = example("paddle_lenet")
    accuracies = module.main(epochs=2, folder=tmp_path)
    printed = capsys.readouterr().out
    assert "No problem found." in printed
    assert "2 epochs of 5,000 digits, tested on 1,000." in printed
    assert "got 0 .. 10 (first at index 3)" in printed
    assert all(way in printed for way in ("synchronous", "asynchronous", "fit"))
    # Ten scores say more of a class than one number does.
    assert accuracies["LeNet on [-1, 1]"] > 0.85
    assert accuracies["LeNet on [-1, 1]"] > accuracies["linear regressor"] + 0.2
    table = rows_of(tmp_path / "paddle_lenet.md")
    assert [row[2] for row in table] == ["785", "7,971", "11,521", "20,350", "61,610"]
    assert [float(row[4]) for row in table] == pytest.approx(
        list(accuracies.values()), abs=1e-4
    )
    assert is_a_picture(tmp_path / "paddle_lenet.png")
    loaded = keras.saving.load_model(tmp_path / "paddle_lenet.keras")
    (_, _), (x, y) = datasets.mnist.load_sample()
    scores = loaded.predict((x.astype("float32") - 127.5) / 127.5, verbose=0)
    assert np.mean(scores.argmax(-1) == y) == pytest.approx(
        accuracies["LeNet on [-1, 1]"], abs=0.002
    )


def test_the_made_json_is_read_back_as_the_tutorials_file_would_be(example, tmp_path):
    module = example("paddle_lenet")
    (x, y), (x_test, y_test) = datasets.mnist.load_sample()
    train, test = (x[:600], y[:600]), (x_test[:70], y_test[:70])
    path = module.make_json(tmp_path / "mnist.json.gz", train, test)
    with gzip.open(path, "rt") as file:
        splits = json.load(file)
    assert [len(images) for images, _ in splits] == [500, 100, 70]
    (x_train, y_train), (x_eval, y_eval) = module.read_json(path)
    # Every bit of every pixel.
    np.testing.assert_array_equal(x_train, x[:500].astype("float32") / 256)
    np.testing.assert_array_equal(x_eval, x_test[:70].astype("float32") / 256)
    np.testing.assert_array_equal(y_train, y[:500])
    np.testing.assert_array_equal(y_eval, y_test[:70])
    np.testing.assert_array_equal(splits[1][0], x[500:600].reshape(-1, 784) / 256)
    assert splits[1][1] == y[500:600].tolist()
    # What was read from such a file can be written again, and is not divided twice.
    again = module.make_json(tmp_path / "again.json.gz", (x_train, y_train), test)
    assert module.read_json(again)[0][0].max() == x_train.max()


def test_reading_ahead_gives_the_same_batches_from_another_thread(example):
    module = example("paddle_lenet")
    readers = []

    def source():
        for number in range(5):
            readers.append(threading.get_ident())
            yield number

    taken = []
    for batch in module.ahead(source()):
        taken.append(batch)
        assert threading.get_ident() not in readers
    assert taken == list(range(5))
    assert len(set(readers)) == 1
    # Read in turn, it is the training's own thread that reads.
    assert list(source())
    assert readers[-1] == threading.get_ident()
