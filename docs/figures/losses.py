"""The figures of the guide "Losses on logits".

`python docs/figures/losses.py [folder]` draws them with fmkit's own losses and the
gradients of Keras's backend. Lines differ by their dashes too, so that they can be
told apart without colour.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

from fmkit import losses

# Okabe and Ito's colours, which colour-blind readers tell apart.
STYLES = [
    {"color": "#000000", "linestyle": "-"},
    {"color": "#0072B2", "linestyle": "--"},
    {"color": "#D55E00", "linestyle": "-."},
    {"color": "#009E73", "linestyle": ":"},
]
WIDTH = 1.8


def value_and_gradient(cost: Callable[[Any], Any], z: np.ndarray) -> tuple:
    """Return `cost(z)` and the gradient of its sum, as NumPy arrays."""
    z = ops.convert_to_tensor(z.astype("float32"))
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(z)
            value = cost(z)
        gradient = tape.gradient(value, z)
    elif backend == "jax":
        import jax

        value, gradient = cost(z), jax.grad(lambda z: cost(z).sum())(z)
    else:
        z.requires_grad_()
        value = cost(z)
        value.sum().backward()
        gradient, value = z.grad, value.detach()
    return ops.convert_to_numpy(value), ops.convert_to_numpy(gradient)


def draw(ax: Any, x: np.ndarray, lines: dict[str, np.ndarray]) -> None:
    """Draw the lines, each in its own style."""
    for style, (name, y) in zip(STYLES, lines.items(), strict=False):
        ax.plot(x, y, linewidth=WIDTH, label=name, **style)
    ax.axhline(0.0, color="0.7", linewidth=0.8, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)


def two_class(folder: Path) -> None:
    """Cost and gradient of one sample of two classes, against the true logit."""
    t = np.linspace(-5, 5, 401)
    z = np.stack([t, np.zeros_like(t)], axis=1)
    labels = np.zeros(len(t), "int32")
    smooth = np.tile(np.float32([0.8, 0.2]), (len(t), 1))
    groups = [
        {
            "cross-entropy": lambda z: losses.crossentropy_from_logits(labels, z),
            "smoothing 0.4": lambda z: losses.crossentropy_from_logits(
                labels, z, label_smoothing=0.4
            ),
            "focal, γ = 2": lambda z: losses.crossentropy_from_logits(
                labels, z, focal_gamma=2.0
            ),
        },
        {
            "MSE, linear": lambda z: losses.mean_squared_error_from_logits(labels, z),
            "MSE, softmax": lambda z: losses.mean_squared_error_from_logits(
                labels, z, activation="softmax"
            ),
        },
        {
            "KL forward": lambda z: losses.kl_divergence_from_logits(smooth, z),
            "KL reverse": lambda z: losses.kl_divergence_from_logits(
                smooth, z, direction="reverse"
            ),
            "Jensen–Shannon": lambda z: losses.kl_divergence_from_logits(
                smooth, z, direction="jensen_shannon"
            ),
            "−entropy": lambda z: losses.confidence_penalty(z, weight=1.0),
        },
    ]
    titles = ["Label 0", "Label 0", "Target (0.8, 0.2); none for −entropy"]
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True)
    for column, group in enumerate(groups):
        both = {name: value_and_gradient(cost, z) for name, cost in group.items()}
        top, bottom = axes[:, column]
        draw(top, t, {n: v for n, (v, _) in both.items()})
        draw(bottom, t, {n: g[:, 0] for n, (_, g) in both.items()})
        top.set_title(titles[column], fontsize=10)
        place = "upper center" if column == 1 else "upper right"
        top.legend(frameon=False, handlelength=3.2, loc=place)
        bottom.set_xlabel("logit of class 0 (that of class 1 is 0)")
    axes[0, 1].set_ylim(-0.4, 9)
    axes[1, 1].set_ylim(-2.5, 2.5)
    axes[0, 0].set_ylabel("loss (nats; squares)")
    axes[1, 0].set_ylabel("gradient in that logit")
    save(figure, folder / "losses-logit.png")


def forecasts(folder: Path) -> None:
    """Cost of a forecast against how far it is off."""
    off = np.linspace(-4, 4, 401)[:, None]
    truth = np.zeros_like(off, dtype="float32")
    costs = {
        "under 3, over 1": lambda y: losses.asymmetric_error(truth, y, under=3.0),
        "pinball 0.9": lambda y: losses.pinball(truth, y, quantiles=0.9),
        "pinball 0.5": lambda y: losses.pinball(truth, y, quantiles=0.5),
    }
    both = {name: value_and_gradient(cost, off) for name, cost in costs.items()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    draw(axes[0], off[:, 0], {n: v for n, (v, _) in both.items()})
    draw(axes[1], off[:, 0], {n: g[:, 0] for n, (_, g) in both.items()})
    axes[0].legend(frameon=False, handlelength=3.2, loc="upper right")
    for ax in axes:
        ax.set_xlabel("forecast − truth")
    axes[0].set_ylabel("cost")
    axes[1].set_ylabel("gradient in the forecast")
    save(figure, folder / "losses-forecast.png")


def binary(folder: Path) -> None:
    """Cost and gradient of a label that is 0, against its logit."""
    z = np.linspace(-7, 5, 481)[:, None]
    label = np.zeros_like(z, dtype="float32")
    costs = {
        "cross-entropy": lambda z: losses.binary_crossentropy_from_logits(label, z),
        "focal, γ = 2": lambda z: losses.binary_crossentropy_from_logits(
            label, z, focal_gamma=2.0
        ),
        "asymmetric, m = 0.05": lambda z: losses.asymmetric_loss_from_logits(label, z),
        "KL from p = 0.2": lambda z: losses.binary_kl_divergence_from_logits(
            label + 0.2, z
        ),
    }
    both = {name: value_and_gradient(cost, z) for name, cost in costs.items()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    draw(axes[0], z[:, 0], {n: v for n, (v, _) in both.items()})
    draw(axes[1], z[:, 0], {n: g[:, 0] for n, (_, g) in both.items()})
    axes[0].legend(frameon=False, handlelength=3.2, loc="upper left")
    for ax in axes:
        ax.set_xlabel("logit of a label that is 0")
    axes[0].set_ylabel("cost (nats)")
    axes[1].set_ylabel("gradient in the logit")
    save(figure, folder / "losses-binary.png")


def exactness(folder: Path) -> None:
    """The gradient of a confident right answer: Keras's, fmkit's, the truth."""
    gap = np.linspace(0, 40, 161)
    z = np.stack([gap, np.zeros_like(gap)], axis=1)
    labels = ops.zeros(len(gap), "int32")
    ours = value_and_gradient(
        lambda z: losses.crossentropy_from_logits(np.zeros(len(gap), int), z), z
    )[1]
    theirs = value_and_gradient(
        lambda z: keras.losses.sparse_categorical_crossentropy(
            labels, z, from_logits=True
        ),
        z,
    )[1]
    figure, ax = plt.subplots(figsize=(6.4, 3.6))
    ax.semilogy(
        gap,
        1 / (1 + np.exp(gap)),
        color="0.75",
        linewidth=6,
        label="exact",
        solid_capstyle="butt",
    )
    ax.semilogy(
        gap, np.abs(ours[:, 0]), color="#000000", linewidth=WIDTH, label="fmkit"
    )
    # A gradient of 0 has no place on a logarithmic axis: the line ends there.
    shown = np.where(theirs[:, 0] == 0, np.nan, np.abs(theirs[:, 0]))
    ax.semilogy(
        gap,
        shown,
        color="#D55E00",
        linestyle="--",
        marker="o",
        markevery=4,
        markersize=4,
        label="Keras, from_logits=True (0 where the line ends)",
    )
    ax.set_xlabel("true logit − other logit")
    ax.set_ylabel("|gradient| of cross-entropy, float32")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    save(figure, folder / "losses-exact.png")


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    # No version of matplotlib in the file, so that equal figures are equal files.
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def main(folder: str | Path = Path(__file__).parent) -> None:
    """Write the four PNG files into `folder`."""
    folder = Path(folder)
    two_class(folder)
    binary(folder)
    forecasts(folder)
    exactness(folder)


if __name__ == "__main__":
    main(*sys.argv[1:2])
