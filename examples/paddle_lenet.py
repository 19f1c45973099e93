"""The Paddle tutorial on handwritten digits, from its JSON file to a saved LeNet.

In the tutorial's order: read `mnist.json.gz` and check it; read batches synchronously
and asynchronously; train a linear regressor on the digit's value, the sigmoid network
784-10-10-1, the CNN with squared error and with cross-entropy, and LeNet on pixels in
[-1, 1]; evaluate, predict, plot four predictions, save and load.

`main(digits="mnist.json.gz")` trains on the tutorial's file. Without it, that file is
written first, in the tutorial's form, from the full MNIST if this machine has it, and
otherwise from the 7,000 digits that ship with fmkit. Writes `paddle_lenet.png`, `.md`
and `.keras`. It needs no network.
"""

import gzip
import importlib.util
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np

from fmkit import data, datasets, losses, models, preprocessing
from fmkit import visualization as draw


def make_json(path: Path, train: tuple, test: tuple) -> Path:
    """Write digits in the tutorial's form: train, valid and eval, pixels below 1."""
    (x, y), cut = train, len(train[0]) * 5 // 6  # 50,000 of MNIST's 60,000
    splits = [(x[:cut], y[:cut]), (x[cut:], y[cut:]), test]
    with gzip.open(path, "wt", compresslevel=1) as file:
        for mark, (images, labels) in zip("[,,", splits, strict=True):
            # Multiples of 1/256, as in the tutorial: eight digits write each exactly.
            rows = images.reshape(-1, 784) / (256 if images.dtype == np.uint8 else 1)
            file.write(f"{mark}[[{json.dumps(rows[0].tolist())}")
            file.writelines(f", {json.dumps(row.tolist())}" for row in rows[1:])
            file.write(f"], {json.dumps(labels.tolist())}]")
        file.write("]")
    return path


def read_json(path: Path) -> tuple:
    """Read and check the tutorial's file, split by split."""
    modes = ("train", "valid", "eval")
    splits = {mode: datasets.mnist.load_data(path, mode=mode) for mode in modes}
    report = preprocessing.check_arrays(num_classes=10, **splits)
    print(f"{path.name}\n{report}\n")
    report.raise_for_problems()
    images, labels = splits["valid"]
    slip = np.where(np.arange(len(labels)) == 3, 10, labels)
    report = preprocessing.check_arrays(num_classes=10, valid=(images, slip))
    print(f"With one wrong label: {report.problems[0]}\n")
    return tuple((splits[k][0].reshape(-1, 28, 28), splits[k][1]) for k in modes[::2])


def ahead(batches: data.Batches) -> Iterator:
    """Yield the batches; a second thread reads the next while one is in use."""
    with ThreadPoolExecutor(1) as pool:
        source = iter(batches)
        coming = pool.submit(next, source, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield batch


def time_reading(batches: data.Batches) -> dict[str, float]:
    """Return the seconds per epoch: reading in turn, reading ahead, and with `fit`."""
    model = models.linear()
    model.compile(keras.optimizers.SGD(1e-3), "mean_squared_error")
    # Compiling is not counted.
    model.train_on_batch(*batches.peek())
    model.fit(batches, steps_per_epoch=1, verbose=0)
    batches.seek(1)
    seconds = {}
    for way, read in (("synchronous", iter), ("asynchronous", ahead)):
        begin = time.perf_counter()
        for x, y in read(batches):
            model.train_on_batch(x, y)
        seconds[way] = time.perf_counter() - begin
    begin = time.perf_counter()
    model.fit(batches, verbose=0)
    seconds["fit"] = time.perf_counter() - begin
    return seconds


def networks(top: float) -> dict:
    """Return the tutorial's networks: model, optimizer, loss, and map of the pixels."""
    unit = preprocessing.Preprocess(std=top)
    symmetric = preprocessing.Preprocess(mean=top / 2, std=top / 2)
    sgd, adam = keras.optimizers.SGD, keras.optimizers.Adam
    squared, crossentropy = keras.losses.MeanSquaredError, losses.CrossentropyFromLogits
    sigmoid = models.mlp((10, 10), 1, activation="sigmoid")
    return {
        "linear regressor": (models.linear(), sgd(1e-3), squared(), unit),
        "sigmoid 784-10-10-1": (sigmoid, sgd(1e-2), squared(), unit),
        "CNN, squared error": (
            models.simple_cnn((20, 20), 1),
            sgd(1e-2),
            squared(),
            unit,
        ),
        "CNN, cross-entropy": (models.simple_cnn(), sgd(1e-2), crossentropy(), unit),
        "LeNet on [-1, 1]": (models.lenet5(), adam(1e-3), crossentropy(), symmetric),
    }


def classes(outputs: np.ndarray) -> np.ndarray:
    """Return the predicted class: the highest score, or the nearest number."""
    return outputs.argmax(-1) if outputs.shape[1] > 1 else outputs[:, 0].round()


def main(
    epochs: int | None = None, folder: str = "outputs", digits: str | None = None
) -> dict:
    """Train each network; return their test accuracies.

    Without `epochs`, for 1,000 batches of 100: two epochs of MNIST, more of a sample.
    """
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    if digits is None:
        source, found = datasets.mnist, datasets.mnist.find()
        print(f"Digits from {found or 'the sample that ships with fmkit'}")
        splits = source.load_data() if found else source.load_sample()
        digits = make_json(output / "mnist.json.gz", *splits)
    train, test = read_json(Path(digits))
    (x, y), top = train, float(train[0].max())
    epochs = epochs or max(2, 100_000 // len(x))

    for way, seconds in time_reading(data.Batches(x, y, 100)).items():
        print(f"{way:<13} {seconds:5.2f} s per epoch of {len(x)} images")

    keras.utils.set_random_seed(0)
    accuracies, lines = {}, ["| network | loss | weights | test loss | test accuracy |"]
    lines.append("|---" * 5 + "|")
    for name, (model, optimizer, loss, scale) in networks(top).items():
        models.check_outputs(model, y)
        test_batches = data.Batches(*test, 1000, map=scale)
        model.compile(optimizer, loss)
        model.fit(data.Batches(x, y, 100, map=scale), epochs=epochs, verbose=0)
        predicted = classes(model.predict(test_batches, verbose=0))
        accuracies[name] = float(np.mean(predicted == test[1]))
        lines.append(
            f"| {name} | {loss.name} | {model.count_params():,} | "
            f"{model.evaluate(test_batches, verbose=0):.4f} | {accuracies[name]:.4f} |"
        )
        print(lines[-1], flush=True)
    lines += ["", f"{epochs} epochs of {len(x):,} digits, tested on {len(test[1]):,}."]
    print(lines[-1])
    (output / "paddle_lenet.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    # The last one is LeNet: four predictions, then save and load it.
    four = scale(test[0][:4])
    logits = model.predict(four, verbose=0)
    model.save(output / "paddle_lenet.keras")
    loaded = keras.saving.load_model(output / "paddle_lenet.keras")
    if not np.array_equal(loaded.predict(four, verbose=0), logits):
        raise RuntimeError("The loaded model and the saved one differ")
    print("The loaded model predicts the same bits as the saved one.")

    if importlib.util.find_spec("matplotlib"):
        four = (test[0][:4], test[1][:4], logits)
        picture(accuracies, four, output / "paddle_lenet.png")
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    return accuracies


def picture(accuracies: dict, four: tuple, file: Path) -> None:
    """Draw the accuracies, and four digits with what LeNet predicts."""
    import matplotlib.pyplot as plt

    _, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    rows = [
        {"network": name.replace(" ", "\n", 1), "test accuracy": value}
        for name, value in accuracies.items()
    ]
    draw.sweep(rows, "network", "test accuracy", ax=left)
    left.set_ylim(0, 1)
    draw.image_grid(*four, ax=right)
    left.figure.savefig(file, dpi=110)
    plt.close(left.figure)


if __name__ == "__main__":
    main()
