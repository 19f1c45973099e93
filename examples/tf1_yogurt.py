"""Forecast yogurt sales: by squared error, then by what a mistake costs.

The TensorFlow 1 course's lesson. A day's sales are the sum of two factors and a little
noise. A pot costs 1 to make and earns 9, or the other way round: if a missed sale costs
more than an unsold pot, it is better to make too many than too few. Writes
`tf1_yogurt.png` and `tf1_yogurt.md`. It needs no network.
"""

import importlib.util
from pathlib import Path

import keras
import numpy as np

from fmkit import data, datasets, losses, models

# TensorFlow 1 sums the costs of a batch; Keras averages them.
COSTS = {
    "squared error": "mean_squared_error",
    "too few cost 9, too many 1": losses.AsymmetricError(
        under=9, over=1, reduction="sum"
    ),
    "too few cost 1, too many 9": losses.AsymmetricError(
        under=1, over=9, reduction="sum"
    ),
}
STYLES = [("black", "-", "o"), ("#D55E00", "--", "^"), ("#0072B2", ":", "v")]


def fit(loss: str | keras.losses.Loss, steps: int) -> np.ndarray:
    """Return the two weights after `steps` steps in batches of 8, in order."""
    x, y = datasets.toy.yogurt_sales()
    # The same 4 batches are repeated: for `fit`, `rounds` of them are one epoch.
    rounds = steps // 4
    repeated = np.tile(x, (rounds, 1)), np.tile(y, (rounds, 1))
    batches = data.Batches(*repeated, batch_size=8, shuffle=False, map=None)
    model = models.linear(1, input_shape=(2,), use_bias=False)
    # What the course draws with tf.random_normal((2, 1), stddev=1, seed=1).
    model.set_weights([np.array([[-0.8113182], [1.4845988]])])
    # Many steps per execution: such a small network would mostly wait for Python.
    model.compile(keras.optimizers.SGD(0.001), loss, steps_per_execution=100)
    model.fit(batches, verbose=0)
    return model.get_weights()[0][:, 0]


def main(
    steps: int = 3000, squared_steps: int = 20_000, folder: str = "outputs"
) -> dict[str, np.ndarray]:
    """Fit with each cost; return the weights. Squared error needs more steps."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    weights = {
        name: fit(loss, squared_steps if isinstance(loss, str) else steps)
        for name, loss in COSTS.items()
    }
    table = report(weights)
    print(table)
    (output / "tf1_yogurt.md").write_text(table + "\n", encoding="utf-8")

    if importlib.util.find_spec("matplotlib"):
        picture(weights, output / "tf1_yogurt.png")
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    return weights


def report(weights: dict[str, np.ndarray]) -> str:
    """Return a table of weights, days with too many, and average costs."""
    lines = [
        "| fitted by | w1 | w2 | days with too many | cost per day at 9:1 | at 1:9 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    _, y = datasets.toy.yogurt_sales()
    for name, w in weights.items():
        made = errors(w)[:, np.newaxis] + y
        costs = [
            float(np.mean(losses.asymmetric_error(y, made, under=under, over=over)))
            for under, over in ((9, 1), (1, 9))
        ]
        many = f"{np.sum(made > y)} of {len(y)}"
        lines.append(
            f"| {name} | {w[0]:.5f} | {w[1]:.5f} | {many} | "
            + " | ".join(f"{cost:.4f}" for cost in costs)
            + " |"
        )
    return "\n".join(lines)


def errors(w: np.ndarray) -> np.ndarray:
    """Return forecast minus sales for each day."""
    x, y = datasets.toy.yogurt_sales()
    return x @ w - y[:, 0]


def picture(weights: dict[str, np.ndarray], file: Path) -> None:
    """Draw what a mistake costs, and each fit's errors."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    draw_costs(left)
    draw_errors(right, weights)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_costs(ax) -> None:
    """Plot the three costs of one day as functions of the forecast's error."""
    error = np.linspace(-0.1, 0.1, 201)
    costs = [20 * error**2, np.maximum(-9 * error, error)]
    costs.append(np.maximum(-error, 9 * error))
    names = ["squared error (here 20 times)", *list(COSTS)[1:]]
    for cost, name, (colour, dash, marker) in zip(costs, names, STYLES, strict=True):
        line = ax.plot(error, cost, dash, color=colour, label=name)[0]
        line.set(marker=marker, markersize=5, markevery=20)
    ax.set(xlabel="made minus sold", ylabel="cost", title="what a mistake costs")
    ax.set_xticks([-0.1, -0.05, 0, 0.05, 0.1])
    ax.legend(frameon=False, loc="upper center")


def draw_errors(ax, weights: dict[str, np.ndarray]) -> None:
    """Plot each fit's errors on the 32 days, from the lowest to the highest."""
    share = (np.arange(32) + 0.5) / 32
    for w, (colour, dash, marker) in zip(weights.values(), STYLES, strict=True):
        line = ax.plot(np.sort(errors(w)), share, dash, color=colour)[0]
        line.set(marker=marker, markersize=5)
    ax.axvline(0, color="grey", linewidth=1)
    ax.set(xlabel="made minus sold", ylabel="share of the days below")
    ax.set_xticks([-0.1, -0.05, 0, 0.05, 0.1])
    ax.set_title("the forecast moves to the cheaper side")


if __name__ == "__main__":
    main()
