"""Fashion-MNIST: where it is looked for, the sample, the memory-mapped copy."""

import gzip
import json
import os
import shutil
import struct
from pathlib import Path

import keras
import numpy as np
import pytest

from fmkit.datasets import DatasetFileError, fashion_mnist

pytestmark = pytest.mark.backend("torch")

PIXELS = np.random.RandomState(0).randint(0, 256, (9, 28, 28)).astype(np.uint8)
LABELS = np.arange(9, dtype=np.uint8)
SAMPLE = Path(fashion_mnist.__file__).parent / "_sample" / "fashion_mnist"


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def write_set(folder, counts=(6, 3)):
    """Write a small set with the names of the real files; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "t10k"), counts, strict=True):
        for kind, array in (("images-idx3", PIXELS), ("labels-idx1", LABELS)):
            path = folder / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(array[:count])))
    return folder


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Make every place that is looked at empty, and the network a failure."""
    home = tmp_path / "keras"
    monkeypatch.delenv(fashion_mnist.DATA_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(home))
    monkeypatch.setattr(fashion_mnist, "_DEBIAN_FOLDER", tmp_path / "debian")

    def refuse(name, **options):
        raise Exception(f"URL fetch failure on {options['origin']}: no network")

    monkeypatch.setattr(keras.utils, "get_file", refuse)
    return tmp_path


# Where it is looked for


def test_find_looks_at_the_places_in_order(nowhere, monkeypatch):
    assert fashion_mnist.find() is None
    debian = write_set(nowhere / "debian")
    assert fashion_mnist.find() == debian
    cache = write_set(nowhere / "keras" / "datasets" / "fashion-mnist")
    assert fashion_mnist.find() == cache
    monkeypatch.setenv("FMKIT_DATA_DIR", str(nowhere / "mine"))
    inside = write_set(nowhere / "mine" / "fashion-mnist")
    assert fashion_mnist.find() == inside
    direct = write_set(nowhere / "mine")
    assert fashion_mnist.find() == direct


def test_keras_cache_is_under_the_home_folder_without_keras_home(nowhere, monkeypatch):
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setattr(Path, "home", lambda: nowhere / "home")
    folder = write_set(nowhere / "home" / ".keras" / "datasets" / "fashion-mnist")
    assert fashion_mnist.find() == folder


def test_a_folder_of_other_data_in_the_variable_is_passed_over(nowhere, monkeypatch):
    (nowhere / "mine").mkdir()
    monkeypatch.setenv("FMKIT_DATA_DIR", str(nowhere / "mine"))
    assert fashion_mnist.find() is None


def test_a_variable_that_names_no_folder_is_refused(nowhere, monkeypatch):
    monkeypatch.setenv("FMKIT_DATA_DIR", str(nowhere / "typo"))
    with pytest.raises(FileNotFoundError, match=r"FMKIT_DATA_DIR names .*typo"):
        fashion_mnist.load_data()


def test_half_a_set_in_the_variables_folder_is_refused(nowhere, monkeypatch):
    folder = write_set(nowhere / "mine")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setenv("FMKIT_DATA_DIR", str(folder))
    with pytest.raises(FileNotFoundError, match="missing: t10k-labels"):
        fashion_mnist.find()


def test_half_a_download_in_keras_cache_is_completed(nowhere, monkeypatch):
    cache = write_set(nowhere / "keras" / "datasets" / "fashion-mnist")
    missing = cache / "t10k-labels-idx1-ubyte.gz"
    content = missing.read_bytes()
    missing.unlink()
    asked = []

    def get_file(name, origin, cache_subdir):
        asked.append(origin)
        assert origin.endswith("/" + name)
        path = nowhere / "keras" / cache_subdir / name
        if not path.exists():
            path.write_bytes(content)
        return str(path)

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    assert fashion_mnist.find() is None
    # The toy files are then read, and refused for not being the full set.
    with pytest.raises(DatasetFileError, match=r"6 \+ 3 images; the full set has"):
        fashion_mnist.load_data()
    assert len(asked) == 4
    assert all(url.startswith("https://storage.googleapis.com/") for url in asked)


def test_the_addresses_are_those_of_keras(nowhere, monkeypatch):
    ours, theirs = [], []

    def get_file(name, origin, cache_subdir):
        ours.append((name, origin, cache_subdir))
        return str(write_set(nowhere / "got") / name)

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    with pytest.raises(DatasetFileError):
        fashion_mnist.load_data()

    def keras_get_file(name, origin, cache_subdir):
        theirs.append((name, origin, cache_subdir))
        return str(nowhere / "got" / name)

    keras_load_data = keras.datasets.fashion_mnist.load_data
    monkeypatch.setitem(keras_load_data.__globals__, "get_file", keras_get_file)
    keras_load_data()
    assert sorted(ours) == sorted(theirs)


def test_a_failed_download_says_what_to_type(nowhere):
    with pytest.raises(FileNotFoundError) as caught:
        fashion_mnist.load_data()
    message = str(caught.value)
    assert "no network" in message
    assert "apt-get install dataset-fashion-mnist" in message
    assert "export FMKIT_DATA_DIR=" in message
    assert "load_sample()" in message


def test_find_never_reaches_for_the_network(nowhere, monkeypatch):
    monkeypatch.setattr(keras.utils, "get_file", None)
    assert fashion_mnist.find() is None


def test_a_found_set_must_be_whole_but_a_named_one_need_not(nowhere):
    folder = write_set(nowhere / "debian")
    with pytest.raises(
        DatasetFileError, match=r"6 \+ 3 images; the full set has 60000"
    ):
        fashion_mnist.load_data()
    (x_train, y_train), (x_test, y_test) = fashion_mnist.load_data(folder)
    np.testing.assert_array_equal(x_train, PIXELS[:6])
    np.testing.assert_array_equal(y_test, LABELS[:3])
    assert (len(y_train), len(x_test)) == (6, 3)


def test_mnist_under_the_same_names_is_not_taken_for_fashion_mnist(nowhere):
    # 60,000 + 10,000 images with other labels, as MNIST's own files are.
    folder = nowhere / "debian"
    folder.mkdir()
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint64) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = gzip.compress(idx(array.astype(np.uint8)), compresslevel=1)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(data)
    with pytest.raises(DatasetFileError, match="labels that are not Fashion-MNIST's"):
        fashion_mnist.load_data()
    assert len(fashion_mnist.load_data(folder)[0][0]) == 60_000


def test_there_are_ten_class_names_in_keras_order():
    assert len(fashion_mnist.CLASS_NAMES) == 10
    assert fashion_mnist.CLASS_NAMES[0] == "T-shirt/top"
    assert fashion_mnist.CLASS_NAMES[9] == "Ankle boot"


# The sample


def test_the_sample_has_600_and_100_of_each_class(nowhere):
    (x_train, y_train), (x_test, y_test) = fashion_mnist.load_sample()
    assert x_train.shape == (6000, 28, 28)
    assert x_test.shape == (1000, 28, 28)
    assert {a.dtype for a in (x_train, y_train, x_test, y_test)} == {np.dtype("uint8")}
    assert np.bincount(y_train).tolist() == [600] * 10
    assert np.bincount(y_test).tolist() == [100] * 10
    assert (int(x_train.max()), int(x_train.min())) == (255, 0)


def test_the_sample_begins_with_the_first_labels_of_the_real_set():
    (_, y_train), (_, y_test) = fashion_mnist.load_sample()
    # As printed in the data set's own tutorials.
    assert y_train[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert y_test[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]


def test_no_image_of_the_sample_is_in_both_of_its_halves():
    (x_train, _), (x_test, _) = fashion_mnist.load_sample()
    train = {image.tobytes() for image in x_train}
    assert not any(image.tobytes() in train for image in x_test)


def test_the_sample_is_under_three_megabytes_and_has_its_licence():
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 3_000_000
    notice = (SAMPLE / "LICENSE").read_text(encoding="utf-8")
    assert "2017 Zalando SE, https://tech.zalando.com" in notice
    assert "The above copyright notice and this permission notice shall" in notice


def test_a_linear_rule_learns_from_the_sample():
    # The labels belong to the images: nearest class mean, far above one in ten.
    (x_train, y_train), (x_test, y_test) = fashion_mnist.load_sample()
    x_train, x_test = (x.reshape(len(x), -1).astype(float) for x in (x_train, x_test))
    means = np.stack([x_train[y_train == label].mean(axis=0) for label in range(10)])
    distances = ((x_test[:, np.newaxis] - means) ** 2).sum(axis=-1)
    assert (distances.argmin(axis=1) == y_test).mean() > 0.6


# The memory-mapped copy


def flat(splits):
    return [array for split in splits for array in split]


def reads(monkeypatch):
    """Return a list that grows by one each time the source itself is read."""
    calls = []
    original = fashion_mnist.load_idx_folder

    def counted(folder):
        calls.append(folder)
        return original(folder)

    monkeypatch.setattr(fashion_mnist, "load_idx_folder", counted)
    return calls


def test_the_copy_is_read_only_mapped_and_equal(tmp_path, monkeypatch):
    folder, copy = write_set(tmp_path / "set"), tmp_path / "deep" / "copy"
    calls = reads(monkeypatch)
    wanted = flat(fashion_mnist.load_data(folder))
    for _ in range(3):
        arrays = flat(fashion_mnist.load_data(folder, cache=copy))
        for array, expected in zip(arrays, wanted, strict=True):
            np.testing.assert_array_equal(array, expected)
            assert array.dtype == np.uint8
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable
    assert len(calls) == 2  # once without the copy, once to make it


def test_the_copy_is_four_plain_npy_files_and_a_manifest(tmp_path):
    folder = write_set(tmp_path / "set")
    fashion_mnist.load_data(folder, cache=tmp_path / "copy")
    names = sorted(path.name.split("-")[-1] for path in (tmp_path / "copy").iterdir())
    assert [name.split(".")[-1] for name in names] == ["json", *["npy"] * 4]
    (images,) = (tmp_path / "copy").glob("*x_train.npy")
    np.testing.assert_array_equal(np.load(images), PIXELS[:6])


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit in an array": ("*x_train.npy", flip_last_byte),
    "a cut array": ("*x_test.npy", lambda path: os.truncate(path, 500)),
    "an empty array": ("*x_test.npy", lambda path: os.truncate(path, 0)),
    "a missing array": ("*y_test.npy", Path.unlink),
    "a missing manifest": ("*.json", Path.unlink),
    "a cut manifest": ("*.json", lambda path: os.truncate(path, 40)),
    "a manifest of another form": ("*.json", lambda path: path.write_text("[1]")),
    "a nested manifest": ("*.json", lambda path: path.write_text("[" * 60_000)),
}


@pytest.mark.parametrize(("pattern", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_copy_is_made_anew(tmp_path, monkeypatch, pattern, damage):
    folder, copy = write_set(tmp_path / "set"), tmp_path / "copy"
    wanted = flat(fashion_mnist.load_data(folder, cache=copy))
    (path,) = copy.glob(pattern)
    wanted = [np.array(array) for array in wanted]
    damage(path)
    calls = reads(monkeypatch)
    for _ in range(2):
        arrays = flat(fashion_mnist.load_data(folder, cache=copy))
        for array, expected in zip(arrays, wanted, strict=True):
            np.testing.assert_array_equal(array, expected)
    assert len(calls) == 1


def test_a_manifest_entry_of_another_shape_is_not_believed(tmp_path):
    folder, copy = write_set(tmp_path / "set"), tmp_path / "copy"
    fashion_mnist.load_data(folder, cache=copy)
    (path,) = copy.glob("*.json")
    manifest = json.loads(path.read_text())
    manifest["arrays"]["x_train"]["shape"] = [28, 6, 28]
    path.write_text(json.dumps(manifest))
    assert fashion_mnist.load_data(folder, cache=copy)[0][0].shape == (6, 28, 28)


def test_a_changed_source_makes_the_copy_anew(tmp_path):
    folder, copy = write_set(tmp_path / "set"), tmp_path / "copy"
    fashion_mnist.load_data(folder, cache=copy)
    write_set(folder, counts=(5, 4))
    assert len(fashion_mnist.load_data(folder, cache=copy)[0][0]) == 5


def test_one_folder_holds_the_copies_of_several_sources(tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    folders = [write_set(tmp_path / "a"), write_set(tmp_path / "b", counts=(4, 2))]
    for folder in folders:
        fashion_mnist.load_data(folder, cache=copy)
    calls = reads(monkeypatch)
    sizes = [len(fashion_mnist.load_data(f, cache=copy)[0][0]) for f in folders]
    assert sizes == [6, 4]
    assert not calls


def test_a_damaged_source_leaves_no_copy(tmp_path):
    folder, copy = write_set(tmp_path / "set"), tmp_path / "copy"
    os.truncate(folder / "t10k-images-idx3-ubyte.gz", 99)
    with pytest.raises(DatasetFileError, match="t10k-images"):
        fashion_mnist.load_data(folder, cache=copy)
    assert not copy.exists()


def test_a_copy_that_can_not_be_written_leaves_no_part_of_it(tmp_path, monkeypatch):
    folder, copy = write_set(tmp_path / "set"), tmp_path / "copy"

    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        fashion_mnist.load_data(folder, cache=copy)
    assert list(copy.iterdir()) == []


def test_a_copy_of_a_part_is_not_taken_for_the_full_set(nowhere):
    folder = write_set(nowhere / "debian")
    fashion_mnist.load_data(folder, cache=nowhere / "copy")
    with pytest.raises(DatasetFileError, match="the full set has"):
        fashion_mnist.load_data(cache=nowhere / "copy")


# The script that makes the sample


@pytest.fixture
def script(program):
    return program("scripts/make_sample.py")


def test_the_rule_takes_the_first_of_each_class_in_the_order_of_the_file(script):
    labels = np.array([*range(10), *range(9, -1, -1), *range(10)])
    chosen = script.first_of_each_class(labels, 2)
    assert chosen.tolist() == list(range(20))
    assert script.first_of_each_class(labels, 1).tolist() == list(range(10))


def test_the_sample_made_from_the_sample_is_the_same_to_the_byte(script, tmp_path):
    # The rule applied to its own result changes nothing, so no full set is needed.
    source = tmp_path / "source"
    source.mkdir()
    splits = zip(("train", "t10k"), fashion_mnist.load_sample(), strict=True)
    for part, (images, labels) in splits:
        (source / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (source / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    made = script.make_sample(source, tmp_path)
    assert len(made) == 4
    for path in made:
        assert path.read_bytes() == (SAMPLE / path.name).read_bytes()
    shutil.rmtree(source)
