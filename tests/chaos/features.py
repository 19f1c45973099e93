"""Every feature under one strategy: devices, or processes, that train together.

`train(options)` compiles one small network under `options["strategy"]`, has each
feature do its work there, and returns what came out as arrays. A feature that
raises is told in `errors`; whether that was to be expected is for the test to say.
"""

import contextlib
import itertools
import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np
from trainer import BACKEND, join, on_devices

import fmkit
from fmkit import callbacks, losses, metrics, optimizers, schedules
from fmkit.data import Batches

BATCH, HIDDEN, CLASSES, SEED = 8, 4, 3, 11
RATE, STAIR, FACTOR, DECAY = 0.4, 7, 0.8, 0.9
STEPS, EPOCHS, COMMIT_EVERY, VALIDATE_EVERY = 6, 4, 3, 7
# The momentum that a schedule lowers, step by step.
MOMENTUM, LOWER, PACE = 0.9, 0.15, 0.05


def data():
    """44 samples, whose last batch is half full, and 24 held out."""
    rng = np.random.RandomState(2)
    x = rng.randint(0, 256, (68, 6), dtype=np.uint8)
    y = x[:, :CLASSES].argmax(1).astype(np.uint8)
    return x[:44], y[:44], x[44:], y[44:]


def initial_weights():
    rng = np.random.RandomState(3)
    shapes = [(6, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,)]
    return [rng.normal(0, 0.5, shape).astype("float32") for shape in shapes]


def enter(options):
    """Start the strategy: its scope, the optimizer's class, callbacks to come first."""
    strategy, descent = options["strategy"], keras.optimizers.SGD
    if strategy == "none":
        return contextlib.nullcontext(), descent, []
    if strategy == "processes":
        mixin, first = join(options)
        bases = (mixin, descent) if mixin else (descent,)
        return contextlib.nullcontext(), type("Descent", bases, {}), first
    return on_devices(strategy, options["devices"]), descent, []


def network():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(HIDDEN, activation="relu", name="hidden"),
            keras.layers.Dense(CLASSES, name="logits"),
        ]
    )
    model.set_weights(initial_weights())
    return model


def build(descent):
    model = network()
    rate = schedules.ExponentialDecay(RATE, STAIR, FACTOR, staircase=True)
    model.compile(
        optimizers.ExponentialMovingAverage(descent(rate), DECAY),
        losses.CrossentropyFromLogits(),
        metrics=[
            "accuracy",
            losses.mean_squared_error_from_logits,
            metrics.BrierScore(form="logits"),
            metrics.PredictiveEntropy(form="logits"),
        ],
        jit_compile=False if BACKEND == "torch" else "auto",
    )
    return model


def scheduled(descent):
    """The same network, for a fit in which the momentum falls."""
    model = network()
    model.compile(
        descent(PACE, momentum=MOMENTUM),
        losses.CrossentropyFromLogits(),
        jit_compile=False if BACKEND == "torch" else "auto",
    )
    return model


class Lesson:
    """One network under one strategy, and what the features made of it."""

    def __init__(self, options):
        scope, descent, self.first = enter(options)
        self.folder = Path(options["folder"])
        count = options.get("processes", 1)
        shard = (options.get("rank", 0), count)
        x, y, held_x, held_y = data()
        size = BATCH // count
        self.batches = Batches(x, y, size, seed=SEED, shard=shard)
        self.held_out = Batches(held_x, held_y, size, shard=shard)
        with scope:
            self.model = build(descent)
            self.with_momentum = scheduled(descent)
        self.ends, self.errors = {}, {}

    def attempt(self, feature):
        try:
            self.ends.update(getattr(self, feature)() or {})
        except Exception as error:  # noqa: BLE001 - the test judges it
            self.errors[feature] = f"{type(error).__name__}: {error}"

    def bits(self):
        variables = [*self.model.variables, *self.model.optimizer.variables]
        return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]

    def steps(self):
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def fit(self, *others, epochs=EPOCHS, **options):
        return self.model.fit(
            self.batches, epochs=epochs, verbose=0, callbacks=[*others], **options
        )

    def resumable(self, folder):
        """The whole set of callbacks, with commits in a folder."""
        validation = callbacks.BatchValidation(self.held_out, VALIDATE_EVERY)
        stopping = callbacks.ThresholdStopping("loss", THRESHOLD, mode="min")
        resume = callbacks.ExactResume(folder, COMMIT_EVERY, keep=99, verbose=0)
        return [validation, *self.first, stopping, resume]

    # The features, in the order in which they work.

    def training(self):
        used = self.resumable(self.folder / "commits")
        history = self.fit(*used)
        ends = {f"history {k}": np.array(v) for k, v in history.history.items()}
        self.history, self.straight = history.history, self.bits()
        stop = used[-2].stop
        ends["stop"] = np.array([stop.epoch, stop.step] if stop else [-1, -1])
        ends["validations"] = np.array([r["val_loss"] for r in used[0].records])
        for place, weight in enumerate(self.model.get_weights()):
            ends[f"weight {place}"] = weight
        for place, (_, average) in enumerate(self.model.optimizer.averages):
            ends[f"average {place}"] = keras.ops.convert_to_numpy(average)
        return ends

    def averages(self):
        raw = [weight.tobytes() for weight in self.model.get_weights()]
        with optimizers.averaged(self.model):
            found = self.model.evaluate(self.held_out, verbose=0)
        after = [weight.tobytes() for weight in self.model.get_weights()]
        return {"averaged loss": np.array(found[0]), "raw is back": raw == after}

    def shown(self):
        """Validation inside `fit` on the averages, and what it should have been."""
        history = self.fit(
            callbacks.EvaluateWithAverages(), epochs=1, validation_data=self.held_out
        )
        raw = self.model.evaluate(self.held_out, verbose=0)
        with optimizers.averaged(self.model):
            found = self.model.evaluate(self.held_out, verbose=0)
        losses = [history.history["val_loss"][-1], found[0], raw[0]]
        return {"shown loss": np.array(losses)}

    def resume(self):
        """Go on from the middle, as a process that was killed there would."""
        copy = self.folder / "resumed"
        if self.batches.shard[0] == 0:  # the one that reads; the others wait for it
            copy.mkdir(exist_ok=True)
            commits = self.folder / "commits"
            for commit in sorted(commits.glob("commit-*"))[:3]:
                number = commit.stem.removeprefix("commit-")
                for each in (commit, *commits.glob(f"part-{number}-*")):
                    shutil.copy(each, copy)
        used = self.resumable(copy)
        history = self.fit(*used)
        pairs = zip(self.bits(), self.straight, strict=True)
        return {
            "resumed from": np.array(used[-1].resumed_from),
            "resumed bits": np.array([a.tobytes() == b.tobytes() for a, b in pairs]),
            "resumed history": history.history == self.history,
        }

    def stop_inside(self):
        """Stop at a value that the running loss has after some batches."""
        seen = []
        watch = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: seen.append(logs["loss"])
        )
        stopping = callbacks.ThresholdStopping("loss", 1e9, mode="min", every=4)
        before = self.steps()
        self.fit(watch, stopping, epochs=1)
        steps = self.steps() - before
        return {"batch losses": np.array(seen), "stopped inside": np.array(steps)}

    def time_stopping(self):
        # The clocks of a job's processes run differently.
        steps, pace = itertools.count(1), 4 + self.batches.shard[0]
        now = [0.0]
        tick = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs: now.append(next(steps) / pace)
        )
        stopping = callbacks.TimeStopping(1, clock=lambda: now[-1])
        before = self.steps()
        self.fit(tick, stopping, epochs=4)
        done = self.steps() - before
        return {"stopped in time": np.array([stopping.stop is not None, done])}

    def predict(self):
        return {"predictions": self.model.predict(self.held_out, verbose=0)}

    def momentum(self):
        falling = callbacks.HyperparameterScheduler(
            "momentum",
            lambda step: MOMENTUM - LOWER * keras.ops.cast(step, "float32"),
            of=self.with_momentum.optimizer,
        )
        x, y, *_ = data()
        size, shard = self.batches.batch_size, self.batches.shard
        self.with_momentum.fit(
            Batches(x, y, size, seed=SEED, shard=shard),
            verbose=0,
            callbacks=[falling, *self.first],
        )
        weights = enumerate(self.with_momentum.get_weights())
        return {f"falling {place}": weight for place, weight in weights}

    def partial(self):
        """A last batch of one sample for each process."""
        x, y, *_ = data()
        index, count = self.batches.shard
        rest = Batches(x[: 8 + count], y[: 8 + count], 8 // count, shard=(index, count))
        self.model.fit(rest, verbose=0)


THRESHOLD = 1.05
FEATURES = (
    "training",
    "averages",
    "shown",
    "resume",
    "predict",
    "stop_inside",
    "time_stopping",
    "momentum",
    "partial",
)


def multi_worker(options):
    """TensorFlow's own strategy for several processes: what `fit` and a loop do."""
    import tensorflow as tf

    rank, workers = options["rank"], [f"127.0.0.1:{port}" for port in options["ports"]]
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    x, y, *_ = data()
    batches = Batches(x, y, BATCH // 2, seed=SEED, shard=(rank, 2), drop_remainder=True)
    with strategy.scope():
        model = build(keras.optimizers.SGD)
    errors = {}
    try:
        model.fit(batches, verbose=0)
    except Exception as error:  # noqa: BLE001 - the test judges it
        errors["fit"] = f"{type(error).__name__}: {error}"
    ends = by_hand(model, strategy, batches)
    return ends | {"errors": np.array(json.dumps(errors))}


def by_hand(model, strategy, batches):
    """One epoch in a loop of one's own; what it makes of weights and averages."""
    import tensorflow as tf

    loss_of = losses.CrossentropyFromLogits(reduction="sum")

    def on_replica(batch):
        with tf.GradientTape() as tape:
            loss = loss_of(batch[1], model(batch[0], training=True)) / BATCH
        found = tape.gradient(loss, [v.value for v in model.trainable_variables])
        model.optimizer.apply(found, model.trainable_variables)
        return loss

    @tf.function
    def step(iterator):
        parts = strategy.run(on_replica, args=(next(iterator),))
        return strategy.reduce("SUM", parts, axis=None)

    model.set_weights(initial_weights())
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
    data = strategy.distribute_datasets_from_function(
        lambda _: batches.as_dataset(epoch=0)
    )
    iterator = iter(data)
    seen = [float(step(iterator)) for _ in range(len(batches))]
    ends = {f"weight {i}": w for i, w in enumerate(model.get_weights())}
    pairs = enumerate(model.optimizer.averages)
    ends |= {f"average {i}": keras.ops.convert_to_numpy(a) for i, (_, a) in pairs}
    return ends | {"losses by hand": np.array(seen)}


def train(options):
    """Have every feature do its work; return what came out, and what raised."""
    fmkit.set_random_seed(1)
    if options["strategy"] == "processes" and BACKEND == "tensorflow":
        return multi_worker(options)
    lesson = Lesson(options)
    for feature in options.get("features", FEATURES):
        lesson.attempt(feature)
    ends = {name: np.asarray(value) for name, value in lesson.ends.items()}
    return ends | {"errors": np.array(json.dumps(lesson.errors))}
