"""`FusedModel`: all steps of one execution in one XLA program, or a step in one graph.

With `steps_per_execution=50` Keras calls Python once in 50 steps. Between the steps
TensorFlow still fetches a batch, starts XLA's program for one step, hands it every
weight and takes every weight back; JAX returns to Python. For a small network that
takes as long as the step. Here the 50 batches come in one piece, and the loop over
them is inside the program.

On PyTorch there is no such program, and Python walks through every layer in every step.
Here it does so once, and each later step plays what came of it: see `_torch_steps`.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._checks import check_int
from fmkit._job import current_job
from fmkit.data import Batches

__all__ = ["FusedModel", "fused", "parts_of_its_own"]

# Of an execution of `fused`, where nothing else is said.
_STEPS = 50


@keras.saving.register_keras_serializable("fmkit")
class FusedModel(keras.Model):
    r"""A model whose `fit` runs many steps as one XLA program, or each as one graph.

    Made from a network's inputs and outputs, as any `keras.Model`, or subclassed.
    Nothing else changes: `compile`, `fit`, callbacks, metrics, saving.

        network = models.mlp((256, 128))
        model = FusedModel(network.inputs, network.outputs)
        model.compile("adam", loss, steps_per_execution=50, jit_compile=True)
        model.fit(Batches(x, y, 128), epochs=20)

    The weights after each step are those of the same model in Keras's own loop, up to
    the rounding of another arrangement of the same sums; from run to run they are the
    same bits. Callbacks act between executions, as Keras has it for any
    `steps_per_execution`.

    It pays where a step is short: dense networks with batches of some hundred
    samples. `steps_per_execution` batches are held in memory at a time, three times
    over. On a CPU, XLA is slow with convolutions and pooling: see `fit_settings`.

    On PyTorch it takes any data, and `jit_compile` and `steps_per_execution` need not
    be said. A step is traced at the second batch of a shape, and played from then on:
    the same kernels, so the same bits as Keras's own step. As on the other backends,
    what Python reads is read once; `compile` makes the next `fit` trace anew. No
    gradients are left in `variable.value.grad`.

    It takes whatever `fit` takes; `fmkit.data.Batches` are the fastest. `evaluate` is
    fused as well, also as validation in `fit`, and `predict` on TensorFlow and PyTorch.

    Where steps can't be fused, the model trains as any other, and `why_not_fused` says
    why: `jit_compile=False`, `run_eagerly=True`, a `tf.distribute` strategy,
    `keras.distribution`, several processes of PyTorch, or there a step whose Python
    looks at what the step computes, such as a loss scale. Ragged and sparse tensors are
    trained on step by step.

    Args:
        inputs: As in `keras.Model`.
        outputs: As in `keras.Model`.
        name: As in `keras.Model`.

    Attributes:
        steps_in_one_program: How many steps one program makes; 1 where they can't be
            fused, and on PyTorch.
        why_not_fused: Why steps are not fused; `None` if they are, or will be.

    Examples:
        >>> import keras, numpy as np
        >>> from fmkit.data import Batches
        >>> from fmkit.performance import FusedModel
        >>> inputs = keras.Input((4,))
        >>> model = FusedModel(inputs, keras.layers.Dense(1)(inputs))
        >>> fast = keras.backend.backend() != "torch"
        >>> steps = 5 if fast else 1
        >>> model.compile(
        ...     "sgd", "mse", jit_compile=fast, steps_per_execution=steps)
        >>> model.steps_in_one_program == steps
        True
        >>> x = np.ones((20, 4), "float32")
        >>> history = model.fit(Batches(x, x[:, 0], 2), epochs=2, verbose=0)
        >>> history.history["loss"][1] < history.history["loss"][0]
        True
    """

    train_function: Any
    test_function: Any
    predict_function: Any

    # Keras takes a class for functional whose arguments are called so.
    def __init__(
        self, inputs: Any = None, outputs: Any = None, name: Any = None, **kwargs: Any
    ) -> None:
        if inputs is None:  # a subclass with a `call` of its own
            super().__init__(name=name, **kwargs)
            return
        kind: Any = type(self)
        object.__setattr__(self, "__class__", _functional(kind))
        super().__init__(inputs, outputs, name=name, **kwargs)

    @property
    def steps_in_one_program(self) -> int:
        """How many steps one program makes."""
        if keras.backend.backend() == "torch" or self.why_not_fused is not None:
            return 1
        return int(self.steps_per_execution)

    @property
    def why_not_fused(self) -> str | None:
        """Why the steps of `fit` are not fused; `None` if they are, or will be."""
        torch = keras.backend.backend() == "torch"
        if not self.compiled:
            return "the model is not compiled"
        if self.run_eagerly:
            return "run_eagerly=True asks for Python in every step"
        if not self._is_alone():
            return "a step is spread over several devices or processes"
        if torch:
            return getattr(self.train_function, "why_not", None)
        if not self.jit_compile:
            return "jit_compile=False asks for no XLA program"
        if self.steps_per_execution == 1:
            return "steps_per_execution is 1"
        return None

    def _is_alone(self) -> bool:
        if keras.distribution.distribution() is not None or current_job().count > 1:
            return False
        on_tensorflow = keras.backend.backend() == "tensorflow"
        return not on_tensorflow or self.distribute_strategy.num_replicas_in_sync == 1

    # Keras's own methods, which here tell the data what they are asked for.

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As in `keras.Model`."""
        bound = self._bound(super().fit, args, kwargs)
        return super().fit(*bound.args, **bound.kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As in `keras.Model`."""
        bound = self._bound(super().evaluate, args, kwargs)
        return super().evaluate(*bound.args, **bound.kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As in `keras.Model`."""
        bound = self._bound(super().predict, args, kwargs)
        return super().predict(*bound.args, **bound.kwargs)

    def _bound(self, method: Any, args: Any, kwargs: Any) -> Any:
        steps = self.steps_in_one_program
        if method.__name__ == "predict" and keras.backend.backend() != "tensorflow":
            steps = 1  # JAX starts a step while the one before runs: as fast
        bound = inspect.signature(method).bind(*args, **kwargs)
        if steps > 1:
            _take_arrays_as_batches(bound.arguments, method.__name__)
        private.add_requests(self, method.__name__, bound.arguments, steps)
        return bound

    def make_train_function(self, force: bool = False) -> Any:
        """Make what `fit` calls for each execution."""
        if self._plays_graphs():
            return self._make_steps("train", force)
        return self._make_program("train", force, super().make_train_function)

    def make_test_function(self, force: bool = False) -> Any:
        """Make what `evaluate` calls for each execution."""
        if self._plays_graphs():
            return self._make_steps("test", force)
        return self._make_program("test", force, super().make_test_function)

    def make_predict_function(self, force: bool = False) -> Any:
        """Make what `predict` calls for each execution."""
        if self._plays_graphs():
            return self._make_steps("predict", force)
        if keras.backend.backend() == "jax":
            return super().make_predict_function(force)
        return self._make_program("predict", force, super().make_predict_function)

    def _plays_graphs(self) -> bool:
        torch = keras.backend.backend() == "torch"
        return torch and not self.run_eagerly and self._is_alone()

    def _make_program(self, name: str, force: bool, of_keras: Any) -> Any:
        from fmkit.performance import _xla_steps

        function = f"{name}_function"
        if getattr(self, function) is not None and not force:
            return getattr(self, function)
        of_keras(force)
        most = self.steps_in_one_program
        if most > 1:
            fuse = _xla_steps.for_tensorflow
            if keras.backend.backend() == "jax":
                fuse = _xla_steps.for_jax
            elif name == "predict":
                fuse = _xla_steps.predict_on_tensorflow
            step, ordinary = getattr(self, f"{name}_step"), getattr(self, function)
            setattr(self, function, fuse(step, most, ordinary))
        return getattr(self, function)

    def _make_steps(self, name: str, force: bool) -> Any:
        from fmkit.performance import _torch_steps

        if name == "train":
            private.gather_arrays(self, _torch_steps.rows_of)
        made = getattr(self, f"{name}_function")
        if isinstance(made, _torch_steps.TorchSteps) and not force:
            made.begin()
            return made
        step = getattr(self, f"{name}_step")
        made = _torch_steps.TorchSteps(self, step, training=name == "train")
        setattr(self, f"{name}_function", made)
        return made


@functools.cache
def _functional(kind: type) -> type:
    """Return the class of the functional models of a class.

    Keras would change the class itself, and with it every other that is derived from
    `FusedModel`: those with a `call` of their own could then not be made.
    """
    image = keras.Input(())
    of_keras: type = type(keras.Model(image, keras.layers.Identity()(image)))
    if issubclass(kind, of_keras):
        return kind
    names = ("__module__", "__qualname__", "__doc__")
    made = type(kind.__name__, (kind, of_keras), {n: getattr(kind, n) for n in names})
    package, _, name = keras.saving.get_registered_name(kind).rpartition(">")
    if package:
        keras.saving.register_keras_serializable(package, name)(made)
    return made


# What a `FusedModel` in place of a model would not use.
_OWN = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_loss",
    "compute_metrics",
    "get_metrics_result",
    "reset_metrics",
    "metrics",
    "fit",
    "evaluate",
    "predict",
)


def fused(
    model: keras.Model, *, inputs: Any = None, steps_per_execution: int | None = None
) -> FusedModel:
    """Return a `FusedModel` in place of a model.

    It shares the model's layers, and so its weights; and if the model is compiled, its
    optimizer, loss and metrics. Train one of the two at a time.

    On TensorFlow and JAX it is compiled with XLA and several steps in one program. On
    a CPU that can be slow with convolutions, pooling or recurrence: take
    `settings = fit_settings(fused(model), data)` there, and compile the new model with
    `**settings.compile`.

    Args:
        model: A `Sequential`, a functional model, or one with a `call` of its own,
            which is then one layer of the new model.
        inputs: `keras.Input`, or a structure of several, of a model with a `call` of
            its own. It is needed if that takes anything but one tensor of floats, or
            has not been called yet.
        steps_per_execution: How many steps one program makes on TensorFlow and JAX;
            `None` for what the model was compiled with, or 50 if that is 1. On
            PyTorch always 1.

    Returns:
        The new model; compiled if `model` is, by Keras's own `compile`.

    Raises:
        ValueError: If the model's class has a `train_step`, `fit` or the like of its
            own, or a metric; or if it has not been called and `inputs` is missing.

    Examples:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> fast = fused(model)
        >>> fast.optimizer is model.optimizer, fast.why_not_fused is None
        (True, True)
    """
    own = parts_of_its_own(model)
    if own:
        raise ValueError(
            f"{type(model).__name__} has a {own[0]} of its own, which a FusedModel "
            "made from its layers would not use. Derive the class from "
            "fmkit.performance.FusedModel instead of keras.Model."
        )
    made = FusedModel(*_ends(model, inputs), name=model.name)
    arguments = private.compile_arguments(model) if model.compiled else {}
    if arguments:
        steps: Any = steps_per_execution
        if steps is None:
            given = arguments.get("steps_per_execution")
            steps = given if isinstance(given, int) and given > 1 else _STEPS
        check_int("steps_per_execution", steps)
        if keras.backend.backend() != "torch":
            arguments |= {"jit_compile": True, "steps_per_execution": steps}
        # As it is, with the scale of the loss that Keras may have put around it.
        arguments |= {"optimizer": model.optimizer, "auto_scale_loss": False}
        made.compile(**arguments)
    return made


def parts_of_its_own(model: Any) -> list[str]:
    """Return what keeps a model from being replaced by `fused`, in words.

    A metric counts if it belongs to the model, as one that its `call` updates: Keras
    leaves out those of a model within another. It finds those of layers, and `fused`
    passes on those of `compile`.
    """
    own = [f"`{name}`" for name in _OWN if _defined_by_user(type(model), name)]
    if own:
        return own
    # As of any layer: without the metrics of `compile`, which a model has in front.
    metrics = keras.layers.Layer.metrics.fget(model)
    of_layers = {id(metric) for layer in model.layers for metric in layer.metrics}
    return [f"metric {m.name!r}" for m in metrics if id(m) not in of_layers]


def _defined_by_user(kind: type, name: str) -> bool:
    owner = next(each for each in kind.__mro__ if name in vars(each))
    return not owner.__module__.startswith(("keras.", "fmkit."))


def _ends(model: Any, inputs: Any) -> tuple[Any, Any]:
    """Return the inputs and outputs of a model, as symbolic tensors."""
    graph = _graph_of(model) if inputs is None else None
    if graph is not None and not _defined_by_user(type(model), "call"):
        return graph
    if graph is not None:
        inputs = keras.tree.map_structure(
            lambda given: keras.Input(given.shape[1:], dtype=given.dtype), graph[0]
        )
    elif inputs is None:
        shape = (model.get_build_config() or {}).get("input_shape")
        if not model.built or not isinstance(shape, (tuple, list)):
            raise ValueError(
                f"`fused` can't tell what {type(model).__name__} takes: say it by "
                "inputs=keras.Input(shape, dtype=...), or a structure of those."
            )
        inputs = keras.Input(shape[1:])
    return inputs, model(inputs)


def _graph_of(model: Any) -> tuple[Any, Any] | None:
    """Return the inputs and outputs of a model that knows them."""
    if not model.built or not getattr(model, "inputs", None):
        return None
    if not isinstance(model, keras.Sequential):
        return model.input, model.output
    # It tells its outputs one by one; their structure is that of its last layer.
    structure = keras.Sequential.compute_output_spec(model, model.inputs[0])
    return model.inputs[0], keras.tree.pack_sequence_as(structure, model.outputs)


def _take_arrays_as_batches(given: dict[str, Any], method: str) -> None:
    """Put `Batches` for arrays that are read in the order of their rows.

    Keras reads them so, batch by batch, in `evaluate`, `predict` and validation.
    """
    if given.get("validation_steps" if method == "fit" else "steps") is not None:
        return  # of which Keras makes whole executions
    if method == "fit":
        validation = given.get("validation_data")
        size = given.get("validation_batch_size") or given.get("batch_size")
        if isinstance(validation, tuple) and (made := _batches(*validation, size=size)):
            given["validation_data"] = made
            given.pop("validation_batch_size", None)
        return
    names = ("x", "y", "sample_weight")
    made = _batches(*map(given.get, names), size=given.get("batch_size"))
    if made:
        given |= {"x": made}
        for name in (*names[1:], "batch_size"):
            given.pop(name, None)


def _batches(x: Any, y: Any = None, weight: Any = None, *, size: Any) -> Any:
    """Return `Batches` of what Keras would read as it is, or `None`."""
    if y is None and weight is not None:
        return None  # Keras leaves such weights out, and `Batches` refuse them
    given = [each for each in (x, y, weight) if each is not None]
    if any(isinstance(each, (list, tuple)) for each in given):
        return None  # in which Keras may see something else
    leaves = keras.tree.flatten(given)
    if not all(map(_is_plain, leaves)) or len({len(leaf) for leaf in leaves}) != 1:
        return None
    size = 32 if size is None else size
    return Batches(x, y, size, sample_weight=weight, map=None, shuffle=False)


def _is_plain(leaf: Any) -> bool:
    if type(leaf) is not np.ndarray or not leaf.ndim or not len(leaf):
        return False
    return leaf.dtype.kind in "iub" or leaf.dtype == keras.config.floatx()
