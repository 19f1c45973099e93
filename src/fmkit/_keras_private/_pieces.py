"""What happens on a Keras that has moved a private piece: an error that says so.

Importing fmkit works there, and so does everything that does not need the piece.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

__all__ = [
    "CHECKED_ON",
    "OTHER_DATA",
    "PIECES",
    "MissingPieceError",
    "Piece",
    "attribute",
    "missing",
    "missing_pieces",
    "piece",
]

# The releases of Keras on which the tests of all this pass.
CHECKED_ON = ("3.12", "3.13", "3.14", "3.15")


class Piece(NamedTuple):
    """What a private thing of Keras's is for.

    Attributes:
        needed_by: What does not work without it.
        instead: What works without it.
        library: The package that it is in.
        new: Whether older releases neither have nor need it.
    """

    needed_by: str
    instead: str
    library: str = "keras"
    new: bool = False


_BATCHES = Piece(
    "`Batches` as the data of `fit`, `evaluate` and `predict`",
    "give them arrays or a `tf.data.Dataset`",
)
# `ExactResume` takes a missing one for a reason to resume at the start of an epoch.
OTHER_DATA = Piece(
    "`ExactResume` inside an epoch of data other than `Batches`",
    "give `fit` an `fmkit.data.Batches`",
)
_CALLBACKS = Piece(
    "`ExactResume`, `EvaluateWithAverages` and `LearningRateLogger`",
    "train without these callbacks",
)
_LAYERS = Piece(
    "`ExactResume`, `update_batch_norm` and what reads or copies layers",
    "train without `ExactResume`",
)
_RESUME = Piece("`ExactResume`", "train without it")
_DIRECTIONS = Piece("mode='auto'", "say mode='min' or mode='max'")
_GRID = Piece(
    "continuing a `GridSearch` after a kill", "`RandomSearch` continues", "keras_tuner"
)
_DRAWS = Piece(
    "saving and restoring Keras's random generators: `ExactResume`, and evaluation "
    "beside a training",
    "train and evaluate without these",
)

PIECES = {
    "keras.src.trainers.data_adapters.data_adapter:DataAdapter": _BATCHES,
    "keras.src.trainers.epoch_iterator:EpochIterator.__init__": _BATCHES,
    "keras.src.trainers.data_adapters.data_adapter_utils:PartialBatchList": Piece(
        "`steps_per_execution` with a smaller last batch of `Batches` on JAX",
        "say Batches(drop_remainder=True), or steps_per_execution=1",
        new=True,
    ),
    "_enumerate_iterator": _BATCHES,
    "_get_iterator": _BATCHES,
    "fit(epoch_iterator)": _CALLBACKS,
    "evaluate(epoch_iterator)": Piece(
        "`EvaluateWithAverages`",
        "write `with fmkit.optimizers.averaged(model):` around `evaluate`",
    ),
    "predict(epoch_iterator)": Piece(
        "`EvaluateWithAverages`",
        "write `with fmkit.optimizers.averaged(model):` around `predict`",
    ),
    "callbacks": _CALLBACKS,
    "_model": _CALLBACKS,
    "_initial_epoch": _RESUME,
    "_symbolic_build": Piece(
        "`ExactResume` with TensorFlow, and `FusedModel` with `Batches`",
        "train a `keras.Model` without them",
    ),
    "_flatten_layers": _LAYERS,
    "_compile_config": _RESUME,
    "_compile_metrics": _DIRECTIONS,
    "_compile_loss": _DIRECTIONS,
    "_direction": _DIRECTIONS,
    "jax_state_sync": Piece(
        "averages in the model on JAX",
        "train without them, or on another backend",
    ),
    "_learning_rate": Piece("`LearningRateLogger`", "train without it"),
    "_iterations": Piece(
        "`LearningRateLogger` and `HyperparameterScheduler`", "train without them"
    ),
    "_trainable_variables": Piece(
        "`ExactResume` of a model that holds optimizers of its own", "train without it"
    ),
    "keras.src.backend.common.stateless_scope:in_stateless_scope": Piece(
        "`ExponentialMovingAverage` on PyTorch", "use `optimizer` without averages"
    ),
    "keras.src.backend.common.global_state:get_global_attribute": _DRAWS,
    "keras.src.backend.common.global_state:set_global_attribute": _DRAWS,
    "keras.src.random.seed_generator:global_seed_generator": _DRAWS,
    "keras.src.utils.io_utils:print_msg": Piece(
        "what `ExactResume` and `SidecarEvaluator` print", "say verbose=0"
    ),
    "_compare": _GRID,
    "_ordered_ids": _GRID,
    "_populate_next": _GRID,
}


class MissingPieceError(RuntimeError):
    """The installed Keras has no such private piece, and this call needs it."""


def missing(name: str, owner: str = "", what: Piece | None = None) -> MissingPieceError:
    """Return the error for a piece that is not where it was.

    Args:
        name: Its name.
        owner: The class that should have it.
        what: What it is for; `None` for what `PIECES` says.
    """
    what = what or PIECES[name]
    version = getattr(importlib.import_module(what.library), "__version__", "")
    library = {"keras": "Keras", "keras_tuner": "Keras Tuner"}[what.library]
    shown = f"{owner}.{name}" if owner else name.replace(":", ".")
    return MissingPieceError(
        f"{library} {version} has no `{shown}`: it is private there, and has moved. "
        f"Without it fmkit lacks {what.needed_by}. All else works: {what.instead}. "
        f"This fmkit was tested on Keras {CHECKED_ON[0]} to {CHECKED_ON[-1]}; for a "
        "newer one, type: pip install -U fmkit"
    )


class _Missing(type):
    """The type of what stands in for a missing function, class or module."""

    name: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise missing(cls.name)

    def __getattr__(cls, name: str) -> Any:
        # Python and pytest ask any object for names such as `__wrapped__`.
        if name.startswith("__") and name not in ("__code__", "__globals__"):
            raise AttributeError(name)
        raise missing(cls.name)


def piece(name: str) -> Any:
    """Return a private thing that Keras has in a module.

    If there is none: a class that raises `MissingPieceError` when it is called, an
    instance of a subclass is made, or an attribute of it is read.

    Args:
        name: `"module:name"`, as in `PIECES`.
    """
    module, _, attributes = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attributes.split("."):
            # From its own dict: an inherited `__init__` is not the one that moved.
            found = vars(found)[part]
    except (ImportError, KeyError):
        return _Missing("Missing", (), {"name": name})
    return found


def missing_pieces() -> list[str]:
    """Return what fmkit lacks on this Keras, as far as its modules show it.

    What objects must have is seen only when one is there.
    """
    gone = [
        what
        for name, what in PIECES.items()
        if ":" in name and not what.new and isinstance(piece(name), _Missing)
    ]
    return [f"{what.needed_by}; {what.instead}" for what in dict.fromkeys(gone)]


def attribute(owner: Any, name: str, what: Piece | None = None) -> Any:
    """Return an attribute of an object of Keras's.

    Args:
        owner: The object.
        name: The attribute.
        what: What it is for; `None` for what `PIECES` says.

    Raises:
        MissingPieceError: If it has none.
    """
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise missing(name, type(owner).__name__, what) from error
