"""The examples at a small setting, with their claims asserted."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from fmkit import datasets

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


@pytest.mark.needs("matplotlib")
def test_the_quickstart_judges_draws_saves_and_reloads(example, tmp_path, capsys):
    accuracy = example("quickstart").main(epochs=6, target=0.8, folder=tmp_path)
    printed = capsys.readouterr().out
    assert "from the sample that ships with fmkit" in printed
    assert "No problem found." in printed
    assert "stopped the run in epoch" in printed
    assert f"Test accuracy {accuracy:.4f}" in printed
    assert all(name in printed for name in datasets.fashion_mnist.CLASS_NAMES)
    assert "predicts the same bits" in printed
    # The sample is a tenth of the data: a few epochs bring it near 80 %.
    assert accuracy > 0.75
    for picture in ("learning_curves.png", "predictions.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert keras.saving.load_model(tmp_path / "quickstart.keras").count_params() == (
        244_522
    )


# What each needs to run for a moment.
SHORT = {
    "quickstart": {"epochs": 1},
    "calibration": {"epochs": 1},
    "ema_fashion_mnist": {"epochs": 1},
    "keras_stop_at_threshold": {"epochs": 1},
    "paddle_lenet": {"epochs": 1},
    "tf1_read_digits": {"epochs": 1},
    "tf1_optimizers": {"steps": 4, "batch_sizes": (32, 64)},
    "tf1_regularization": {"steps": 20},
    "tf1_two_layers": {"steps": 8, "every": 4},
    "tf1_yogurt": {"steps": 400, "squared_steps": 400},
    "tf2_gradient_tape": {"epochs": 1},
    "weight_averages": {"epochs": 1, "seeds": 1},
    "tune_mlp": {"trials": 1, "epochs": 1, "questions": {"units": [8]}},
}
QUICK = {"quickstart", "tf1_two_layers"}
DRAWING = [
    path.stem
    for path in sorted(EXAMPLES.glob("*.py"))
    if ".savefig(" in path.read_text(encoding="utf-8")
]


def marks(name):
    if name in QUICK:
        yield pytest.mark.backend("torch")
    else:
        yield from (pytest.mark.backend("tensorflow"), pytest.mark.long)
    if name == "tune_mlp":
        yield pytest.mark.needs("keras_tuner")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[*marks(name)]) for name in SHORT]
)
def test_without_matplotlib_an_example_runs_and_says_what_would_draw(
    name, example, tmp_path, capsys, monkeypatch
):
    for source in (datasets.fashion_mnist, datasets.mnist):
        (x, y), (x_test, y_test) = source.load_sample()
        few = (x[:600], y[:600]), (x_test[:100], y_test[:100])
        monkeypatch.setattr(source, "load_sample", lambda few=few: few)
    # Python then neither finds nor imports it.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    example(name).main(**SHORT[name], folder=tmp_path)
    assert "Type: pip install matplotlib" in capsys.readouterr().out
    assert list(tmp_path.iterdir())
    assert not list(tmp_path.glob("*.png"))


def imports(tree):
    """Yield what the statements of a program import, those in functions left out."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            for part in ast.walk(node):
                if isinstance(part, ast.Import | ast.ImportFrom):
                    yield ast.unparse(part)


@pytest.mark.backend("torch")
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_nothing_imports_matplotlib_before_an_example_draws(path):
    text = path.read_text(encoding="utf-8")
    assert not [line for line in imports(ast.parse(text)) if "matplotlib" in line]
    asks = 'if importlib.util.find_spec("matplotlib"):' in text
    assert asks == (path.stem in DRAWING)


@pytest.mark.backend("torch")
def test_a_program_that_imports_matplotlib_at_its_top_would_be_seen():
    at_its_top = "import keras\ntry:\n  import matplotlib.pyplot as plt\nfinally: 1"
    assert list(imports(ast.parse(at_its_top)))[1:] == [
        "import matplotlib.pyplot as plt"
    ]
    assert not list(imports(ast.parse("def picture():\n    import matplotlib")))


@pytest.mark.backend("torch")
def test_every_example_that_draws_is_tried_without_matplotlib():
    # The processes that this one starts are tried where it is tried itself.
    assert set(DRAWING) - set(SHORT) == {"tf1_mnist_ema"}


def test_the_quickstart_is_one_page():
    lines = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 84


# --- the first screen: what the programs around the quickstart print --------------


def quiet(*program, folder):
    """Return what `make quickstart` shows of a program's standard error."""
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "quiet.py", *program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
@pytest.mark.needs("matplotlib")
def test_the_quickstart_prints_nothing_of_other_libraries(tmp_path):
    run = quiet(EXAMPLES / "quickstart.py", folder=tmp_path)
    assert run.returncode == 0
    assert run.stderr == ""
    assert "Test accuracy" in run.stdout


@pytest.mark.backend("torch")  # it loads none
def test_errors_and_warnings_of_a_quiet_program_are_shown(tmp_path):
    lines = [
        "WARNING: All log messages before absl::InitializeLog() is called are written "
        "to STDERR",
        "I0000 00:00:17.684 30 port.cc:153] oneDNN custom operations are on. You may "
        "see slightly different numerical results due to floating-point round-off "
        "errors from different computation orders. To turn them off, set the "
        "environment variable `TF_ENABLE_ONEDNN_OPTS=0`.",
        "I0000 00:00:17.685 30 cudart_stub.cc:31] Could not find cuda drivers on your "
        "machine, GPU will not be used.",
        "E0000 00:00:17.757 30 cuda_platform.cc:52] failed call to cuInit: INTERNAL: "
        "CUDA error: Failed call to cuInit: CUDA_ERROR_NO_DEVICE",
        "W0000 00:00:17.757 30 other.cc:1] a warning",
    ]
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys\nsys.stderr.write({chr(10).join(lines)!r})\nsys.exit(3)\n"
    )
    run = quiet(program, folder=tmp_path)
    assert run.returncode == 3
    assert run.stderr.splitlines() == lines[3:]


OLD_PYTHON = """#!/bin/sh
exec {python} -c 'import sys
sys.version_info, sys.version = (3, 9, 2), "3.9.2 (default)"
exec(sys.argv[1])' "$2"
"""


@pytest.mark.backend("torch")
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("given", "found"),
    [([], "python3 is: 3.9.2 (too old)"), (["PYTHON=no-python"], "not there")],
)
def test_an_old_python_is_refused_in_one_line_before_anything_is_made(
    given, found, tmp_path
):
    python = tmp_path / "python3"
    python.write_text(OLD_PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    venv = tmp_path / "venv"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    # As a user types it, and not as a part of `make test`.
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFL"))}
    run = subprocess.run(
        ["make", "quickstart", f"VENV={venv}", *given],
        cwd=ROOT,
        env=outside | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    (line,) = (run.stdout + run.stderr).splitlines()
    assert found in line
    assert "needs Python 3.11 or newer" in line
    assert "Type: make quickstart PYTHON=python3.12" in line
    assert not venv.exists()


@pytest.mark.backend("torch")
@pytest.mark.parametrize(
    ("printed", "line"),
    [
        (
            "Retrying (Retry(total=4)) after connection broken by 'NewConnectionError("
            "': Failed to establish a new connection: [Errno -3]')\nERROR: No matching",
            "there is no network",
        ),
        ("OSError: [Errno 28] No space left on device", "Make room, and type: make x"),
        (
            "error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory",
            "there is no compiler. Type: make clean && make x PYTHON=python3.12",
        ),
        ("ERROR: ResolutionImpossible", None),  # pip's own words are shown
    ],
)
def test_why_pip_failed_is_one_line_with_what_to_type(printed, line, program):
    said = program("scripts/pip_install.py").reason(printed, "make x")
    assert (line is None) == (said is None)
    if line:
        assert line in said
        assert "\n" not in said


@pytest.mark.backend("torch")
@pytest.mark.parametrize("status", [0, 1])
def test_what_pip_prints_is_shown_where_its_reason_is_not_known(
    status, program, monkeypatch, capfd, tmp_path
):
    install = program("scripts/pip_install.py")
    code = f"import sys; sys.stderr.write('a word of pip'); sys.exit({status})"
    monkeypatch.setattr(install, "PIP", [sys.executable, "-c", code])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert install.main("make x", "-e", ".") == status
    assert capfd.readouterr().err == "a word of pip"


@pytest.mark.long
@pytest.mark.needs("matplotlib")
def test_averages_are_judged_beside_raw_weights_and_saved(example, tmp_path, capsys):
    seen = example("ema_fashion_mnist").main(epochs=2, folder=tmp_path)
    picture = tmp_path / "averages-fashion-mnist.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    # A stair is 5400 / 128 = 42.19 steps, an epoch 43: the second ends past two stairs.
    assert seen["learning_rate"] == pytest.approx([0.2, 0.2 * 0.95**2])
    assert seen["test_raw"] != seen["test_averaged"]
    # The file holds the weights that its score was measured with: the averages.
    best = int(np.argmax(seen["val_accuracy"]))
    saved = f"best.keras, chosen by validation: {seen['test_averaged'][best]:.4f}"
    assert saved in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.backend("tensorflow")
@pytest.mark.needs("matplotlib")
def test_all_averages_are_compared_and_the_test_images_choose_nothing(
    example, tmp_path, capsys
):
    program = example("weight_averages")
    rows = program.main(epochs=3, seeds=2, folder=tmp_path)
    assert (tmp_path / "weight_averages.png").read_bytes().startswith(b"\x89PNG")
    kinds = {(row["rate"], row["weights"]) for row in rows}
    assert len(kinds) == 12
    assert len(rows) == 24
    assert all(row["width"] in program.WIDTHS for row in rows)
    table = (tmp_path / "weight_averages.md").read_text().splitlines()
    assert len(table) == 2 + len(kinds)
    first = [r["test accuracy"] for r in rows if r["rate"] == rows[0]["rate"]][::6]
    raw = f"| {np.mean(first):.4f} | {min(first):.4f} | {max(first):.4f} |"
    assert table[2] == f"| constant rate | raw {raw}"
    assert table[2] in capsys.readouterr().out


def test_help_says_how_long_each_target_takes():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = re.findall(r"^([a-z-]+):.*## (.*)$", makefile, re.M)
    timed = r".*: (half |a |an |\d+ )+(s|min|h|hour|minute|corner|for|each|Python|\W)"
    assert [name for name, line in lines if not re.match(timed, line)] == ["help"]
    assert len(lines) > 20


@pytest.mark.long
@pytest.mark.backend("tensorflow")
@pytest.mark.needs("matplotlib")
def test_a_temperature_makes_an_overconfident_network_honest(example, tmp_path, capsys):
    rows = example("calibration").main(epochs=15, folder=tmp_path)
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")
    before, after = rows[:2]
    assert before["accuracy"] == after["accuracy"]
    for score in ("cross-entropy", "ECE"):
        assert after[score] < before[score]
    lines = (tmp_path / "calibration.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert f"| {before['ECE']:.4f} |" in lines[2]
    assert lines[2] in capsys.readouterr().out
