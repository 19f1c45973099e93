"""Read digits that you drew yourself, as the TensorFlow 1 course ends.

Trains LeNet on real digits in seconds: the full MNIST if this machine has it, and
otherwise the sample that ships with fmkit. Then reads three drawings from the folder
`digits` beside this file, in ink, chalk and pencil, or the files that you name: one
digit each on even paper, dark on light or light on dark. Writes `tf1_read_digits.png`
and `.md`. It needs no network.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

import fmkit
from fmkit import data, datasets, losses, models
from fmkit.preprocessing import read_image

DRAWINGS = sorted((Path(__file__).parent / "digits").glob("*.png"))


def train(epochs: int) -> tuple[keras.Model, str]:
    """Return LeNet, trained on the digits, and how well it reads the test images."""
    fmkit.set_random_seed(0)
    source, found = datasets.mnist, datasets.mnist.find()
    training, test = source.load_data() if found else source.load_sample()
    print(f"Digits from {found or 'the sample that ships with fmkit'}")
    model = models.lenet5(dense_activation="relu")
    model.compile(
        keras.optimizers.Adam(2e-3),
        losses.CrossentropyFromLogits(),
        metrics=["accuracy"],
    )
    model.fit(data.Batches(*training, batch_size=64, seed=0), epochs=epochs, verbose=2)
    test_batches = data.Batches(*test, batch_size=1000, shuffle=False)
    accuracy = model.evaluate(test_batches, return_dict=True, verbose=0)["accuracy"]
    size = len(training[0])
    return model, f"Test accuracy {accuracy:.4f} after {epochs} epochs of {size:,}."


def main(
    epochs: int = 5, files: Sequence[str | Path] = DRAWINGS, folder: str = "outputs"
) -> np.ndarray:
    """Train for `epochs` epochs; return the ten probabilities of each file."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    # First: a file that is no picture is refused before any training.
    digits = np.stack([read_image(file) for file in files])
    model, how_well = train(epochs)
    logits = model.predict(fmkit.preprocess(digits), verbose=0)
    chances = keras.ops.convert_to_numpy(keras.ops.softmax(logits))

    lines = ["| drawing | read as | probability |", "|---|---:|---:|"]
    for file, row in zip(files, chances, strict=True):
        lines.append(f"| {Path(file).name} | {row.argmax()} | {row.max():.1%} |")
    table = "\n".join([*lines, "", how_well])
    print(table)
    (output / "tf1_read_digits.md").write_text(table + "\n", encoding="utf-8")
    if importlib.util.find_spec("matplotlib"):
        picture(files, digits, chances, output / "tf1_read_digits.png")
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    return chances


def picture(
    files: Sequence[str | Path], digits: np.ndarray, chances: np.ndarray, file: Path
) -> None:
    """Draw each drawing, what the network sees of it, and the ten probabilities."""
    import matplotlib.pyplot as plt
    from PIL import Image

    size = (9, 2.4 * len(files))
    figure, axes = plt.subplots(
        len(files), 3, figsize=size, layout="constrained", squeeze=False
    )
    for row, name, digit, chance in zip(axes, files, digits, chances, strict=True):
        with Image.open(name) as drawing:
            row[0].imshow(drawing.convert("RGB"))
        row[0].set_title(Path(name).name)
        row[1].imshow(digit, cmap="gray")
        row[1].set_title("as the network sees it")
        for ax in row[:2]:
            ax.set(xticks=[], yticks=[])
        bars = row[2].bar(range(10), chance, color="lightgrey")
        bars[chance.argmax()].set_color("black")
        row[2].set(xticks=range(10), ylim=(0, 1))
        row[2].set_title(f"{chance.argmax()}, with {chance.max():.1%}")
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", default=DRAWINGS, help="your pictures")
    main(files=parser.parse_args().files)
