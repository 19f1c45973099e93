"""A chief and two workers of Keras Tuner; one of them is killed and started again.

    KERAS_BACKEND=tensorflow python tests/chaos/tuner.py worker
    KERAS_BACKEND=tensorflow python tests/chaos/tuner.py chief

The chief holds the oracle. Without it the workers end or are ended, and all three are
started again. The program fails unless every trial has the score, to the bit, that a
search in one process gives. By hand and not in the suite: it starts five processes.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TRIALS, EPOCHS, STEPS = 4, 3, 5
VARIABLES = ("KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT", "KERASTUNER_TUNER_ID")


def make_tuner(folder):
    """Return the tuner, the same in every process, and the arrays."""
    from fmkit import hypermodels

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (150, 2, 2), dtype=np.uint8)
    y = (x[:, 0, 0] > 127).astype("int32") + (x.mean(axis=(1, 2)) > 127)
    space = hypermodels.HyperMLP(
        num_classes=3, input_shape=(2, 2), depth=1, per_layer=False,
        units=[4, 6, 8, 10], batch_size=20, optimizer="adam", activation="tanh",
        learning_rate=0.01, learning_rate_decay=0.95, ema=0.9, dropout=0.2, l2=0.0,
        loss="crossentropy", resume=1,
    )  # fmt: skip
    tuner = hypermodels.GridSearch(
        space, "val_crossentropy", directory=folder, project_name="p"
    )
    return tuner, (x[:100], y[:100]), (x[100:], y[100:])


def worker(folder, slow):
    """Search; a slow worker says when it is in the middle of a trial, and waits."""
    import keras

    class Wait(keras.callbacks.Callback):
        seen = 0

        def on_train_batch_begin(self, batch, logs=None):
            self.seen += 1
            if self.seen == STEPS + 3:
                Path(slow).touch()
                time.sleep(600)

        def get_state(self):
            return {}

        def set_state(self, state):
            pass

    tuner, train, val = make_tuner(folder)
    tuner.search(
        *train,
        validation_data=val,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[Wait()] if slow else [],
    )


def scores(folder, owner):
    """Read, when all is over, what each width scored."""
    from fmkit import hypermodels

    # Keras Tuner looks for the notes of the tuner by this name only.
    os.environ["KERASTUNER_TUNER_ID"] = owner
    tuner, _, _ = make_tuner(folder)
    hypermodels.check_trials(tuner)
    return {row["units"]: row["score"] for row in hypermodels.trial_rows(tuner)}


def main(victim):
    for name in VARIABLES:
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as place:
        folder, middle = Path(place) / "many", Path(place) / "middle"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def start(name, slow=""):
            address = dict(zip(VARIABLES, ("127.0.0.1", str(port), name), strict=True))
            return subprocess.Popen(
                [sys.executable, __file__, str(folder), slow],
                env=os.environ | address,
                stdout=subprocess.DEVNULL,
                stderr=open(Path(place) / f"{name}.log", "a"),
            )

        chief = start("chief")
        workers = [start("worker0", str(middle)), start("worker1")]
        try:
            while not middle.exists():
                time.sleep(0.1)
                assert workers[0].poll() is None, (
                    Path(place) / "worker0.log"
                ).read_text()[-3000:]
            killed = chief if victim == "chief" else workers[0]
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            print(f"{victim} killed: worker0 is in the second epoch")  # noqa: T201
            if victim == "chief":
                for each in workers:  # worker0 waits, and worker1 for an answer
                    each.kill()
                    each.wait()
                chief = start("chief")
                workers[1] = start("worker1")
            workers[0] = start("worker0")
            codes = [each.wait(timeout=500) for each in workers]
            print("exit codes of the workers:", codes)  # noqa: T201
            try:
                print("exit code of the chief:", chief.wait(timeout=90))  # noqa: T201
            except subprocess.TimeoutExpired:
                logs = [
                    p.read_text()[-1500:] for p in sorted(Path(place).glob("*.log"))
                ]
                sys.exit("The chief waits for ever.\n" + "\n".join(logs))
        finally:
            for each in [chief, *workers]:
                each.kill()
        many = scores(folder, "chief")
        log = (Path(place) / "worker0.log").read_text()
        one = Path(place) / "one"
        os.environ["KERASTUNER_TUNER_ID"] = "tuner0"
        worker(one, "")
        alone = scores(one, "tuner0")
    print("chief and workers:", many)  # noqa: T201
    print("one process:      ", alone)  # noqa: T201
    if many != alone or len(many) != TRIALS or codes != [0, 0]:
        sys.exit(f"The scores differ.\n{log[-2000:]}")
    print("every score is the same to the bit")  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) == 3:
        worker(*sys.argv[1:])
    else:
        main(*sys.argv[1:] or ["worker"])
