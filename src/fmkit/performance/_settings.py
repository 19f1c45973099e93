"""`fit_settings`: arguments of `compile` and `fit`, each with its reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._checks import check_int, check_number, check_one_of
from fmkit.data import Batches
from fmkit.performance._fused_model import FusedModel, parts_of_its_own
from fmkit.performance._given import Given, look_at
from fmkit.performance._measure import Candidate, Measurement, measure_candidates
from fmkit.performance._programs import folder_of_programs

__all__ = ["FitSettings", "fit_settings"]

# Executions of fewer steps spend their time entering the graph; longer ones gain
# little more, and callbacks run only between executions.
STEPS_PER_EXECUTION = 50
# Each start of a `FusedModel`'s program costs some milliseconds, and its batches are
# in memory three times.
FUSED_STEPS, FUSED_BYTES = 100, 2**26
# Steps after which XLA on the CPU has paid for its compilation: it takes 1 to 3 s
# more to start and saves about half a millisecond per step (784-256-128-64-32-10).
XLA_PAYS_AFTER = 4000

# Layers whose work XLA fuses well on a CPU. Convolutions, pooling and recurrence
# are not among them: there oneDNN's kernels can be ten times faster.
_XLA_LAYERS = frozenset(
    [
        "InputLayer",
        "Dense",
        "Flatten",
        "Reshape",
        "Permute",
        "Rescaling",
        "Normalization",
        "Dropout",
        "Identity",
        "GaussianNoise",
        "GaussianDropout",
        "AlphaDropout",
        "ActivityRegularization",
        "Activation",
        "ReLU",
        "LeakyReLU",
        "PReLU",
        "ELU",
        "Softmax",
        "BatchNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "UnitNormalization",
        "Add",
        "Subtract",
        "Multiply",
        "Average",
        "Maximum",
        "Minimum",
        "Concatenate",
        "Dot",
    ]
)


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """Arguments for `compile` and `fit`, and why they were chosen.

    Attributes:
        compile: For `model.compile(..., **settings.compile)`.
        fit: For `model.fit(..., **settings.fit)`: the data, as `fit` should get them.
        reasons: One sentence for each choice.
        measurements: What was timed, if anything, the chosen candidate first.
        hints: What would save more time and is no argument, such as `fused`; one
            sentence each.

    Examples:
        >>> import numpy as np
        >>> settings = FitSettings({"jit_compile": False}, {}, {"jit_compile": "Few."})
        >>> print(settings)
        jit_compile=False: Few.
    """

    compile: dict[str, Any]
    fit: dict[str, Any]
    reasons: dict[str, str]
    measurements: tuple[Measurement, ...] = ()
    hints: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line for each choice and its reason, and one for each hint."""
        values = {**self.compile, **self.fit}
        lines = [
            f"{name}={_short(values[name])}: {why}"
            for name, why in self.reasons.items()
        ]
        return "\n".join([*lines, *self.hints])


def _short(value: Any) -> str:
    """Return what a value is, and of arrays only their shape."""
    if isinstance(value, np.ndarray):
        return f"<array of {value.dtype}, {value.shape}>"
    return repr(value)


def fit_settings(
    model: keras.Model,
    data: Any,
    y: Any = None,
    *,
    batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    epochs: int = 1,
    device: str | None = None,
    measure: bool = False,
    seconds: float = 1.0,
) -> FitSettings:
    """Choose `jit_compile`, `steps_per_execution` and the input for a training run.

    By default it follows rules that hold for most networks: no XLA for networks with
    convolutions, pooling or custom layers on TensorFlow's CPU, none for runs too short
    to repay the compilation, always on JAX, never on PyTorch. With such layers an
    execution on JAX's CPU has one step where XLA would loop over several: in a
    `FusedModel`, and from Keras 3.16 on in any model.

    With `measure=True` it times them: a copy of the model trains on a few of the
    batches with each candidate, and the one with the smallest estimated time for the
    whole run wins, compilation included. The model, its optimizer, the position of
    the batches and all global random generators are left unchanged, bit for bit.

    Args:
        model: Any model for the rules. To measure, a compiled model that can be
            cloned (built from layers, not a subclass without a config).
        data: What `fit` will train on: `Batches`, arrays, or anything else that it
            takes as `x`.
        y: As in `fit`, with arrays.
        batch_size: As in `fit`, with arrays. `None` for what Keras takes: 32, or the
            rows divided by `steps_per_epoch`, rounded up.
        steps_per_epoch: As in `fit`. It must be said of data that don't tell how many
            batches they have.
        epochs: How many epochs it will train.
        device: `"cpu"`, `"gpu"` or `"tpu"`; `None` for what the backend would use.
        measure: Time the candidates.
        seconds: Seconds of steps to time per candidate, after its compilation.

    Returns:
        The settings, usable as `model.compile(..., **settings.compile)` and
        `model.fit(..., **settings.fit)`.

    Raises:
        ValueError: If data don't tell their number of batches and `steps_per_epoch` is
            missing; if measuring is asked for on other data than `Batches`, or the
            model is not compiled or cannot be cloned.

    Examples:
        >>> import keras, numpy as np
        >>> from fmkit.data import Batches
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> batches = Batches(np.zeros((64, 4), "uint8"), np.zeros(64), 32)
        >>> settings = fit_settings(model, batches, epochs=3)
        >>> sorted(settings.compile), sorted(settings.fit)
        (['jit_compile', 'steps_per_execution'], ['x'])
    """
    given = look_at(data, y, batch_size, steps_per_epoch)
    steps = check_int("epochs", epochs) * given.steps
    check_number("seconds", seconds, above=0)
    if device is None:
        device = _device()
    check_one_of("device", device, ["cpu", "gpu", "tpu"])
    most = _most_steps(model, given.bytes_of_a_batch)
    hints = _hints(model, device)
    by_rule = Choice(
        *_execution(model, given, device, most), *_jit(model, steps, device)
    )
    if not measure:
        return by_rule.settings(given, hints)
    if not isinstance(data, Batches):
        raise ValueError(
            "`measure=True` trains on the data several times, which only Batches can "
            f"be read for without a trace; got {type(data).__name__}. Give "
            "fmkit.data.Batches, or leave out `measure`."
        )
    candidates = _candidates(model, by_rule)
    measured = measure_candidates(model, data, candidates, seconds)
    return _fastest(measured, steps).settings(given, hints, measured, steps)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The chosen values, each followed by its reason."""

    steps_per_execution: int
    why_steps: str
    jit_compile: bool
    why_jit: str

    def settings(
        self,
        given: Given,
        hints: tuple[str, ...],
        measured: tuple[Measurement, ...] = (),
        steps: int = 0,
    ) -> FitSettings:
        """Return the choice as the arguments it stands for."""
        return FitSettings(
            {
                "jit_compile": self.jit_compile,
                "steps_per_execution": self.steps_per_execution,
            },
            given.fit,
            {
                "jit_compile": self.why_jit,
                "steps_per_execution": self.why_steps,
                "x": given.why,
            },
            tuple(sorted(measured, key=lambda one: one.total(steps))),
            hints,
        )


def _most_steps(model: keras.Model, size: int | None) -> int:
    """Return how many steps an execution should have, a `FusedModel`'s at most."""
    if not isinstance(model, FusedModel) or size is None:
        return STEPS_PER_EXECUTION
    return int(np.clip(FUSED_BYTES // max(size, 1), 1, FUSED_STEPS))


def _execution(
    model: keras.Model, given: Given, device: str, most: int
) -> tuple[int, str]:
    """Choose `steps_per_execution` for epochs of so many steps, with the reason."""
    backend = keras.backend.backend()
    if backend == "torch":
        return 1, (
            "On PyTorch Keras calls Python in each step whatever it is, or refuses "
            "more than 1; so callbacks may run after each."
        )
    if _replicas(model) > 1 and device == "cpu":
        return 1, "TensorFlow fails with more than 1 on several CPU devices."
    on_cpu = (backend, device) == ("jax", "cpu")
    looped = on_cpu and (isinstance(model, FusedModel) or _keras_loops_too())
    if looped and (unknown := _unknown_layers(model)):
        return 1, (
            f"On a CPU, XLA is several times slower with {', '.join(unknown)} inside "
            "a loop over steps."
        )
    return _even_executions(model, given, most)


def _even_executions(model: keras.Model, given: Given, most: int) -> tuple[int, str]:
    """Choose about `most` steps, or no more for a `FusedModel`, with the reason."""
    epoch, unbounded = given.steps, ""
    if isinstance(model, FusedModel) and given.bytes_of_a_batch is None:
        unbounded = (
            " The size of a batch can't be told without reading one, so the batches "
            f"of an execution may take more than {FUSED_BYTES >> 20} MB."
        )
    # Even executions: no short one at the end of the epoch. About as many steps as
    # pays, but never more than a program of a FusedModel should hold.
    parts = math.ceil if isinstance(model, FusedModel) else round
    executions = max(1, parts(epoch / most))
    steps = -(-epoch // executions)
    if given.whole_executions and epoch % steps:
        steps = max(n for n in range(1, steps) if epoch % n == 0)
        return steps, (
            f"Keras makes whole executions, and {epoch} steps_per_epoch are "
            f"{epoch // steps} of {steps}.{unbounded}"
        )
    return steps, (
        f"An epoch of {epoch} steps is {executions} call{'s' * (executions > 1)} "
        f"from Python; callbacks run between calls, not between steps.{unbounded}"
    )


def _jit(model: keras.Model, steps: int, device: str) -> tuple[bool, str]:
    """Choose `jit_compile` for a run of `steps` steps, with the reason."""
    backend = keras.backend.backend()
    refusing = _refusing(model)
    if backend == "torch":
        return False, (
            "PyTorch's own kernels start at once; torch.compile takes long to start "
            "and is known to fail on some of Keras's layers."
        )
    if refusing:
        return False, f"Layer {refusing[0]!r} does not support XLA."
    if backend == "jax":
        return True, "Without it JAX runs operations one by one."
    if _replicas(model) > 1:
        return False, "Keras does not combine XLA with several replicas."
    if device != "cpu":
        return True, "XLA fuses the operations between the large kernels."
    unknown = _unknown_layers(model)
    if unknown:
        return False, (
            f"On a CPU, XLA can be many times slower with {', '.join(unknown)} than "
            "TensorFlow's own kernels; measure=True would tell."
        )
    if steps < XLA_PAYS_AFTER:
        return False, (
            f"{steps:,} steps on a CPU are too few to repay XLA's compilation "
            f"(about {XLA_PAYS_AFTER:,} for a small network)."
        )
    return True, (
        f"XLA handles all of these layers well, and {steps:,} steps repay its "
        'compilation; "auto" would mean no XLA on a CPU.'
    )


def _hints(model: keras.Model, device: str) -> tuple[str, ...]:
    """Return what would save more time than these arguments, in sentences."""
    backend, hints = keras.backend.backend(), list[str]()
    if _gains_by_fusing(model, device):
        gain = "many steps in one program; then ask fit_settings again."
        if backend == "torch":
            gain = "each step as one graph."
        hints.append(f"performance.fused(model) usually trains in less time: {gain}")
    if backend == "jax" and folder_of_programs() is None:
        hints.append(
            "performance.keep_compiled_programs(folder) keeps what XLA compiles for "
            "the next start."
        )
    return tuple(hints)


def _gains_by_fusing(model: keras.Model, device: str) -> bool:
    """Whether `fused` takes the model, and the benchmarks show a gain for its kind."""
    spread = _replicas(model) > 1 or keras.distribution.distribution() is not None
    if isinstance(model, FusedModel) or spread or parts_of_its_own(model):
        return False
    if device != "cpu":
        return False  # not measured
    if keras.backend.backend() == "torch":
        return True
    return not _unknown_layers(model) and not _keras_loops_too()


def _keras_loops_too() -> bool:
    """Whether Keras itself puts several steps into one program, as on JAX from 3.16 on.

    Not where that can't be asked, since Keras has moved what tells it.
    """
    try:
        return bool(keras.backend.backend() == "jax" and private.stacks_batches())
    except private.MissingPieceError:
        return False


def _replicas(model: keras.Model) -> int:
    """Return on how many devices TensorFlow computes each step; 1 elsewhere."""
    strategy = getattr(model, "distribute_strategy", None)
    return int(getattr(strategy, "num_replicas_in_sync", 1))


def _refusing(model: Any) -> list[str]:
    """Return the names of the layers that don't support XLA."""
    return [x.name for x in _layers(model) if not getattr(x, "supports_jit", True)]


def _unknown_layers(model: Any) -> list[str]:
    """Return the kinds of layers that XLA may be slow with on a CPU."""
    return sorted({type(x).__name__ for x in _layers(model)} - _XLA_LAYERS)


def _layers(model: Any) -> Iterator[Any]:
    """Yield all layers that hold no others, through nested models and wrappers."""
    inner = list(getattr(model, "layers", ()))
    if isinstance(getattr(model, "layer", None), keras.layers.Layer):
        inner.append(model.layer)
    if not inner or not isinstance(model, keras.Model):
        yield model
    for layer in inner:
        yield from _layers(layer)


def _device() -> str:
    """Return the kind of device that the backend computes on."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        kinds = {device.device_type for device in tf.config.get_visible_devices()}
        return next((kind.lower() for kind in ("TPU", "GPU") if kind in kinds), "cpu")
    if backend == "jax":
        import jax

        return "gpu" if jax.default_backend() == "cuda" else jax.default_backend()
    import torch

    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    return "gpu" if accelerated else "cpu"


def _candidates(model: keras.Model, by_rule: Choice) -> list[Candidate]:
    """Return what is worth timing on this backend; what XLA compiles comes last."""
    backend, many = keras.backend.backend(), by_rule.steps_per_execution
    xla = backend != "torch" and not _refusing(model)
    plain = backend != "jax" or not by_rule.jit_compile
    found = [Candidate(False, 1), Candidate(False, many)] if plain else []
    if xla:
        # On TensorFlow each one more costs a compilation, and 1 is never the fastest.
        found += [Candidate(True, 1)] * (backend == "jax") + [Candidate(True, many)]
    return list(dict.fromkeys(found))


def _fastest(measured: tuple[Measurement, ...], steps: int) -> Choice:
    """Choose by the estimated time of the whole run."""
    best, *others = sorted(measured, key=lambda one: one.total(steps))
    reason = f"Measured for {steps:,} steps: {best.describe(steps)}"
    reason += "".join(f"; {other.describe(steps)}" for other in others)
    return Choice(
        best.steps_per_execution, reason + ".", best.jit_compile, reason + "."
    )
