r"""Entropy and related measures, on arrays in float64 and on tensors with gradients.

NumPy arrays, lists and numbers are computed by NumPy in float64, and NumPy is returned;
tensors of Keras's backend return tensors, in their own float dtype (float32 at least),
and can be differentiated. Everywhere $0 \log 0 = 0$.

The unit is `"nats"` (base $e$), `"bits"` (base 2) or `"bans"` (base 10).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from fmkit._checks import check_one_of
from fmkit._math import (
    UNITS,
    divergence_terms,
    entropy_from_logits,
    jensen_shannon,
    log_ratio,
    numpy_ops,
    softmax,
)
from fmkit._targets import at_least_float32, known_values

__all__ = [
    "conditional_entropy",
    "cross_entropy",
    "entropy",
    "jensen_shannon_divergence",
    "joint_counts",
    "joint_entropy",
    "kl_divergence",
    "mutual_information",
    "perplexity",
]

# Infinities are expected: log 0, and classes that a logit of -inf excludes.
_expect_infinities = np.errstate(divide="ignore", invalid="ignore", over="ignore")

# Log-probabilities are logits of themselves.
_LOGITS = ("logits", "log_probabilities")
_FORMS = ("probabilities", *_LOGITS, "counts")


@_expect_infinities
def entropy(
    p: Any,
    *,
    form: str = "probabilities",
    axis: int = -1,
    unit: str = "nats",
    sum_tolerance: float | None = 1e-3,
) -> Any:
    r"""Entropy $H(p) = -\sum_j p_j \log p_j$ along an axis.

    Args:
        p: A distribution along `axis`.
        form: What `p` holds: `"probabilities"`, `"log_probabilities"`, `"logits"`,
            or `"counts"` (any weights that are not negative). Probabilities are
            divided by their sum, counts too.
        axis: The axis of the outcomes.
        unit: `"nats"`, `"bits"` or `"bans"`.
        sum_tolerance: How far from 1 probabilities may sum; None turns the check off.

    Returns:
        The entropy, without `axis`.

    Raises:
        ValueError: If an option is unknown, or, where values are known, they are
            negative, are all 0, or do not sum to 1.

    Examples:
        >>> round(float(entropy([0.5, 0.25, 0.25], unit="bits")), 4)
        1.5
        >>> round(float(entropy([3, 1], form="counts")), 4)
        0.5623

    References:
        Shannon, *A mathematical theory of communication*, 1948.
    """
    xp, x, axis = _read("p", p, form, axis, unit, sum_tolerance)
    if form == "logits":
        return entropy_from_logits(x, axis, xp) / UNITS[unit]
    read = _distribution(x, form, axis, xp)
    return _expectation(read.p, read.nll, axis, xp) / UNITS[unit]


@_expect_infinities
def cross_entropy(
    p: Any,
    q: Any,
    *,
    form: str = "probabilities",
    q_form: str | None = None,
    axis: int = -1,
    unit: str = "nats",
    sum_tolerance: float | None = 1e-3,
) -> Any:
    r"""Cross-entropy $H(p, q) = -\sum_j p_j \log q_j = H(p) + D(p \,\|\, q)$.

    Args:
        p: The distribution that the outcomes follow.
        q: The distribution that the code was made for, same shape.
        form: What `p` holds; see `entropy`.
        q_form: What `q` holds; the same as `p` if None.
        axis: The axis of the outcomes.
        unit: `"nats"`, `"bits"` or `"bans"`.
        sum_tolerance: How far from 1 probabilities may sum; None turns the check off.

    Returns:
        The cross-entropy, without `axis`; infinite where $q_j = 0 < p_j$.

    Raises:
        ValueError: As `entropy`, or if the shapes differ.

    Examples:
        >>> round(float(cross_entropy([1.0, 0.0], [0.6, 0.4], unit="bans")), 3)
        0.222
        >>> round(float(cross_entropy([1.0, 0.0], [0.8, 0.2], unit="bans")), 3)
        0.097
    """
    xp, axis, p, q = _read_pair(p, q, form, q_form, axis, unit, sum_tolerance)
    return _expectation(p.p, q.nll, axis, xp) / UNITS[unit]


@_expect_infinities
def kl_divergence(
    p: Any,
    q: Any,
    *,
    form: str = "probabilities",
    q_form: str | None = None,
    axis: int = -1,
    unit: str = "nats",
    sum_tolerance: float | None = 1e-3,
) -> Any:
    r"""Relative entropy $D(p \,\|\, q) = \sum_j p_j \log (p_j / q_j)$; never negative.

    Args:
        p: The distribution that the outcomes follow.
        q: The distribution to compare with, same shape.
        form: What `p` holds; see `entropy`.
        q_form: What `q` holds; the same as `p` if None.
        axis: The axis of the outcomes.
        unit: `"nats"`, `"bits"` or `"bans"`.
        sum_tolerance: How far from 1 probabilities may sum; None turns the check off.

    Returns:
        The divergence, without `axis`; infinite where $q_j = 0 < p_j$.

    Raises:
        ValueError: As `entropy`, or if the shapes differ.

    Examples:
        >>> round(float(kl_divergence([0.5, 0.5], [0.9, 0.1])), 4)
        0.5108
    """
    xp, axis, p, q = _read_pair(p, q, form, q_form, axis, unit, sum_tolerance)
    terms = divergence_terms(p.p, q.p, -_log_ratio(p, q, axis, xp), xp)
    return xp.sum(terms, axis=axis) / UNITS[unit]


@_expect_infinities
def jensen_shannon_divergence(
    p: Any,
    q: Any,
    *,
    form: str = "probabilities",
    q_form: str | None = None,
    axis: int = -1,
    unit: str = "nats",
    sum_tolerance: float | None = 1e-3,
) -> Any:
    r"""Jensen-Shannon divergence, from 0 to 1 bit.

    $$\frac12 D(p \,\|\, m) + \frac12 D(q \,\|\, m), \qquad m = (p + q) / 2.$$

    Args:
        p: A distribution along `axis`.
        q: Another, same shape.
        form: What `p` holds; see `entropy`.
        q_form: What `q` holds; the same as `p` if None.
        axis: The axis of the outcomes.
        unit: `"nats"`, `"bits"` or `"bans"`.
        sum_tolerance: How far from 1 probabilities may sum; None turns the check off.

    Returns:
        The divergence (not its square root), without `axis`.

    Raises:
        ValueError: As `entropy`, or if the shapes differ.

    Examples:
        >>> float(jensen_shannon_divergence([1.0, 0.0], [0.0, 1.0], unit="bits"))
        1.0
    """
    xp, axis, p, q = _read_pair(p, q, form, q_form, axis, unit, sum_tolerance)
    ratio = _log_ratio(p, q, axis, xp)
    return jensen_shannon(p.p, q.p, ratio, axis, xp) / UNITS[unit]


def perplexity(
    p: Any,
    q: Any = None,
    *,
    form: str = "probabilities",
    q_form: str | None = None,
    axis: int = -1,
    sum_tolerance: float | None = 1e-3,
) -> Any:
    r"""Perplexity $e^{H(p)}$, or $e^{H(p, q)}$ if `q` is given.

    It is the number of equally likely outcomes with the same uncertainty.

    Args:
        p: The distribution that the outcomes follow.
        q: The distribution that predicts them, if a different one.
        form: What `p` holds; see `entropy`.
        q_form: What `q` holds; the same as `p` if None.
        axis: The axis of the outcomes.
        sum_tolerance: How far from 1 probabilities may sum; None turns the check off.

    Returns:
        The perplexity, without `axis`, from 1 up.

    Raises:
        ValueError: As `entropy`, or if the shapes differ.

    Examples:
        >>> round(float(perplexity([0.25, 0.25, 0.25, 0.25])), 4)
        4.0
    """
    options: dict[str, Any] = {"form": form, "axis": axis}
    options["sum_tolerance"] = sum_tolerance
    if q is None:
        nats = entropy(p, **options)
    else:
        nats = cross_entropy(p, q, q_form=q_form, **options)
    return ops.exp(nats) if ops.is_tensor(nats) else np.exp(nats)


def joint_counts(x: Any, y: Any) -> np.ndarray:
    """Count how often each pair of labels occurs.

    Args:
        x: Integer labels from 0, any shape.
        y: Integer labels from 0, same shape.

    Returns:
        An int64 array of shape `(max(x) + 1, max(y) + 1)`.

    Raises:
        ValueError: If the shapes differ, are empty, or labels are not whole numbers
            from 0.

    Examples:
        >>> joint_counts([0, 0, 1], [0, 1, 1]).tolist()
        [[1, 1], [0, 1]]
    """
    x, y = _label_array("x", x), _label_array("y", y)
    if x.shape != y.shape:
        raise ValueError(
            f"`x` and `y` must have the same shape, got {x.shape} and {y.shape}."
        )
    table = np.zeros((int(x.max()) + 1, int(y.max()) + 1), "int64")
    np.add.at(table, (x.ravel(), y.ravel()), 1)
    return table


@_expect_infinities
def joint_entropy(
    x: Any,
    y: Any = None,
    *,
    form: str = "probabilities",
    unit: str = "nats",
    sum_tolerance: float | None = 1e-3,
) -> Any:
    r"""Joint entropy $H(X, Y) = -\sum_{xy} p(x, y) \log p(x, y)$.

    Args:
        x: A joint table, shape `(..., X, Y)`; or labels, if `y` is given too.
        y: Labels paired with the labels `x`.
        form: What a table holds: `"probabilities"`, `"log_probabilities"`,
            `"logits"` or `"counts"`. Not used for labels.
        unit: `"nats"`, `"bits"` or `"bans"`.
        sum_tolerance: How far from 1 a table may sum; None turns the check off.

    Returns:
        The joint entropy, shape `(...)`.

    Raises:
        ValueError: As `entropy` and `joint_counts`.

    Examples:
        >>> round(float(joint_entropy([[0.25, 0.25], [0.5, 0.0]], unit="bits")), 4)
        1.5
    """
    xp, table = _read_table(x, y, form, unit, sum_tolerance)
    return xp.sum(_self_information(table, table, xp), axis=(-2, -1)) / UNITS[unit]


@_expect_infinities
def conditional_entropy(
    x: Any,
    y: Any = None,
    *,
    form: str = "probabilities",
    unit: str = "nats",
    sum_tolerance: float | None = 1e-3,
) -> Any:
    r"""Conditional entropy $H(Y | X) = H(X, Y) - H(X)$, of columns given rows.

    Computed as $-\sum_{xy} p(x, y) \log (p(x, y) / p(x))$: never negative. For
    $H(X | Y)$ transpose the table or swap the labels.

    Args:
        x: A joint table, shape `(..., X, Y)`; or labels, if `y` is given too.
        y: Labels paired with the labels `x`.
        form: What a table holds; see `joint_entropy`.
        unit: `"nats"`, `"bits"` or `"bans"`.
        sum_tolerance: How far from 1 a table may sum; None turns the check off.

    Returns:
        The conditional entropy, shape `(...)`.

    Raises:
        ValueError: As `entropy` and `joint_counts`.

    Examples:
        >>> table = [[0.25, 0.25], [0.5, 0.0]]
        >>> round(float(conditional_entropy(table, unit="bits")), 4)
        0.5
    """
    xp, table = _read_table(x, y, form, unit, sum_tolerance)
    rows = table / _one_for_zero(xp.sum(table, axis=-1, keepdims=True), xp)
    return xp.sum(_self_information(table, rows, xp), axis=(-2, -1)) / UNITS[unit]


@_expect_infinities
def mutual_information(
    x: Any,
    y: Any = None,
    *,
    form: str = "probabilities",
    unit: str = "nats",
    sum_tolerance: float | None = 1e-3,
) -> Any:
    r"""Mutual information $I(X; Y) = H(X) + H(Y) - H(X, Y)$.

    Computed as $D(p(x, y) \,\|\, p(x) p(y))$: never negative, and exact for
    variables that are almost independent.

    Args:
        x: A joint table, shape `(..., X, Y)`; or labels, if `y` is given too.
        y: Labels paired with the labels `x`.
        form: What a table holds; see `joint_entropy`.
        unit: `"nats"`, `"bits"` or `"bans"`.
        sum_tolerance: How far from 1 a table may sum; None turns the check off.

    Returns:
        The mutual information, shape `(...)`.

    Raises:
        ValueError: As `entropy` and `joint_counts`.

    Examples:
        >>> round(float(mutual_information([0, 0, 1, 1], [1, 1, 0, 0], unit="bits")), 4)
        1.0
    """
    xp, table = _read_table(x, y, form, unit, sum_tolerance)
    rows = xp.sum(table, axis=-1, keepdims=True)
    columns = xp.sum(table, axis=-2, keepdims=True)
    sums = [_one_for_zero(each, xp) for each in (rows, columns)]
    ratio = _log_quotient(sums, _one_for_zero(table, xp), xp)
    ratio = xp.where(table > 0.0, ratio, float("inf"))
    terms = divergence_terms(table, rows * columns, ratio, xp)
    return xp.sum(terms, axis=(-2, -1)) / UNITS[unit]


def _read(
    name: str, x: Any, form: str, axis: int, unit: str, tolerance: float | None
) -> tuple[Any, Any, int]:
    """Return the namespace, the values as floats, and `axis` from the front."""
    check_one_of("form", form, _FORMS)
    check_one_of("unit", unit, UNITS)
    xp, x = _floats(x)
    rank = len(x.shape)
    if not -rank <= axis < rank or 0 in tuple(x.shape):
        raise ValueError(
            f"`{name}` must hold a distribution along `axis`, got shape "
            f"{tuple(x.shape)} and axis={axis}."
        )
    _check_weights(name, x, form, axis, tolerance)
    return xp, x, axis % rank


def _floats(x: Any) -> tuple[Any, Any]:
    if ops.is_tensor(x) or isinstance(x, keras.Variable):
        return ops, at_least_float32(x)
    return numpy_ops, np.asarray(x, "float64")


def _check_weights(
    name: str, x: Any, form: str, axis: Any, tolerance: float | None
) -> None:
    values = known_values(x)
    if values is None or form == "logits":
        return
    weights = np.exp(values) if form == "log_probabilities" else values
    sums = weights.sum(axis=axis)
    if not weights.min() >= 0.0 or not np.min(sums) > 0.0:
        raise ValueError(
            f"`{name}` must not be negative and not all 0, got a smallest value of "
            f"{weights.min():g} and a smallest sum of {np.min(sums):g}."
        )
    if form == "counts" or tolerance is None:
        return
    off = np.abs(sums - 1.0)
    if not off.max() <= tolerance:
        raise ValueError(
            f"`{name}` must sum to 1 along axis {axis} within sum_tolerance="
            f"{tolerance:g}, got a sum of {np.ravel(sums)[np.argmax(off)]:g}. For "
            "counts pass `form='counts'`, for logits `form='logits'`."
        )


class _Distribution(NamedTuple):
    logits: Any  # None for probabilities and counts
    p: Any
    nll: Any  # surprisals in nats


def _distribution(x: Any, form: str, axis: int, xp: Any) -> _Distribution:
    """Return probabilities that sum to 1, and their surprisals."""
    if form in _LOGITS:
        return _Distribution(x, *softmax(x, axis, xp))
    p = x / xp.sum(x, axis=axis, keepdims=True)
    nll = xp.where(p > 0.0, -xp.log(_one_for_zero(p, xp)), float("inf"))
    return _Distribution(None, p, nll)


def _one_for_zero(x: Any, xp: Any) -> Any:
    """Return `x` with 1 in place of 0, so that log and division stay finite."""
    return xp.where(x > 0.0, x, xp.ones_like(x))


def _expectation(p: Any, nll: Any, axis: int, xp: Any) -> Any:
    """Return the sum of p times nll, where 0 times infinity is 0."""
    return xp.sum(p * xp.where(p > 0.0, nll, 0.0), axis=axis)


def _self_information(p: Any, of: Any, xp: Any) -> Any:
    return p * -xp.log(_one_for_zero(of, xp))


def _read_pair(
    p: Any,
    q: Any,
    form: str,
    q_form: str | None,
    axis: int,
    unit: str,
    tolerance: float | None,
) -> tuple[Any, int, _Distribution, _Distribution]:
    """Return the namespace, the axis, and what `p` and `q` hold."""
    q_form = form if q_form is None else q_form
    xp, p, front = _read("p", p, form, axis, unit, tolerance)
    q_xp, q, _ = _read("q", q, q_form, axis, unit, tolerance)
    if xp is not q_xp:
        # What is no tensor takes the tensor's dtype.
        dtype = keras.backend.standardize_dtype((p if xp is ops else q).dtype)
        p, q = (ops.convert_to_tensor(each, dtype) for each in (p, q))
        xp = ops
    if tuple(p.shape) != tuple(q.shape):
        raise ValueError(
            f"`p` and `q` must have the same shape, got {tuple(p.shape)} and "
            f"{tuple(q.shape)}."
        )
    p, q = _distribution(p, form, front, xp), _distribution(q, q_form, front, xp)
    return xp, front, p, q


def _log_ratio(left: _Distribution, right: _Distribution, axis: int, xp: Any) -> Any:
    """Return log(p / q), and 0 where both are 0."""
    (z, p, p_nll), (w, q, q_nll) = left, right
    if z is not None and w is not None:
        return log_ratio(z, w, p_nll, q_nll, axis, xp)[0]
    if z is None and w is None:
        both = xp.logical_and(p > 0.0, q > 0.0)
        p_safe, q_safe = xp.where(both, p, 1.0), xp.where(both, q, 1.0)
        ratio = _log_quotient([p_safe], q_safe, xp)
        zero = xp.where(q > 0.0, -float("inf"), 0.0)
        return xp.where(both, ratio, xp.where(p > 0.0, float("inf"), zero))
    out = xp.logical_and(p_nll == float("inf"), q_nll == float("inf"))
    return xp.where(out, 0.0, q_nll - xp.where(out, 0.0, p_nll))


def _log_quotient(factors: list[Any], b: Any, xp: Any) -> Any:
    """Return log(a / b), where a is the product of the factors; all are positive."""
    a = math.prod(factors)
    # log1p of the relative difference keeps the digits that log(a / b) would round.
    # Further apart the difference itself may round to -b, or the quotient overflow.
    close = xp.abs(a - b) < 0.5 * b
    near = xp.log1p(xp.where(close, a - b, 0.0) / xp.where(close, b, 1.0))
    logs = [xp.log(xp.where(close, 1.0, each)) for each in (*factors, b)]
    return xp.where(close, near, sum(logs[:-1]) - logs[-1])


def _label_array(name: str, labels: Any) -> np.ndarray:
    values = known_values(labels)
    if values is None:
        raise ValueError(
            f"`{name}` must have values that can be read now, got a symbolic tensor. "
            "Inside a compiled step build the table with `keras.ops.one_hot`."
        )
    if values.size == 0 or values.min() < 0 or (values != np.floor(values)).any():
        raise ValueError(
            f"`{name}` must hold whole numbers from 0, got "
            f"{'nothing' if values.size == 0 else f'a smallest of {values.min():g}'}."
        )
    return values.astype("int64")


def _read_table(
    x: Any, y: Any, form: str, unit: str, tolerance: float | None
) -> tuple[Any, Any]:
    """Return the namespace and the joint probabilities, shape (..., X, Y)."""
    if y is not None:
        x, form = joint_counts(x, y), "counts"
    check_one_of("form", form, _FORMS)
    check_one_of("unit", unit, UNITS)
    xp, x = _floats(x)
    if len(x.shape) < 2 or 0 in tuple(x.shape):
        raise ValueError(
            f"`x` must be a joint table of shape (..., X, Y), got {tuple(x.shape)}. "
            "For two arrays of labels pass both, as `x` and `y`."
        )
    _check_weights("x", x, form, (-2, -1), tolerance)
    if form in _LOGITS:
        x = xp.exp(x - xp.max(x, axis=(-2, -1), keepdims=True))
    return xp, x / xp.sum(x, axis=(-2, -1), keepdims=True)
