"""What if there were more units, more layers, more epochs, another optimizer?

The questions that the tutorials end with, answered by Keras Tuner: first one at a time
around the tutorial's network, then all together by random search. Every choice is made
on a validation split of the training images; the test images are used once, at the end.
Writes `tune_mlp.png` and `tune_mlp.csv`. It needs no network: it uses the sample that
ships with fmkit, a tenth of Fashion-MNIST, so that it takes only a minute or two.
"""

import csv
import importlib.util
from pathlib import Path

import keras_tuner
import numpy as np

from fmkit import data, datasets, hypermodels, preprocessing
from fmkit import visualization as draw

# The tutorial's network and training; each question varies one of these settings.
BASE = {
    "units": 128,
    "depth": 1,
    "epochs": 5,
    "optimizer": "adam",
    "batch_size": 128,
    "per_layer": False,
    "activation": "relu",
    "dropout": 0.0,
    "l2": 0.0,
    "loss": "crossentropy",
    "learning_rate": {"adam": 1e-3, "momentum": 1e-2, "sgd": 1e-1},
    "learning_rate_decay": 1.0,
    "ema": 0.0,
}
QUESTIONS = {
    "units": [16, 128, 512],
    "depth": [1, 2, 4],
    "epochs": [5, 15],
    "optimizer": ["adam", "momentum", "sgd"],
    "batch_size": [32, 128, 512],
}
TOGETHER = {
    "units": [128, 256, 512],
    "depth": [1, 2, 3],
    "batch_size": [32, 64, 128],
    "dropout": [0.0, 0.2],
    "ema": [0.0, 0.99],
}


def main(
    trials: int = 8,
    epochs: int = 5,
    folder: str = "outputs",
    questions: dict[str, list] | None = None,
) -> float:
    """Search and evaluate; return the test accuracy of the best model."""
    questions = QUESTIONS if questions is None else questions
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    training, test = datasets.fashion_mnist.load_sample()
    train, val = preprocessing.split(*training, validation_split=0.2, seed=0)
    validation = data.Batches(*val, batch_size=600, shuffle=False)

    def search(name, tuner_class, settings, **options):
        """Search, or continue an interrupted search, and return the tuner."""
        hypermodel = hypermodels.HyperMLP(**BASE | {"epochs": epochs} | settings)
        tuner = tuner_class(
            hypermodel,
            objective="val_accuracy",
            directory=output / "tune_mlp",
            project_name=name,
            **options,
        )
        tuner.search(*train, validation_data=validation, verbose=0)
        hypermodels.check_trials(tuner)
        return tuner

    rows = []
    for name, values in questions.items():
        tuner = search(name, keras_tuner.GridSearch, {name: values})
        found = hypermodels.trial_rows(tuner)
        print(f"{name}: " + ", ".join(f"{r[name]} {r['score']:.4f}" for r in found))
        rows += [{"question": name, **row} for row in found]
    if importlib.util.find_spec("matplotlib"):
        picture(rows, list(questions), output / "tune_mlp.png")
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")

    tuner = search(
        "together", keras_tuner.RandomSearch, TOGETHER, max_trials=trials, seed=0
    )
    found = hypermodels.trial_rows(tuner)
    rows += [{"question": "together", **row} for row in found]
    write_table(output / "tune_mlp.csv", rows)

    # The best model, once loaded, has exactly the score that the tuner reported.
    model = tuner.get_best_models()[0]
    again = model.evaluate(validation, verbose=0, return_dict=True)["accuracy"]
    if again != found[0]["score"]:
        raise RuntimeError(
            f"Reported {found[0]['score']}, but the loaded model has {again}"
        )
    test_batches = data.Batches(*test, batch_size=1000, shuffle=False)
    accuracy = model.evaluate(test_batches, verbose=0, return_dict=True)["accuracy"]
    best = {name: found[0][name] for name in TOGETHER}
    print(f"\nBest of {len(found)} combinations: {best}")
    print(f"Validation accuracy {again:.4f}, test accuracy {accuracy:.4f}")
    return accuracy


def picture(rows: list[dict], questions: list[str], file: Path) -> None:
    """Draw the answer to each question."""
    import matplotlib.pyplot as plt

    size = (3.4 * len(questions), 3.2)
    figure, axes = plt.subplots(1, len(questions), figsize=size, layout="constrained")
    for ax, name in zip(np.ravel(axes), questions, strict=True):
        found = [row for row in rows if row["question"] == name]
        draw.sweep(found, name, "score", log=name in ("units", "batch_size"), ax=ax)
        ax.set_ylabel("validation accuracy")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def write_table(path: Path, rows: list[dict]) -> None:
    """Write one line per trial: the question, its settings and its score."""
    names = dict.fromkeys(name for row in rows for name in row if name != "message")
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(names), extrasaction="ignore", restval="")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
