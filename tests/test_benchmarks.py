"""The benchmarks compare equals: same batches, same loss, same weights. No times."""

import itertools
import json
import re

import keras
import numpy as np
import pytest

from benchmarks import __main__ as suite
from benchmarks import _page, accuracy, fusing, memory, sharded, training
from benchmarks._measure import in_backend, not_run, number, row
from fmkit import models
from fmkit.data import Batches

BACKEND = keras.backend.backend()


def trained(make, x, y, epochs=1, **options):
    """Losses of the epochs and the weights after them, from one start for all."""
    keras.utils.set_random_seed(5)
    model = training.network()
    epoch = make(model, x, y, **options)
    losses = [epoch(number) for number in range(epochs)]
    return losses, [keras.ops.convert_to_numpy(w) for w in model.trainable_variables]


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)
    for weights, others in zip(found[1], expected[1], strict=True):
        # On average: PyTorch's Adam adds its epsilon elsewhere, which shows where a
        # gradient is as small as that. A step moves a weight by up to 1e-3.
        assert np.abs(weights - others).mean() < 3e-4


@pytest.mark.long
def test_every_contestant_computes_the_same_epoch():
    # Two whole batches and a smaller one.
    x, y = training.images(300)
    order = Batches(x, y, training.BATCH).order(0)
    ours = trained(training.by_fmkit, x, y)
    assert_same(ours, trained(training.BY_HAND[BACKEND], x, y))
    assert_same(ours, trained(training.by_fused, x, y))
    if BACKEND == "torch":
        assert_same(ours, trained(training.by_hand_torch_as_keras, x, y))
    # The same order by hand, for those who shuffle by themselves.
    straight = [training.by_fit]
    if BACKEND == "tensorflow":
        straight.append(training.by_tutorial)
    for make in straight:
        others = trained(make, x[order], y[order], shuffle=False)
        assert_same(ours, others)
    # Negative control: in another order the weights differ by far more.
    with pytest.raises(AssertionError):
        assert_same(ours, trained(training.by_fit, x, y, shuffle=False))


@pytest.mark.long
def test_the_contestants_of_fusing_train_the_same_network():
    # One batch: whatever the order, the losses of the two steps are the same.
    pixels, y = training.images(64)
    x = pixels[..., None]
    losses = {}
    ways = [fusing.by_fused, fusing.by_settings, fusing.by_fit, fusing.by_hand]
    for way in ways:
        keras.utils.set_random_seed(5)
        model = models.simple_cnn((4,), input_shape=(28, 28, 1))
        found = way(model, x, y, len(x))()
        losses[way] = getattr(found, "history", {"loss": [found]})["loss"][-1]
    expected = losses[fusing.by_fit]
    assert [*losses.values()] == pytest.approx([expected] * len(ways), rel=1e-3)
    # Negative control: the loss of the first step is another.
    assert fusing.EPOCHS == 2
    model = models.simple_cnn((4,), input_shape=(28, 28, 1))
    run = fusing.by_fit(model, x, y, len(x))
    first, second = run().history["loss"]
    assert first != pytest.approx(second, rel=1e-3)


@pytest.mark.long
@pytest.mark.backend("tensorflow", "torch")
def test_the_ceiling_of_fit_trains_like_fit_on_one_batch_again_and_again():
    x, y = training.images(300)
    again = np.tile(x[:128], (3, 1, 1)), np.tile(y[:128], 3)
    ceiling = trained(training.BY_STEPS[BACKEND][1], x, y)
    assert_same(ceiling, trained(training.by_fit, *again, shuffle=False))


@pytest.mark.backend("torch")
def test_the_data_of_the_tutorial_is_what_batches_gives_bit_for_bit():
    import tensorflow as tf

    x, y = training.images(500)
    batches = Batches(x, y, 128, shuffle=False)
    tutorial = tf.data.Dataset.from_tensor_slices((x, y)).map(
        lambda image, label: (tf.cast(image, tf.float32) / 255.0, label)
    )
    for ours, theirs in zip(
        batches.as_dataset(), tutorial.batch(128).as_numpy_iterator(), strict=True
    ):
        assert ours[0].numpy().tobytes() == theirs[0].tobytes()
        assert ours[1].numpy().tolist() == theirs[1].tolist()


@pytest.mark.backend("torch")
def test_batches_of_a_large_file_take_a_bounded_memory():
    # A gigabyte on disk; a copy of it would take ten times what is allowed here.
    growth, rows = memory.peak_growth(1.0, steps=60)
    assert rows > 1_200_000
    assert growth < 100e6


@pytest.mark.backend("torch")
def test_the_measure_of_memory_sees_a_copy():
    # Negative control.
    before = memory.private_bytes()
    copy = np.ones(20_000_000)
    assert memory.private_bytes() - before > 150e6
    assert copy.sum() == 20_000_000


@pytest.mark.backend("torch")
def test_the_ratio_is_the_median_of_neighbouring_runs():
    made = row("r", {"a": [1.0, 2.0, 30.0], "b": [2.0, 2.0, 3.0]}, "a", "b")
    assert made["ratio"] == 1.0  # of 0.5, 1 and 10
    assert made["spread"][0] == 0.5


@pytest.mark.backend("torch")
def test_what_fails_is_a_row_that_says_so(monkeypatch):
    (missing,) = in_backend("benchmarks.no_such_module", "jax", True)
    assert missing["ratio"] is None
    assert "No module named" in missing["detail"]

    def fail(quick):
        raise RuntimeError("disk full")

    monkeypatch.setattr(memory, "rows", fail)
    (failed,) = suite.measure("memory", quick=True)
    assert failed["detail"] == "not run: RuntimeError: disk full"


RESULTS = {
    "command": "python -m benchmarks",
    "machine": {"cores": "2"},
    "rows": [
        {
            **{"module": "losses", "name": "one", "ratio": 0.5, "spread": [0.4, 0.6]},
            **{"unit": "time of a / time of b", "target": "at most 0.6"},
            "detail": "fast",
        },
        {"module": "gpu", **not_run("two", "no GPU")},
    ],
}


@pytest.mark.backend("torch")
def test_the_tables_are_published_between_the_marks_and_compared(tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n\n{_page.BEGIN}\n\nold\n\n{_page.END}\n\nafter\n")
    earlier = {"rows": [{"name": "one", "ratio": 0.25}]}
    _page.publish(RESULTS, earlier, page)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "| one | 0.5 (was 0.25) | 0.4 to 0.6 |" in text
    assert "| two | not run |" in text
    assert json.loads((tmp_path / "benchmarks.json").read_text()) == RESULTS
    _page.publish({**RESULTS, "command": "again"}, None, page)  # the marks are there
    assert "again" in page.read_text()


@pytest.mark.backend("torch")
def test_the_page_has_a_picture_and_a_folded_table_for_each_topic_that_has_rows():
    text = _page.text(RESULTS)
    # Nothing of "Training" has a ratio to draw; "Losses" meets its one target.
    assert re.findall(r"^!\[.*1 of 1 targets.*\]\((.*)\)$", text, re.MULTILINE) == [
        "figures/benchmarks-losses.png"
    ]
    assert re.findall("<summary>(.*)</summary>", text) == [
        "Training: 1 rows",
        "Losses: 1 rows",
    ]
    assert text.index("![") < text.index("<details")


@pytest.mark.backend("torch")
def test_the_published_page_has_the_numbers_of_the_published_json():
    results = json.loads(_page.PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    page = _page.PAGE.read_text(encoding="utf-8")
    _, _, rest = page.partition(_page.BEGIN)
    assert rest.partition(_page.END)[0].strip() == _page.text(results)
    assert page.count("\n| ") > len(results["rows"])
    assert not re.search(r"\de[+-]\d", rest.partition(_page.END)[0])


@pytest.mark.backend("torch")
def test_the_readme_says_how_fast_as_the_published_json_does():
    results = json.loads(_page.PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    ratio = {row["name"]: row["ratio"] for row in results["rows"]}
    epoch = "epoch of 60,000 images on tensorflow, wall"
    plain, fused = 1 / ratio[epoch], 1 / ratio[f"{epoch}, FusedModel"]
    readme = " ".join((_page.PAGE.parents[1] / "README.md").read_text("utf-8").split())
    assert f"{plain:.1f} times as fast" in readme
    assert f"{fused:.1f} times" in readme


@pytest.mark.backend("torch")
@pytest.mark.parametrize(
    ("words", "ratio"),
    [
        ("at most 0.4", 0.4),
        ("at most 1: fewer steps", 1.0),
        ("at most 0.02 (6 ms beside 340)", 0.02),
        ("at most 50 ms more", None),
        ("4 to 16 in proportion", None),
        ("", None),
    ],
)
def test_a_target_is_drawn_only_where_it_is_a_ratio(words, ratio):
    assert _page.target({"target": words}) == ratio


@pytest.mark.backend("torch")
@pytest.mark.parametrize(
    ("value", "text"),
    [(1256.3, "1260"), (1.0, "1"), (0.0025812, "0.00258"), (12_481_000, "12500000")],
)
def test_a_number_has_three_digits_and_no_exponent(value, text):
    assert number(value) == text


@pytest.mark.backend("torch")
def test_the_pictures_are_drawn_of_every_topic(program, tmp_path):
    program("docs/figures/ratios.py").main(tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {_page.picture(topic) for topic in _page.TOPICS}


@pytest.mark.backend("torch")
def test_the_cost_of_a_job_is_drawn_once_it_was_measured(
    program, tmp_path, monkeypatch
):
    cases, found = [], {"shards": 4 * 10**6}
    for what in ("committed at once", "committed beside the training", "restored"):
        found[what] = {"memory": 10**6, "seconds": 0.5}
    monkeypatch.setattr(
        sharded, "measured", lambda *case: cases.append(case) or [found] * case[0]
    )
    rows = sharded.rows()
    assert {(1, 10**8), (8, 10**8), (4, 10**7), (4, 10**9)} <= set(cases)
    assert rows[0]["ratio"] == 0.25
    figure, results = program("docs/figures/sharded.py"), tmp_path / "results.json"
    assert figure.along(rows, "processes", "weights")[0] == 10**8
    assert figure.along(rows, "weights", "processes")[0] == 4
    # A bar is for ratios of times, and these rows have none.
    assert _page.drawn(rows) == []
    for kept, files in (([], []), (rows, ["sharded.png"])):
        results.write_text(json.dumps({"rows": kept}))
        figure.main(tmp_path, results)
        assert [path.name for path in tmp_path.glob("*.png")] == files


@pytest.mark.backend("torch")
def test_the_figure_of_accuracies_has_a_mark_for_each_run(
    program, tmp_path, monkeypatch
):
    figure, results = program("docs/figures/accuracy.py"), tmp_path / "results.json"
    epochs = [{"epoch": n, "accuracy": 0.8, "seconds": 10.0 * n} for n in (1, 2, 3)]
    runs = {"tutorial": [epochs, epochs], "short, on JAX": [[0.9, 3.0], [0.91, 4.0]]}
    results.write_text(json.dumps(runs))
    marks = []
    monkeypatch.setattr(
        figure.plt, "close", lambda drawn: marks.extend(drawn.axes[0].lines)
    )
    figure.main(tmp_path, results)
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    points = [line.get_xydata().tolist() for line in marks]
    assert points[:2] == [[[10.0, 80.0], [20.0, 80.0], [30.0, 80.0]]] * 2
    assert points[2] == [[3.0, 90.0], [4.0, 91.0]]


@pytest.mark.backend("torch")
def test_the_table_counts_the_weights_of_each_network():
    weights = accuracy.number_of_weights()
    assert set(weights) == {"tutorial", *accuracy.RECIPES}
    sizes = (784, 256, 128, 64, 32, 10)
    assert weights["tutorial"] == sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    assert weights["moved"] == 99_002
    assert weights["wide"] == 293_594


@pytest.mark.backend("torch")
def test_only_the_seeds_that_are_missing_are_run(monkeypatch):
    ran = []

    def recipe(name, backend, seed):
        ran.append((name, seed))
        return 0.9, 1.0

    monkeypatch.setattr(accuracy, "recipe", recipe)
    results = {"mirrored": [[0.92, 9.0]], "residual_8": [[0.924, 280.8]]}
    lengths = [
        len(results["mirrored"])
        for _ in accuracy.measure({"mirrored": 3, "dense, on JAX": 1}, 1, results)
    ]
    assert ran == [("dense", 0), ("mirrored", 1), ("mirrored", 2)]
    assert lengths == [1, 2, 3]
    assert results["residual_8"] == [[0.924, 280.8]]


@pytest.mark.backend("torch")
def test_the_suite_has_every_module_and_a_row_for_the_gpu():
    topics = [name for names in _page.TOPICS.values() for name in names]
    assert [*suite.modules(), "gpu"] == sorted(
        topics, key=lambda name: (name == "gpu", topics.index(name))
    )
    assert suite.modules()[0] == "training"
    assert "growth" in suite.modules()
    assert suite.gpu_row()["ratio"] is None


@pytest.mark.backend("torch")
def test_rows_of_one_module_take_the_place_of_its_earlier_ones():
    def rows(**of):
        return [{"module": m, "name": n} for m, names in of.items() for n in names]

    before = {"command": "all", "rows": rows(a="xy", b="z", c="w"), "machine": {}}
    later = {"command": "some", "rows": rows(b="uv", d="t"), "machine": {"cores": 2}}
    found = suite.merged(later, before)
    assert found["rows"] == rows(a="xy", b="uv", c="w", d="t")
    assert found["machine"] == {"cores": 2}
    assert found["command"] == "all` and, later, `some"
