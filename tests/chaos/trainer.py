"""The program that is killed: a small training with everything in it that has state.

`train(options)` builds all anew, as a program does at its start, runs one `fit`
with `ExactResume`, and returns every array and number that the run ends with.
"""

import contextlib
import importlib.util
import os
import signal
from pathlib import Path

import keras
import networks
import numpy as np
import sources

import fmkit
from fmkit import _files, augmentation
from fmkit.callbacks import (
    EvaluateWithAverages,
    ExactResume,
    HyperparameterScheduler,
)
from fmkit.data import Batches
from fmkit.optimizers import (
    EqualRule,
    ExponentialMovingAverage,
    ExponentialRule,
    Lookahead,
    PowerRule,
    WarmupRule,
    WeightAverages,
)
from fmkit.schedules import PolynomialDecay

BACKEND = keras.backend.backend()


class Tally(keras.callbacks.Callback):
    """A user's callback: counts events, and keeps an array of losses."""

    def __init__(self):
        super().__init__()
        self.events = {"epoch": 0, "begin": 0, "end": 0}
        self.losses = np.zeros(0)

    def on_epoch_begin(self, epoch, logs=None):
        self.events["epoch"] += 1

    def on_train_batch_begin(self, batch, logs=None):
        self.events["begin"] += 1 + batch

    def on_train_batch_end(self, batch, logs=None):
        self.events["end"] += 1 + batch

    def on_epoch_end(self, epoch, logs=None):
        self.losses = np.append(self.losses, logs["loss"])
        # Random generators are state too.
        self.losses = np.append(self.losses, np.random.rand())

    def get_state(self):
        return {"events": dict(self.events), "losses": self.losses}

    def set_state(self, state):
        self.events = dict(state["events"])
        self.losses = state["losses"]


class Die(keras.callbacks.Callback):
    """Kills its own process at the n-th end of a batch, counted in this process."""

    def __init__(self, after, number):
        super().__init__()
        self.left, self.number = after, number

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def join(options):
    """Become a process of the job that the option `processes` asks for.

    Returns what must come before the optimizer's class, and before the callbacks.
    """
    rank, count = options["rank"], options["processes"]
    if BACKEND == "jax":
        import jax

        # Each start compiles everything anew: it may do so hastily.
        jax.config.update("jax_disable_most_optimizations", True)
        devices, mesh = options.get("devices", 1), options.get("mesh")
        if mesh:
            devices = mesh[0] * mesh[1] // count
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        address = f"127.0.0.1:{options['port']}"
        if count > 1:
            keras.distribution.initialize(address, count, rank)
        distribution = (
            keras.distribution.DataParallel(auto_shard_dataset=False)
            if devices == 1 and not mesh
            else model_parallel(mesh or (count, devices), auto_shard_dataset=False)
        )
        keras.distribution.set_distribution(distribution)
        return None, []
    from torch import distributed

    distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{options['port']}", rank=rank, world_size=count
    )
    recipe = example("pytorch_processes")
    if recipe.averages_by_itself(keras.Model()):
        return None, []
    return recipe.MeanGradient, [recipe.MeanLogs()]


def example(name):
    path = Path(__file__).resolve().parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scope(options):
    """Several devices on one CPU, as the option `devices` asks for."""
    count = options.get("devices", 1)
    if count == 1:
        return contextlib.nullcontext()
    return on_devices("mirrored" if BACKEND == "tensorflow" else "data", count)


def on_devices(strategy, count):
    """Several devices on one CPU, before the backend has started its own."""
    if strategy == "mirrored":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        logical = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, logical)
        devices = [f"CPU:{i}" for i in range(count)]
        return tf.distribute.MirroredStrategy(devices).scope()
    # Read by JAX when it starts its devices: no operation has run before.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    keras.distribution.set_distribution(
        model_parallel((count // 2, 2))
        if strategy == "model"
        else keras.distribution.DataParallel()
    )
    return contextlib.nullcontext()


def model_parallel(shape, **options):
    """Cut batches along the first axis of a mesh, and columns along the other."""
    layouts = keras.distribution.LayoutMap(
        keras.distribution.DeviceMesh(shape, ("batch", "model"))
    )
    layouts["hidden.*kernel"] = (None, "model")
    layouts["hidden.*bias"] = ("model",)
    return keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch", **options
    )


def every_rule():
    """One average by each rule; the first is the one that is evaluated."""
    return [
        EqualRule(start_step=5, update_interval=2),
        ExponentialRule(0.9, dtype="bfloat16"),
        WarmupRule(0.99),
        PowerRule(0.05),
        PowerRule(0.1),
    ]


def build(options, optimizer=keras.optimizers.Adam):
    layers = keras.layers
    regular = keras.regularizers.L2(1e-3)
    if options.get("dtype"):
        keras.config.set_dtype_policy(options["dtype"])
    name = "hidden" if options.get("mesh") else None  # which the layouts name
    stack = [
        layers.Dense(8, activation="relu", kernel_regularizer=regular, name=name),
        layers.BatchNormalization(),
        layers.Dropout(0.3),
        layers.Dense(3, dtype="float32"),
    ]
    if options.get("built", True):
        stack.insert(0, keras.Input((6,)))
    model = keras.Sequential(stack)
    optimizer = optimizer(
        options.get("learning_rate", 0.01),
        use_ema=options.get("ema", not options.get("averages")),
        ema_momentum=0.9,
    )
    if options.get("averages") == "all rules":
        optimizer = WeightAverages(Lookahead(optimizer, sync_period=3), every_rule())
    elif options.get("averages"):
        optimizer = ExponentialMovingAverage(optimizer, decay=0.9)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=options.get("steps_per_execution", 1),
        jit_compile=options.get("jit_compile", "auto" if BACKEND != "torch" else False),
    )
    return model


def noisy(x, y, draws):
    """Each pixel at random, or its mean with that of another sample."""
    other, _ = draws.samples(draws.integers(0, draws.size))
    return np.where(draws.bernoulli(0.5, x.shape[1:]), x // 2 + other // 2, x), y


def on_pictures(function):
    """Take the six numbers of a row for a picture of two by three."""

    def changed(x, y, draws):
        found, y = function(x.reshape(-1, 2, 3), y, draws)
        return found.reshape(x.shape), y

    return changed


READY = [
    augmentation.HorizontalFlip(),
    augmentation.AlternatingFlip(),
    augmentation.Shift(1),
    augmentation.RotateScale(),
    augmentation.RandomErasing(0.5),
    augmentation.Cutout(1),
    augmentation.Brightness(20.0),
    augmentation.Contrast(0.8, 1.2),
    augmentation.GaussianNoise(5.0),
]


def plain(options, optimizer):
    """A dense network with nearly everything in it that has state."""
    rank, processes = options.get("rank", 0), options.get("processes", 1)
    rng = np.random.RandomState(0)
    n = options.get("samples", 90)
    x = rng.randint(0, 256, (n, 6), dtype=np.uint8)
    y = rng.randint(0, 3, n).astype(np.uint8)
    # 12 batches, the last one partial.
    # Processes that hold the same rows of a mesh read the same samples.
    shards = min(options.get("mesh", [processes])[0], processes)
    shard = (rank * shards // processes, shards)
    size = options.get("batch_size", 8) // shards
    augment = [noisy, *map(on_pictures, READY)] if options.get("augment") else None
    order = options.get("order", 5)
    batches = Batches(x, y, size, seed=order, shard=shard, augment=augment)
    held_out = (x[:20] / np.float32(255), y[:20].astype(np.int32))
    if processes > 1 or options.get("job"):
        held_out = Batches(x[:20], y[:20], size, shard=shard)
    if not options.get("seek", True):  # the negative control
        batches.seek = lambda epoch, step=0: Batches.seek(batches, epoch + 1, step)
    with scope(options):
        model = build(options, optimizer)
    return networks.Network(model, batches, held_out)


def held_out_of(given):
    """Samples to validate on, for data that do not split off their own."""
    x, y = sources.samples()
    return None if "validation_split" in given else (x[:20], y[:20])


def train(options):
    """Run the program once; `options` are plain values."""
    rank, processes = options.get("rank", 0), options.get("processes", 1)
    optimizer, first = keras.optimizers.Adam, []
    if processes > 1 or options.get("job"):
        mixin, first = join(options)
        if mixin:
            optimizer = type("MeanAdam", (mixin, optimizer), {})
    fmkit.set_random_seed(options.get("seed", 3))
    given = {}
    if options.get("data"):
        given = sources.arguments(options["data"])
        model = build(options, optimizer)
        made = networks.Network(model, given.pop("x"), held_out_of(given))
    elif options.get("network"):
        made = networks.network(options)
    else:
        made = plain(options, optimizer)
    model, batches, held_out = made.model, made.batches, made.held_out
    commits = os.path.join(options["folder"], "commits")
    # Files that callbacks write are each process's own.
    folder = os.path.join(options["folder"], f"process {rank}")
    os.makedirs(folder, exist_ok=True)
    validates = held_out is not None or "validation_split" in given
    monitor = "val_loss" if validates else "loss"
    tally = Tally()
    if not options.get("callback_state", True):
        tally.set_state = lambda state: None  # the negative control
    callbacks = [
        ExactResume(
            commits,
            every=options.get("every", 5),
            keep=options.get("keep", 2),
            background=options.get("background", True),
            data=given.pop("data", None),
            verbose=options.get("verbose", 0),
        ),
        keras.callbacks.EarlyStopping(
            monitor,
            patience=options.get("patience", 50),
            min_delta=1e-3,
            restore_best_weights=options.get("restore_best", True),
        ),
        keras.callbacks.ReduceLROnPlateau(
            "loss", factor=0.5, patience=1, min_delta=0.02
        ),
        keras.callbacks.CSVLogger(os.path.join(folder, "log.csv")),
        keras.callbacks.ModelCheckpoint(
            os.path.join(folder, "best.weights.h5"),
            monitor,
            save_best_only=True,
            save_weights_only=True,
        ),
        tally,
        Die(options.get("die_after", 0), options.get("die_by", signal.SIGKILL)),
    ]
    if not options.get("saved", True):  # Keras can't save what other processes hold
        del callbacks[4]
    if options.get("schedule"):
        falling = PolynomialDecay(0.95, 40, end_value=0.5)
        callbacks.append(HyperparameterScheduler("beta_1", falling))
    if options.get("averages") or options.get("network") == "fused":
        # `val_loss`, and so the other callbacks, then judge the averages.
        callbacks.append(EvaluateWithAverages(batch_norm="average"))
    if not options.get("data"):
        given["class_weight"] = None if options.get("network") else {0: 2.0}
    history = model.fit(
        batches,
        epochs=options.get("epochs", 4),
        verbose=0,
        callbacks=[*first, *callbacks],
        validation_data=held_out,
        **given,
    )
    ends = outcome(model, made.others(), history, tally, callbacks, folder)
    # Snapshots of the averages that have any: all of them, and nothing else.
    for path in sorted(Path(commits).glob("averages-*.npz")):
        with np.load(path) as members:
            held = b"".join(bytes(members[name]) for name in sorted(members))
        ends[path.name] = np.frombuffer(held, np.uint8)
    return ends


def copies(model, variable):
    """The value of a variable on each replica."""
    parts = [variable]
    if BACKEND == "tensorflow":
        parts = model.distribute_strategy.experimental_local_results(variable.value)
    value = getattr(variable, "value", variable)
    if BACKEND == "jax" and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        from jax.experimental import multihost_utils

        return [np.array(multihost_utils.process_allgather(value, tiled=True))]
    return [np.array(keras.ops.convert_to_numpy(part)) for part in parts]


def outcome(model, others, history, tally, callbacks, folder):
    """Everything that must be the same, as arrays: bits, not approximations."""
    # Keras's own names count layers through a process: places, not names.
    variables = [*model.variables, *model.optimizer.variables, *others]
    ends = {
        f"variable {place} {part}": value
        for place, variable in enumerate(variables)
        for part, value in enumerate(copies(model, variable))
    }
    for name, values in history.history.items():
        ends[f"history {name}"] = np.array(values, np.float64)
    ends["epochs"] = np.array(history.epoch)
    ends["tally"] = np.array([*tally.events.values(), *tally.losses], np.float64)
    ends["next random"] = np.random.rand(2)
    stopping, plateau = callbacks[1], callbacks[2]
    ends["stopping"] = np.array(
        [stopping.wait, stopping.best, stopping.best_epoch, stopping.stopped_epoch],
        np.float64,
    )
    ends["plateau"] = np.array(
        [plateau.wait, plateau.best, plateau.cooldown_counter], np.float64
    )
    with open(os.path.join(folder, "log.csv"), "rb") as file:
        ends["csv"] = np.frombuffer(file.read(), np.uint8)
    return ends


# Faults between system calls, put in from outside of the library.


class Faults:
    """Kills the process just before the n-th system call of writing commits."""

    def __init__(self, calls_left):
        self.left = calls_left

    def call(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, function):
        def faulty(*arguments, **keywords):
            self.call()
            return function(*arguments, **keywords)

        return faulty

    def open(self, path, mode="r", *arguments, **keywords):
        self.call()
        file = open(path, mode, *arguments, **keywords)  # noqa: SIM115
        if "x" in mode:
            return HalfWriter(file, self)
        return file

    def install(self):
        class Calls:
            """`os`, with a fault before each call that touches the disk."""

            def __getattr__(_, name):  # noqa: N805
                value = getattr(os, name)
                if name in ("fsync", "replace", "unlink", "open", "close"):
                    return self.wrap(value)
                return value

        _files.os = Calls()
        _files.open = self.open


class HalfWriter:
    """A file each of whose writes may stop half-way."""

    def __init__(self, file, faults):
        self._file, self._faults = file, faults

    def write(self, data):
        view = memoryview(data).cast("B")
        half = len(view) // 2
        self._faults.call()
        self._file.write(view[:half])
        self._file.flush()
        self._faults.call()
        self._file.write(view[half:])
        return len(view)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()
