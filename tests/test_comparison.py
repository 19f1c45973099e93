"""What the README's table says of Keras, where no other file tests it.

Should a new Keras mend one of these, the test names the cell to change.
"""

import keras
import numpy as np
import pytest

pytestmark = [pytest.mark.backend("torch"), pytest.mark.open_on("3.12")]

STEPS = 4


class Interrupted(BaseException):
    """Stands for a kill: nothing of Keras catches it."""


class KillAt(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_begin(self, batch, logs=None):
        if self.left == 0:
            raise Interrupted
        self.left -= 1


def run(folder, seen, kill_at=-1):
    def batches():
        while True:
            for step in range(STEPS):
                seen.append(step)
                yield np.ones((2, 1), "float32"), np.ones((2, 1), "float32")

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    backup = keras.callbacks.BackupAndRestore(folder, save_freq=1)
    model.fit(
        batches(),
        epochs=2,
        steps_per_epoch=STEPS,
        shuffle=False,
        verbose=0,
        callbacks=[backup, KillAt(kill_at)],
    )
    return int(model.optimizer.iterations)


def test_kerass_backup_takes_more_steps_than_the_run_has(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path / "backup", [], kill_at=STEPS + 2)
    iterations = run(tmp_path / "backup", [])
    assert iterations > 2 * STEPS, (
        "Keras now resumes inside an epoch: change the cell in docs/comparison.md."
    )


def test_keras_has_no_evaluator_beside_a_run():
    for module in (keras.callbacks, keras.utils):
        assert not hasattr(module, "SidecarEvaluator"), (
            "Keras has a SidecarEvaluator again: change the cell in docs/comparison.md."
        )
