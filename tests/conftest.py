"""What every test shares: the backend's choice, threads, seeds, a clean session."""

import os

# Two workers on two cores: one thread each keeps the suite from fighting itself,
# and makes reductions come out the same from run to run.
for variable in (
    "OMP_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import importlib.util
import tempfile
import zlib
from pathlib import Path

import keras
import needs
import pytest

import fmkit
from fmkit import datasets

BACKEND = keras.backend.backend()

# Programs that tests start in processes of their own; they import one another.
collect_ignore = ["chaos"]

# Which tests take seconds on this backend and not on another, by file or by name.
SLOW = {
    line.partition(" ")[2]
    for line in (Path(__file__).parent / "slow.txt").read_text().splitlines()
    if line.startswith(f"{BACKEND} ")
}

# What the examples in the docstrings of these packages need.
DOCTESTS_NEED = {"hypermodels": "keras_tuner", "visualization": "matplotlib"}


# Which of the long and the slow tests to run, as "3/4": of four parts, the one with
# remainder 3. What kills processes runs with every part.
SHARE = os.environ.get("SHARE", "0/1")
IN_EVERY_SHARE = "tests/test_exact_resume_chaos.py"


def is_in_share(name, share):
    """Whether a test belongs to a share; each belongs to one of all `parts`."""
    part, parts = map(int, share.split("/"))
    return zlib.crc32(name.encode()) % parts == part % parts


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "open_on(first, last): a trap that Keras has from version `first` on, and to "
        "version `last` if a newer one mended it; elsewhere the test is not collected",
    )
    if BACKEND == "jax" and os.environ.get("REUSE_COMPILED"):
        reuse_compiled_programs(config)
    # What can't be imported can't be skipped test by test.
    folder = Path(fmkit.__file__).parent / "hypermodels"
    if needs.missing("keras_tuner"):
        config.option.ignore = [*(config.option.ignore or ()), str(folder)]


def reuse_compiled_programs(config):
    """Keep what JAX compiles until this process ends: tests train the same networks.

    Each process has a folder of its own, since JAX writes there without a lock. The
    processes that tests start compile anew, as those of users do. `make test` asks for
    it with the pinned JAX, and `make matrix` does not: JAX 0.5.0 crashes.
    """
    import jax

    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_report_header() -> str:
    return f"keras {keras.__version__} on {BACKEND}"


@pytest.hookimpl(tryfirst=True)  # before pytest looks at `-m "not slow"`
def pytest_collection_modifyitems(config, items):
    """Leave out tests by `backend`, mark the slow, skip by `needs`.

    Left out, not skipped: a test that doesn't concern this backend is counted by
    the run on the backend it does concern. What a `needs` mark names and this
    environment lacks is a reason to skip, and is shown.
    """
    kept, left_out = [], []
    for item in items:
        # A test's own mark comes before its file's.
        marks = [mark for mark in item.own_markers if mark.name == "backend"]
        marks = marks or list(item.iter_markers("backend"))
        wanted = all(BACKEND in mark.args for mark in marks)
        for mark in item.iter_markers("open_on"):
            wanted = wanted and needs.is_open(*mark.args)
        (kept if wanted else left_out).append(item)
    for item in kept:
        name = item.nodeid.partition("[")[0]
        if name in SLOW or name.partition("::")[0] in SLOW:
            item.add_marker("slow")
        quick = not any(map(item.get_closest_marker, ("long", "slow")))
        killing = item.nodeid.startswith(IN_EVERY_SHARE)
        if not (quick or killing or is_in_share(item.nodeid, SHARE)):
            left_out.append(item)
    kept = [item for item in kept if item not in left_out]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
    for item in kept:
        if (
            isinstance(item, pytest.DoctestItem)
            and item.path.parent.name in DOCTESTS_NEED
        ):
            item.add_marker(pytest.mark.needs(DOCTESTS_NEED[item.path.parent.name]))
        for reason in needs.reasons(item):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def clean_session():
    """Seed every generator, and leave no state, dtype policy or model behind."""
    fmkit.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session(free_memory=False)


@pytest.fixture(scope="session")
def program():
    """Load a file of the repository, such as "scripts/make_gallery.py", as a module."""

    def load(path):
        path = Path(__file__).resolve().parents[1] / path
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def example(program, monkeypatch):
    """Load an example, to run as on a machine that has nothing but fmkit."""
    monkeypatch.setattr(datasets.fashion_mnist, "find", lambda: None)
    monkeypatch.setattr(datasets.mnist, "find", lambda: None)
    return lambda name: program(f"examples/{name}.py")
