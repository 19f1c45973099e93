"""The program that is killed while it writes logs: events, CSV, JSON, to a server.

`train(options)` runs one `fit` with `ExactResume`, and returns what all logs hold in
the end: each line and each event as it is there, also those that are there twice.
"""

import json
import os
import signal
import struct
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np
from trainer import Die

import fmkit
from fmkit.callbacks import ExactResume
from fmkit.callbacks._resume import _appended_files
from fmkit.data import Batches


class Lines(keras.callbacks.Callback):
    """A user's log: a line of JSON for each step, the newest still in a buffer."""

    files: ClassVar = []  # of all of them: a `fit` that breaks off closes nothing

    def __init__(self, path):
        super().__init__()
        self.path, self.file = path, None

    def on_train_begin(self, logs=None):
        self.file = open(self.path, "a")  # noqa: SIM115 - closed at the end
        self.files.append(self.file)
        self.file.write('{"program": "logs.py"}\n')

    def on_train_batch_end(self, batch, logs=None):
        self.file.write(json.dumps([batch, logs["loss"]]) + "\n")

    def on_epoch_end(self, epoch, logs=None):
        self.file.write(json.dumps(logs) + "\n")

    def on_train_end(self, logs=None):
        self.file.close()

    def resumable_files(self):
        if self.file and not self.file.closed:
            self.file.flush()
        return [self.path]


class Server:
    """As Weights and Biases: runs far away, one of which can be continued from a step.

    `init(resume_from="run?_step=7")` takes what came after step 7 of it back.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)

    def init(self, resume_from=None):
        if resume_from is None:
            return Run(self.folder / f"run{len(list(self.folder.iterdir()))}", [])
        name, _, step = resume_from.partition("?_step=")
        path = self.folder / name
        entries = json.loads(path.read_text()) if path.exists() else []
        return Run(path, [each for each in entries if each[0] <= int(step)])


class Run:
    def __init__(self, path, entries):
        self.id, self.path, self.entries = path.name, path, entries

    def log(self, values, step):
        self.entries.append([step, values])
        self.path.write_text(json.dumps(self.entries))


class ServerLogger(keras.callbacks.Callback):
    """Sends each step to a server; a resumed run goes on where its commit was."""

    def __init__(self, server):
        super().__init__()
        self.server, self.run, self.id, self.step = server, None, None, 0

    def on_train_batch_end(self, batch, logs=None):
        if self.run is None:  # now: `set_state` comes after the beginning of `fit`
            resume_from = f"{self.id}?_step={self.step}" if self.id else None
            self.run = self.server.init(resume_from=resume_from)
            self.id = self.run.id
        self.step += 1
        self.run.log({"loss": logs["loss"]}, step=self.step)

    def get_state(self):
        return {"id": self.id, "step": self.step}

    def set_state(self, state):
        self.id, self.step, self.run = state["id"], state["step"], None


def events(folder):
    """Return what is in the event files under `folder`: where, tag, step, value."""
    import tensorflow as tf

    found = []
    for path in sorted(Path(folder).rglob("*tfevents*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack("<Q", data[place : place + 8])
            record = data[place + 12 : place + 12 + length]
            assert len(record) == length, f"{path} ends inside an event"
            place += 16 + length
            event = tf.compat.v1.Event.FromString(record)
            if event.graph_def:
                found.append((path.parent.name, "graph", 0, ""))
            for value in event.summary.value:
                array = tf.make_ndarray(value.tensor)
                shown = array.tobytes().hex() if array.dtype.kind == "f" else ""
                found.append((path.parent.name, value.tag, event.step, shown))
    return sorted(found)


def train(options):
    folder = Path(options["folder"])
    fmkit.set_random_seed(3)
    rng = np.random.RandomState(0)
    x, y = rng.rand(40, 3).astype("float32"), rng.randint(0, 2, 40)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dropout(0.2), keras.layers.Dense(2)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if not options.get("cut", True):  # the negative control
        _appended_files.cut_back = lambda callback, lengths: None
    update = options.get("update_freq", 1)
    model.fit(
        Batches(x, y, 8, map=None),
        epochs=3,
        validation_data=(x[:8], y[:8]),
        verbose=0,
        callbacks=[
            ExactResume(folder / "commits", every=options["every"], verbose=0),
            keras.callbacks.TensorBoard(
                str(folder / "board"), update_freq=update, histogram_freq=1
            ),
            keras.callbacks.CSVLogger(folder / "log.csv", append=True),
            Lines(str(folder / "log.jsonl")),
            ServerLogger(Server(folder / "server")),
            Die(options.get("die_after", 0), options.get("die_by", signal.SIGKILL)),
        ],
    )
    runs = [each.read_text() for each in sorted((folder / "server").iterdir())]
    return {
        "csv": np.array((folder / "log.csv").read_text()),
        "lines": np.array((folder / "log.jsonl").read_text()),
        "server": np.array(runs[-1]),
        "events": np.array(json.dumps(events(folder / "board"))),
    }


def by_hand(folder, **options):
    """Run the program in this process, as the server does in a child."""
    os.makedirs(folder, exist_ok=True)
    return train({"folder": str(folder), "every": 2, **options})
