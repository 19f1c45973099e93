"""Ready-made augmentations: each one's direction, range and formula by drawn cases."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from contracts import assert_complete
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fmkit import augmentation, losses
from fmkit.augmentation import (
    AlternatingFlip,
    Brightness,
    Contrast,
    CutMix,
    Cutout,
    GaussianNoise,
    HorizontalFlip,
    Mixup,
    RandomErasing,
    RotateScale,
    Shift,
    augment,
)
from fmkit.data import Batches
from fmkit.preprocessing import Preprocess

ROWS, CLASSES = 60, 5
FUNCTIONS = {
    "HorizontalFlip": HorizontalFlip(0.4),
    "AlternatingFlip": AlternatingFlip(),
    "Shift": Shift(3),
    "RandomErasing": RandomErasing(0.8, value="random"),
    "Cutout": Cutout(4, value=7),
    "Brightness": Brightness(40),
    "Contrast": Contrast(0.2, 3.0),
    "GaussianNoise": GaussianNoise(10.0),
    "RotateScale": RotateScale(15.0, (0.8, 1.2)),
    "Mixup": Mixup(CLASSES, 0.7),
    "CutMix": CutMix(CLASSES),
}
numpy_only = pytest.mark.backend("torch")


def pictures(dtype="uint8", channels=()):
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (ROWS, 9, 12, *channels)).astype(dtype)
    return x, rng.randint(0, CLASSES, ROWS)


def augmented(
    function, x, y=None, *, epoch=0, index=None, source=None, overwrite=False
):
    """Augment rows; other samples come from `source`."""
    from_x, from_y = source or (x, y)
    return augment(
        x,
        y,
        function,
        seed=3,
        epoch=epoch,
        index=np.arange(len(x)) if index is None else index,
        read=lambda places: (from_x[places], from_y[places]),
        size=len(from_x),
        overwrite=overwrite,
    )


def same(ours, theirs):
    return all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        for a, b in zip(ours, theirs, strict=True)
    )


# What all of them must do


@numpy_only
def test_every_function_has_a_row():
    assert_complete(FUNCTIONS, set(augmentation.__all__) - {"Draws", "augment"})


@numpy_only
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", ">f4", "float64"])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_a_row_alone_is_as_in_a_block_and_what_came_in_is_left(name, dtype, channels):
    x, y = pictures(dtype, channels)
    before = x.copy(), y.copy()
    whole = augmented(FUNCTIONS[name], x, y)
    assert same((x, y), before)
    assert whole[0].dtype == x.dtype
    assert whole[0].shape == x.shape
    assert (whole[0] != x).any(axis=tuple(range(1, x.ndim))).mean() > 0.2
    for i in (0, 7, 59):
        row = slice(i, i + 1)
        alone = augmented(FUNCTIONS[name], x[row], y[row], index=[i], source=(x, y))
        assert same(alone, (whole[0][row], whole[1][row]))
    # Controls: another index and, but for what alternates, another epoch differ.
    moved = augmented(FUNCTIONS[name], x, y, index=np.arange(ROWS) + 1)
    assert not same(moved, whole)
    assert not same(augmented(FUNCTIONS[name], x, y, epoch=1), whole)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_batch_size_shard_and_start_change_nothing(name):
    x, y = pictures()
    functions = [HorizontalFlip(), FUNCTIONS[name]]

    def read(size, epoch, start=0, shard=(0, 1)):
        batches = Batches(x, y, size, augment=functions, map=None, shard=shard)
        order = batches.order(epoch)[start * size :]
        batches.seek(epoch, start)
        parts = [np.concatenate(part) for part in zip(*batches, strict=True)]
        return {i: (a.tobytes(), b.tobytes()) for i, a, b in zip(order, *parts)}  # noqa: B905

    whole = read(60, 2)
    assert len(whole) == ROWS
    assert read(7, 2) == whole
    assert read(7, 2, start=5).items() < whole.items()
    shards = [read(5, 2, shard=(i, 3)) for i in range(3)]
    assert shards[0] | shards[1] | shards[2] == whole
    assert read(60, 3) != whole


@numpy_only
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_empty_block_stays_empty(name):
    x, y = pictures("float32", (3,))
    found, labels = augmented(FUNCTIONS[name], x[:0], y[:0], source=(x, y))
    assert found.shape == (0, 9, 12, 3)
    assert len(labels) == 0


@numpy_only
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_number_of_threads_changes_nothing(name):
    x, y = pictures()
    batches = Batches(x, y, 7, augment=[HorizontalFlip(), FUNCTIONS[name]], map=None)

    def read(threads):
        def step(number):
            return next(batches._reader.batches(2, number, number + 1))

        with ThreadPoolExecutor(threads) as pool:
            return [part for pair in pool.map(step, range(9)) for part in pair]

    one = read(1)
    for threads in (2, 5):
        assert same(read(threads), one)


def rows_by_key(x, y):
    """Return a function of the key of a sample, for pipelines of others."""

    def row(key, *_):
        epoch, i = divmod(int(key), ROWS)
        pair = augment(
            x[i : i + 1],
            y[i : i + 1],
            [*FUNCTIONS.values()],
            seed=3,
            epoch=epoch,
            index=[i],
            read=lambda places: (x[places], y[places]),
            size=ROWS,
        )
        return tuple(part[0] for part in pair)

    return row


def two_epochs(x, y):
    functions = [*FUNCTIONS.values()]
    batches = Batches(x, y, 8, seed=3, augment=functions, map=None, shuffle=False)
    parts = zip(*[pair for _ in range(2) for pair in batches], strict=True)
    return [np.concatenate(part) for part in parts]


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("threads", [1, 3])
def test_tf_data_makes_the_same_pictures_and_labels_by_their_keys(threads):
    import tensorflow as tf

    x, y = pictures()
    rows = tf.data.Dataset.range(2 * ROWS).map(
        lambda key: tf.numpy_function(rows_by_key(x, y), [key], [tf.uint8, tf.float32]),
        num_parallel_calls=threads,
    )
    found = zip(*rows.as_numpy_iterator(), strict=True)
    assert same([np.stack(part) for part in found], two_epochs(x, y))


@numpy_only
@pytest.mark.needs("grain")
def test_grain_makes_the_same_pictures_and_labels_by_their_keys():
    import grain

    x, y = pictures()
    rows = grain.MapDataset.source(x).repeat(2).map_with_index(rows_by_key(x, y))
    found = [np.stack(part) for part in zip(*rows, strict=True)]
    expected = two_epochs(x, y)
    assert same(found, expected)
    # Negative control: the second epoch differs from the first.
    assert not same([expected[0][:ROWS]], [expected[0][ROWS:]])


@numpy_only
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_overwriting_gives_the_same_pictures(name, dtype, order):
    x, y = pictures(dtype, (3,))
    functions = [HorizontalFlip(), FUNCTIONS[name], Cutout(3)]
    expected = augmented(functions, x, y)
    given = np.array(x, order=order)
    found = augmented(functions, given, y, source=(x, y), overwrite=True)
    assert same(found, expected)
    # What comes first changes the pictures themselves, if they lie row by row.
    assert same([given], [x]) == (order == "F")


class Backwards(HorizontalFlip):
    """A flip with a way of its own."""

    def __call__(self, x, y, draws):
        return x[:, ::-1], y


@numpy_only
def test_overwriting_leaves_what_others_may_hold():
    x, y = pictures()
    seen = []

    def keep(x, y, draws):
        seen.append(x)
        return x, y

    augmented([keep, HorizontalFlip(1.0)], x, y, overwrite=True)
    assert same(seen, [pictures()[0]])
    # Read-only pictures are copied, and a subclass may do it its own way.
    x.flags.writeable = False
    expected = augmented(HorizontalFlip(1.0), x, y)
    assert same(augmented(HorizontalFlip(1.0), x, y, overwrite=True), expected)
    found, _ = augmented(Backwards(), x, y, overwrite=True)
    assert np.array_equal(found, x[:, ::-1])


@numpy_only
def test_batches_leave_the_arrays_they_are_made_from():
    x, y = pictures()
    functions = [HorizontalFlip(), Cutout(4), Mixup(CLASSES), HorizontalFlip()]
    batches = Batches(x, y, 7, augment=functions, map=None)
    first = np.concatenate([rows for rows, _ in batches])
    batches.seek(0)
    assert np.array_equal(np.concatenate([rows for rows, _ in batches]), first)
    assert same((x, y), pictures())


def test_a_network_learns_from_all_of_them_with_dense_labels():
    x, y = pictures()
    model = keras.Sequential(
        [keras.Input((9, 12)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    )
    model.compile("sgd", losses.CrossentropyFromLogits())
    data = Batches(
        x, y, 20, augment=[*FUNCTIONS.values()], map=Preprocess(num_classes=CLASSES)
    )
    labels = data.peek()[1]
    np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=1e-6)
    assert ((labels > 0) & (labels < 1)).any()
    history = model.fit(data, epochs=1, validation_data=data, verbose=0).history
    assert np.isfinite(history["loss"] + history["val_loss"]).all()
    # Validation has whole pictures and one-hot labels.
    one_hot = np.eye(CLASSES, dtype="float32")[y]
    expected = model.evaluate(x / np.float32(255), one_hot, verbose=0)
    assert model.evaluate(data, verbose=0) == pytest.approx(expected, rel=1e-5)


# Mirrors


@numpy_only
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(28, 28), (8, 8, 1), (6, 7), (2, 3), (8, 4, 3)])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_mirrored_picture_is_the_picture_backwards(dtype, shape, rows):
    x = np.random.default_rng(0).integers(0, 127, (rows, *shape)).astype(dtype)
    for each in (x, np.asfortranarray(x)):
        found = augmented(HorizontalFlip(1.0), each)[0]
        assert found.dtype == x.dtype
        assert (found == x[:, :, ::-1]).all()


@numpy_only
def test_a_flip_mirrors_left_to_right_and_half_of_the_pictures():
    x = np.arange(12, dtype=np.uint8).reshape(1, 3, 4).repeat(2000, axis=0)
    found = augmented(HorizontalFlip(1.0), x)[0]
    assert found[0].tolist() == [[3, 2, 1, 0], [7, 6, 5, 4], [11, 10, 9, 8]]
    assert (augmented(HorizontalFlip(0.0), x)[0] == x).all()
    share = (augmented(HorizontalFlip(), x)[0] != x).any(axis=(1, 2)).mean()
    assert share == pytest.approx(0.5, abs=0.06)


@numpy_only
def test_an_alternating_flip_shows_each_side_in_every_other_epoch():
    x, _ = pictures()
    shown = [augmented(AlternatingFlip(), x, epoch=e)[0] for e in range(4)]
    assert (shown[1] == shown[0][:, :, ::-1]).all()
    assert (shown[2] == shown[0]).all()
    assert (shown[3] == shown[1]).all()
    mirrored = (shown[0] != x).any(axis=(1, 2))
    assert 15 < mirrored.sum() < 45
    # Negative control: an independent flip shows one side twice to many.
    free = [augmented(HorizontalFlip(), x, epoch=e)[0] for e in range(2)]
    assert (free[0] == free[1]).all(axis=(1, 2)).sum() > 15


# Moves


def brightest(x):
    flat = x.reshape(len(x), -1).argmax(axis=1)
    return np.stack(np.divmod(flat, x.shape[2]), axis=1)


@numpy_only
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("channels", [(), (2,)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "longdouble"])
def test_a_shift_moves_all_pixels_by_the_same_whole_steps(mode, channels, dtype):
    rng = np.random.RandomState(0)
    x = rng.randint(0, 99, (400, 11, 13, *channels)).astype(dtype)
    x[:, 5, 6] = 255
    found = augmented(Shift(3, mode, value=200 if mode == "constant" else 0), x)[0]
    spot = found if not channels else found[..., 0]
    moves = brightest(spot) - [5, 6]
    counts = np.bincount((moves[:, 0] + 3) * 7 + moves[:, 1] + 3, minlength=49)
    assert counts.min() > 0  # all 49 moves, and no other
    assert counts.sum() == 400
    fill = {"constant_values": 200} if mode == "constant" else {}
    for i, (down, across) in enumerate(moves):
        around = ((3, 3), (3, 3), (0, 0))[: x.ndim - 1]
        padded = np.pad(x[i], around, mode, **fill)
        expected = padded[3 - down : 14 - down, 3 - across : 16 - across]
        np.testing.assert_array_equal(found[i], expected)


@numpy_only
def test_a_large_picture_is_shifted_as_a_small_one(monkeypatch):
    from fmkit.augmentation import _move

    x = np.random.RandomState(0).randint(0, 99, (40, 11, 13, 2)).astype("float32")
    expected = augmented(Shift(3, value=-0.0), x)[0]
    assert np.signbit(expected).any()
    monkeypatch.setattr(_move, "_LARGEST_TABLE", 0)
    found = augmented(Shift(3, value=-0.0), x)[0]
    assert found.tobytes() == expected.tobytes()
    for each in (Shift(3), Shift(3, value=1), RandomErasing(), Cutout(4)):
        assert augmented(each, x[:0])[0].shape == (0, 11, 13, 2)


@numpy_only
def test_a_negative_zero_fills_as_such():
    found = augmented(Cutout(4, value=-0.0), np.ones((5, 9, 9), np.float32))[0]
    assert np.signbit(found[found == 0]).all()
    assert (found == 0).any()


@numpy_only
def test_a_positive_angle_turns_to_the_left_by_as_much_as_asked():
    x = np.zeros((500, 41, 41), np.float32)
    x[:, 20, 36] = 1.0  # right of the centre
    found = augmented(RotateScale(20.0), x)[0]
    places = brightest(found) - 20
    angle = np.degrees(np.arctan2(-places[:, 0], places[:, 1]))
    assert -21.5 < angle.min() < -18 < 18 < angle.max() < 21.5
    assert abs(angle.mean()) < 2.6
    larger = augmented(RotateScale(0.0, (1.25, 1.25)), x)[0]
    assert brightest(larger)[0].tolist() == [20, 40]


@numpy_only
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_turned_picture_is_that_of_scipy(channels):
    x, _ = pictures("float32", channels)
    found = augmented(RotateScale(30.0, (0.7, 1.4), value=50.0), x)[0]
    draws = augmentation.Draws(3, 0, np.arange(ROWS))
    limit = np.tan(np.radians(15))
    angle = 2 * np.arctan(draws.uniform(-limit, limit))
    scale = draws.uniform(0.7, 1.4)
    centre = np.array([4.0, 5.5])
    for i in range(8):
        c, s = np.cos(angle[i]) / scale[i], np.sin(angle[i]) / scale[i]
        matrix = np.array([[c, s], [-s, c]])
        for channel in range(x.shape[3] if channels else 1):
            pick = (i, ..., channel) if channels else i
            # From rows and columns of the result to those of the picture.
            expected = ndimage.affine_transform(
                np.pad(x[pick], 9, constant_values=50.0),
                matrix,
                offset=centre + 9 - matrix @ (centre + 9),
                order=1,
                cval=50.0,
            )[9:-9, 9:-9]
            np.testing.assert_allclose(found[pick], expected, atol=0.01)
    assert (augmented(RotateScale(0.0), x)[0] == x).all()


@numpy_only
def test_a_large_picture_is_turned_at_its_own_pixels():
    # In float32 there is no number for every pixel of 4,200 lines as long.
    x = np.zeros((1, 4200, 4200), np.uint8)
    x[0, 4190, 4100:4110] = np.arange(1, 11)
    assert (augmented(RotateScale(0.0), x)[0] == x).all()


@numpy_only
@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(FUNCTIONS)),
    dtype=st.sampled_from(["uint8", "float32"]),
    epoch=st.integers(0, 1000),
    rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=20),
)
def test_any_rows_in_any_order_are_as_in_the_whole(name, dtype, epoch, rows):
    x, y = pictures(dtype)
    whole = augmented(FUNCTIONS[name], x, y, epoch=epoch)
    found = augmented(
        FUNCTIONS[name], x[rows], y[rows], epoch=epoch, index=rows, source=(x, y)
    )
    assert same(found, [part[rows] for part in whole])


# Digests of the pictures and labels of the first release.
PICTURES = {
    "HorizontalFlip": "548ca73f3f289fa1",
    "AlternatingFlip": "c647ab8b7aab83e0",
    "Shift": "027cfbd6be859fc2",
    "RandomErasing": "e3a84d6a4aee69ac",
    "Cutout": "c72f31b420a2043c",
    "Brightness": "c5d75f1af4e503c4",
    "Contrast": "5025879795a49a25",
    "GaussianNoise": "a30327df0a7ba3b3",
    "RotateScale": "1b7a30f43682be72",
    "Mixup": "5d1df2cf5b6e4abe",
    "CutMix": "a5be9877a32c1eec",
}


@numpy_only
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_pictures_are_those_of_every_release(name):
    found = hashlib.sha256()
    for part in augmented(FUNCTIONS[name], *pictures(), epoch=2):
        found.update(part.tobytes())
    assert found.hexdigest().startswith(PICTURES[name])


@pytest.mark.backend("tensorflow")
def test_a_dataset_of_tensorflow_has_the_same_pictures_and_labels():
    x, y = (np.concatenate([part] * 30) for part in pictures())
    functions = [*FUNCTIONS.values()]
    batches = Batches(x, y, 64, seed=3, augment=functions, map=None)
    batches.seek(4)
    for ours, theirs in zip(batches, batches.as_dataset(4), strict=True):
        assert same(ours, [part.numpy() for part in theirs])


# Erased parts


@numpy_only
def test_erasing_takes_whole_rectangles_of_the_promised_sizes():
    x = np.full((4000, 20, 30), 9, np.uint8)
    erasing = RandomErasing(0.5, (0.05, 0.3), (0.5, 2.0))
    found = augmented(erasing, x)[0] == 0
    erased = found.any(axis=(1, 2))
    assert erased.mean() == pytest.approx(0.5, abs=0.04)
    high = found.any(axis=2).sum(axis=1)[erased]
    wide = found.any(axis=1).sum(axis=1)[erased]
    area = found.sum(axis=(1, 2))[erased]
    assert (area == high * wide).all()  # a rectangle, inside the picture
    assert 0.03 < area.min() / 600 < 0.06
    assert 0.27 < area.max() / 600 < 0.33
    assert area.mean() / 600 == pytest.approx(0.175, abs=0.01)
    assert 0.4 < (high / wide).min() < 0.6
    assert 1.7 < (high / wide).max() < 2.4
    # Anywhere: the middle more often, and each corner at times.
    assert found[:, [0, 0, -1, -1], [0, -1, 0, -1]].any(axis=0).all()
    random = augmented(RandomErasing(1.0, value="random"), x)[0]
    assert np.unique(random).size == 256
    floats = augmented(RandomErasing(1.0, value="random"), x.astype("float32"))[0]
    assert np.unique(floats[floats != 9]).max() == 1.0


# Digests of the first release, whose loops took twice the time: bytes, and floats.
ERASED = {
    RandomErasing(0.7): ("71c1508369864b69", "b822a9908d17fc78"),
    RandomErasing(0.8, value="random"): ("8a96dab186de2057", "52d041d750fafe23"),
    RandomErasing(1.0, (0.5, 1.0), (0.2, 5.0), 7): (
        "42c93b6b3dbeebcb",
        "781c0d302917ea31",
    ),
    Cutout(4, value=7): ("3d9a261f92ed930d", "de46ce044fbd5f39"),
}


@numpy_only
@pytest.mark.parametrize("function", ERASED)
def test_the_erased_pixels_are_those_of_every_release(function):
    kinds = [("uint8", ()), ("float32", (3,))]
    for (dtype, channels), digest in zip(kinds, ERASED[function], strict=True):
        x, _ = pictures(dtype, channels)
        found, _ = augmented(function, x, epoch=2)
        assert hashlib.sha256(found.tobytes()).hexdigest().startswith(digest)


@numpy_only
@pytest.mark.parametrize("dtype", ["int8", "bool"])
def test_random_pixels_need_room_for_a_byte(dtype):
    x, _ = pictures()
    x = (x // 2).astype(dtype)
    with pytest.raises(ValueError, match=rf"0 to 255, or floats, got {dtype}: pass"):
        augmented(RandomErasing(1.0, value="random"), x)
    found, _ = augmented(RandomErasing(1.0, value=1), x)
    assert (found != x).any()


@numpy_only
def test_a_rectangle_that_never_fits_leaves_the_picture():
    x = np.ones((50, 10, 10), np.uint8)
    assert (augmented(RandomErasing(1.0, (1.0, 1.0), (3.0, 3.0)), x)[0] == 1).all()


@numpy_only
def test_cutout_erases_a_square_around_any_pixel():
    x = np.full((3000, 12, 10), 9, np.uint8)
    found = augmented(Cutout(4, value=3), x)[0] == 3
    sides = found.any(axis=2).sum(axis=1), found.any(axis=1).sum(axis=1)
    assert (found.sum(axis=(1, 2)) == sides[0] * sides[1]).all()
    assert set(sides[0]) == set(sides[1]) == {2, 3, 4}
    # Rows that a square may begin at: 12 centres.
    share = (sides[0] == 4).mean()
    assert share == pytest.approx(9 / 12, abs=0.04)


# Values


@numpy_only
def test_brightness_adds_one_number_and_bytes_stay_in_their_range():
    x = np.full((3000, 2, 3), 100.0, np.float32)
    change = augmented(Brightness(30.0), x)[0] - 100
    assert (change == change[:, :1, :1]).all()
    assert -30 <= change.min() < -29.5 < 29.5 < change.max() <= 30
    extreme = np.array([[[0, 255]]], np.uint8).repeat(3000, axis=0)
    found = augmented(Brightness(300.0), extreme)[0].astype(int)
    assert (found[:, 0, 0] <= found[:, 0, 1]).all()
    assert found.min() == 0
    assert found.max() == 255


@numpy_only
def test_contrast_stretches_around_the_mean_of_the_picture():
    x = np.array([[[10.0, 30.0, 50.0]]], np.float32).repeat(3000, axis=0)
    found = augmented(Contrast(0.5, 2.0), x)[0][:, 0]
    factor = (found[:, 2] - 30) / 20
    np.testing.assert_allclose(found[:, 1], 30.0, rtol=1e-6)
    np.testing.assert_allclose(found[:, 0] - 30, -20 * factor, rtol=1e-4)
    assert 0.5 <= factor.min() < 0.51 < 1.99 < factor.max() <= 2.0


@numpy_only
def test_noise_has_its_deviation_in_each_pixel():
    x = np.full((300, 8, 9, 3), 5.0, np.float32)
    noise = augmented(GaussianNoise(2.0), x)[0] - 5
    assert noise.std() == pytest.approx(2.0, rel=0.02)
    assert abs(noise.mean()) < 0.03
    flat = noise.reshape(300, -1)
    correlations = np.corrcoef(flat[:, :20].T)[np.triu_indices(20, 1)]
    assert abs(correlations).max() < 5 / 300**0.5
    rounded = augmented(GaussianNoise(2.0), x.astype(np.uint8))[0]
    np.testing.assert_array_equal(rounded, np.rint(noise + 5).clip(0, 255))


# Mixed


@numpy_only
def test_mixup_averages_with_any_sample_and_the_labels_alike():
    n = 3000
    x = np.arange(n, dtype=np.float64).reshape(n, 1, 1)
    found, labels = augmented(Mixup(n, 0.4), x, np.arange(n))
    np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=1e-5)
    # The mean of the classes, weighted by the label, is the mixed pixel.
    np.testing.assert_allclose(labels @ np.arange(n), found[:, 0, 0], rtol=1e-3)
    own = labels[np.arange(n), np.arange(n)]
    assert own.mean() == pytest.approx(0.5, abs=0.03)
    assert np.mean(own < 0.01) == pytest.approx(0.13, abs=0.05)
    labels[np.arange(n), np.arange(n)] = 0
    others = labels.argmax(axis=1)
    assert abs(np.corrcoef(others, np.arange(n))[0, 1]) < 0.1
    assert np.unique(others).size > 0.55 * n


@numpy_only
def test_a_partner_comes_as_the_functions_before_made_it():
    x = np.arange(40, dtype=np.float32).reshape(40, 1, 1)
    y = np.arange(40)

    def tenfold(x, y, draws):
        return 100 * x + draws.integers(0, 10)[:, None, None], y

    before = augmented(tenfold, x, y)[0].ravel()
    found, labels = augmented([tenfold, Mixup(40, 1.0)], x, y)
    np.testing.assert_allclose(labels @ before, found.ravel(), rtol=1e-4)


@numpy_only
def test_labels_in_a_dict_cannot_be_mixed():
    x, y = pictures()
    data = Batches(x, {"a": y}, 7, augment=CutMix(CLASSES), map=None)
    with pytest.raises(ValueError, match="labels in one array"):
        data.peek()


@numpy_only
@pytest.mark.parametrize("channels", [(), (2,)])
def test_cutmix_labels_are_the_shares_of_the_pixels(channels):
    y = np.arange(500) % CLASSES
    x = np.empty((500, 9, 12, *channels), np.uint8)
    x[:] = y.reshape(-1, *(1,) * (x.ndim - 1))
    found, labels = augmented(CutMix(CLASSES), x, y)
    shares = np.stack(
        [(found.reshape(500, -1) == c).mean(axis=1) for c in range(CLASSES)], axis=1
    )
    np.testing.assert_allclose(labels, shares, atol=1e-6)
    assert 0.5 < labels.max(axis=1).mean() < 0.95
    changed = found.reshape(500, 9, -1) != y[:, None, None]
    box = changed.any(axis=2).sum(axis=1) * changed.any(axis=1).sum(axis=1)
    assert (changed.sum(axis=(1, 2)) == box).all()


# Refused


@numpy_only
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HorizontalFlip(1.5), "`probability`"),
        (lambda: Shift(0), "`pixels` must be at least 1"),
        (lambda: Shift(2, "mirror"), "`mode` must be one of"),
        (lambda: RandomErasing(area=(0.5, 0.1)), r"`area\[1\]`"),
        (lambda: RandomErasing(value="noise"), "`value` must be one of"),
        (lambda: Cutout(0), "`size`"),
        (lambda: Contrast(2.0, 1.0), "`high`"),
        (lambda: GaussianNoise(-1.0), "`stddev`"),
        (lambda: RotateScale(90.0), "`degrees`"),
        (lambda: Mixup(10, 0.0), "`alpha`"),
        (lambda: augmented(Shift(9), pictures()[0]), "below height and width, 9 and"),
        (lambda: augmented(HorizontalFlip(), np.zeros((3, 4))), "rows, height, width"),
        (lambda: augmented(Mixup(4), *pictures()), "whole numbers from 0 to 3"),
        (
            lambda: augment(*pictures(), Mixup(5), seed=0, epoch=0, index=range(60)),
            "data",
        ),
        (lambda: Mixup(10, 501.0), "`alpha`"),
        (
            lambda: Mixup(5)({"a": np.zeros((2, 3))}, None, None),
            "in one array, got dict",
        ),
        *(
            (lambda each=each: augmented(each, pictures()[0]), "number from 0 to 255")
            for each in (
                Cutout(4, value=300),
                Shift(1, value=0.5),
                RotateScale(value=-1),
                RandomErasing(value=127.5),
            )
        ),
        (
            lambda: augment(pictures()[0], None, Cutout(), seed=0, epoch=0, index=[2]),
            "got 1 for 60 rows",
        ),
        *(
            (
                lambda i=i: augmented(
                    lambda x, y, draws: draws.samples([i]), *pictures()
                ),
                "from 0 to 59",
            )
            for i in (-1, ROWS)
        ),
    ],
)
def test_a_wrong_argument_is_refused_with_its_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()
