"""The two-layer network of the TensorFlow 1 course, to all printed digits.

32 parts have a volume and a weight; a part passes if the two sum to less than 1. A
network 2-3-1 without biases or activations learns this by plain gradient descent, in
3,000 steps with batches of 8 in order. Prints the course's six losses and its final
weights (their eighth digit depends on the backend and the processor); writes
`tf1_two_layers.png` and `tf1_two_layers.md`. It needs no network.
"""

import importlib.util
from pathlib import Path

import keras
import numpy as np

from fmkit import data, datasets, models

# What the course draws with tf.random_normal(shape, stddev=1, seed=1).
W1 = [[-0.8113182, 1.4845988, 0.06532937], [-2.4427042, 0.0992484, 0.5912243]]
W2 = [[-0.8113182], [1.4845988], [0.06532937]]


def train(steps: int, every: int) -> tuple[keras.Model, list[tuple[int, float]]]:
    """Train for `steps` steps; return the model, and the loss every `every` steps."""
    x, y = datasets.toy.half_plane()
    batches = data.Batches(x, y, batch_size=8, shuffle=False, map=None)
    model = models.mlp((3,), 1, input_shape=(2,), activation=None, use_bias=False)
    model.set_weights([np.array(W1), np.array(W2)])
    model.compile(keras.optimizers.SGD(0.001), loss="mean_squared_error")

    losses = []
    for step in range(steps):
        if step % len(batches) == 0:
            epoch = iter(batches)
        model.train_on_batch(*next(epoch))
        if step % every == 0:
            losses.append((step, model.evaluate(x, y, batch_size=32, verbose=0)))
    return model, losses


def main(
    steps: int = 3000, every: int = 500, folder: str = "outputs"
) -> tuple[list[tuple[int, float]], list[np.ndarray]]:
    """Train and report; return the losses by step and the final weights."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    model, losses = train(steps, every)

    lines = ["| after step | loss on all 32 parts |", "|---:|---:|"]
    lines += [f"| {step} | {loss:g} |" for step, loss in losses]
    w1, w2 = model.get_weights()
    # NumPy prints as few digits, at most nine, as identify a float32 number.
    lines += ["", "```text", f"w1 =\n{w1}", f"w2 =\n{w2}", "```"]
    table = "\n".join(lines)
    print(table)
    (output / "tf1_two_layers.md").write_text(table + "\n", encoding="utf-8")

    if importlib.util.find_spec("matplotlib"):
        picture(losses, model, output / "tf1_two_layers.png")
    else:
        print("No pictures without matplotlib. Type: pip install matplotlib")
    return losses, [w1, w2]


def picture(losses: list[tuple[int, float]], model: keras.Model, file: Path) -> None:
    """Draw the losses, and the forecasts for each part."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    draw_losses(left, losses)
    draw_forecasts(right, model)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_losses(ax, losses: list[tuple[int, float]]) -> None:
    """Plot the losses, each with the number that the course prints."""
    ax.plot(*zip(*losses, strict=True), "o-", color="black")
    ax.set(xlabel="step", ylabel="mean squared error", yscale="log", ylim=(0.3, 12))
    ax.set_yticks([0.4, 1, 2, 4], ["0.4", "1", "2", "4"])
    ax.minorticks_off()
    for step, loss in losses:
        # Up and to the right of the point, so that it does not cover the next one.
        ax.text(step + 40, 1.08 * loss, f"{loss:g}", rotation=35)
    ax.set_xlim(-0.05 * losses[-1][0] - 50, 1.2 * losses[-1][0] + 100)
    ax.set_title("loss on all 32 parts")


def draw_forecasts(ax, model: keras.Model) -> None:
    """Plot the network's output for each part and the true label."""
    x, y = datasets.toy.half_plane()
    total, said = x.sum(axis=1), model.predict(x, verbose=0)[:, 0]
    for label, style in ((1, "^k"), (0, "ow")):
        at = y[:, 0] == label
        name = f"truth {label}"
        ax.plot(total[at], said[at], style, markeredgecolor="black", label=name)
    ax.axvline(1, color="grey", linestyle=":")
    ax.set(xlabel="volume + weight", ylabel="output of the network")
    ax.set_title("no offsets: the outputs can't follow the truth")
    ax.legend(frameon=False)


if __name__ == "__main__":
    main()
