"""Automatic checks of the data before training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmkit._checks import check_int

# Classes whose sizes differ by more than this ratio get a note.
_UNBALANCED = 1.5
# Beyond these, numbers are no classes, and not counted.
_MOST_CLASSES = 10_000_000


@dataclass
class _Split:
    """What was found in one pair of arrays."""

    name: str
    x_shape: tuple[int, ...]
    x_dtype: str
    y_shape: tuple[int, ...]
    y_dtype: str
    value_range: tuple[float, float] | None
    class_counts: np.ndarray | None
    digests: list[bytes] = field(repr=False)
    labels: np.ndarray | None = field(repr=False)


@dataclass
class ArrayReport:
    """What `check_arrays` found; `print(report)` shows it as a table.

    Attributes:
        problems: What breaks training, one sentence each; empty if there is none.
        notes: What is worth knowing but may be intended (duplicates, unbalanced
            classes), one sentence each.
        duplicates: `((split, index), (split, index))` for the first samples that are
            equal in every value, at most 100, across splits first.
    """

    problems: list[str]
    notes: list[str]
    duplicates: list[tuple[tuple[str, int], tuple[str, int]]]
    _splits: list[_Split] = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise a `ValueError` that lists the problems, if there are any."""
        if self.problems:
            raise ValueError("The arrays can't be trained on:\n" + str(self))

    def __str__(self) -> str:
        """Return the table, then problems and notes, one per line."""
        lines = []
        width = max((len(s.name) for s in self._splits), default=0)
        for s in self._splits:
            low, high = s.value_range or (float("nan"), float("nan"))
            lines.append(
                f"{s.name:<{width}}  x {s.x_shape} {s.x_dtype} in [{low:g}, {high:g}]"
                f"  y {s.y_shape} {s.y_dtype}"
            )
            if s.class_counts is not None and len(s.class_counts) <= 20:
                counts = " ".join(str(count) for count in s.class_counts)
                lines.append(f"{'':<{width}}  per class: {counts}")
        lines += [f"PROBLEM: {problem}" for problem in self.problems]
        lines += [f"note: {note}" for note in self.notes]
        if self.ok:
            lines.append("No problem found.")
        return "\n".join(lines)


def check_arrays(
    *,
    num_classes: int | None = None,
    value_range: tuple[float, float] | None = None,
    **splits: tuple[Any, Any],
) -> ArrayReport:
    """Check pairs of arrays before training: counts, shapes, values, labels, leaks.

    Per split: as many labels as samples, at least one sample, numbers in `x`, no NaN
    or infinity, values inside `value_range`, whole labels inside
    `0 .. num_classes - 1`, how the classes are balanced. Across splits: the same shape
    of a sample, the same dtype, and samples that occur in more than one split.
    Duplicates are found by a 128-bit hash of each sample's bytes, in one pass.

    Args:
        num_classes: Number of classes; by default one more than the largest label of
            the first split.
        value_range: The smallest and largest value that `x` may hold, in its own
            units; by default anything finite.
        **splits: One or more pairs by name, `train=(x, y), test=(x, y)`, of shapes
            `(n, ...)` and `(n,)` or, one-hot or mixed, `(n, num_classes)`; of mixed
            labels the largest share counts.

    Returns:
        A report; `report.ok`, `report.problems`, `report.notes`, `print(report)`,
        `report.raise_for_problems()`. Bad data is a finding, not an exception.

    Raises:
        TypeError: If no split is given, or one is not a pair.

    Examples:
        >>> import numpy as np
        >>> x = np.zeros((4, 2, 2), np.uint8)
        >>> report = check_arrays(train=(x, np.array([0, 1, 2, 7])), num_classes=3)
        >>> report.ok, report.problems
        (False, ['train: labels must lie in 0 .. 2, got 0 .. 7 (first at index 3).'])
    """
    if not splits:
        raise TypeError("Name at least one split: check_arrays(train=(x, y)).")
    if num_classes is not None:
        num_classes = check_int("num_classes", num_classes)
    report = ArrayReport([], [], [], [])
    for name, pair in splits.items():
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(
                f"`{name}` must be a pair of arrays (x, y), got {type(pair).__name__}."
            )
        x, y = np.asarray(pair[0]), np.asarray(pair[1])
        found = _check_split(name, x, y, num_classes, value_range, report)
        if num_classes is None and found.class_counts is not None:
            num_classes = len(found.class_counts)
        report._splits.append(found)
    _check_agreement(report)
    _check_duplicates(report)
    return report


def _check_split(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    num_classes: int | None,
    value_range: tuple[float, float] | None,
    report: ArrayReport,
) -> _Split:
    def problem(text: str) -> None:
        report.problems.append(f"{name}: {text}")

    if x.ndim == 0 or y.ndim == 0:
        problem(f"x and y must be arrays of samples, got shapes {x.shape}, {y.shape}.")
        return _Split(
            name, x.shape, x.dtype.name, y.shape, y.dtype.name, None, None, [], None
        )
    if len(x) != len(y):
        problem(f"{len(x)} samples but {len(y)} labels.")
    if len(x) == 0:
        problem("no samples.")
    bounds = _check_values(x, value_range, problem)
    labels = _check_labels(y, num_classes, problem)
    counts = None
    if labels is not None and labels.size and labels.min() >= 0:
        if y.ndim == 2 and y.shape[1] > 1:
            num_classes = y.shape[1]
        counts = _counted(labels, num_classes, problem)
        if counts is not None:
            _note_balance(name, counts, report)
    digests = [] if bounds is None else _digests(x)
    return _Split(
        name,
        x.shape,
        x.dtype.name,
        y.shape,
        y.dtype.name,
        bounds,
        counts,
        digests,
        labels,
    )


def _check_values(
    x: np.ndarray,
    value_range: tuple[float, float] | None,
    problem: Callable[[str], None],
) -> tuple[float, float] | None:
    """Return the smallest and largest value, or `None` if `x` has no numbers."""
    if x.dtype.kind not in "buif":
        problem(f"x holds {x.dtype}, not numbers.")
        return None
    if x.size == 0:
        return None
    if x.dtype.kind == "f":
        finite = np.isfinite(x)
        if not finite.all():
            where = tuple(int(i) for i in np.argwhere(~finite)[0])
            problem(
                f"{int((~finite).sum())} values of x are NaN or infinite "
                f"(first at index {where})."
            )
            x = x[finite]
            if x.size == 0:
                return None
    low, high = float(x.min()), float(x.max())
    if value_range is not None and not (
        value_range[0] <= low <= high <= value_range[1]
    ):
        problem(
            f"x must lie in [{value_range[0]:g}, {value_range[1]:g}], "
            f"got [{low:g}, {high:g}]."
        )
    return low, high


def _check_labels(
    y: np.ndarray, num_classes: int | None, problem: Callable[[str], None]
) -> np.ndarray | None:
    """Return the labels as a vector of int64, or `None` if they are no labels."""
    if y.dtype.kind not in "buif" or y.ndim > 2 or y.size == 0:
        if y.size:
            problem(f"y must be labels of shape (n,), got {y.shape} of {y.dtype}.")
        return None
    if y.ndim == 2 and y.shape[1] > 1:
        if not ((y >= 0).all() and np.allclose(y.sum(axis=1), 1, rtol=0, atol=1e-5)):
            problem(
                f"y of shape {y.shape} must be one-hot, or the shares of mixed labels: "
                "a row has no number below 0, and the sum 1."
            )
            return None
        if num_classes is not None and y.shape[1] != num_classes:
            problem(f"y has {y.shape[1]} columns, but num_classes={num_classes}.")
        return y.argmax(axis=1)
    y = y.reshape(len(y))
    if y.dtype.kind == "f" and not np.array_equal(y, np.round(y)):
        problem("y must hold whole numbers; for regression leave `y` unchecked.")
        return None
    y = y.astype(np.int64)
    highest = None if num_classes is None else num_classes - 1
    outside = (y < 0) if highest is None else (y < 0) | (y > highest)
    if outside.any():
        rule = "be 0 or more" if highest is None else f"lie in 0 .. {highest}"
        problem(
            f"labels must {rule}, got {y.min()} .. {y.max()} "
            f"(first at index {int(outside.argmax())})."
        )
    return y


def _counted(
    labels: np.ndarray, num_classes: int | None, problem: Callable[[str], None]
) -> np.ndarray | None:
    """Return how many samples each class has, but for labels that are out of range."""
    if num_classes is None and labels.max() >= _MOST_CLASSES:
        problem(f"labels go up to {labels.max()}; give num_classes.")
        return None
    inside = labels if num_classes is None else labels[labels < num_classes]
    return np.bincount(inside, minlength=num_classes or 0)


def _note_balance(name: str, counts: np.ndarray, report: ArrayReport) -> None:
    missing = np.flatnonzero(counts == 0)
    if missing.size:
        report.notes.append(
            f"{name}: no sample of class {', '.join(map(str, missing[:10]))}."
        )
    present = counts[counts > 0]
    if present.size and present.max() > _UNBALANCED * present.min():
        report.notes.append(
            f"{name}: classes are unbalanced, {present.min()} to {present.max()} "
            "samples; class_weight in fit evens them out."
        )


def _digests(x: np.ndarray) -> list[bytes]:
    """Return a 128-bit hash per sample; equal samples have equal hashes."""
    native = x.dtype.newbyteorder("=")

    def digest(sample: np.ndarray) -> bytes:
        same = np.ascontiguousarray(sample, native)
        if native.kind == "f":
            same = same + native.type(0)  # which makes 0 of -0
        return hashlib.blake2b(same.tobytes(), digest_size=16).digest()

    return list(map(digest, x))


def _check_agreement(report: ArrayReport) -> None:
    """Compare the splits' shapes and dtypes with those of the first."""
    first, *others = report._splits
    for other in others:
        if other.x_shape[1:] != first.x_shape[1:]:
            report.problems.append(
                f"{other.name}: samples of shape {other.x_shape[1:]}, "
                f"but {first.name} has {first.x_shape[1:]}."
            )
        if other.x_dtype != first.x_dtype:
            report.problems.append(
                f"{other.name}: x is {other.x_dtype}, "
                f"but {first.name} has {first.x_dtype}."
            )


def _check_duplicates(report: ArrayReport) -> None:
    seen: dict[bytes, tuple[_Split, int]] = {}
    within: dict[str, int] = {}
    across: dict[tuple[str, str], int] = {}
    conflicts = 0
    pairs: list[tuple[bool, tuple[tuple[str, int], tuple[str, int]]]] = []
    for part in report._splits:
        for index, digest in enumerate(part.digests):
            first, at = seen.setdefault(digest, (part, index))
            if (first, at) == (part, index):
                continue
            if first is part:
                within[part.name] = within.get(part.name, 0) + 1
            else:
                key = (first.name, part.name)
                across[key] = across.get(key, 0) + 1
            conflicts += _labels_differ(first, at, part, index)
            pairs.append((first is part, ((first.name, at), (part.name, index))))
    for (a, b), count in across.items():
        report.notes.append(
            f"{count} {_plural('sample', count)} of {b} also in {a}: a leak."
        )
    for name, count in within.items():
        report.notes.append(f"{name}: {count} {_plural('sample', count)} repeated.")
    if conflicts:
        report.notes.append(
            f"{conflicts} repeated {_plural('sample', conflicts)} with another label."
        )
    pairs.sort(key=lambda pair: pair[0])
    report.duplicates = [pair for _, pair in pairs[:100]]


def _labels_differ(a: _Split, i: int, b: _Split, j: int) -> bool:
    if a.labels is None or b.labels is None:
        return False
    if i >= len(a.labels) or j >= len(b.labels):
        return False
    return bool(a.labels[i] != b.labels[j])


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"
