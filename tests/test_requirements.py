"""Without TensorFlow, Keras Tuner and matplotlib: nothing imports them unasked."""

import textwrap

import keras
import pytest
from fresh_process import run_python

BACKEND = keras.backend.backend()
# Where TensorFlow is the backend, it is there.
pytestmark = pytest.mark.long  # processes of their own
without_tensorflow = pytest.mark.backend("jax", "torch")

# A Python in which some packages are not installed, whatever lies on its path.
NOT_INSTALLED = """
import sys
from importlib.machinery import PathFinder


class Without:
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.names:
            return PathFinder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(PathFinder, name)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without(sys.argv[1].split())
"""

# Most of what fmkit has; nothing that is TensorFlow's, Keras Tuner's or matplotlib's.
TRAIN = """
import sys, tempfile
import keras, numpy as np
import fmkit
from fmkit import *

def loaded():
    return sorted({"tensorflow", "keras_tuner", "matplotlib"} & set(sys.modules))

fmkit.set_random_seed(0)
(x, y), _ = datasets.fashion_mnist.load_sample()
train, val = preprocessing.split(x[:600], y[:600], validation_split=0.5, seed=0)
preprocessing.check_arrays(train=train, val=val, num_classes=10)
batches = data.Batches(*train, batch_size=100, seed=0)
held_out = data.Batches(*val, shuffle=False)
network = models.mlp((8,))
model = performance.FusedModel(network.inputs, network.outputs)
model.compile(
    optimizers.ExponentialMovingAverage("adam", 0.9),
    losses.CrossentropyFromLogits(),
    metrics=["accuracy", losses.mean_squared_error_from_logits],
)
with tempfile.TemporaryDirectory() as folder:
    model.fit(
        batches,
        epochs=2,
        validation_data=held_out,
        callbacks=[
            callbacks.EvaluateWithAverages(),
            callbacks.LearningRateLogger(),
            callbacks.BatchValidation(held_out, every=2),
            callbacks.TimeStopping(600),
            callbacks.ThresholdStopping("val_accuracy", 0.99),
            callbacks.ExactResume(folder, every=2),
        ],
        verbose=0,
    )
score = model.evaluate(held_out, verbose=0)
assert np.isfinite(score).all(), score
assert model.predict(held_out, verbose=0).shape == (300, 10)
assert performance.fit_settings(model, batches)
assert len(list(batches)) == 3
"""


def run_without(names, code, *arguments):
    """Run a program where the packages `names` are not installed."""
    code = textwrap.dedent(NOT_INSTALLED) + textwrap.dedent(code)
    return run_python(code, names, *arguments)


@without_tensorflow
def test_everything_else_runs_without_tensorflow_keras_tuner_and_matplotlib(tmp_path):
    code = f"""{TRAIN}
model.save(sys.argv[2])
again = keras.saving.load_model(sys.argv[2])
assert np.allclose(again.evaluate(held_out, verbose=0), score)
print(loaded())
# Negative control: they are not there.
try:
    import tensorflow
except ModuleNotFoundError as error:
    print(error)
"""
    names = "tensorflow keras_tuner matplotlib"
    printed = run_without(names, code, str(tmp_path / "model.keras"))
    assert printed.splitlines()[-2:] == ["[]", "No module named 'tensorflow'"]


@without_tensorflow
@pytest.mark.needs("tensorflow", "matplotlib")
def test_fit_and_the_resume_load_none_of_them_where_they_are_installed():
    code = f"""
import keras
before = "matplotlib" in sys.modules  # Keras imports what is beside it
{TRAIN}
print([name for name in loaded() if name != "matplotlib" or not before])
# Negative controls: a plot loads one, and Keras's own function another.
visualization.confusion_matrix([0, 1], [0, 1])
keras.utils.set_random_seed(0)
print(loaded())
"""
    printed = run_python("import sys\n" + code)
    assert printed.splitlines()[-2:] == ["[]", "['matplotlib', 'tensorflow']"]


MESSAGES = {
    "tensorflow": (
        "from fmkit import data; data.Batches([1.0, 2.0]).as_dataset()",
        "`Batches.as_dataset` needs tensorflow, which is not installed. "
        "Type: pip install tensorflow",
    ),
    "keras_tuner": (
        "from fmkit import hypermodels",
        "fmkit.hypermodels needs keras_tuner, which is not installed. "
        "Type: pip install keras-tuner",
    ),
    "matplotlib": (
        "from fmkit import visualization; visualization.confusion_matrix([0], [0])",
        "fmkit.visualization needs matplotlib, which is not installed. "
        "Type: pip install matplotlib",
    ),
}


@pytest.mark.backend("torch")  # the quickest; TensorFlow's own can't be without it
@pytest.mark.parametrize("name", MESSAGES)
def test_what_needs_a_package_says_in_one_line_what_to_install(name):
    code, message = MESSAGES[name]
    printed = run_without(
        name,
        f"""
        import fmkit
        try:
            {code}
        except ModuleNotFoundError as error:
            print(error, error.name, error.__cause__)
        """,
    )
    assert printed == f"{message} {name} None\n"


@without_tensorflow  # which needs `six` itself
@pytest.mark.backend("torch")  # the quickest; nothing in it depends on one
@pytest.mark.needs("keras_tuner")
def test_what_keras_tuner_itself_lacks_is_named():
    # Keras Tuner 1.4.8 imports `six` and doesn't ask for it.
    printed = run_without(
        "six",
        """
        try:
            from fmkit import hypermodels
        except ModuleNotFoundError as error:
            print(error)
        """,
    )
    assert printed == (
        "fmkit.hypermodels needs keras_tuner, and keras_tuner needs six, which is not "
        "installed. Type: pip install six\n"
    )


@pytest.mark.backend("torch")  # the quickest; nothing in it depends on one
def test_a_package_that_is_broken_is_not_called_missing(tmp_path):
    broken = "from json.no_such_part import thing"
    (tmp_path / "keras_tuner.py").write_text(broken, encoding="utf-8")
    printed = run_python(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        try:
            from fmkit import hypermodels
        except ModuleNotFoundError as error:
            print(error)
        """,
        str(tmp_path),
    )
    assert printed.startswith("No module named 'json.no_such_part'")
