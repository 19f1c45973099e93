"""Reads and checks logits and targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from fmkit._math import one_hot_mask
from fmkit._tracing import is_tracing

Tensor = Any


def at_least_float32(x: Any) -> Tensor:
    """Return `x` as a tensor of float32 or float64; halves and integers are cast."""
    x = ops.convert_to_tensor(x)
    if keras.backend.standardize_dtype(x.dtype) in ("float32", "float64"):
        return x
    return ops.cast(x, "float32")


def float32_or_float64(dtype: Any) -> str:
    """Return the dtype to compute in: float64 if asked for, else float32."""
    wanted = keras.dtype_policies.get(dtype or keras.config.floatx()).compute_dtype
    return "float64" if wanted == "float64" else "float32"


def read_logits(logits: Any, axis: int) -> tuple[Tensor, int]:
    """Return the logits in float32 or wider, and `axis` counted from the front."""
    logits = at_least_float32(logits)
    rank = len(logits.shape)
    if rank == 0 or not -rank <= axis < rank:
        raise ValueError(
            f"`axis` must name an axis of the logits, got axis={axis!r} for logits "
            f"of shape {tuple(logits.shape)}."
        )
    axis %= rank
    _check_not_empty(logits)
    size = logits.shape[axis]
    if size is None or size < 2:
        raise ValueError(
            "The logits must have two classes or more and a class axis of known size, "
            f"got shape {tuple(logits.shape)} with axis={axis}. For a single output "
            "use `fmkit.losses.BinaryCrossentropyFromLogits()` or "
            "`keras.losses.MeanSquaredError()`."
        )
    return logits, axis


def merge_axes(
    y_true: Any, y_pred: Any, axis: int | Sequence[int]
) -> tuple[Any, Any, int]:
    """Return targets, logits and their class axis; of several the last, merged.

    Labels have no class axes, and stay as they are.
    """
    if not isinstance(axis, Sequence):
        return y_true, y_pred, axis
    y_pred = ops.convert_to_tensor(y_pred)
    rank = len(y_pred.shape)
    axes = sorted({each % rank for each in axis if -rank <= each < rank})
    if not axes or len(axes) < len(axis):
        raise ValueError(
            f"`axis` must name different axes of the logits, got axis={axis!r} for "
            f"logits of shape {tuple(y_pred.shape)}."
        )
    batch = rank - len(axes)

    def merged(x: Tensor) -> Tensor:
        x = ops.moveaxis(x, axes, list(range(batch, rank)))
        size = math.prod(x.shape[batch:])
        return ops.reshape(x, (*ops.shape(x)[:batch], size))

    if y_true is not None:
        y_true = ops.convert_to_tensor(y_true)
        y_true = merged(y_true) if len(y_true.shape) == rank else y_true
    return y_true, merged(y_pred), -1


def read_targets(y_true: Any, logits: Tensor, axis: int) -> tuple[Tensor, bool]:
    """Return the targets, and whether they are integer labels.

    The shapes decide, not the dtype, since Keras casts targets to float before it
    calls a loss. Labels have the shape of the logits without the class axis, or
    with length 1 there; dense targets have the shape of the logits.
    """
    y_true = ops.convert_to_tensor(y_true)
    _check_known_rank(y_true)
    shape, full = tuple(y_true.shape), tuple(logits.shape)
    without = full[:axis] + full[axis + 1 :]
    if may_be_equal(shape, without):
        return _as_labels(y_true), True
    # Length 1 at the class axis, or at the end, where data pipelines like to put it.
    for one in (axis, len(full) - 1):
        rest = shape[:one] + shape[one + 1 :]
        if len(shape) == len(full) and shape[one] == 1 and may_be_equal(rest, without):
            return _as_labels(ops.squeeze(y_true, axis=one)), True
    if may_be_equal(shape, full) and shape[axis] is not None:
        return ops.cast(y_true, logits.dtype), False
    raise ValueError(
        f"`y_true` must be integer labels of shape {without} or dense targets of "
        f"shape {full}, to go with logits of shape {full} and axis={axis}; got "
        f"shape {shape}."
    )


def read_distribution(
    y_true: Any, logits: Tensor, axis: int, sum_tolerance: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return the targets as distributions, and of labels which are valid.

    `axis` counts from the front. The row of a label that is not valid is all 0.
    """
    targets, integer = read_targets(y_true, logits, axis)
    if not integer:
        check_probabilities(y_true, axis, sum_tolerance)
        return targets, None
    size = logits.shape[axis]
    check_labels(y_true, size)
    one_hot = ops.cast(one_hot_mask(targets, size, axis), logits.dtype)
    return one_hot, valid_labels(targets, size)


def read_classes(
    y_true: Any, logits: Tensor, axis: int
) -> tuple[Tensor, Tensor | None]:
    """Return a class for each position, and of labels which are valid.

    `axis` counts from the front. Of a dense target it is the largest entry.
    """
    targets, integer = read_targets(y_true, logits, axis)
    if not integer:
        return ops.argmax(targets, axis=axis), None
    size = logits.shape[axis]
    check_labels(y_true, size)
    return targets, valid_labels(targets, size)


def read_binary(y_true: Any, y_pred: Any) -> tuple[Tensor, Tensor]:
    """Return targets and logits, both of shape (batch, ..., labels).

    The last axis is the one of the labels. Where one side lacks it, it has length 1.
    """
    logits, y_true = at_least_float32(y_pred), ops.convert_to_tensor(y_true)
    _check_known_rank(y_true)
    _check_not_empty(logits)
    shape, full = tuple(y_true.shape), tuple(logits.shape)
    if len(full) < 2:
        logits, full = ops.expand_dims(logits, -1), (*full, 1)
    if full[-1] == 1 and len(shape) == len(full) - 1:
        y_true, shape = ops.expand_dims(y_true, -1), (*shape, 1)
    if full[-1] is None or not may_be_equal(shape, full):
        raise ValueError(
            "`y_true` must hold a 0 or a 1, or a probability, for each logit, in the "
            f"shape of the logits {full}; got shape {shape}. For one class out of "
            "several use `fmkit.losses.CrossentropyFromLogits()`."
        )
    return ops.cast(y_true, logits.dtype), logits


def check_binary(y_true: Any, q: Tensor, ignore_class: int | None = None) -> Tensor:
    """Refuse targets outside 0 ... 1; return them as they were read, in `q`.

    Where their values are not known, such a target is NaN.
    """
    values = known_values(y_true)
    if values is None:
        return nan_unless(ops.logical_and(q >= 0.0, q <= 1.0), q)
    good = (values >= 0) & (values <= 1)
    if ignore_class is not None:
        good |= values == ignore_class
    if not good.all():
        bad = values[~good]
        raise ValueError(
            f"`y_true` must hold 0, 1 or probabilities between them, got {bad[0]:g} "
            f"({bad.size} such values). Pass `ignore_class` for a label that marks "
            "what is not known."
        )
    return q


def _check_not_empty(logits: Tensor) -> None:
    if 0 in tuple(logits.shape):
        raise ValueError(
            f"The logits must not be empty, got shape {tuple(logits.shape)}. Leave "
            "out the empty batch, for instance with `drop_remainder` or a filter."
        )


def _check_known_rank(y_true: Tensor) -> None:
    # `tf.data.Dataset.from_generator` and `tf.py_function` lose the rank.
    if getattr(y_true.shape, "rank", 0) is None:
        raise ValueError(
            "`y_true` has a shape of unknown rank, so labels and dense targets can't "
            "be told apart. Set it in the input pipeline with `tf.ensure_shape`."
        )


def may_be_equal(a: tuple, b: tuple) -> bool:
    """Whether two shapes may be equal, where None stands for an unknown size."""
    return len(a) == len(b) and all(
        m is None or n is None or m == n for m, n in zip(a, b, strict=True)
    )


def _as_labels(y_true: Tensor) -> Tensor:
    """Return labels in a dtype that holds every class index exactly."""
    dtype = keras.backend.standardize_dtype(y_true.dtype)
    if "float" in dtype:
        return at_least_float32(y_true)
    wide = dtype in ("int64", "uint32", "uint64") and _has_int64()
    return ops.cast(y_true, "int64" if wide else "int32")


def _has_int64() -> bool:
    """Whether tensors can be int64: on JAX only with `jax_enable_x64`."""
    if keras.backend.backend() != "jax":
        return True
    import jax

    return bool(jax.config.jax_enable_x64)


def known_values(x: Any) -> np.ndarray | None:
    """Return the values of `x` where they can be read now, else None.

    Inside a compiled step there are none. On a GPU with PyTorch reading them
    would make every step wait for the device, so they count as unknown. While Keras
    infers shapes with PyTorch, all values are a placeholder of 1.
    """
    scope = keras.SymbolicScope()
    with scope:
        if scope.original_scope is not None:
            return None
    if isinstance(x, keras.KerasTensor):
        return None
    if isinstance(x, keras.Variable):
        x = ops.convert_to_tensor(x)
    if not ops.is_tensor(x):
        # Not by a list of types: NumPy's scalars, too, have a `device` of their own.
        return np.asarray(x)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return np.asarray(x.numpy()) if hasattr(x, "numpy") else None
    if backend == "jax":
        import jax

        return None if isinstance(x, jax.core.Tracer) else np.asarray(x)
    import torch

    if x.device.type != "cpu" or torch.compiler.is_compiling() or is_tracing():
        return None
    try:
        # float32 would round 0.9999999999 to a label; NumPy has no bfloat16.
        return (x if x.dtype == torch.float32 else x.double()).detach().numpy()
    except RuntimeError:  # inside `torch.func` a tensor has no values of its own
        return None


def check_labels(y_true: Any, size: int, ignore_class: int | None = None) -> bool:
    """Refuse labels outside 0 ... size - 1; return whether their values are known."""
    values = known_values(y_true)
    if values is None:
        return False
    bad = (values < 0) | (values >= size) | (values != np.floor(values))
    if ignore_class is not None:
        bad &= values != ignore_class
    if bad.any():
        raise ValueError(
            f"`y_true` must hold whole numbers from 0 to {size - 1}, since the logits "
            f"have {size} classes; got {values[bad][0]:g} ({int(bad.sum())} such "
            "values). Shift the labels to start at 0, widen the last layer, or pass "
            "`ignore_class` for a label that marks padding."
        )
    return True


def check_probabilities(y_true: Any, axis: int, tolerance: float | None) -> None:
    """Refuse dense targets that are not a distribution, where values are known."""
    values = None if tolerance is None else known_values(y_true)
    if values is None:
        return
    sums = values.sum(axis=axis, dtype="float64")
    off = np.abs(sums - 1.0)
    if values.min() < 0 or not off.max() <= (tolerance or 0.0):
        worst = sums.flat[int(np.argmax(np.where(np.isnan(off), np.inf, off)))]
        raise ValueError(
            "`y_true` must hold probabilities: none below 0, and a sum of 1 along "
            f"axis {axis} within sum_tolerance={tolerance:g}; got a smallest value "
            f"of {values.min():g} and a sum of {worst:g}. Divide by the sum, or pass "
            "`sum_tolerance=None` to turn the check off."
        )


def valid_labels(labels: Tensor, size: int) -> Tensor:
    """Return booleans, true where a label is a whole number in 0 ... size - 1."""
    valid = ops.logical_and(labels >= 0, labels < size)
    if "float" in keras.backend.standardize_dtype(labels.dtype):
        valid = ops.logical_and(valid, labels == ops.floor(labels))
    return valid


def nan_unless(valid: Tensor, x: Tensor) -> Tensor:
    """Return `x` where valid, else NaN.

    By a factor rather than by `where`, so that the gradient is NaN as well.
    """
    return x * ops.cast(ops.where(valid, 1.0, float("nan")), x.dtype)
