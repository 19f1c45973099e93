"""The map function, the checks of arrays, and stratified splits."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmkit import preprocess, preprocessing

BYTES = np.arange(256, dtype=np.uint8)


def numpy_of(tensor):
    return keras.ops.convert_to_numpy(tensor)


# --- preprocess ---------------------------------------------------------------


def test_pixels_become_float32_in_unit_range_and_labels_int32():
    x, y = preprocess(BYTES.reshape(1, 16, 16), np.array([9], np.uint8))
    assert x.dtype == np.float32
    assert y.dtype == np.int32
    assert x.shape == (1, 16, 16)
    assert (x.min(), x.max()) == (0.0, 1.0)


def test_each_byte_is_the_correctly_rounded_quotient():
    # float64 division rounded once to float32: an independent route to the same bits.
    expected = (BYTES.astype(np.float64) / 255.0).astype(np.float32)
    np.testing.assert_array_equal(preprocess(BYTES), expected)


def test_multiplying_by_the_reciprocal_would_differ():
    # Negative control for the test above, and the figure in the docstring.
    multiplied = BYTES.astype(np.float32) * np.float32(1 / 255)
    assert int((preprocess(BYTES) != multiplied).sum()) == 126


@pytest.mark.backend("tensorflow")
def test_a_batch_equals_the_tutorials_map_on_each_sample_bit_for_bit():
    import tensorflow as tf

    def tutorial(x, y):
        x = tf.cast(x, dtype=tf.float32) / 255.0
        y = tf.cast(y, dtype=tf.int32)
        return x, y

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 28, 28)).astype(np.uint8)
    labels = rng.integers(0, 10, 64).astype(np.uint8)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    theirs = next(iter(dataset.map(tutorial).batch(64).as_numpy_iterator()))
    for ours in (
        next(iter(dataset.batch(64).map(preprocess).as_numpy_iterator())),
        next(iter(dataset.map(preprocess).batch(64).as_numpy_iterator())),
        preprocess(images, labels),
    ):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert ours[0].dtype == theirs[0].dtype
        assert ours[1].dtype == theirs[1].dtype


def test_tensors_of_the_backend_give_tensors_equal_to_the_last_bit_but_one():
    x, y = preprocess(
        keras.ops.convert_to_tensor(BYTES), keras.ops.convert_to_tensor([3])
    )
    assert keras.ops.is_tensor(x)
    # One unit: XLA turns a division by a constant into a multiplication.
    np.testing.assert_array_max_ulp(numpy_of(x), preprocess(BYTES), 1)
    assert keras.backend.standardize_dtype(y.dtype) == "int32"


def test_without_labels_only_x_comes_back():
    assert isinstance(preprocess(BYTES), np.ndarray)


@pytest.mark.parametrize("bad", [np.array(["a"]), np.array([object()])])
def test_values_that_are_no_numbers_are_refused(bad):
    with pytest.raises(
        TypeError, match=r"`x` must hold numbers, got an array of dtype"
    ):
        preprocess(bad)


@pytest.mark.parametrize("bad", [[0.5], [np.nan], [2.0**40]])
def test_labels_that_are_not_whole_int32_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="Labels must be whole numbers"):
        preprocess(BYTES, np.array(bad))


# --- Preprocess ---------------------------------------------------------------


def test_the_symmetric_range_ends_at_minus_one_and_one():
    x = preprocessing.Preprocess(127.5, 127.5)(BYTES)
    assert (x[0], x[-1]) == (-1.0, 1.0)
    np.testing.assert_array_equal(
        x, ((BYTES.astype(np.float64) - 127.5) / 127.5).astype(np.float32)
    )


@pytest.mark.parametrize("kind", ["numpy", "backend"])
@pytest.mark.parametrize(
    ("options", "of_sample", "of_batch"),
    [
        ({"flatten": True}, (12,), (2, 12)),
        ({"channel_axis": "last"}, (3, 4, 1), (2, 3, 4, 1)),
        ({"channel_axis": "first"}, (1, 3, 4), (2, 1, 3, 4)),
        ({}, (3, 4), (2, 3, 4)),
    ],
)
def test_one_sample_and_a_batch_get_the_same_shape_per_sample(
    kind, options, of_sample, of_batch
):
    mapper = preprocessing.Preprocess(**options)
    batch = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    convert = keras.ops.convert_to_tensor if kind == "backend" else np.asarray
    sample, both = mapper(convert(batch[1])), mapper(convert(batch))
    assert tuple(sample.shape) == of_sample
    assert tuple(both.shape) == of_batch
    np.testing.assert_array_equal(numpy_of(sample), numpy_of(both)[1])


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize(
    "options", [{"flatten": True}, {"channel_axis": "first"}, {"num_classes": 10}]
)
def test_options_hold_inside_dataset_map_with_an_unknown_batch_size(options):
    import tensorflow as tf

    mapper = preprocessing.Preprocess(127.5, 127.5, **options)
    x = np.random.default_rng(1).integers(0, 256, (5, 4, 4)).astype(np.uint8)
    y = np.arange(5)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2).map(mapper)
    batches = list(dataset.as_numpy_iterator())
    assert dataset.element_spec[0].shape[1:].is_fully_defined()
    ours = mapper(x, y)
    for part in (0, 1):
        np.testing.assert_array_equal(
            np.concatenate([batch[part] for batch in batches]), ours[part]
        )


def test_standardized_training_data_has_mean_zero_and_deviation_one():
    x = np.random.default_rng(2).integers(0, 256, (50, 3, 3)).astype(np.uint8)
    for per, axis in (("dataset", None), ("feature", 0)):
        out = preprocessing.Preprocess.standardize(x, per=per)(x)
        np.testing.assert_allclose(out.mean(axis=axis), 0, atol=1e-6)
        np.testing.assert_allclose(out.std(axis=axis), 1, atol=1e-6)


def test_a_pixel_that_never_changes_becomes_zero_not_nan():
    x = np.full((5, 2), 7, np.uint8)
    x[:, 1] = [1, 2, 3, 4, 5]
    out = preprocessing.Preprocess.standardize(x, per="feature")(x)
    np.testing.assert_array_equal(out[:, 0], 0)
    assert np.isfinite(out).all()


def test_one_hot_rows_are_float32():
    _, y = preprocessing.Preprocess(num_classes=3)(BYTES[:2], np.array([2, 0]))
    np.testing.assert_array_equal(y, [[0, 0, 1], [1, 0, 0]])
    assert y.dtype == np.float32


@pytest.mark.parametrize("label", [-1, 3])
def test_one_hot_refuses_a_label_outside_the_classes(label):
    with pytest.raises(ValueError, match=rf"0 \.\. 2 .*got labels from {label} to"):
        preprocessing.Preprocess(num_classes=3)(BYTES[:1], np.array([label]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0}, "`std` divides"),
        ({"std": np.array([1.0, np.nan])}, "`std` divides"),
        ({"mean": np.inf}, "`mean` must be finite"),
        ({"channel_axis": "middle"}, "'first', 'last' or None"),
        ({"flatten": True, "channel_axis": "last"}, "leaves no axis"),
        ({"num_classes": 0}, "at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        preprocessing.Preprocess(**options)


@pytest.mark.parametrize("x", [np.zeros((0, 2)), np.array([np.nan, 1.0])])
def test_standardize_refuses_data_without_statistics(x):
    with pytest.raises(ValueError, match="`x_train`"):
        preprocessing.Preprocess.standardize(x)


def test_standardize_takes_one_of_two_words():
    with pytest.raises(ValueError, match="'dataset' or 'feature', got per='pixel'"):
        preprocessing.Preprocess.standardize(BYTES, per="pixel")


def test_a_tensor_is_mapped_as_an_array_is():
    to_unit = preprocessing.Preprocess(mean=100.0, std=50.0, sample_rank=1)
    found = numpy_of(to_unit(keras.ops.convert_to_tensor(BYTES)))
    np.testing.assert_allclose(found, to_unit(BYTES), rtol=1e-6, atol=1e-7)


def test_flatten_names_what_is_too_flat():
    flat = preprocessing.Preprocess(flatten=True)
    with pytest.raises(ValueError, match=r"last 2 axes .* has shape \(256,\)"):
        flat(BYTES)


@pytest.mark.backend("tensorflow")
def test_flatten_refuses_samples_of_no_fixed_shape():
    import tensorflow as tf

    images = tf.data.Dataset.from_generator(
        lambda: [np.zeros((2, 3))],
        output_signature=tf.TensorSpec((None, None), tf.float32),
    )
    with pytest.raises(ValueError, match="samples of a fixed shape"):
        images.map(preprocessing.Preprocess(flatten=True))


def test_a_map_is_shown_as_it_would_be_typed():
    shown = repr(preprocessing.Preprocess(std=np.array([1.0, 2.0]), num_classes=3))
    assert shown == (
        "Preprocess(mean=0.0, std=<array of shape (2,)>, sample_rank=2, num_classes=3)"
    )


# --- check_arrays -------------------------------------------------------------


def clean(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 4, 4)).astype(np.uint8), np.arange(n) % 2


def test_clean_data_has_no_problem_and_no_note():
    report = preprocessing.check_arrays(
        train=clean(), test=clean(seed=1), num_classes=2, value_range=(0, 255)
    )
    assert report.ok
    assert report.notes == []
    report.raise_for_problems()
    assert "No problem found." in str(report)
    assert "train  x (20, 4, 4) uint8 in [" in str(report)


def damage(change):
    x, y = clean()
    x, y = x.astype(np.float32), y.copy()
    return change(x, y)


def put(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:-1]), "train: 20 samples but 19 labels."),
        (lambda x, y: (x[:0], y[:0]), "train: no samples."),
        (
            lambda x, y: (put(x, (3, 1, 2), np.nan), y),
            "train: 1 values of x are NaN or infinite (first at index (3, 1, 2)).",
        ),
        (
            lambda x, y: (put(x, 0, 256), y),
            "train: x must lie in [0, 255], got [",
        ),
        (
            lambda x, y: (x, put(y, 5, 2)),
            "train: labels must lie in 0 .. 1, got 0 .. 2 (first at index 5).",
        ),
        (
            lambda x, y: (x, put(y, 0, -1)),
            "train: labels must lie in 0 .. 1, got -1 .. 1 (first at index 0).",
        ),
        (lambda x, y: (x, y + 0.5), "train: y must hold whole numbers"),
        (lambda x, y: (x.astype(str), y), "train: x holds <U"),
        (lambda x, y: (x, y.astype(str)), "train: y must be labels of shape (n,)"),
        (lambda x, y: (x, np.ones((20, 2))), "must be one-hot"),
        (lambda x, y: (x, np.full((20, 2), [1.5, -0.5])), "no number below 0"),
    ],
)
def test_each_fault_is_named_with_its_place(change, message):
    report = preprocessing.check_arrays(
        train=damage(change), num_classes=2, value_range=(0, 255)
    )
    assert any(
        problem.startswith(message) or message in problem for problem in report.problems
    ), report.problems
    with pytest.raises(ValueError, match="can't be trained on"):
        report.raise_for_problems()


def test_splits_of_another_shape_or_dtype_are_problems():
    x, y = clean()
    report = preprocessing.check_arrays(
        train=(x, y), test=(x[:, :3].astype(np.float32), y)
    )
    assert report.problems == [
        "test: samples of shape (3, 4), but train has (4, 4).",
        "test: x is float32, but train has uint8.",
    ]


def test_leaks_and_repeats_are_counted_and_located():
    x, y = clean()
    x_test, y_test = clean(seed=1)
    x_test[4] = x[7]
    y_test[4] = 1 - y[7]
    x[9] = x[2]
    y[9] = y[2]
    report = preprocessing.check_arrays(train=(x, y), test=(x_test, y_test))
    assert report.ok
    assert report.notes[-3:] == [
        "1 sample of test also in train: a leak.",
        "train: 1 sample repeated.",
        "1 repeated sample with another label.",
    ]
    assert report.duplicates == [
        (("train", 7), ("test", 4)),
        (("train", 2), ("train", 9)),
    ]


def test_a_missing_class_and_imbalance_are_noted():
    x, _ = clean()
    y = np.array([0] * 18 + [2] * 2)
    notes = preprocessing.check_arrays(train=(x, y), num_classes=3).notes
    assert "train: no sample of class 1." in notes
    assert any("unbalanced, 2 to 18" in note for note in notes)


def test_one_hot_and_column_labels_are_read_as_labels():
    x, y = clean()
    mixed = np.float32(0.7) * np.eye(2, dtype="float32")[y] + np.float32(0.15)
    for labels in (np.eye(2)[y], mixed, y[:, None], y.astype(float)):
        report = preprocessing.check_arrays(train=(x, labels), num_classes=2)
        assert report.ok, report.problems
        assert "per class: 10 10" in str(report)


def test_what_is_not_a_pair_of_arrays_is_refused():
    with pytest.raises(TypeError, match="at least one split"):
        preprocessing.check_arrays()
    with pytest.raises(TypeError, match="`train` must be a pair"):
        preprocessing.check_arrays(train=np.zeros(3))


# --- split --------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    y=st.lists(st.integers(0, 4), min_size=2, max_size=80),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32),
)
def test_a_split_is_stratified_complete_and_of_the_exact_size(y, fraction, seed):
    y = np.array(y)
    x = np.arange(len(y))
    wanted = round(fraction * len(y))
    if wanted in (0, len(y)):
        with pytest.raises(ValueError, match="leaves one part empty"):
            preprocessing.split(x, y, fraction, seed=seed)
        return
    (x_train, y_train), (x_val, y_val) = preprocessing.split(x, y, fraction, seed=seed)
    assert sorted([*x_train, *x_val]) == list(x)
    np.testing.assert_array_equal(y[x_val], y_val)
    np.testing.assert_array_equal(y[x_train], y_train)
    assert len(y_val) == wanted
    for label in np.unique(y):
        share = fraction * (y == label).sum()
        assert abs((y_val == label).sum() - share) < 1 + 1e-9
    assert (np.diff(x_val) > 0).all()


def test_the_split_of_a_seed_is_fixed_for_ever():
    # Written down once; another Python, NumPy or platform must draw the same.
    golden = [1, 7, 11, 12, 27, 29]
    y = np.arange(30) % 3
    _, (x_val, _) = preprocessing.split(np.arange(30), y, 0.2, seed=42)
    assert x_val.tolist() == golden
    _, (other, _) = preprocessing.split(np.arange(30), y, 0.2, seed=43)
    assert other.tolist() != golden


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(3), np.zeros(4, int)), "same length"),
        ((np.zeros(3), np.zeros(3)), "integer labels"),
        ((np.zeros((3, 2)), np.eye(3, dtype=int)), r"y.argmax\(-1\)"),
        ((np.zeros(3), np.zeros(3, int), 1.0), "`validation_split`"),
        ((np.zeros(3), np.zeros(3, int), 0.01), "leaves one part empty"),
    ],
)
def test_bad_splits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        preprocessing.split(*arguments)


def test_a_report_is_an_array_report():
    assert isinstance(
        preprocessing.check_arrays(train=clean()), preprocessing.ArrayReport
    )


def test_dense_labels_stay_beside_whole_numbers_that_become_one_hot():
    to_network = preprocessing.Preprocess(num_classes=3)
    dense = np.array([[0.25, 0.0, 0.75]])
    for labels in (dense, keras.ops.convert_to_tensor(dense)):
        found = to_network.map_y(labels)
        assert keras.backend.standardize_dtype(found.dtype) == "float32"
        assert np.asarray(keras.ops.convert_to_numpy(found)).tolist() == dense.tolist()
    assert to_network.map_y(np.array([2])).tolist() == [[0.0, 0.0, 1.0]]
    # Floats of another length are labels, as before.
    assert to_network.map_y(np.array([2.0, 0.0])).shape == (2, 3)
    with pytest.raises(ValueError, match="whole numbers"):
        to_network.map_y(np.array([0.5, 1.0]))


def test_dense_labels_have_as_many_classes_as_columns():
    y = np.eye(3)[[0, 1]]
    report = preprocessing.check_arrays(
        train=(np.zeros((2, 1)), y), test=(np.ones((2, 1)), y)
    )
    assert report.problems == []


def test_labels_too_large_to_be_counted_are_a_problem_and_no_error():
    x, y = np.zeros((2, 1)), np.array([0, 2**50])
    for options in ({"num_classes": 3}, {}):
        report = preprocessing.check_arrays(train=(x, y), **options)
        assert len(report.problems) == 1, report.problems


def test_equal_values_are_a_leak_whatever_their_bytes():
    x = np.array([[0.0, 1.0], [2.0, 3.0]], "float32")
    for same in (x.astype(">f4"), np.where(x == 0, -x, x)):
        assert same.tobytes() != x.tobytes()
        report = preprocessing.check_arrays(train=(x, [0, 1]), test=(same, [0, 1]))
        assert any("leak" in note for note in report.notes)


def test_a_feature_that_never_changes_has_deviation_1():
    x = np.full((3, 1), 0.1)
    assert x.std(axis=0, dtype=np.float64)[0] != 0  # the mean rounds
    scaled = preprocessing.Preprocess.standardize(x, per="feature")(np.array([[0.2]]))
    assert float(scaled[0, 0]) == pytest.approx(0.1)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="nothing to split"):
        preprocessing.split(np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(ValueError, match=r"below 2\*\*64"):
        preprocessing.split(np.zeros((4, 2)), np.array([0, 0, 1, 1]), 0.5, seed=2**64)
    parts = [
        preprocessing.split(np.arange(100), np.zeros(100, int), 0.5, seed=seed)[1][
            0
        ].tolist()
        for seed in (2**63, 2**63 + 1)
    ]
    assert parts[0] != parts[1]
