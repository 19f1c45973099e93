"""How far a network's probabilities can be trusted, before and after one division.

Real Fashion-MNIST, the network of the first tutorial, trained with and without label
smoothing. One temperature for each is fitted on the validation images, and judged on
the test images. Writes a figure and a table. It needs no network: it uses the full data
set if this machine has it, and otherwise the sample that ships with fmkit.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

import fmkit
from fmkit import data, datasets, losses, metrics, models, preprocessing
from fmkit import visualization as draw
from fmkit.evaluation import fit_temperature, with_temperature
from fmkit.performance import fit_settings

FIGURE = "calibration.png"


def calibrated(smoothing: float, epochs: int, splits: tuple) -> tuple[float, dict]:
    """Train once; return the temperature, and the test logits before and after."""
    train, validation, test = splits
    fmkit.set_random_seed(0)
    batches = data.Batches(*train, batch_size=128, seed=0)
    model = models.mlp((256, 128))
    settings = fit_settings(model, batches, epochs=epochs)
    loss = losses.CrossentropyFromLogits(label_smoothing=smoothing)
    model.compile("adam", loss, **settings.compile)
    model.fit(**settings.fit, epochs=epochs, verbose=0)
    temperature = fit_temperature(model, validation).temperature
    both = {"as trained": model, "calibrated": with_temperature(model, temperature)}
    return temperature, {k: m.predict(test, verbose=0) for k, m in both.items()}


def main(epochs: int = 20, folder: str = "outputs") -> list[dict[str, Any]]:
    """Train twice; return loss and calibration on the test images, and draw them."""
    (output := Path(folder)).mkdir(parents=True, exist_ok=True)
    source, found = datasets.fashion_mnist, datasets.fashion_mnist.find()
    training, test = source.load_data() if found else source.load_sample()
    print(f"Fashion-MNIST from {found or 'the sample that ships with fmkit'}")
    train, held_out = preprocessing.split(*training, validation_split=1 / 12, seed=0)
    fixed = [
        data.Batches(*each, batch_size=1000, shuffle=False) for each in (held_out, test)
    ]
    labels, rows, logits = test[1], [], {}
    for smoothing in (0.0, 0.1):
        temperature, of_model = calibrated(smoothing, epochs, (train, *fixed))
        logits[f"label smoothing {smoothing:g}, T = {temperature:.2f}"] = of_model
        for kind, z in of_model.items():
            rows.append(
                {
                    "smoothing": smoothing,
                    "logits": kind,
                    "accuracy": float(np.mean(z.argmax(axis=1) == labels)),
                    "cross-entropy": float(losses.CrossentropyFromLogits()(labels, z)),
                    "ECE": float(metrics.expected_calibration_error(labels, z)),
                    "Brier score": float(metrics.BrierScore()(labels, z)),
                }
            )
    text = table(rows)
    (output / "calibration.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}")
    if importlib.util.find_spec("matplotlib"):
        picture(labels, logits, output / FIGURE)
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown."""
    lines = [f"| {' | '.join(rows[0])} |", "|---:|---|---:|---:|---:|---:|"]
    for smoothing, kind, *numbers in (row.values() for row in rows):
        cells = [f"{smoothing:g}", kind, *(f"{number:.4f}" for number in numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(labels: np.ndarray, logits: dict[str, dict], file: Path) -> None:
    """Draw a reliability diagram of each network, as trained and calibrated."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.8), layout="constrained")
    for ax, (title, of_model) in zip(axes, logits.items(), strict=True):
        for kind, z in of_model.items():
            draw.reliability_diagram(labels, z, label=kind, title=title, ax=ax)
    figure.savefig(file, dpi=120, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
