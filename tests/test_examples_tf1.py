"""The TensorFlow 1 course's examples at a small setting, with their claims asserted."""
# ruff: noqa: E402 - Pillow comes with matplotlib, which may not be installed

import re
from pathlib import Path
from types import SimpleNamespace

import keras
import needs
import numpy as np
import pytest

needs.module("matplotlib")

from PIL import Image

from fmkit import datasets, models

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PNG = b"\x89PNG"
# What the course begins with, and the weights that it prints.
STARTS = (
    [[-0.8113182, 1.4845988, 0.06532937], [-2.4427042, 0.0992484, 0.5912243]],
    [[-0.8113182], [1.4845988], [0.06532937]],
)
W1 = """\
[[-0.7000663   0.91363174  0.0895357 ]
 [-2.3402493  -0.14641266  0.5882305 ]]"""
W2 = """\
[[-0.06024268]
 [ 0.91956186]
 [-0.06820709]]"""


def trained_by_tensorflow_1():
    """Return the weights that TensorFlow 1's own program has here after 3,000 steps."""
    import tensorflow as tf

    x, y = (array.astype("float32") for array in datasets.toy.half_plane())
    one_thread = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=1, inter_op_parallelism_threads=1
    )
    with tf.Graph().as_default(), tf.compat.v1.Session(config=one_thread) as session:
        inputs = tf.compat.v1.placeholder(tf.float32, (None, 2))
        labels = tf.compat.v1.placeholder(tf.float32, (None, 1))
        weights = [tf.compat.v1.Variable(np.array(w, "float32")) for w in STARTS]
        outputs = tf.matmul(tf.matmul(inputs, weights[0]), weights[1])
        loss = tf.reduce_mean(tf.square(outputs - labels))
        step = tf.compat.v1.train.GradientDescentOptimizer(0.001).minimize(loss)
        session.run(tf.compat.v1.global_variables_initializer())
        for first in (8 * (n % 4) for n in range(3000)):
            batch = slice(first, first + 8)
            session.run(step, {inputs: x[batch], labels: y[batch]})
        return session.run(weights)


@pytest.mark.long
def test_two_layers_give_the_course_s_table_digit_by_digit(example, tmp_path, capsys):
    losses, (w1, w2) = example("tf1_two_layers").main(folder=tmp_path)
    assert [(step, f"{loss:g}") for step, loss in losses] == [
        (0, "5.13118"),
        (500, "0.429111"),
        (1000, "0.409789"),
        (1500, "0.399923"),
        (2000, "0.394146"),
        (2500, "0.390597"),
    ]
    if keras.backend.backend() == "tensorflow":
        expected = trained_by_tensorflow_1()
        np.testing.assert_array_equal(w1, expected[0])
        np.testing.assert_array_equal(w2, expected[1])
    # Sums in another order, by a backend or a processor: float32's last bits differ.
    for w, digits in ((w1, W1), (w2, W2)):
        printed = np.array(digits.replace("[", "").replace("]", "").split(), "float64")
        np.testing.assert_allclose(w.ravel(), printed, rtol=0, atol=2e-7)
    table = (tmp_path / "tf1_two_layers.md").read_text(encoding="utf-8")
    assert "| 2500 | 0.390597 |" in table
    assert f"w1 =\n{w1}\nw2 =\n{w2}\n" in table
    assert table == capsys.readouterr().out
    assert (tmp_path / "tf1_two_layers.png").read_bytes().startswith(PNG)


def descend(gradient, steps):
    """Plain descent in float64 from the course's start, in batches of 8 in order."""
    x, y = (part.astype("float64") for part in datasets.toy.yogurt_sales())
    w = np.array([-0.8113182, 1.4845988])
    for step in range(steps):
        rows = slice(8 * step % 32, 8 * step % 32 + 8)
        w = w - 0.001 * x[rows].T @ gradient(x[rows] @ w - y[rows, 0])
    return w


@pytest.mark.backend("tensorflow")
def test_the_yogurt_forecast_moves_to_the_cheaper_side(example, tmp_path, capsys):
    weights = example("tf1_yogurt").main(folder=tmp_path)
    squared, more, fewer = weights.values()
    assert list(weights)[1:] == [
        "too few cost 9, too many 1",
        "too few cost 1, too many 9",
    ]
    # Both weights, both ways.
    assert (more > squared).all()
    assert (fewer < squared).all()
    # NumPy alone comes to the same weights.
    np.testing.assert_allclose(squared, descend(lambda e: e / 4, 20_000), atol=1e-5)
    np.testing.assert_allclose(
        more, descend(lambda e: np.where(e > 0, 1, -9), 3000), atol=1e-3
    )
    np.testing.assert_allclose(
        fewer, descend(lambda e: np.where(e > 0, 9, -1), 3000), atol=1e-3
    )
    table = (tmp_path / "tf1_yogurt.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    # Each of the two is the cheapest at its own prices.
    costs = [
        [float(cell) for cell in line.split("|")[-3:-1]]
        for line in table.splitlines()[2:]
    ]
    assert np.argmin(costs, axis=0).tolist() == [1, 2]
    assert (tmp_path / "tf1_yogurt.png").read_bytes().startswith(PNG)


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_l2_makes_weights_smaller_and_the_boundary_another(
    example, tmp_path, monkeypatch
):
    module = example("tf1_regularization")
    made = []
    network = module.network
    monkeypatch.setattr(
        module, "network", lambda l2: made.append(network(l2)) or made[-1]
    )
    # A quarter of the steps, so a larger penalty for an effect that can't be missed.
    free, held = module.main(steps=10_000, l2=0.05, folder=tmp_path)
    assert held["squares"] < 0.7 * free["squares"]
    assert min(free["right"], held["right"]) > 0.85
    grid = np.stack(np.meshgrid(*[np.linspace(-3, 3, 61)] * 2), -1).reshape(-1, 2)
    inside = [np.asarray(model(grid.astype("float32"))) > 0.5 for model in made]
    assert np.mean(inside[0] != inside[1]) > 0.01
    assert (tmp_path / "tf1_regularization.png").read_bytes().startswith(PNG)
    assert "| 0.05 |" in (tmp_path / "tf1_regularization.md").read_text()


@pytest.mark.backend("tensorflow")
def test_with_and_without_l2_begin_alike_and_the_penalty_is_half_the_square(example):
    network = example("tf1_regularization").network
    free, held = network(0.0), network(0.01)
    for a, b in zip(free.get_weights(), held.get_weights(), strict=True):
        assert (a == b).all()
    squares = sum(float(np.sum(w**2)) for w in held.get_weights() if w.ndim == 2)
    assert float(sum(held.losses)) == pytest.approx(0.01 * squares / 2, rel=1e-5)
    assert free.losses == []


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_optimizers_batch_sizes_and_steps_are_compared_from_one_start(
    example, tmp_path, monkeypatch, capsys
):
    module = example("tf1_optimizers")
    starts = []

    def mlp(units, seed):
        model = models.mlp((32,), seed=seed)
        starts.append([w.tobytes() for w in model.get_weights()])
        return model

    monkeypatch.setattr(module, "models", SimpleNamespace(mlp=mlp))
    optimizers = {name: module.OPTIMIZERS[name] for name in ("SGD, 0.1", "Adam, 0.001")}
    monkeypatch.setattr(module, "OPTIMIZERS", optimizers)
    rows = module.main(steps=24, batch_sizes=(64, 128), folder=tmp_path)
    runs = [(row["optimizer"], row["batch_size"]) for row in rows]
    assert set(runs) == {(name, size) for name in optimizers for size in (64, 128)}
    assert [row["steps"] for row in rows] == 4 * [12, 24]
    assert len(starts) == 4
    assert all(start == starts[0] for start in starts)
    assert "6000 images from the sample in fmkit" in capsys.readouterr().out
    table = (tmp_path / "tf1_optimizers.md").read_text()
    assert "| Adam, 0.001 | 128 |" in table
    assert (tmp_path / "tf1_optimizers.png").read_bytes().startswith(PNG)


@pytest.mark.long
def test_a_network_that_learnt_the_digits_reads_drawn_ones(example, tmp_path, capsys):
    module = example("tf1_read_digits")
    drawings = [path.name for path in module.DRAWINGS]
    assert drawings == ["2-chalk.png", "4-ink.png", "5-pencil.png"]
    chances = module.main(folder=tmp_path)
    for name, row in zip(drawings, chances, strict=True):
        assert row.argmax() == int(name[0])
        assert row.max() > 0.8
        assert row.sum() == pytest.approx(1, abs=1e-5)
    table = (tmp_path / "tf1_read_digits.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert f"| 4-ink.png | 4 | {chances[1].max():.1%} |" in table
    assert float(re.search(r"Test accuracy (\S+) after 5 epochs", table)[1]) > 0.94
    assert (tmp_path / "tf1_read_digits.png").read_bytes().startswith(PNG)


@pytest.mark.backend("torch")
def test_three_drawings_differ_in_paper_ink_size_and_place(example):
    chalk, ink, pencil = [Image.open(p) for p in example("tf1_read_digits").DRAWINGS]
    papers = [
        np.array(d.convert("RGB"))[0, 0].astype(int) for d in (chalk, ink, pencil)
    ]
    assert papers[0].max() < 100 < 200 < min(papers[1].min(), papers[2].min())
    blue = np.array(ink.convert("RGB")).astype(int)
    assert (blue[..., 2] - blue[..., 0]).max() > 80
    grey = np.array(pencil.convert("L")).astype(int)
    rows, columns = np.nonzero(grey < 200)
    assert np.ptp(rows) < grey.shape[0] / 2
    assert rows.mean() > 0.6 * grey.shape[0]
    assert columns.mean() < 0.4 * grey.shape[1]


@pytest.mark.backend("torch")
def test_what_is_no_picture_is_refused_before_any_training(
    example, tmp_path, monkeypatch
):
    module = example("tf1_read_digits")
    monkeypatch.setattr(module, "train", lambda epochs: pytest.fail("it trained"))
    (tmp_path / "notes.txt").write_text("a 7")
    with pytest.raises(ValueError, match=r"notes\.txt is no picture"):
        module.main(files=[tmp_path / "notes.txt"], folder=tmp_path)


@pytest.mark.backend("torch")
def test_the_program_and_its_evaluator_read_what_data_names(
    example, tmp_path, monkeypatch
):
    module = example("tf1_mnist_ema")
    full, found, clothes = [(np.zeros((n, 28, 28)), n) for n in (3, 2, 1)]
    files = {None: full, "folder": found}
    monkeypatch.setattr(datasets.mnist, "load_data", lambda path: (files[path], None))
    monkeypatch.setattr(datasets.fashion_mnist, "load_data", lambda: (clothes, None))
    started = []
    monkeypatch.setattr(module.subprocess, "Popen", started.append)
    sample = datasets.mnist.load_sample()[0]
    names = {"mnist": full, "folder": found, "fashion_mnist": clothes}
    for name, expected in {"sample": sample, **names}.items():
        np.testing.assert_array_equal(module.load(name)[0][0], expected[0])
        module.start_evaluator(name, tmp_path)
    said = [command[command.index("--data") + 1] for command in started]
    assert said == ["mnist=sample", "mnist", "mnist=folder", "fashion_mnist"]


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_killed_and_resumed_beside_the_evaluator_the_bits_are_equal(
    example, tmp_path, capfd
):
    module = example("tf1_mnist_ema")
    records, equal = module.main(steps=200, folder=tmp_path)
    told = capfd.readouterr().out
    assert equal
    assert "Killed; the last commit is of step" in told
    assert "ExactResume: resuming in epoch" in told
    last = module.accuracies(records, "averaged")[-1]
    assert f"averaged mnist: accuracy {last:.5g}" in told
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))
    assert steps[-1] == 210  # whole epochs of 30 steps
    assert last > 0.85
    table = (tmp_path / "tf1_mnist_ema.md").read_text()
    assert "Trained on 6,000 images." in table
    assert "every bit equal to the training that was never killed" in table
    assert (tmp_path / "tf1_mnist_ema.png").read_bytes().startswith(PNG)
    # A bit turned in one of the two is seen.
    ends = [
        module.last_commit(tmp_path / f"tf1_mnist_ema_{kind}")
        for kind in ("killed", "unkilled")
    ]
    assert module.same_bits(*ends)
    with np.load(ends[0]) as commit:
        arrays = {name: commit[name] for name in commit.files if name != "meta.json"}
    np.savez(tmp_path / "as_it_was.npz", **arrays)
    kernel = next(name for name in arrays if arrays[name].shape == (784, 500))
    arrays[kernel] = arrays[kernel].copy()
    arrays[kernel].view("uint32")[0, 0] ^= 1
    np.savez(tmp_path / "turned.npz", **arrays)
    as_it_was = tmp_path / "as_it_was.npz"
    assert module.same_bits(as_it_was, as_it_was)
    assert not module.same_bits(as_it_was, tmp_path / "turned.npz")
