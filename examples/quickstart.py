"""Train, stop, judge, draw, save and reload a Fashion-MNIST classifier.

Run it from the repository with `make quickstart`, or with `python quickstart.py`
anywhere fmkit is installed. It needs no network: the full data set is used where it
is found on this machine, the sample that ships with fmkit otherwise.
"""

from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

from fmkit import callbacks, data, datasets, losses, models, preprocessing
from fmkit import visualization as draw


def main(epochs: int = 10, target: float = 0.885, folder: str = "outputs") -> float:
    """Train until `target` validation accuracy; return the accuracy on test images."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    names = datasets.fashion_mnist.CLASS_NAMES

    # Data: the whole set if it is here, else the bundled sample. Then look at it.
    found = datasets.fashion_mnist.find()
    load = (
        datasets.fashion_mnist.load_data
        if found
        else datasets.fashion_mnist.load_sample
    )
    (x_train, y_train), test = load()
    print(f"Fashion-MNIST from {found or 'the sample that ships with fmkit'}")
    report = preprocessing.check_arrays(
        train=(x_train, y_train), test=test, num_classes=10, value_range=(0, 255)
    )
    report.raise_for_problems()
    print(report)

    # Batches: a full shuffle each epoch, fixed by the seed. A tenth judges the epochs.
    train, val = preprocessing.split(x_train, y_train, validation_split=0.1, seed=0)
    batches = data.Batches(*train, batch_size=128, seed=0)
    validation = data.Batches(*val, batch_size=1000, shuffle=False)
    judged = data.Batches(*test, batch_size=1000, shuffle=False)

    # Network: raw logits out; the loss reads logits, the second one is reported too.
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

    # Judgement: on images that nothing above has seen.
    accuracy = model.evaluate(judged, return_dict=True, verbose=0)["accuracy"]
    logits = model.predict(judged, verbose=0)
    predicted, y_test = logits.argmax(-1), test[1]
    print(f"\nTest accuracy {accuracy:.4f}")
    for label, name in enumerate(names):
        of_class = y_test == label
        print(f"  {name:<12} {np.mean(predicted[of_class] == label):.3f}")

    # Pictures and a file that anyone with Keras and fmkit can load.
    draw.learning_curves(history).figure.savefig(output / "learning_curves.png")
    draw.image_grid(
        test[0][:24], y_test[:24], predicted[:24], class_names=names
    ).figure.savefig(output / "predictions.png")
    plt.close("all")
    model.save(output / "quickstart.keras")
    reloaded = keras.saving.load_model(output / "quickstart.keras")
    same = np.array_equal(reloaded.predict(judged, verbose=0), logits)
    print(f"Saved to {output.resolve()}; the reloaded model predicts the same: {same}")
    if not same:
        raise RuntimeError(
            "The reloaded model predicts otherwise than the trained one."
        )
    return accuracy


if __name__ == "__main__":
    main()
