"""Files good and bad: IDX, gzip, npz and JSON, none of them trusted.

The oracles write the bytes by hand (`struct`, `gzip`, `numpy.savez`, `json`); the
library's own writer is not used here.
"""

import gzip
import io
import json
import os
import pickle
import random
import struct
import tempfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmkit import _npz
from fmkit.datasets import DatasetFileError, fashion_mnist, mnist

pytestmark = pytest.mark.backend("torch")

PIXELS = np.random.RandomState(0).randint(0, 256, (16, 28, 28)).astype(np.uint8)
LABELS = np.arange(16, dtype=np.uint8) % 10
TRAIN = (PIXELS[:12], LABELS[:12])
TEST = (PIXELS[12:], LABELS[12:])
MEGABYTE = 1 << 20


def idx(array, magic=None, sizes=None):
    magic = magic or bytes([0, 0, 8, array.ndim])
    sizes = array.shape if sizes is None else sizes
    return magic + struct.pack(f">{len(sizes)}I", *sizes) + array.tobytes()


FILES = {
    "train-images-idx3-ubyte": idx(TRAIN[0]),
    "train-labels-idx1-ubyte": idx(TRAIN[1]),
    "t10k-images-idx3-ubyte": idx(TEST[0]),
    "t10k-labels-idx1-ubyte": idx(TEST[1]),
}


def write_folder(folder, compress=lambda data: data, ending="", **changed):
    """Write the four files; `changed` maps a part ("train_images") to its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        part = "_".join(name.split("-")[:2])
        data = changed[part] if part in changed else compress(content)
        if data is not None:
            (folder / (name + ending)).write_bytes(data)
    return folder


def npz(**changed):
    arrays = {
        "x_train": TRAIN[0],
        "y_train": TRAIN[1],
        "x_test": TEST[0],
        "y_test": TEST[1],
    }
    arrays |= changed
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, **{name: value for name, value in arrays.items() if value is not None}
    )
    return buffer.getvalue()


def paddle(counts=(6, 3, 2)):
    """Return the three splits as nested lists, in the layout of the tutorial."""
    splits, at = [], 0
    for count in counts:
        part = slice(at, at + count)
        images = (PIXELS[part].reshape(count, 784) / 256).tolist()
        splits.append([images, LABELS[part].tolist()])
        at += count
    return splits


def write(path, data):
    path.write_bytes(data)
    return path


def same(splits):
    wanted = (*TRAIN, *TEST)
    found = [array for split in splits for array in split]
    return all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in zip(found, wanted, strict=True)
    )


def peak_bytes(call):
    """Return the most bytes that `call` held at once, NumPy's included."""
    tracemalloc.start()
    try:
        call()
    except DatasetFileError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


# Good files


@pytest.mark.parametrize("load", [fashion_mnist.load_data, mnist.load_data])
@pytest.mark.parametrize(
    ("compress", "ending"),
    [
        (lambda data: data, ""),
        (gzip.compress, ".gz"),
        (gzip.compress, ""),  # the bytes tell, not the name
        (lambda data: gzip.compress(data, compresslevel=0), ".gz"),
    ],
    ids=["plain", "gzip", "gzip by content", "gzip stored"],
)
def test_idx_files_come_back_as_they_were(tmp_path, load, compress, ending):
    assert same(load(write_folder(tmp_path, compress, ending)))


def test_idx_names_with_a_dot_are_found(tmp_path):
    write_folder(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert same(fashion_mnist.load_data(str(tmp_path)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "<i4", ">i8", "uint16"])
def test_npz_files_come_back_as_they_were(tmp_path, save, dtype):
    path = tmp_path / "mnist.npz"
    save(
        path,
        x_train=TRAIN[0],
        y_train=TRAIN[1].astype(dtype),
        x_test=np.asfortranarray(TEST[0]),
        y_test=TEST[1].astype(dtype),
        extra=np.array([{"never": "loaded"}], object),
    )
    assert same(mnist.load_data(path))
    assert same(fashion_mnist.load_data(path))
    assert same(mnist.load_data(tmp_path))


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
@pytest.mark.parametrize("indent", [None, 1])
def test_paddle_json_comes_back_as_it_was(tmp_path, compress, indent):
    splits = paddle()
    path = tmp_path / "mnist.json.gz"
    path.write_bytes(compress(json.dumps(splits, indent=indent).encode() + b"\n"))
    for mode, (images, labels) in zip(("train", "valid", "eval"), splits, strict=True):
        x, y = mnist.load_data(path, mode=mode)
        assert x.dtype == np.float32
        assert y.dtype == np.uint8
        np.testing.assert_array_equal(x, np.array(images, np.float32))
        np.testing.assert_array_equal(y, labels)
    (x_train, _), (x_test, _) = mnist.load_data(tmp_path)
    assert x_train.shape == (6, 784)
    assert x_test.shape == (2, 784)


def test_json_keeps_numbers_of_every_form(tmp_path):
    splits = paddle((1, 1, 1))
    row = [-1, 0, 255, 0.5, -1e-3, 2e2] + [0.0] * 778
    splits[0][0] = [row]
    path = write(tmp_path / "mnist.json", json.dumps(splits).encode())
    x, _ = mnist.load_data(path, "train")
    np.testing.assert_array_equal(x[0], np.array(row, np.float32))


def test_more_json_rows_than_one_block_keep_their_order(tmp_path):
    # The array of images grows in blocks; 1024 rows is where the first one ends.
    count = 1030
    images = [[k] + [0] * 783 for k in range(count)]
    small = [[[0] * 784], [0]]
    text = json.dumps([[images, [k % 10 for k in range(count)]], small, small])
    path = write(tmp_path / "mnist.json", text.encode())
    x, y = mnist.load_data(path, "train")
    np.testing.assert_array_equal(x[:, 0], np.arange(count))
    np.testing.assert_array_equal(y, np.arange(count) % 10)


def test_modes_of_idx_files_cut_the_training_images_at_five_sixths(tmp_path):
    folder = write_folder(tmp_path)
    np.testing.assert_array_equal(mnist.load_data(folder, "train")[0], PIXELS[:10])
    np.testing.assert_array_equal(mnist.load_data(folder, "valid")[1], LABELS[10:12])
    np.testing.assert_array_equal(mnist.load_data(folder, "eval")[0], TEST[0])


def test_an_unknown_mode_is_refused_with_the_closest_one(tmp_path):
    with pytest.raises(ValueError, match=r"`mode` must be .*'valid'.*Did you mean"):
        mnist.load_data(write_folder(tmp_path), mode="validate")


# Bad files: each gives one error that names the file and what was expected

IMAGES = FILES["train-images-idx3-ubyte"]
GZIPPED = gzip.compress(IMAGES)

BAD_IDX = {
    "empty": (b"", "cut short.*magic"),
    "three bytes": (IMAGES[:3], "cut short.*magic"),
    "header cut": (IMAGES[:9], "cut short.*sizes"),
    "text": (b"<!DOCTYPE html>", r"starts with the bytes 3c 21.*00 00 08 03"),
    "unknown dtype": (b"\0\0\x07\x03" + IMAGES[4:], "starts with the bytes"),
    "floats": (b"\0\0\x0d\x03" + IMAGES[4:], "32-bit floats; expected unsigned bytes"),
    "labels for images": (FILES["train-labels-idx1-ubyte"], "1 dim.*expected 3"),
    "wrong size": (idx(PIXELS[:12, :20]), r"\(12, 20, 28\).*\(n, 28, 28\)"),
    "no images": (idx(PIXELS[:0]), r"\(0, 28, 28\).*n > 0"),
    "cut": (IMAGES[:-1], r"cut short; expected 12 images of 28 x 28 \(9408 bytes\)"),
    "too long": (IMAGES + b"\0", "has data after 12 images"),
    "promises 4 GB": (
        idx(PIXELS[:12], sizes=(2**32 - 1, 28, 28)),
        "at most 1073741824",
    ),
    "promises a gigabyte": (idx(PIXELS, sizes=(1_300_000, 28, 28)), "cut short"),
    "gzip cut in its data": (GZIPPED[: len(GZIPPED) // 2], "cut short"),
    "gzip cut in its trailer": (GZIPPED[:-3], "gzip data cut short"),
    "gzip cut in its header": (GZIPPED[:5], "cut short"),
    "gzip with a bad CRC": (GZIPPED[:-8] + b"\1\2\3\4" + GZIPPED[-4:], "damaged gzip"),
    "gzip with a bad length": (GZIPPED[:-4] + b"\1\2\3\4", "damaged gzip"),
    "gzip then a byte": (GZIPPED + b"\0", "has data after the end of its gzip data"),
    "two gzip members": (
        gzip.compress(IMAGES[:99]) + gzip.compress(IMAGES[99:]),
        "expected one gzip member",
    ),
    "gzip too long": (gzip.compress(IMAGES + b"\0"), "has data after 12 images"),
    "gzip of a promise": (
        gzip.compress(idx(PIXELS, sizes=(1_300_000, 28, 28))),
        "cut short; expected 1300000 images",
    ),
    "gzip of gzip": (gzip.compress(GZIPPED), "starts with the bytes 1f 8b"),
}


@pytest.mark.parametrize(("data", "message"), BAD_IDX.values(), ids=BAD_IDX)
@pytest.mark.parametrize("load", [fashion_mnist.load_data, mnist.load_data])
def test_a_bad_idx_file_gives_one_error_that_names_it(tmp_path, load, data, message):
    folder = write_folder(tmp_path, train_images=data)
    with pytest.raises(DatasetFileError, match=message) as caught:
        load(folder)
    assert "train-images-idx3-ubyte" in str(caught.value)
    assert caught.value.path == folder / "train-images-idx3-ubyte"


def test_counts_of_images_and_labels_must_be_equal(tmp_path):
    folder = write_folder(tmp_path, t10k_labels=idx(LABELS[:3]))
    with pytest.raises(DatasetFileError, match=r"t10k-labels.*3 labels; expected 4"):
        mnist.load_data(folder)


def test_a_label_outside_the_classes_is_named(tmp_path):
    labels = LABELS[:12].copy()
    labels[7] = 10
    folder = write_folder(tmp_path, train_labels=idx(labels))
    with pytest.raises(DatasetFileError, match="label number 7 is 10; expected 0 to 9"):
        fashion_mnist.load_data(folder)


def test_a_missing_file_of_the_four_is_named(tmp_path):
    folder = write_folder(tmp_path, t10k_images=None)
    with pytest.raises(FileNotFoundError, match="has no t10k-images-idx3-ubyte"):
        mnist.load_data(folder)


def test_a_path_that_is_not_there_is_named(tmp_path):
    for load in (fashion_mnist.load_data, mnist.load_data):
        with pytest.raises(FileNotFoundError, match=r"nowhere.* does not exist"):
            load(tmp_path / "nowhere")


def test_an_empty_folder_is_told_what_it_should_hold(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no MNIST.*mnist\.npz"):
        mnist.load_data(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected the four IDX files"):
        fashion_mnist.load_data(tmp_path)


def test_a_folder_where_a_file_should_be_is_not_taken_for_one(tmp_path):
    folder = write_folder(tmp_path, train_labels=None)
    (folder / "train-labels-idx1-ubyte").mkdir()
    with pytest.raises(FileNotFoundError, match="train-labels"):
        mnist.load_data(folder)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = write(tmp_path / "mnist.npz", npz())

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"mnist\.npz"):
        mnist.load_data(path)


if hasattr(os, "mkfifo"):

    def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for load in (fashion_mnist.load_data, mnist.load_data):
            with pytest.raises(DatasetFileError, match=r"pipe.*not a regular file"):
                load(tmp_path / "pipe")


def test_one_idx_file_is_told_to_come_with_its_folder(tmp_path):
    path = write(tmp_path / "train-images-idx3-ubyte.gz", GZIPPED)
    with pytest.raises(DatasetFileError, match="pass the folder"):
        mnist.load_data(path)
    with pytest.raises(DatasetFileError, match="the folder that holds the four"):
        fashion_mnist.load_data(path)


class Payload:
    """Unpickling this would make a file; see `test_nothing_is_unpickled`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled(tmp_path):
    witness = tmp_path / "executed"
    objects = np.empty(12, object)
    objects[:] = [Payload(witness)] * 12
    path = write(tmp_path / "mnist.npz", npz(y_train=objects))
    with pytest.raises(DatasetFileError, match=r"pickled Python objects.*never loaded"):
        mnist.load_data(path)
    assert not witness.exists()
    # Negative control: the payload does act where pickles are allowed.
    with np.load(path, allow_pickle=True) as archive:
        assert archive["y_train"].shape == (12,)
    assert witness.exists()


def member(content, name="x_train", declared=None):
    """Return an npz whose member `name` has other bytes, or lies about its size."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(npz())) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            new.writestr(
                info.filename,
                content if info.filename == f"{name}.npy" else old.read(info),
                zipfile.ZIP_DEFLATED,
            )
    data = bytearray(buffer.getvalue())
    if declared is not None:
        entry = data.index(b"PK\1\2")  # the first entry of the list of members
        data[entry + 24 : entry + 28] = struct.pack("<I", declared)
    return bytes(data)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


X_NPY = npy(TRAIN[0])
LOCATOR = b"PK\6\7" + bytes(16)
BAD_NPZ = {
    "empty": (b"", "not an npz"),
    "only a magic": (b"PK", "not a whole npz"),
    "cut": (npz()[:-30], "not a whole npz"),
    "cut at its start": (npz()[1:], "not an npz"),
    "holes": (npz()[:50] + bytes(2000) + npz()[2050:], "damaged npz"),
    "array missing": (npz(x_test=None), "no array 'x_test'.*x_train"),
    "counts differ": (npz(y_test=LABELS[:3]), "y_test is uint8.*expected 4 integers"),
    "float images": (npz(x_train=TRAIN[0] / 255), "x_train is float64.*expected uint8"),
    "flat images": (npz(x_train=TRAIN[0].reshape(12, 784)), r"\(12, 784\).*28, 28"),
    "no images": (npz(x_train=TRAIN[0][:0], y_train=LABELS[:0]), "x_train is empty"),
    "float labels": (npz(y_train=LABELS[:12] * 1.0), "y_train is float64"),
    "negative label": (npz(y_train=-LABELS[:12].astype(int)), "label number 1 is -1"),
    "huge label": (npz(y_train=np.full(12, 260)), "label number 0 is 260"),
    "text": (npz(y_train=np.full(12, "a")), "dtype '<U1'; expected numbers"),
    "structured": (npz(y_train=np.zeros(12, "u1,u1")), "no npy header"),
    "not an npy": (member(b"x" * 99), "x_train is not an npy array"),
    "npy cut": (member(X_NPY[:-1]), "x_train promises uint8.*9408.*lists 9407"),
    "npy too long": (member(X_NPY + b"\0"), "x_train promises.*9408.*lists 9409"),
    "npy header of code": (
        member(X_NPY.replace(b"(12, 28, 28)", b"exit(1)     ")),
        "no npy header",
    ),
    "member lists more": (member(X_NPY, declared=len(X_NPY) + 1), "npz|promises"),
    "member lists less": (member(X_NPY, declared=len(X_NPY) - 1), "npz|promises"),
    "member lists 4 GB": (member(X_NPY, declared=2**32 - 2), "promises 4294967294"),
    "zip64": (npz()[:-22] + LOCATOR + npz()[-22:], "list of members"),
}


@pytest.mark.parametrize(("data", "message"), BAD_NPZ.values(), ids=BAD_NPZ)
def test_a_bad_npz_gives_one_error_that_names_it(tmp_path, data, message):
    path = write(tmp_path / "given.npz", data)
    with pytest.raises(DatasetFileError, match=rf"given\.npz: .*(?:{message})"):
        fashion_mnist.load_data(path)


def test_an_npz_with_a_long_list_of_members_is_refused_before_it_is_read(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for k in range(1500):
            archive.writestr(f"{k:08d}", b"")
    path = write(tmp_path / "given.npz", buffer.getvalue())
    with pytest.raises(DatasetFileError, match="list of members"):
        mnist.load_data(path)


def changed_json(change):
    splits = paddle()
    change(splits)
    return json.dumps(splits).encode()


def put(*indices, value):
    def change(splits):
        target = splits
        for index in indices[:-1]:
            target = target[index]
        target[indices[-1]] = value

    return lambda: changed_json(change)


GOOD_JSON = json.dumps(paddle()).encode()
BAD_JSON = {
    "two splits": (lambda: json.dumps(paddle()[:2]).encode(), r"']' where ',' \("),
    "four splits": (
        lambda: json.dumps([*paddle(), [[], []]]).encode(),
        r"',' where ']' \(the end of three",
    ),
    "a split of three": (put(0, value=[[], [], []]), "where '\\['"),
    "no images": (put(1, value=[[], []]), r"image 0 of 'valid'"),
    "rows of 783": (put(0, 0, 2, value=[0.0] * 783), "image 2 of 'train' has 783"),
    "an image of rows": (
        put(2, 0, 1, value=PIXELS[0].tolist()),
        "other than numbers in image 1 of 'eval'",
    ),
    "a NaN": (put(0, 0, 0, 5, value=float("nan")), "other than numbers in image 0"),
    "an infinity": (put(0, 0, 0, 5, value=float("inf")), "other than numbers"),
    "past float32": (put(0, 0, 0, 5, value=1e39), "float32 can't hold"),
    "past float64": (
        lambda: GOOD_JSON.replace(b"0.", b"1e999, 0.", 1)[:-1],
        "785 numbers|can't hold",
    ),
    "a huge integer": (put(0, 0, 0, 5, value=10**400), "float32 can't hold"),
    "an integer of 10,000 digits": (
        lambda: b"[[[[" + b"9" * 10_000 + GOOD_JSON[4:],
        "damaged JSON in image 0|can't hold",
    ),
    "a string": (put(0, 0, 0, 5, value="7"), "other than numbers"),
    "a null": (put(0, 0, 0, 5, value=None), "other than numbers"),
    "too few labels": (put(0, 1, value=[1, 2]), "has 2 labels of 'train' for 6"),
    "a label 10": (put(0, 1, 3, value=10), "label 3 of 'train' is 10"),
    "a label -1": (put(0, 1, 3, value=-1), "label 3 of 'train' is -1"),
    "a label 1.5": (put(0, 1, 3, value=1.5), "label 3 of 'train' is 1.5"),
    "a huge label": (put(0, 1, 3, value=10**400), "label 3 of 'train' is 1000"),
    "an infinite label": (
        lambda: GOOD_JSON.replace(b"[0, 1, 2", b"[0, 1e999, 2"),
        "label 1 of 'train' is inf",
    ),
    "deep nesting": (lambda: b"[" * 200_000, "other than numbers|over 65536"),
    "an object": (lambda: b'[{"images": []}]', "'{' where '\\['"),
    "cut in a row": (lambda: GOOD_JSON[:3000], "ends inside image 0"),
    "cut between rows": (
        lambda: GOOD_JSON[: GOOD_JSON.index(b"]") + 1],
        "its end where ']'",
    ),
    "data after the end": (lambda: GOOD_JSON + b"[]", "has data after its third split"),
    "only a bracket": (lambda: b"[", r"its end where '\['"),
    "a number": (lambda: b"[1]", r"'1' where '\['"),
    "two commas": (lambda: GOOD_JSON.replace(b", ", b",, ", 1), "damaged JSON"),
    "a row without end": (lambda: b"[[[[" + b"0," * MEGABYTE, "over 65536 bytes"),
}


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(("make", "message"), BAD_JSON.values(), ids=BAD_JSON)
def test_a_bad_json_gives_one_error_that_names_it(tmp_path, make, message, compress):
    path = write(tmp_path / "given.json.gz", compress(make()))
    with pytest.raises(DatasetFileError, match=rf"given\.json\.gz: .*(?:{message})"):
        mnist.load_data(path, mode="eval")


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", gzip.compress(b"hello")],
    ids=["empty", "text", "gzip of text"],  # gzip's bytes hold the time of day
)
def test_a_file_of_no_known_form_is_told_the_known_ones(tmp_path, data):
    path = write(tmp_path / "given", data)
    with pytest.raises(DatasetFileError, match=r"given: .*expected a folder of IDX"):
        mnist.load_data(path)


def test_the_errors_cross_process_boundaries():
    error = DatasetFileError("folder/file", "is cut short.")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path) == (str(error), error.path)
    assert isinstance(error, ValueError)


# Memory


def gzip_of_zeros(head, megabytes):
    """A gzip bomb: a head, then zeros that take a thousandth of their size."""
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(MEGABYTE)
    pieces = [packer.compress(head)]
    pieces += [packer.compress(zeros) for _ in range(megabytes)]
    return b"".join([*pieces, packer.flush()])


@pytest.mark.parametrize(
    "head",
    [idx(PIXELS[:12]), b"[" + b" " * 9, b"[[[[0", b""],
    ids=["idx", "json of space", "json row", "nothing"],
)
def test_a_gzip_bomb_takes_no_memory(tmp_path, head):
    bomb = gzip_of_zeros(head, 48)
    folder = write_folder(tmp_path / "idx", train_images=bomb)
    path = write(tmp_path / "mnist.json.gz", bomb)
    assert peak_bytes(lambda: mnist.load_data(folder)) < 4 * MEGABYTE
    assert peak_bytes(lambda: mnist.load_data(path, "eval")) < 8 * MEGABYTE
    # Negative control: the same measure sees what the standard way takes.
    assert peak_bytes(lambda: gzip.decompress(bomb)) > 48 * MEGABYTE


def test_a_zip_bomb_takes_no_memory(tmp_path):
    bomb = member(bytes(48 * MEGABYTE))
    path = write(tmp_path / "given.npz", bomb)
    lying = write(tmp_path / "lying.npz", member(bytes(48 * MEGABYTE), declared=9536))
    for each in (path, lying):
        assert peak_bytes(lambda each=each: mnist.load_data(each)) < 4 * MEGABYTE

    def read_all():
        with zipfile.ZipFile(path) as archive:
            archive.read("x_train.npy")

    assert peak_bytes(read_all) > 48 * MEGABYTE


def test_a_promise_takes_no_memory_before_the_bytes_are_there(tmp_path):
    # 1.3 million images, just under the stated maximum, promised by 9 kB of file.
    promise = idx(PIXELS[:12], sizes=(1_300_000, 28, 28))
    for data in (promise, gzip.compress(promise)):
        folder = write_folder(tmp_path, train_images=data)
        assert peak_bytes(lambda folder=folder: mnist.load_data(folder)) < 4 * MEGABYTE


@pytest.mark.long
def test_reading_json_holds_one_row_as_text_and_the_kept_split_as_floats(tmp_path):
    counts = (1100, 10, 10)
    image = json.dumps([0.1234] * 784)
    text = ",".join(
        f"[[{','.join([image] * n)}],[{','.join(['1'] * n)}]]" for n in counts
    )
    path = write(tmp_path / "mnist.json.gz", gzip.compress(f"[{text}]".encode(), 1))
    assert peak_bytes(lambda: mnist.load_data(path, "eval")) < 6 * MEGABYTE
    kept = 1100 * 784 * 4
    # The block doubles once, from 1024 rows to 2048.
    assert peak_bytes(lambda: mnist.load_data(path, "train")) < 3 * kept
    # Negative control: the tutorial's way holds the text and every float.
    assert peak_bytes(lambda: json.loads(gzip.decompress(path.read_bytes()))) > 5 * kept


# Random damage

SOURCES = {
    "idx": IMAGES,
    "labels": FILES["train-labels-idx1-ubyte"],
    "gzip": GZIPPED,
    "npz": npz(),
    "json": GOOD_JSON,
    "json.gz": gzip.compress(GOOD_JSON),
}


@st.composite
def damaged(draw):
    """A source with bytes flipped, cut out, repeated or cut off at a random place."""
    kind = draw(st.sampled_from(sorted(SOURCES)))
    data = bytearray(SOURCES[kind])
    rng = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(1, 3))):
        # Half the damage goes to the first and last 64 bytes, where the headers are.
        ends = [rng.randrange(64), len(data) - 1 - rng.randrange(64)]
        at = rng.choice(
            [*ends, rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)]
        )
        at = min(max(at, 0), len(data) - 1)
        action = rng.choice(["flip", "byte", "cut", "drop", "repeat"])
        if action == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif action == "byte":
            data[at] = rng.randrange(256)
        elif action == "cut":
            del data[max(at, 1) :]
        elif action == "drop":
            del data[at : at + rng.randrange(1, 40)]
        else:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
        data = data or bytearray(b"\0")
    return kind, bytes(data)


@settings(max_examples=400, deadline=None)
@given(damaged())
def test_damage_gives_the_clear_error_or_a_result_of_the_right_form(case):
    kind, data = case
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if kind in ("idx", "gzip"):
            path = write_folder(folder, train_images=data)
        elif kind == "labels":
            path = write_folder(folder, train_labels=data)
        else:
            path = write(folder / "given", data)
        results = []
        try:
            peak = peak_bytes(lambda: results.append(mnist.load_data(path)))
        except OSError as error:
            pytest.fail(f"{kind}: {error!r}")
    assert peak < 16 * MEGABYTE
    for splits in results:
        for images, labels in splits:
            assert len(images) == len(labels) > 0
            assert images.shape[1:] in ((28, 28), (784,))
            assert images.dtype in (np.uint8, np.float32)
            assert np.isfinite(images).all()
            assert labels.max() <= 9


def test_a_header_is_read_in_one_way_or_refused_at_once():
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%b), }\n"
    for sizes in (b"", b"3,", b"3, 28, 28", b"3L, 28L", b"1" * 15):
        assert _npz.NPY_HEADER.fullmatch(head % sizes), sizes
    # The last one took hours.
    for sizes in (b"3 28", b"3 28,", b",", b"3,,", b"1" * 120 + b"x"):
        assert not _npz.NPY_HEADER.fullmatch(head % sizes), sizes
