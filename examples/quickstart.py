"""Train, stop, evaluate, plot, save and reload a Fashion-MNIST classifier.

Run it with `make quickstart`, or with `python quickstart.py` if fmkit is installed.
It needs no network: it uses the full data set if this machine has it, and otherwise the
sample that ships with fmkit. Without matplotlib it draws no pictures.
"""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow prints errors only

import keras
import numpy as np

import fmkit
from fmkit import callbacks, data, datasets, losses, models, preprocessing
from fmkit import visualization as draw


def main(epochs: int = 10, target: float = 0.885, folder: str = "outputs") -> float:
    """Train to a validation accuracy of `target`; return the test accuracy."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    fmkit.set_random_seed(0)
    source = datasets.fashion_mnist

    # Data: the full set if it is here, else the bundled sample. Then check it.
    found = source.find()
    training, test = source.load_data() if found else source.load_sample()
    print(f"Fashion-MNIST from {found or 'the sample that ships with fmkit'}")
    report = preprocessing.check_arrays(
        train=training, test=test, num_classes=10, value_range=(0, 255)
    )
    report.raise_for_problems()
    print(report)

    # Batches: a full shuffle each epoch, fixed by the seed. A tenth is for validation.
    train, val = preprocessing.split(*training, validation_split=0.1, seed=0)
    batches = data.Batches(*train, batch_size=128, seed=0)
    validation = data.Batches(*val, batch_size=1000, shuffle=False)
    test_batches = data.Batches(*test, batch_size=1000, shuffle=False)

    # Network: it outputs raw logits, which the loss and a second, reported loss take.
    model = models.mlp()
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=losses.CrossentropyFromLogits(),
        metrics=["accuracy", losses.mean_squared_error_from_logits],
    )
    stop = callbacks.ThresholdStopping("val_accuracy", target)
    history = model.fit(
        batches, epochs=epochs, validation_data=validation, callbacks=[stop]
    )

    # Evaluation: on images that nothing above has used.
    accuracy = model.evaluate(test_batches, return_dict=True, verbose=0)["accuracy"]
    logits = model.predict(test_batches, verbose=0)
    labels, predicted = test[1], logits.argmax(-1)
    print(f"\nTest accuracy {accuracy:.4f}")
    for label, name in enumerate(source.CLASS_NAMES):
        print(f"  {name:<12} {np.mean(predicted[labels == label] == label):.3f}")

    # Plots, and a file that anyone with Keras and fmkit can load.
    if importlib.util.find_spec("matplotlib"):
        draw.learning_curves(history).figure.savefig(output / "learning_curves.png")
        images = (test[0][:24], labels[:24], predicted[:24])
        grid = draw.image_grid(*images, class_names=source.CLASS_NAMES)
        grid.figure.savefig(output / "predictions.png")
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    model.save(output / "quickstart.keras")
    reloaded = keras.saving.load_model(output / "quickstart.keras")
    if not np.array_equal(reloaded.predict(test_batches, verbose=0), logits):
        raise RuntimeError("The reloaded model and the trained one differ")
    print(f"Saved to {output.resolve()}; the reloaded model predicts the same bits.")
    return accuracy


if __name__ == "__main__":
    main()
