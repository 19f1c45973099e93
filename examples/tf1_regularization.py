"""Smooth a decision boundary with L2, on the circle of the TensorFlow 1 course.

300 points in the plane, labeled by whether they are inside a circle. The network 2-11-1
learns the labels as numbers, once without a penalty and once with TensorFlow 1's
penalty of 0.01 times half the sum of the squared weights; both start from the same
weights. Writes `tf1_regularization.png` and `tf1_regularization.md`. It needs no
network.
"""

import importlib.util
from pathlib import Path

import keras
import numpy as np

from fmkit import data, datasets, models
from fmkit import visualization as draw


def network(l2: float) -> keras.Model:
    """Return the untrained network 2-11-1, the same for every penalty."""
    return models.mlp(
        (11,),
        1,
        input_shape=(2,),
        l2=l2,
        half_l2=True,
        kernel_initializer=("random_normal", {"stddev": 1.0}),
        bias_initializer=0.01,
        seed=0,
    )


def train(model: keras.Model, steps: int) -> keras.Model:
    """Train for `steps` steps of Adam in batches of 30, in order."""
    x, y = datasets.toy.circle()
    # The same 10 batches are repeated: for `fit`, 100 rounds of them are one epoch.
    rounds = min(100, steps // 10)
    repeated = np.tile(x, (rounds, 1)), np.tile(y, (rounds, 1))
    batches = data.Batches(*repeated, batch_size=30, shuffle=False, map=None)
    # Many steps per execution: such a small network would mostly wait for Python.
    adam = keras.optimizers.Adam(1e-4)
    model.compile(adam, "mean_squared_error", steps_per_execution=rounds * 10)
    model.fit(batches, epochs=steps // (rounds * 10), verbose=0)
    return model


def main(
    steps: int = 40_000, l2: float = 0.01, folder: str = "outputs"
) -> list[dict[str, float]]:
    """Train without and with the penalty; return the numbers of the table."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    networks = [train(network(penalty), steps) for penalty in (0.0, l2)]
    rows = [measure(model) for model in networks]
    lines = [
        "| penalty | sum of squared weights | mean squared error | correct of 300 "
        "| correct on 10,000 new points |",
        "|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {penalty:g} | {row['squares']:.2f} | {row['error']:.4f} "
        f"| {row['right']:.1%} | {row['right_on_new']:.1%} |"
        for penalty, row in zip((0.0, l2), rows, strict=True)
    ]
    table = "\n".join(lines)
    print(table)
    (output / "tf1_regularization.md").write_text(table + "\n", encoding="utf-8")

    if importlib.util.find_spec("matplotlib"):
        picture(networks, l2, output / "tf1_regularization.png")
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    return rows


def picture(networks: list[keras.Model], l2: float, file: Path) -> None:
    """Draw both boundaries over the points and the true circle."""
    import matplotlib.pyplot as plt

    x, y = datasets.toy.circle()
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 4.2), sharex=True, sharey=True, layout="compressed"
    )
    turn = np.linspace(0, 2 * np.pi, 200)
    titles = ["without penalty", f"L2 with {l2:g}"]
    for ax, model, title in zip(axes, networks, titles, strict=True):
        ax.plot(2**0.5 * np.cos(turn), 2**0.5 * np.sin(turn), "k:", label="truth")
        names = ("outside", "inside")
        draw.decision_boundary(model, x, y, class_names=names, title=title, ax=ax)
    axes[0].get_legend().remove()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def measure(model: keras.Model) -> dict[str, float]:
    """Return the size of the weights, and how accurate the network is."""
    kernels = [w for w in model.get_weights() if w.ndim == 2]
    x, y = datasets.toy.circle()
    said = keras.ops.convert_to_numpy(model(x))
    new_x, new_y = datasets.toy.circle(10_000, seed=3)
    said_on_new = keras.ops.convert_to_numpy(model(new_x))
    return {
        "squares": float(sum(np.sum(w**2) for w in kernels)),
        "error": float(np.mean((said - y) ** 2)),
        "right": float(np.mean((said > 0.5) == y)),
        "right_on_new": float(np.mean((said_on_new > 0.5) == new_y)),
    }


if __name__ == "__main__":
    main()
