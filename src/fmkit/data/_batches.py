"""`Batches`: arrays as a deterministic, seekable stream that `fit` takes as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._checks import check_int
from fmkit._describe import describe, digest_of_arrays
from fmkit.data import _pipeline
from fmkit.data._blocks import Block, Blocks, cut
from fmkit.data._order import Indices, Order
from fmkit.data._source import Source
from fmkit.preprocessing import preprocess

__all__ = ["Batches"]


class Batches(private.DataAdapter):
    r"""Shuffled batches of arrays whose order depends on seed and epoch alone.

    Epoch $e$ visits the samples in the permutation $\pi(\text{seed}, e)$: all of
    them, once, fully shuffled, the same on every backend, platform and version.
    Batch $s$ holds places $s b$ to $(s + 1) b - 1$ of that permutation, so the
    stream can start anywhere at once: `seek(epoch, step)`.

    Give it to `model.fit(batches, epochs=10)` as it stands. Every training epoch
    takes the next order; a second `fit` goes on from there, and
    `fit(..., initial_epoch=e)` starts at epoch $e$. As `validation_data`, in
    `evaluate` and in `predict`, the samples come in their own order and the
    position does not move. A `for` loop goes through one epoch:

    - on TensorFlow, `fit` reads a `tf.data.Dataset` that gathers and maps about
      4,096 rows at a time; on JAX and PyTorch, NumPy does the same with 2,048;
    - the arrays are never copied as a whole, so `numpy.load(..., mmap_mode="r")`
      may be larger than memory;
    - beyond 4,194,304 samples the permutation is computed place by place (a
      cipher over the indices), in no memory that grows with the data.

    Args:
        x: Samples: an array with samples in axis 0, or a dict or tuple of them.
        y: Labels, likewise. `None` for `predict`.
        batch_size: Samples per step (of this shard).
        seed: Integer from 0 to $2^{64} - 1$.
        map: `(x, y) -> (x, y)` over a block of rows: TensorFlow tensors inside
            `tf.data`, NumPy arrays elsewhere. It must treat each row by itself.
            The default scales images to float32 in [0, 1] and makes the labels
            int32; `None` leaves the arrays as they are.
        shuffle: `False` keeps the samples in order in training too.
        drop_remainder: Leave out the last batch of an epoch if it is not full.
        sample_weight: One weight per sample, or `None`.
        class_weight: Dict from class to weight, as in `fit`, which takes it too.
        shard: `(index, count)`: this process is number `index` of `count`. The
            shards share each global batch of `count * batch_size` samples, so
            each sample is seen once per epoch and all shards take equally many
            steps.

    Raises:
        ValueError: If lengths differ, there are no samples, or the sizes leave
            no batch.

    Examples:
        >>> import numpy as np
        >>> from fmkit.data import Batches
        >>> x, y = np.arange(10, dtype="uint8")[:, None], np.arange(10)
        >>> batches = Batches(x, y, batch_size=4, seed=1)
        >>> len(batches)
        3
        >>> [labels.tolist() for _, labels in batches]
        [[3, 5, 2, 9], [7, 0, 8, 6], [1, 4]]
        >>> batches.position
        (1, 0)
        >>> batches.seek(0, step=2)
        >>> [labels.tolist() for _, labels in batches]
        [[1, 4]]
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        batch_size: int = 128,
        *,
        seed: int = 0,
        map: Callable[..., Any] | None = preprocess,
        shuffle: bool = True,
        drop_remainder: bool = False,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self._batch_size = check_int("batch_size", batch_size)
        self.seed = check_int("seed", seed, minimum=0)
        if self.seed >= 2**64:
            raise ValueError(f"`seed` must be below 2**64, got seed={seed}.")
        self.drop_remainder = bool(drop_remainder)
        self.shard = _check_shard(shard)
        self.class_weight = _check_class_weight(class_weight, y, sample_weight)
        self._source = Source(x, y, sample_weight, map)
        self._order = Order(self._source.size, self.seed, shuffle=bool(shuffle))
        self._straight = Order(self._source.size, self.seed, shuffle=False)
        self._position = (0, 0)
        self._check_sizes()

    def _check_sizes(self) -> None:
        count = self.shard[1]
        tail = self.num_samples % (count * self._batch_size)
        if len(self) == 0:
            raise ValueError(
                f"`drop_remainder=True` leaves no batch: {self.num_samples} samples "
                f"are fewer than one batch of {count * self._batch_size}. Use a "
                "smaller `batch_size`, or drop_remainder=False."
            )
        if not self.drop_remainder and 0 < tail < count:
            raise ValueError(
                f"The last global batch has {tail} samples for {count} shards, so "
                "some shard would get an empty batch. Use drop_remainder=True, or "
                f"another `batch_size` (got batch_size={self._batch_size})."
            )

    @property
    def num_samples(self) -> int:
        """Number of samples in the arrays (of all shards together)."""
        return self._source.size

    @property
    def shuffle(self) -> bool:
        """Whether training epochs are shuffled."""
        return self._order.shuffle

    @property
    def position(self) -> tuple[int, int]:
        """`(epoch, step)` at which the next training epoch or `for` loop starts."""
        return self._position

    def __len__(self) -> int:
        """Return the number of batches (of this shard) in a whole epoch."""
        whole, tail = divmod(self.num_samples, self.shard[1] * self._batch_size)
        return whole + (tail > 0 and not self.drop_remainder)

    def __repr__(self) -> str:
        shard = f", shard={self.shard}" if self.shard[1] > 1 else ""
        return (
            f"<Batches: {self.num_samples} samples, {len(self)} batches of "
            f"{self._batch_size}, seed={self.seed}{shard}, position={self.position}>"
        )

    def seek(self, epoch: int, step: int = 0) -> None:
        """Start the next epoch at `step` of `epoch`, in time that depends on neither.

        Raises:
            ValueError: If there is no such step.
        """
        epoch = check_int("epoch", epoch, minimum=0)
        step = check_int("step", step, minimum=0)
        if step >= len(self):
            raise ValueError(
                f"`step` must be below {len(self)}, the number of batches of an "
                f"epoch, got step={step}. The step after the last one is "
                f"seek({epoch + 1}, 0)."
            )
        self._position = (epoch, step)

    def order(self, epoch: int) -> Indices:
        """Return the indices of this shard's samples in the order of `epoch`."""
        return self._order.take(
            check_int("epoch", epoch, minimum=0), self._places(0, len(self))
        )

    def describe(self) -> dict[str, Any]:
        """Return all that the content and order of the batches depend on.

        Plain values. Two `Batches` with the same description give the same batches.
        `content` is a digest of the arrays: of all bytes up to 256 MiB, of 4,096 rows
        of each array beyond. A `map` is described by its name and, if it is a function
        of Python, a digest of its code.
        """
        source = self._source
        leaves = [leaf for leaf in source.leaves if leaf is not None]
        weights = self.class_weight
        return {
            "samples": self.num_samples,
            "arrays": [f"{leaf.dtype}{list(leaf.shape[1:])}" for leaf in leaves],
            "content": digest_of_arrays(leaves),
            "batch_size": self._batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_remainder": self.drop_remainder,
            "shard": list(self.shard),
            "map": describe(source.transform),
            "class_weight": weights and {str(k): v for k, v in weights.items()},
        }

    def peek(self) -> tuple[Any, ...]:
        """Return a first batch as `fit` would get it, without moving the position."""
        return next(iter(self._numpy(0, 0, 1, self.class_weight)))

    def as_dataset(self, epoch: int | None = None, step: int = 0) -> Any:
        """Return one epoch as a `tf.data.Dataset`, from `step` on.

        Args:
            epoch: Which epoch's order; `None` for the current position.
            step: First batch.

        Returns:
            A dataset of `(x, y)` or `(x, y, sample_weight)` (or `x` alone) with
            known cardinality. It can be iterated again and does not move the
            position.
        """
        if epoch is None:
            epoch, step = self._position
        epoch, end = check_int("epoch", epoch, minimum=0), len(self)
        step = check_int("step", step, minimum=0)
        return _pipeline.dataset(
            self, (epoch, step, end), self.class_weight, self._order
        ).apply(_pipeline.assert_cardinality(max(0, end - step)))

    def __iter__(self) -> Iterator[Any]:
        """Go through one epoch in NumPy, and move the position to the next."""
        (epoch, step), self._position = self._position, (self._position[0] + 1, 0)
        for batch in self._numpy(epoch, step, len(self), self.class_weight):
            yield batch[0] if len(batch) == 1 else batch

    def _numpy(
        self,
        epoch: int,
        first: int,
        end: int,
        weights: dict[int, float] | None,
        order: Order | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Yield batches `first` to `end - 1` of an epoch as tuples of arrays."""
        size = self._batch_size
        stride = self._source.rows_per_block(size) // size
        for block, count in self._rows(epoch, first, end, weights, order, stride):
            for row in range(0, count, size):
                rows = slice(row, row + size)
                yield keras.tree.map_structure(lambda leaf, r=rows: leaf[r], block)

    def _rows(
        self,
        epoch: int,
        first: int,
        end: int,
        weights: dict[int, float] | None,
        order: Order | None,
        stride: int,
    ) -> Iterator[tuple[tuple[Any, ...], int]]:
        """Yield the rows of `stride` batches at a time, and how many they are."""
        for start in range(first, end, stride):
            places = self._places(start, min(start + stride, end))
            indices = (order or self._order).take(epoch, places)
            yield self._source.block(indices, weights), len(indices)

    def _places(self, first: int, end: int) -> Indices:
        """Return the places, in the order of all samples, of batches `first..end-1`."""
        size, (index, count) = self._batch_size, self.shard
        if count == 1:
            return np.arange(first * size, min(end * size, self.num_samples))
        whole, tail = divmod(self.num_samples, count * size)
        starts = np.arange(first, min(end, whole)) * (count * size) + index * size
        places = (starts[:, None] + np.arange(size)).ravel()
        if end > whole:
            # The shards share the last, smaller global batch as evenly as can be.
            cut = np.arange(index * tail // count, (index + 1) * tail // count)
            places = np.concatenate([places, whole * count * size + cut])
        return places

    # What Keras asks of a data adapter. In `fit`, `evaluate` and `predict` a
    # `_Feed` of its own stands in for this object; the first question is the
    # number of batches.

    @property
    def num_batches(self) -> int:
        """Number of batches; asked by Keras, it hands Keras the feed for this use."""
        request = private.calling_request()
        if request is not None:
            _Feed(self, request)
        return len(self)

    @property
    def batch_size(self) -> int:
        """Samples per step of this shard."""
        return self._batch_size

    @property
    def has_partial_batch(self) -> bool:
        """Whether the last batch of an epoch is smaller than the others."""
        return bool(self.partial_batch_size)

    @property
    def partial_batch_size(self) -> int | None:
        """Samples in the last batch if it is smaller, else `None`."""
        last = len(self._places(len(self) - 1, len(self)))
        return last if last < self._batch_size else None

    def get_numpy_iterator(self) -> Iterator[Any]:
        """Return an iterator over one epoch of NumPy batches."""
        return iter(self)

    get_jax_iterator = get_numpy_iterator

    def get_tf_dataset(self) -> Any:
        """Return the epoch at the current position as a `tf.data.Dataset`."""
        return self.as_dataset()

    def get_torch_dataloader(self) -> Iterator[Any]:
        """Return an iterator over one epoch of tensors."""
        return (_to_tensors(batch) for batch in self)


class _Feed(private.DataAdapter):
    """One use of a `Batches` by one call of `fit`, `evaluate` or `predict`."""

    def __init__(self, batches: Batches, request: private.Request) -> None:
        self.batches = batches
        self.training = request.training
        self.weights = _weights_of_call(batches, request)
        self._order = batches._order if request.training else batches._straight
        self._steps = _steps_of_call(batches, request)
        self._epoch = (0, 0, self._steps)
        self._before: tuple[int, int] | None = None
        # A `performance.FusedModel` takes the batches of one execution in one piece.
        steps = getattr(request.model, "steps_in_one_program", 1)
        self._block_steps = steps if request.training else 1
        if self._block_steps > 1:
            # Keras would look at a batch for that, and find a block.
            private.build_variables(request.model, batches.peek)
        start = request.initial_epoch
        if request.training and start and batches.position[0] != start:
            batches.seek(start)
        request.epoch_iterator.data_adapter = self
        private.enumerate_steps_with(
            request.epoch_iterator,
            self.start_epoch,
            self.blocks if self._block_steps > 1 else None,
        )

    def start_epoch(self) -> tuple[int, int]:
        """Take the next epoch from the `Batches`; return its first step and end."""
        epoch, step = 0, 0
        if self.training:
            self._before = epoch, step = self.batches._position
            self.batches._position = (epoch + 1, 0)
        self._epoch = (epoch, step, self._steps)
        return step, self._steps

    def on_epoch_end(self) -> None:
        """Step back: Keras has looked at a batch to build the model, or stopped."""
        # Called by EpochIterator.reset() before the first epoch, and when data
        # ran out; never at the end of an epoch that `start_epoch` numbered.
        if self._before is not None:
            self.batches._position = self._before

    def get_numpy_iterator(self) -> Iterator[Any]:
        epoch, first, end = self._epoch
        return self.batches._numpy(epoch, first, end, self.weights, self._order)

    def blocks(self) -> Blocks:
        """Return the epoch in pieces of as many batches as the model takes at once."""
        return Blocks(self._make_blocks(*self._epoch))

    def _make_blocks(self, epoch: int, first: int, end: int) -> Iterator[Block]:
        made = self.batches._rows(
            epoch, first, end, self.weights, self._order, self._block_steps
        )
        for rows, count in made:
            yield cut(rows, count, self.batch_size)

    get_jax_iterator = get_numpy_iterator

    def get_torch_dataloader(self) -> Iterator[Any]:
        # Not a torch DataLoader: each of its iterators draws from torch's
        # generator, which a resumed run would have to repeat.
        return (_to_tensors(batch) for batch in self.get_numpy_iterator())

    def get_tf_dataset(self) -> Any:
        if self._block_steps > 1:
            # Keras asks for one in any case; what is read are the blocks.
            return _pipeline.nothing()
        return _pipeline.dataset(
            self.batches, lambda: self._epoch, self.weights, self._order
        )

    @property
    def num_batches(self) -> int:
        return self._steps

    @property
    def batch_size(self) -> int:
        return self.batches.batch_size

    @property
    def has_partial_batch(self) -> bool:
        return self.batches.has_partial_batch

    @property
    def partial_batch_size(self) -> int | None:
        return self.batches.partial_batch_size


def _weights_of_call(
    batches: Batches, request: private.Request
) -> dict[int, float] | None:
    """Check what was passed beside the `Batches`; return the class weights."""
    given = request.arguments
    for name in ("y", "sample_weight"):
        if given[name] is not None:
            raise ValueError(
                f"`{name}` must be given to Batches(x, y, sample_weight=...), not "
                f"to {request.method or 'the call'} beside the Batches."
            )
    own_call = request.training or request.method in ("evaluate", "predict")
    size = given["batch_size"]
    if own_call and size is not None and size != batches.batch_size:
        raise ValueError(
            f"`batch_size` is set in Batches(batch_size={batches.batch_size}); "
            f"{request.method} got batch_size={size}. Leave it out."
        )
    weights = given["class_weight"]
    if weights is None:
        # As in Keras, class weights count in training only.
        return batches.class_weight if request.training else None
    source = batches._source
    return _check_class_weight(weights, source.y, source.weight)


def _steps_of_call(batches: Batches, request: private.Request) -> int:
    steps = request.arguments["steps_per_epoch"]
    if steps is None:
        return len(batches)
    steps = check_int("steps_per_epoch", steps)
    if steps > len(batches):
        raise ValueError(
            f"`steps_per_epoch` must be at most {len(batches)}, the number of "
            f"batches of an epoch, got {steps}. Train more epochs instead."
        )
    return steps


def _check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise ValueError(f"`shard` must be a pair (index, count), got {shard!r}.")
    index = check_int("shard[0]", shard[0], minimum=0)
    count = check_int("shard[1]", shard[1])
    if index >= count:
        raise ValueError(
            f"`shard` must be (index, count) with index below count, got {shard!r}. "
            "The first shard is number 0."
        )
    return index, count


def _check_class_weight(
    weights: Mapping[int, float] | None, y: Any, sample_weight: Any
) -> dict[int, float] | None:
    if weights is None:
        return None
    if sample_weight is not None:
        raise ValueError(
            "`class_weight` and `sample_weight` cannot be given at the same time. "
            "Multiply them into one `sample_weight`."
        )
    if y is None or (keras.tree.is_nested(y) and not isinstance(y, list)):
        raise ValueError("`class_weight` needs labels `y` in a single array.")
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(
            f"`class_weight` must be a dict from class to weight, got {weights!r}."
        )
    return {int(label): float(weight) for label, weight in weights.items()}


def _to_tensors(batch: Any) -> Any:
    return keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
