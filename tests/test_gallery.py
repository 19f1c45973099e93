"""The gallery belongs to the examples, and what the tutorials' page names exists."""
# ruff: noqa: E402 - Pillow comes with matplotlib, which may not be installed

import hashlib
import importlib
import importlib.util
import json
import re
from pathlib import Path

import keras
import needs
import pytest

needs.module("PIL")

from PIL import Image

pytestmark = pytest.mark.backend("torch")
ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "docs" / "guides" / "tutorials.md"


@pytest.fixture(scope="module")
def script(program):
    return program("scripts/make_gallery.py")


@pytest.fixture
def small(script, tmp_path, capfd):
    """A checkout with one example that draws and one that only prints."""
    folder = tmp_path / "examples"
    folder.mkdir()
    (folder / "zebra.py").write_text(
        '"""Draw a stripe,\nand another.\n\nMore."""\n'
        "from pathlib import Path\nfrom PIL import Image\n"
        "Path('outputs').mkdir()\n"
        "Image.effect_noise((900, 900), 99).save('outputs/zebra.png')\n"
        "Path('outputs/zebra.md').write_text('| a |\\n|---|\\n| 1 |\\n')\n",
        encoding="utf-8",
    )
    (folder / "quickstart.py").write_text(
        '"""Say something."""\nimport os\n'
        "print('before\\n\\nlast', 4)\nprint(os.getcwd())\n",
        encoding="utf-8",
    )
    (tmp_path / "docs").mkdir()
    gallery = script.Gallery(tmp_path)
    assert gallery.outdated() == dict.fromkeys(
        ["quickstart", "zebra"], "has no figure yet"
    )
    gallery.make(["quickstart", "zebra"])
    return gallery


def width_of(path):
    with Image.open(path) as picture:
        return picture.width


def test_no_example_is_newer_than_its_figure(script):
    assert script.Gallery().outdated() == {}, "Run `make gallery`, or say NAME to it."


def test_the_page_is_what_the_command_writes(script):
    gallery = script.Gallery()
    assert gallery.page.read_text(encoding="utf-8") == gallery.text()


# What these two show is a number: how soon, and that processes agree.
WITHOUT_A_PICTURE = {"time_to_accuracy", "pytorch_processes"}


def test_every_example_stands_on_the_page_with_a_figure_and_what_it_printed(script):
    gallery = script.Gallery()
    page = gallery.page.read_text(encoding="utf-8")
    for path in gallery.examples():
        entry = gallery.entries()[path.stem]
        command = ["python", f"examples/{path.name}", *entry.get("arguments", [])]
        assert f"\n{' '.join(command)}\n" in page
        if path.stem in WITHOUT_A_PICTURE:
            assert entry["printed"]
        else:
            assert len(entry["printed"]) >= 3
            assert entry["figures"]
        light = [each for each in entry["figures"] if not each.endswith("-dark.png")]
        dark = {each.replace(".png", "-dark.png") for each in light}
        assert dark == {*entry["figures"]} - {*light}
        for name in light:
            assert f"](figures/gallery/{name})" in page
        for name in entry["figures"]:
            assert (gallery.figures / name).stat().st_size < 100_000
            assert width_of(gallery.figures / name) > 400
    stored = {path.name for path in gallery.figures.glob("*.png")}
    named = {name for entry in gallery.entries().values() for name in entry["figures"]}
    assert stored == named


def test_a_run_is_stored_with_its_picture_and_its_table(small):
    entries = small.entries()
    assert entries["zebra"]["printed"] == ["| a |", "|---|", "| 1 |"]
    # A program without a table: the last paragraph it printed, without paths of here.
    assert entries["quickstart"]["printed"] == ["```text", "last 4", "```"]
    picture = small.figures / "zebra.png"
    # Noise can't be packed at its full size: the picture was made smaller.
    assert picture.stat().st_size < 100_000
    assert width_of(picture) < 900
    page = small.text()
    assert page.index("## quickstart") < page.index("## zebra")
    assert "![Draw a stripe, and another.](figures/gallery/zebra.png)" in page
    assert small.outdated() == {}


def test_a_table_of_comma_separated_values_becomes_markdown(script, tmp_path):
    (tmp_path / "zebra.csv").write_text('a,"b, c"\n1,2\n', encoding="utf-8")
    assert script.table_in(tmp_path, "zebra") == [
        "| a | b, c |",
        "| --- | --- |",
        "| 1 | 2 |",
    ]


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (
            lambda g: (g.root / "examples/zebra.py").write_text("print()"),
            "zebra",
            "is newer than its figure",
        ),
        (
            lambda g: Image.new("RGB", (9, 9)).save(g.figures / "zebra.png"),
            "zebra",
            "has a figure that this command did not make",
        ),
        (
            lambda g: (g.root / "examples/zebra.py").unlink(),
            "zebra",
            "has a figure and no program",
        ),
        (
            lambda g: (g.root / "examples/new.py").write_text("print()"),
            "new",
            "has no figure yet",
        ),
    ],
)
def test_what_does_not_belong_together_is_named(script, tmp_path, change, name, reason):
    folder = tmp_path / "examples"
    folder.mkdir()
    (folder / "zebra.py").write_text("print(1)\n", encoding="utf-8")
    gallery = script.Gallery(tmp_path)
    gallery.figures.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(gallery.figures / "zebra.png")
    content = (gallery.figures / "zebra.png").read_bytes()
    entry = {
        "program": script.digest(b"print(1)\n"),
        "figures": {"zebra.png": hashlib.sha256(content).hexdigest()},
    }
    gallery.manifest.write_text(json.dumps({"zebra": entry}), encoding="utf-8")
    assert gallery.outdated() == {}
    change(gallery)
    assert gallery.outdated() == {name: reason}


def test_a_figure_of_another_length_is_named(script, small, monkeypatch):
    monkeypatch.setitem(script.ARGUMENTS, "zebra", ["--steps", "9"])
    assert small.outdated() == {"zebra": "has a figure of another length"}
    small.make(["zebra"])
    assert small.outdated() == {}
    assert "python examples/zebra.py --steps 9\n" in small.text()


def test_a_program_that_fails_leaves_the_gallery_as_it_was(small):
    before = small.manifest.read_bytes()
    (small.root / "examples" / "zebra.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match=r"zebra\.py failed"):
        small.make(["zebra"])
    assert small.manifest.read_bytes() == before
    assert (small.figures / "zebra.png").exists()


# ------------------------------------------------------------ from the tutorials

NAME = re.compile(r"`((?:fmkit\.)?[a-z_]+(?:\.\w+)+|fmkit\.\w+)")
PARTS = {
    path.stem.removesuffix(".py")
    for path in (ROOT / "src" / "fmkit").iterdir()
    if not path.name.startswith(("_", "py."))
}


def resolve(name):
    """Return the object of a dotted name of fmkit or Keras; AttributeError if none."""
    first, *rest = name.removeprefix("fmkit.").split(".")
    if first == "keras":
        found = keras
    elif rest:
        found = importlib.import_module(f"fmkit.{first}")
    else:
        found, rest = importlib.import_module("fmkit"), [first]
    for part in rest:
        found = getattr(found, part)
    return found


def third_column_rows():
    """Return the rows of the page's tables: what, the names, the example."""
    lines = TUTORIALS.read_text(encoding="utf-8").splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if line.startswith("| ")
    ]
    return [row for row in cells if "in fmkit" not in row]


def names_in(text):
    return [
        name
        for name in NAME.findall(text)
        if name.split(".")[0] in {"fmkit", "keras", *PARTS}
    ]


def test_every_name_on_the_page_of_the_tutorials_exists():
    rows = third_column_rows()
    assert len(rows) > 50
    for row in rows:
        for name in names_in(row[1]):
            assert resolve(name) is not None, name
    # The check can fail.
    assert names_in("`losses.MeanSquaredErrorOfLogits`")
    with pytest.raises(AttributeError):
        resolve("losses.MeanSquaredErrorOfLogits")


def test_every_part_of_a_tutorial_leads_to_a_name_or_an_example():
    for what, names, *example in third_column_rows():
        leads = names_in(names) or re.findall(
            r"`\w+\.py`|\]\(", " ".join([*example, names])
        )
        assert leads, what


def test_every_example_that_the_page_names_exists_and_every_example_is_named():
    text = TUTORIALS.read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+\.py)`", text))
    assert named == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_no_picture_of_the_docs_was_pasted():
    """Pictures come from the build, or from the gallery, whose digests are tested."""
    pictures = {".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"}
    stored = [p for p in (ROOT / "docs").rglob("*") if p.suffix.lower() in pictures]
    outside = {p.relative_to(ROOT).parent.as_posix() for p in stored}
    assert outside <= {"docs/figures/gallery", "docs/assets"}
