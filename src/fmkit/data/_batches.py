"""`Batches`: arrays as a deterministic, seekable stream that `fit` takes as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from fmkit import _keras_private as private
from fmkit._buffers import to_tensors
from fmkit._checks import check_int
from fmkit._describe import describe, digest_of_arrays
from fmkit.augmentation import Draws
from fmkit.data import _pipeline
from fmkit.data._feed import Feed
from fmkit.data._order import Indices, Order
from fmkit.data._reader import Reader
from fmkit.data._source import Source
from fmkit.preprocessing import preprocess

__all__ = ["Batches"]

# From x, y and the draws of their rows to x and y.
Augmentation = Callable[[Any, Any, Draws], tuple[Any, Any]]


class Batches(private.DataSource):
    r"""Shuffled batches of arrays whose order depends on seed and epoch alone.

    Epoch $e$ visits the samples in the permutation $\pi(\text{seed}, e)$: all of
    them, once, fully shuffled, the same on every backend, platform and version.
    Batch $s$ holds places $s b$ to $(s + 1) b - 1$ of that permutation, so the
    stream can start anywhere at once: `seek(epoch, step)`.

    Pass it directly to `model.fit(batches, epochs=10)`. Every training epoch takes
    the next order; a second `fit` continues from there, and
    `fit(..., initial_epoch=e)` starts at epoch $e$. With `steps_per_epoch=k`, of any
    size, epoch $e$ of `fit` takes batches $e k$ to $(e + 1) k - 1$ of all epochs of
    the data in a row, so that every sample has its turn. As `validation_data`, in
    `evaluate` and in `predict`, the samples come in their own order and the
    position does not move. A `for` loop goes through one epoch.

    How the rows are read:

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
        augment: `(x, y, draws) -> (x, y)` over a block of rows, NumPy arrays, before
            the `map`; or several functions in sequence. Random numbers come from
            `draws`, an `augmentation.Draws`: they depend on seed, epoch and sample
            alone, so a sample looks the same at the same epoch whatever the batch
            size, shard and backend are. Each row must be treated by itself, and the
            arrays left as they were. Training batches are augmented, and so is a `for`
            loop; `validation_data`, `evaluate` and `predict` are not.
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
        restart: With `fit(steps_per_epoch=k)`, begin a new epoch of the data with
            each epoch of `fit`: it takes the first `k` batches, and what comes after
            them in the order is left out.

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
        augment: Augmentation | Sequence[Augmentation] | None = None,
        map: Callable[..., Any] | None = preprocess,
        shuffle: bool = True,
        drop_remainder: bool = False,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        shard: tuple[int, int] = (0, 1),
        restart: bool = False,
    ) -> None:
        batch_size = check_int("batch_size", batch_size)
        self.seed = check_int("seed", seed, minimum=0, bits=64)
        shard = _check_shard(shard)
        weights = _check_class_weight(class_weight, y, sample_weight)
        source = Source(x, y, sample_weight, map)
        order = Order(source.size, self.seed, shuffle=bool(shuffle))
        functions = _check_functions(augment)
        self._reader = Reader(
            source, order, batch_size, shard, bool(drop_remainder), weights, functions
        )
        self._position = (0, 0)
        self._restart = bool(restart)
        self._check_sizes()

    def _check_sizes(self) -> None:
        count = self.shard[1]
        tail = self.num_samples % (count * self.batch_size)
        if len(self) == 0:
            raise ValueError(
                f"`drop_remainder=True` leaves no batch: {self.num_samples} samples "
                f"are fewer than one batch of {count * self.batch_size}. Use a "
                "smaller `batch_size`, or drop_remainder=False."
            )
        if not self.drop_remainder and 0 < tail < count:
            raise ValueError(
                f"The last global batch has {tail} samples for {count} shards, so "
                "some shard would get an empty batch. Use drop_remainder=True, or "
                f"another `batch_size` (got batch_size={self.batch_size})."
            )

    @property
    def num_samples(self) -> int:
        """Number of samples in the arrays (of all shards together)."""
        return self._reader.source.size

    @property
    def shuffle(self) -> bool:
        """Whether training epochs are shuffled."""
        return self._reader.order.shuffle

    @property
    def drop_remainder(self) -> bool:
        """Whether a last batch that is not full is left out."""
        return self._reader.drop_remainder

    @property
    def shard(self) -> tuple[int, int]:
        """`(index, count)`: number of this shard, and how many there are."""
        return self._reader.shard

    @property
    def restart(self) -> bool:
        """Whether each epoch of `fit(steps_per_epoch=k)` begins one of the data."""
        return self._restart

    @property
    def class_weight(self) -> dict[int, float] | None:
        """Weight of each class, as given here; `fit` may be given others."""
        return self._reader.weights

    @property
    def position(self) -> tuple[int, int]:
        """`(epoch, step)` at which the next training epoch or `for` loop starts."""
        return self._position

    def __len__(self) -> int:
        """Return the number of batches (of this shard) in a whole epoch."""
        return len(self._reader)

    def __repr__(self) -> str:
        shard = f", shard={self.shard}" if self.shard[1] > 1 else ""
        return (
            f"<Batches: {self.num_samples} samples, {len(self)} batches of "
            f"{self.batch_size}, seed={self.seed}{shard}, position={self.position}>"
        )

    def seek(self, epoch: int, step: int = 0) -> None:
        """Start the next epoch at `step` of `epoch`, in time that depends on neither.

        Raises:
            ValueError: If there is no such step.
        """
        self._position = self._place(epoch, step)

    def _place(self, epoch: int, step: int) -> tuple[int, int]:
        """Return a place in the data, or refuse one that isn't there."""
        epoch = check_int("epoch", epoch, minimum=0, bits=63)
        step = check_int("step", step, minimum=0)
        if step >= len(self):
            raise ValueError(
                f"`step` must be below {len(self)}, the number of batches of an "
                f"epoch, got step={step}. The step after the last one is "
                f"step 0 of epoch {epoch + 1}."
            )
        return epoch, step

    def order(self, epoch: int) -> Indices:
        """Return the indices of this shard's samples in the order of `epoch`."""
        return self._reader.indices(self._place(epoch, 0)[0], 0, len(self))

    def describe(self) -> dict[str, Any]:
        """Return all that the content and order of the batches depend on.

        Plain values. Two `Batches` with the same description give the same batches.
        `content` is a digest of the arrays: of all bytes up to 256 MiB, of 4,096 rows
        of each array beyond. A `map` is described by its name and, if it is a function
        of Python, a digest of its code.
        """
        source = self._reader.source
        leaves = [leaf for leaf in source.leaves if leaf is not None]
        weights, functions = self.class_weight, self._reader.functions
        return {
            "samples": self.num_samples,
            "arrays": [f"{leaf.dtype}{list(leaf.shape[1:])}" for leaf in leaves],
            "content": digest_of_arrays(leaves),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_remainder": self.drop_remainder,
            "shard": list(self.shard),
            "restart": self.restart,
            "map": describe(source.transform),
            "class_weight": weights and {str(k): v for k, v in weights.items()},
            # Absent from what an earlier version described.
            **({"augment": describe(functions)} if functions else {}),
        }

    def peek(self) -> tuple[Any, ...]:
        """Return a first batch as `fit` would get it, without moving the position."""
        return next(self._reader.batches(0, 0, 1))

    def as_dataset(self, epoch: int | None = None, step: int = 0) -> Any:
        """Return one epoch as a `tf.data.Dataset`, from `step` on.

        Args:
            epoch: Which epoch's order; `None` for the current position.
            step: First batch, of an `epoch` that is given.

        Returns:
            A dataset of `(x, y)` or `(x, y, sample_weight)` (or `x` alone) with
            known cardinality. It can be iterated again and does not move the
            position.

        Raises:
            ValueError: If there is no such step, or `step` is given without `epoch`.
        """
        if epoch is None and step:
            raise ValueError(
                f"`step` counts from the start of an epoch: as_dataset(epoch=..., "
                f"step={step})."
            )
        epoch, step = self._position if epoch is None else self._place(epoch, step)
        dataset = _pipeline.dataset(self._reader, (epoch, step, len(self)))
        return dataset.apply(_pipeline.assert_cardinality(len(self) - step))

    def __iter__(self) -> Iterator[Any]:
        """Go through one epoch in NumPy, and move the position to the next."""
        epoch, step = self._begin_epoch(None)
        for batch in self._reader.batches(epoch, step, len(self)):
            yield batch[0] if len(batch) == 1 else batch

    def _begin_epoch(self, count: int | None) -> tuple[int, int]:
        """Return the position, and move it by `count` batches or to the next epoch."""
        epoch, step = self._position
        passed, rest = (1, 0) if count is None else divmod(step + count, len(self))
        self._position = (epoch + passed, rest)
        return epoch, step

    def _step_back(self, position: tuple[int, int]) -> None:
        """Move the position back to where an epoch began."""
        self._position = position

    # What Keras asks of its data.

    def feed(self, request: private.Request) -> Feed:
        """Return the batches for one call of `fit`, `evaluate` or `predict`."""
        weights = self._weights_of_call(request)
        goes_on = request.training and not self.restart
        goes_on = goes_on and request.arguments["steps_per_epoch"] is not None
        steps = self._steps_of_call(request, goes_on)
        reader = replace(self._reader, weights=weights)
        in_one = request.steps_in_one_program
        if in_one > 1 and request.method != "predict":
            # Keras would look at a batch for that, and find a block.
            private.build_variables(request.model, self.peek)
        if not request.training:
            order = Order(self.num_samples, self.seed, shuffle=False)
            reader = replace(reader, order=order, functions=())
            return Feed(self, reader, steps, steps_in_one_program=in_one)
        self._go_to_epoch(request.initial_epoch, steps if goes_on else len(self))
        epoch, step = self._position
        if step >= steps and not goes_on:
            raise ValueError(
                f"The Batches are at step {step} of epoch {epoch}, and an epoch of "
                f"steps_per_epoch={steps} ends before it. Type seek({epoch}, 0), or "
                "make them with restart=False."
            )
        return Feed(
            self,
            reader,
            steps,
            self._begin_epoch,
            self._step_back,
            in_one,
            goes_on,
        )

    def _go_to_epoch(self, number: int, steps: int) -> None:
        """Seek an epoch of so many steps of `fit`, unless the position is in it."""
        epoch, step = self._position
        if number and (epoch * len(self) + step) // steps != number:
            self.seek(*divmod(number * steps, len(self)))

    def _weights_of_call(self, request: private.Request) -> dict[int, float] | None:
        """Check what was passed beside the data; return the class weights."""
        passed = request.arguments
        for name in ("y", "sample_weight"):
            if passed[name] is not None:
                raise ValueError(
                    f"`{name}` must be given to Batches(x, y, sample_weight=...), not "
                    f"to {request.method or 'the call'} beside the Batches."
                )
        own_call = request.training or request.method in ("evaluate", "predict")
        size = passed["batch_size"]
        if own_call and size is not None and size != self.batch_size:
            raise ValueError(
                f"`batch_size` is set in Batches(batch_size={self.batch_size}); "
                f"{request.method} got batch_size={size}. Leave it out."
            )
        weights = passed["class_weight"]
        if weights is None:
            # As in Keras, class weights count in training only.
            return self.class_weight if request.training else None
        source = self._reader.source
        return _check_class_weight(weights, source.y, source.weight)

    def _steps_of_call(self, request: private.Request, goes_on: bool) -> int:
        steps = request.arguments["steps_per_epoch"]
        if steps is None:
            return len(self)
        name = "steps_per_epoch" if request.training else "steps"
        steps = check_int(name, steps)
        if steps > len(self) and not goes_on:
            instead = (
                "Train more epochs instead, or let an epoch of `fit` run on into "
                "the next one: Batches(restart=False)."
                if request.training
                else "Leave it out."
            )
            raise ValueError(
                f"`{name}` must be at most {len(self)}, the number of batches of an "
                f"epoch, got {steps}. {instead}"
            )
        return steps

    @property
    def batch_size(self) -> int:
        """Samples per step of this shard."""
        return self._reader.batch_size

    @property
    def has_partial_batch(self) -> bool:
        """Whether the last batch of an epoch is smaller than the others."""
        return self.partial_batch_size is not None

    @property
    def partial_batch_size(self) -> int | None:
        """Samples in the last batch if it is smaller, else `None`."""
        return self._reader.partial_batch_size

    def get_numpy_iterator(self) -> Iterator[Any]:
        """Return an iterator over one epoch of NumPy batches."""
        return iter(self)

    def get_jax_iterator(self, super_batch: int | None = None) -> Iterator[Any]:
        """Return an iterator over one epoch, `super_batch` batches in one piece."""
        if not super_batch:
            return iter(self)
        epoch, step = self._begin_epoch(None)
        blocks = self._reader.blocks(epoch, step, len(self), super_batch)
        return private.executions(blocks)

    def get_tf_dataset(self) -> Any:
        """Return the epoch at the current position as a `tf.data.Dataset`."""
        return self.as_dataset()

    def get_torch_dataloader(self) -> Iterator[Any]:
        """Return an iterator over one epoch of tensors."""
        return map(to_tensors, self)


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


def _check_functions(
    augment: Augmentation | Sequence[Augmentation] | None,
) -> tuple[Augmentation, ...]:
    if augment is None:
        return ()
    found = tuple(augment) if isinstance(augment, (list, tuple)) else (augment,)
    for function in found:
        if not callable(function):
            raise TypeError(
                "`augment` must be a function of (x, y, draws), or a list of them, "
                f"got {function!r}."
            )
    return found


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
    shape = getattr(y, "shape", ())
    if len(shape) > 2:
        raise ValueError(
            "`class_weight` needs labels of shape (n,), (n, 1) or (n, classes), got "
            f"{tuple(shape)}. Give each sample its weight by `sample_weight`."
        )
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(
            f"`class_weight` must be a dict from class to weight, got {weights!r}."
        )
    return {int(label): float(weight) for label, weight in weights.items()}
