"""The fit of a temperature: what it reads, what it refuses, and Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from fmkit._arrays import as_array

Array = np.ndarray[Any, Any]
# Of the scales 1/T: loss, gradient and Hessian.
Cost = Callable[[Array], tuple[float, Array, Array]]

_MOST_STEPS = 200
# Less than one wrong example among a million million would cost.
_NO_COST = 1e-12


# The data


def logits_and_labels(source: Any, data: Any) -> tuple[Any, Any]:
    """Return the logits, which a model computes from the data, and the labels."""
    if not isinstance(source, keras.Model):
        return source, data
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    if weight is not None:
        raise ValueError("`data` must be (x, y): sample weights are not used here.")
    if y is not None:
        return source.predict(x, verbose=0), y
    if isinstance(x, keras.utils.PyDataset):
        x = map(x.__getitem__, range(x.num_batches))
    pairs = [keras.utils.unpack_x_y_sample_weight(batch)[:2] for batch in x]
    logits = [float64(source.predict_on_batch(inputs)) for inputs, _ in pairs]
    return np.concatenate(logits), np.concatenate([float64(y) for _, y in pairs])


def float64(x: Any) -> Array:
    return np.asarray(as_array(x), "float64")


def read(logits: Any, labels: Any, activation: str) -> tuple[Array, Array]:
    """Return logits of shape (n, K), and class numbers (n,) or targets (n, K)."""
    z, y = float64(logits), float64(labels)
    softmax = activation == "softmax"
    if z.ndim == 1 and not softmax:
        z = z[:, None]
    whole, without = z.shape, z.shape[:-1]
    if softmax:
        least, shapes = 2, [without, (*without, 1)]
    else:
        least, shapes = 1, [whole, without] if whole[-1:] == (1,) else [whole]
    if z.ndim < 2 or whole[-1] < least or not z.size or y.shape not in shapes:
        raise ValueError(
            f"Logits of shape {whole} need at least {least} per example, and labels of "
            f"shape {shapes[0]}: "
            + ("class numbers, not rows" if softmax else "0 or 1 for each logit")
            + f"; got labels of shape {y.shape}. For one-hot rows pass "
            "`labels.argmax(axis=-1)`; for several labels at once, or one logit, "
            'pass activation="sigmoid".'
        )
    _check_values(z, y, softmax)
    z = z.reshape(-1, z.shape[-1])
    return z, y.reshape(-1).astype(int) if softmax else y.reshape(z.shape)


def _check_values(z: Array, y: Array, softmax: bool) -> None:
    if not np.isfinite(z).all():
        raise ValueError(
            f"The logits must be finite, got {np.isnan(z).sum()} NaN and "
            f"{np.isinf(z).sum()} infinite. Find where they come from: a temperature "
            "fitted without them would hide it."
        )
    whole = np.abs(z.sum(axis=-1) - 1.0).max() < 1e-3 if softmax else z.max() <= 1.0
    if z.min() >= 0.0 and whole:
        raise ValueError(
            "The logits look like probabilities: none is below 0, and "
            + ("each row sums to 1" if softmax else "none is above 1")
            + ". Leave out the last activation of the model."
        )
    most = z.shape[-1] - 1 if softmax else 1
    good = (y >= 0) & (y <= most) & ((y == np.round(y)) | (not softmax))
    if not good.all():
        rule = f"class numbers from 0 to {most}" if softmax else "0, 1 or between"
        raise ValueError(
            f"The labels must be {rule}, got {y[~good][0]:g} ({(~good).sum()} such "
            "values). Leave out examples whose label is not known."
        )


def check_kinds(y: Array, classes: int, per_class: bool) -> None:
    """Refuse labels that lack what the fit needs examples of."""
    if y.ndim == 1:
        lacking = np.flatnonzero(np.bincount(y, minlength=classes) == 0)
        rule = "every class, got none of"
    else:
        lacking = np.flatnonzero(y.min(axis=0) == y.max(axis=0))
        rule = "yes and of no, got only one of them for label"
    if not (lacking.size if per_class else y.min() == y.max()):
        return
    names = ", ".join(map(str, lacking[:5])) + ", ..." * (len(lacking) > 5)
    otherwise = ", or one temperature with `per_class=False`" if per_class else ""
    raise ValueError(
        f"The labels must have examples of {rule} {names}. Fit on more examples"
        f"{otherwise}."
    )


def check_slopes(z: Array, y: Array, per_class: bool) -> None:
    """Refuse data for which the loss has no minimum at a temperature above 0.

    The loss is convex in the scale 1/T: it has a minimum above 0 if it falls at 0, and
    rises far out. (Several temperatures of a softmax are tied to each other: those are
    looked at once they are found.)
    """
    if y.ndim == 1:
        own = z[np.arange(len(z)), y]
        at_0 = -np.inf if per_class else np.mean(z.mean(axis=1) - own)
        far_out = np.mean(z.max(axis=1) - own)
    else:
        mean = np.mean if not per_class else lambda x: np.mean(x, axis=0)
        at_0 = mean((0.5 - y) * z)
        far_out = mean(np.maximum(z, 0.0) - y * z)
    if not np.all(at_0 < -1e-12 * np.abs(z).max()):
        raise ValueError(
            "The logits say nothing about the labels, or the opposite: the loss is "
            "lowest where all classes are equally likely. Check the order of the "
            "labels."
        )
    if not np.all(far_out > 0.0):
        raise ValueError(
            "Every example is classified right, so the loss falls all the way to a "
            "temperature of 0 and none is best. Fit on examples that the model was not "
            "trained on, or on more of them."
        )


# The fit


def softmax_cost(scale: Array, z: Array, y: Array) -> tuple[float, Array, Array]:
    """Return the mean cross-entropy of softmax(scale * z), and its derivatives."""
    rows = np.arange(len(z))
    x = scale * z
    x -= x.max(axis=1, keepdims=True)
    masses = np.exp(x)
    total = masses.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - x[rows, y]))
    first = z * masses / total
    second = first * z
    if scale.size == 1:
        mean = first.sum(axis=1)
        spread = np.mean(second.sum(axis=1) - mean**2)
        return loss, np.array([np.mean(mean - z[rows, y])]), np.array([[spread]])
    own = np.bincount(y, weights=z[rows, y], minlength=z.shape[1]) / len(z)
    hessian = np.diag(second.mean(axis=0)) - first.T @ first / len(z)
    return loss, first.mean(axis=0) - own, hessian


def sigmoid_cost(scale: Array, z: Array, y: Array) -> tuple[float, Array, Array]:
    """Return the mean cross-entropy of sigmoid(scale * z), and its derivatives."""
    x = scale * z
    p = np.exp(-np.logaddexp(0.0, -x))
    loss = float(np.mean(np.logaddexp(0.0, x) - y * x))
    first = np.mean((p - y) * z, axis=0)
    second = np.mean(p * np.exp(-np.logaddexp(0.0, x)) * z * z, axis=0)
    if scale.size == 1:
        first, second = first.mean(keepdims=True), second.mean(keepdims=True)
    else:
        first, second = first / len(first), second / len(first)
    return loss, first, np.diag(second)


def minimum(cost: Cost, size: int) -> tuple[Array, int]:
    """Return the scales of the lowest cost, and how many steps it took to find them.

    Newton's method from 0, where its first step has the size of the data whatever the
    unit of the logits. A step after which the cost is higher is halved.
    """
    scale = np.zeros(size)
    value, gradient, hessian = cost(scale)
    for iteration in range(1, _MOST_STEPS + 1):
        step = -np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        new = cost(scale + step)
        # Near the minimum the cost no longer tells two scales apart.
        while not new[0] <= value * (1.0 + 1e-13):
            step = 0.5 * step
            new = cost(scale + step)
        scale = scale + step
        value, gradient, hessian = new
        if value < _NO_COST:
            break
        if np.abs(step).max() <= 1e-10 * np.abs(scale).max():
            return scale, iteration
    raise ValueError(
        "No temperatures are best: that of a class which is always told from the "
        "others falls all the way to 0. Fit one temperature with `per_class=False`, "
        "or on more examples."
    )
