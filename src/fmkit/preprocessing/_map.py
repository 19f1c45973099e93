"""The map function: integer pixels and labels in, what a network reads out.

One function serves three callers. `tf.data.Dataset.map` traces it with symbolic
TensorFlow tensors (whatever Keras's backend is), `fmkit.data.Batches` calls it on
NumPy blocks, and a user may hold tensors of the backend. The arithmetic is the same
in each: one subtraction if there is a mean, one division.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, Literal

import keras
import numpy as np

from fmkit._checks import check_int, or_none


def preprocess(x: Any, y: Any = None) -> Any:
    r"""Scale pixels to [0, 1] and cast labels: the map function of an input pipeline.

    $x \mapsto x/255$ in float32 and $y \mapsto y$ in int32. Division, not
    multiplication by $1/255$: the two differ in the last bit for 126 of the 256
    byte values, and the division is what the TensorFlow tutorials compute. NumPy
    arrays and `Dataset.map` get exactly that; inside a compiled step or an operation
    on JAX, XLA itself replaces the division by the multiplication, so there the last
    bit may differ.

    Args:
        x: Pixels in 0 to 255, any shape: one sample or a batch. A NumPy array, a
            TensorFlow tensor (inside `Dataset.map` too) or a tensor of the backend.
        y: Labels, any shape, or `None` where there are none (prediction).

    Returns:
        `(x, y)` as float32 and int32, of the same shapes and the same kind of array
        as came in; `x` alone if `y` is `None`.

    Raises:
        TypeError: If `x` or `y` holds no numbers (strings, objects).
        ValueError: If labels in a NumPy array are not whole numbers.

    Examples:
        >>> import numpy as np
        >>> x, y = preprocess(np.array([[0, 51, 255]], np.uint8), np.array([7]))
        >>> x.tolist(), x.dtype.name, y.dtype.name
        ([[0.0, 0.20000000298023224, 1.0]], 'float32', 'int32')
    """
    return _UNIT_RANGE(x, y)


class Preprocess:
    r"""Build a map function: $x \mapsto (x - \text{mean}) / \text{std}$ in float32.

    The result is called as `map(x, y)` or `map(x)`, like `fmkit.preprocess`, which is
    `Preprocess()`.

    Args:
        mean: Subtracted first, in the units of `x`: a number, or an array that
            broadcasts against one sample. 0 leaves the subtraction out.
        std: Divides the difference, in the units of `x`; no entry may be 0.
            `mean=127.5, std=127.5` gives the range [-1, 1].
        sample_rank: Number of axes of *one* sample: 2 for images of shape `(28, 28)`.
            `flatten` and `channel_axis` need it, since the same function meets
            single samples and batches.
        flatten: Merge the axes of a sample, `(..., 28, 28)` to `(..., 784)`.
        channel_axis: Add an axis of length 1 to each sample: `"last"`, `"first"` or
            `None`.
        num_classes: If given, labels become one-hot rows of this length, in float32.
            Floats that are such rows already, as `augmentation.Mixup` makes them, stay.
            In a NumPy array a label outside `0 .. num_classes - 1` is a `ValueError`;
            inside `Dataset.map` or a compiled step, where values can't be seen, its
            row is all zeros.

    Raises:
        ValueError: If `std` has a zero or an entry that is not finite, if both
            `flatten` and `channel_axis` are asked for, or if a count is not positive.

    Examples:
        >>> import numpy as np
        >>> images = np.array([[[0, 255], [255, 0]]], np.uint8)
        >>> to_network = Preprocess(mean=127.5, std=127.5, flatten=True, num_classes=3)
        >>> x, y = to_network(images, np.array([2]))
        >>> x.tolist(), y.tolist()
        ([[-1.0, 1.0, 1.0, -1.0]], [[0.0, 0.0, 1.0]])
    """

    def __init__(
        self,
        mean: float | np.ndarray = 0.0,
        std: float | np.ndarray = 255.0,
        *,
        sample_rank: int = 2,
        flatten: bool = False,
        channel_axis: Literal["first", "last"] | None = None,
        num_classes: int | None = None,
    ):
        self.mean = np.asarray(mean, np.float32)
        self.std = np.asarray(std, np.float32)
        self.sample_rank = check_int("sample_rank", sample_rank, minimum=0)
        self.flatten = bool(flatten)
        self.channel_axis = channel_axis
        self.num_classes = or_none(check_int, "num_classes", num_classes)
        if not np.all(np.isfinite(self.mean)):
            raise ValueError(f"`mean` must be finite, got mean={mean!r}.")
        if not np.all(np.isfinite(self.std)) or np.any(self.std == 0):
            raise ValueError(
                f"`std` divides, so it must be finite and nowhere 0, got std={std!r}. "
                "For pixels that never change, write 1 there."
            )
        if channel_axis not in (None, "first", "last"):
            raise ValueError(
                "`channel_axis` must be 'first', 'last' or None, "
                f"got channel_axis={channel_axis!r}."
            )
        if flatten and channel_axis:
            raise ValueError(
                "`flatten=True` leaves no axis to add a channel to; omit it or "
                f"channel_axis={channel_axis!r}."
            )

    @classmethod
    def standardize(
        cls,
        x_train: np.ndarray,
        *,
        per: Literal["dataset", "feature"] = "dataset",
        **options: Any,
    ) -> Preprocess:
        """Take mean and standard deviation from the training set alone.

        Args:
            x_train: Training samples, shape `(n, ...)`.
            per: `"dataset"` for one mean and one deviation over all values,
                `"feature"` for one of each per position. Where a position never
                changes, its deviation is taken as 1, so that it becomes 0.
            **options: The other arguments of `Preprocess`. `sample_rank` is set from
                `x_train`.

        Returns:
            A map function that holds these statistics.

        Raises:
            ValueError: If `x_train` is empty or holds values that are not finite.
        """
        x_train = np.asarray(x_train)
        if per not in ("dataset", "feature"):
            raise ValueError(f"`per` must be 'dataset' or 'feature', got per={per!r}.")
        if x_train.ndim == 0 or x_train.size == 0:
            raise ValueError(
                "`x_train` must hold at least one sample, "
                f"got an array of shape {x_train.shape}."
            )
        axis = 0 if per == "feature" else None
        # float64: a float32 sum over 47 million pixels loses digits.
        mean = x_train.mean(axis=axis, dtype=np.float64)
        std = x_train.std(axis=axis, dtype=np.float64)
        if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(std))):
            raise ValueError(
                "`x_train` holds NaN or infinite values; "
                "preprocessing.check_arrays(train=(x, y)) names their places."
            )
        # In float64 the mean of equal numbers may not be that number.
        steady = x_train.min(axis=axis) == x_train.max(axis=axis)
        std = np.where(steady | (std == 0), 1.0, std)
        options.setdefault("sample_rank", x_train.ndim - 1)
        return cls(mean, std, **options)

    def __call__(self, x: Any, y: Any = None) -> Any:
        """Map `x`, or `x` and `y`; see the class."""
        x = self.map_x(x)
        return x if y is None else (x, self.map_y(y))

    def __repr__(self) -> str:
        """Show the options as they would be typed."""
        parts = [
            f"{name}={_abbreviated(value)}"
            for name, value in vars(self).items()
            if value is not None and value is not False
        ]
        return f"Preprocess({', '.join(parts)})"

    def map_x(self, x: Any, out: np.ndarray | None = None) -> Any:
        """Return what `x` alone becomes.

        Args:
            x: As in a call.
            out: Float32 memory to write NumPy's result into, in the shape that `x` has
                before it is flattened or given a channel.
        """
        ops, x = _namespace_of(x, "x")
        if ops is np:
            # One pass over the bytes: the cast happens inside the ufunc.
            if self.mean.any():
                x = np.subtract(x, self.mean, dtype=np.float32, out=out)
            x = np.divide(x, self.std, dtype=np.float32, out=out)
        else:
            x = ops.cast(x, "float32")
            if self.mean.any():
                x = ops.subtract(x, _scalar_as_float(self.mean))
            x = ops.divide(x, _scalar_as_float(self.std))
        if self.flatten:
            x = ops.reshape(x, self._flat_shape(x, ops))
        elif self.channel_axis == "last":
            x = ops.expand_dims(x, -1)
        elif self.channel_axis == "first":
            x = ops.expand_dims(x, -self.sample_rank - 1)
        return x

    def _flat_shape(self, x: Any, ops: ModuleType) -> Any:
        rank = len(x.shape)
        if rank < self.sample_rank:
            raise ValueError(
                f"`flatten` joins the last {self.sample_rank} axes (sample_rank), "
                f"but `x` has shape {tuple(x.shape)}."
            )
        leading = tuple(x.shape[: rank - self.sample_rank])
        features = tuple(x.shape[rank - self.sample_rank :])
        if None in features:
            raise ValueError(
                f"`flatten` needs samples of a fixed shape, got {tuple(x.shape)}."
            )
        # At most the batch size is unknown while tracing; -1 means just that.
        return (*(-1 if n is None else n for n in leading), math.prod(features))

    def map_y(self, y: Any) -> Any:
        """Return what `y` alone becomes."""
        ops, y = _namespace_of(y, "y")
        if self._is_dense(y):
            return y.astype(np.float32) if ops is np else ops.cast(y, "float32")
        if ops is np:
            y = _as_whole_numbers(y)
            return y if self.num_classes is None else self._one_hot(y)
        y = ops.cast(y, "int32")
        return y if self.num_classes is None else ops.one_hot(y, self.num_classes)

    def _is_dense(self, y: Any) -> bool:
        is_float = "float" in keras.backend.standardize_dtype(y.dtype)
        return is_float and len(y.shape) > 0 and y.shape[-1] == self.num_classes

    def _one_hot(self, y: np.ndarray) -> np.ndarray:
        assert self.num_classes is not None
        if y.size and (y.min() < 0 or y.max() >= self.num_classes):
            raise ValueError(
                f"Labels must lie in 0 .. {self.num_classes - 1} (num_classes="
                f"{self.num_classes}), got labels from {y.min()} to {y.max()}."
            )
        return np.eye(self.num_classes, dtype=np.float32)[y]


def _namespace_of(value: Any, name: str) -> tuple[Any, Any]:
    """Return the module whose functions take `value`, and `value` as it takes it."""
    if type(value).__module__.partition(".")[0] == "tensorflow":
        # `Dataset.map` hands over TensorFlow tensors on every backend.
        import tensorflow as tf

        return tf, value
    if keras.ops.is_tensor(value):
        return keras.ops, value
    value = np.asarray(value)
    if value.dtype.kind not in "buif" and value.dtype.name != "bfloat16":
        raise TypeError(
            f"`{name}` must hold numbers, got an array of dtype {value.dtype}. "
            "Convert it first, e.g. np.asarray(values, 'uint8')."
        )
    return np, value


def _as_whole_numbers(y: np.ndarray) -> np.ndarray:
    """Cast labels to int32; refuse 1.5, NaN and what int32 can't hold."""
    with np.errstate(invalid="ignore"):  # NaN and 1e12 are caught just below
        whole = y.astype(np.int32)
    if not np.can_cast(y.dtype, np.int32) and not np.array_equal(whole, y):
        wrong = y[whole != y].flat[0]
        raise ValueError(
            f"Labels must be whole numbers within int32, got {wrong!r}. "
            "For regression or soft targets, write your own map function."
        )
    return whole


def _scalar_as_float(value: np.ndarray) -> Any:
    """Return a 0-d array as a float, which keeps every backend at float32."""
    return value if value.ndim else value.item()


def _abbreviated(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim:
        return f"<array of shape {value.shape}>"
    return repr(value.item() if isinstance(value, np.ndarray) else value)


_UNIT_RANGE = Preprocess()
