"""The tutorials' notebooks: made from the programs, in two languages, and they run."""

import copy
import json
import os
import re
from pathlib import Path

import needs
import pytest

needs.module("nbclient")
needs.module("nbformat")

import nbformat  # noqa: E402
from fresh_process import SOURCE  # noqa: E402
from jupyter_client.kernelspec import KernelSpecManager  # noqa: E402
from jupyter_client.manager import AsyncKernelManager  # noqa: E402
from nbclient import NotebookClient  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

# Each notebook's settings for a short run, and what it prints then.
SHORT = {
    "quickstart": ("epochs = 1\ntarget = 0.885", "Test accuracy"),
    "tf2_gradient_tape": ("epochs = 1", "| epoch | loop, MSE |"),
    "tf1_two_layers": ("steps = 300\nevery = 100", "| 200 |"),
    "tf1_optimizers": ("steps = 24\nbatch_sizes = (64, 128)", "| Adam, 0.001 | 128 |"),
    "tf1_yogurt": ("steps = 400\nsquared_steps = 400", "| squared error |"),
    "tf1_regularization": ("steps = 1000\nl2 = 0.01", "| 0.01 |"),
    "tf1_mnist_ema": ("steps = 200\nsource = None", "every bit equal to"),
    "paddle_lenet": ("epochs = 1\ndigits = None", "| LeNet on [-1, 1] |"),
    "keras_stop_at_threshold": ("epochs = 1", "| wider: 512 | 1 |"),
}
# As on a machine that has nothing but fmkit.
BARE = """\
from fmkit import datasets

for source in (datasets.fashion_mnist, datasets.mnist):
    source.find = lambda: None"""


class ThisPython(AsyncKernelManager):
    """Starts the kernel of this Python, whatever else is installed."""

    def __init__(self, **settings):
        specs = KernelSpecManager(kernel_dirs=[])
        super().__init__(kernel_spec_manager=specs, **settings)


@pytest.fixture(scope="module")
def maker(program):
    return program("scripts/make_notebooks.py")


def read(name, folder="notebooks"):
    return nbformat.read(ROOT / folder / f"{name}.ipynb", as_version=4)


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


@pytest.mark.backend("torch")
def test_the_notebooks_are_those_of_the_programs_byte_for_byte(maker):
    made = maker.notebooks()
    kept = sorted((ROOT / "notebooks").rglob("*.ipynb"))
    assert sorted(made) == kept, "run `make notebooks`"
    for path, wanted in made.items():
        assert path.read_bytes() == wanted.encode(), f"{path.name}: `make notebooks`"
    assert made == maker.notebooks()
    assert set(SHORT) == set(maker.NAMES)


@pytest.mark.backend("torch")
def test_a_changed_program_makes_another_notebook(maker, tmp_path):
    path = tmp_path / "quickstart.py"
    text = (ROOT / "examples/quickstart.py").read_text(encoding="utf-8")
    assert "Adam(1e-3)" in text
    path.write_text(text.replace("Adam(1e-3)", "Adam(1e-2)"), encoding="utf-8")
    kept = (ROOT / "notebooks/quickstart.ipynb").read_text(encoding="utf-8")
    made = maker.as_json(maker.Program(path).cells())
    assert made != kept
    assert made.replace("Adam(1e-2)", "Adam(1e-3)") == kept


@pytest.mark.backend("torch")
def test_every_text_has_its_chinese_and_none_is_left_over(maker):
    texts = json.loads((ROOT / "notebooks/zh/texts.json").read_text(encoding="utf-8"))
    assert set(texts) == maker.paragraphs_of()
    assert all(re.search("[\u4e00-\u9fff]", chinese) for chinese in texts.values())
    cells = [maker.text("A paragraph.\n\nAnother that was changed.")]
    with pytest.raises(LookupError, match=r"has no 'Another that was changed\.'"):
        maker.in_chinese(cells, {"A paragraph.": "一段。"})


@pytest.mark.backend("torch")
@pytest.mark.parametrize("name", SHORT)
def test_both_languages_are_valid_and_have_the_same_code(name):
    english, chinese = read(name), read(name, "notebooks/zh")
    for notebook in (english, chinese):
        nbformat.validate(notebook)
    assert sources(english, "code") == sources(chinese, "code")
    assert len(english.cells) == len(chinese.cells)
    assert sources(english, "markdown")[0] != sources(chinese, "markdown")[0]


@pytest.mark.backend("torch")
def test_what_a_notebook_cannot_do_is_refused(maker, tmp_path):
    path = tmp_path / "program.py"
    start = '"""A program."""\n\nimport keras\n\n\ndef table():\n    """Return."""\n'

    def cells(body):
        lines = ["def main(steps=1):", '    """Run."""']
        lines += [f"    {line}" if line else "" for line in body]
        path.write_text("\n".join([start, "", *lines, ""]), encoding="utf-8")
        return maker.Program(path).cells()

    assert cells(["rows = table()", "", "# Say it.", "print(rows)"])[-2:] == [
        maker.text("Say it."),
        maker.code("print(rows)"),
    ]
    with pytest.raises(ValueError, match=r"uses \['table'\] for something else"):
        cells(["table = table()"])
    with pytest.raises(ValueError, match="returns at line"):
        cells(["if steps:", "    return 1", "print(2)"])


@pytest.mark.backend("torch")
@pytest.mark.parametrize("present", [True, False])
def test_the_first_cell_installs_only_where_fmkit_is_missing(
    maker, monkeypatch, present
):
    first = sources(read("quickstart"), "code")[0]
    assert first == maker.INSTALL
    assert "%pip install --quiet --no-deps fmkit" in first
    plain = first.replace("%pip install --quiet --no-deps fmkit", "done.append(1)")
    done = []
    if not present:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(plain, {"done": done})
    assert bool(done) != present


def shortened(name):
    """Return a notebook with the settings of a short run, on the sample."""
    notebook = copy.deepcopy(read(name))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(BARE))
    tagged = [c for c in notebook.cells if c.metadata.get("tags") == ["parameters"]]
    (settings,) = tagged
    given, _ = SHORT[name]
    names = [line.split(" = ")[0] for line in settings.source.splitlines()]
    wanted = [line.split(" = ")[0] for line in given.splitlines()]
    assert [*wanted, "folder"] == sorted(names, key=[*wanted, "folder"].index)
    settings.source = f'{given}\nfolder = "outputs"'
    return notebook


def outputs_of(notebook):
    return [o for cell in notebook.cells for o in cell.get("outputs", [])]


def printed_in(notebook):
    """Return all texts that the cells gave, printed or displayed."""
    outputs = outputs_of(notebook)
    shown = [output.get("data", {}).get("text/markdown", "") for output in outputs]
    return "\n".join([*(output.get("text", "") for output in outputs), *shown])


@pytest.mark.long
@pytest.mark.backend("tensorflow")
@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize("name", SHORT)
def test_a_notebook_runs_and_shows_its_figure_and_its_table(name, tmp_path):
    notebook = shortened(name)
    path = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "KERAS_BACKEND": "tensorflow",
        "PYTHONPATH": os.pathsep.join(path),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
    }
    client = NotebookClient(
        notebook,
        timeout=200,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=os.environ | environment)
    assert SHORT[name][1] in printed_in(notebook)
    pictures = [o for o in outputs_of(notebook) if "image/png" in o.get("data", {})]
    assert pictures
    assert all(len(picture.data["image/png"]) > 10_000 for picture in pictures)
    assert list((tmp_path / "outputs").glob("*.png"))
    assert not [o for o in outputs_of(notebook) if o.output_type == "error"]
