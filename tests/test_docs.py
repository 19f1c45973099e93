"""Every Python block of the README and the docs runs, page by page, in order.

A page is one program: its blocks share one namespace and one empty folder. A block
that shows what fails is fenced as ```` ```pycon ```` or ```` ```text ```` instead.
"""

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A Chinese page has the blocks of its English one: scripts/translations.py checks it.
ENGLISH = [p for p in (ROOT / "docs").rglob("*.md") if "zh" not in p.parts]
PAGES = sorted([ROOT / "README.md", *ENGLISH])
PROGRAMS = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


# What these show is done by each backend in its own way. The others show what tests of
# its own hold to every backend: they run on the one that starts soonest, and on
# TensorFlow, in whose words some are written.
ON_EVERY_BACKEND = ("README", "getting-started", "averages", "data", "resume", "fit")


# Packages that fmkit can do without, and the words of a page that needs one.
WORDS = {
    "keras_tuner": ("keras_tuner", "hypermodels"),
    "matplotlib": ("visualization",),
    "tensorflow": ("import tensorflow", "as_dataset"),
}


# Seconds to train the many models that these show; tests of their own are quicker.
LONG = ("stopping", "tuning")


def marks(page):
    if page.stem in LONG:
        yield pytest.mark.long
    if page.stem not in ON_EVERY_BACKEND:
        yield pytest.mark.backend("tensorflow", "torch")
    programs = "".join(BLOCK.findall(page.read_text(encoding="utf-8")))
    for package, words in WORDS.items():
        if any(word in programs for word in words):
            yield pytest.mark.needs(package)


def pages():
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[*marks(page)])
        for page in PROGRAMS
    ]


@pytest.mark.parametrize("page", pages())
def test_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    namespace = {"__name__": "__page__"}
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1))
        # Empty lines in front make a traceback name the line of the page.
        source = "\n" * line + match.group(1)
        exec(compile(source, str(page), "exec"), namespace)


@pytest.mark.backend("torch")
def test_the_picture_of_the_floors_shows_every_module_in_a_place_of_its_own(program):
    script = program("scripts/architecture.py")
    svg = ElementTree.fromstring(script.picture())
    space = "{http://www.w3.org/2000/svg}"
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    boxes = {}
    for group in svg.iter(f"{space}g"):
        sides = (float(group[0].attrib[side]) for side in ("x", "y", "width", "height"))
        boxes[group[1].text] = tuple(sides)
    modules = {path.name.removesuffix(".py") for path in script.SOURCE.iterdir()}
    assert set(boxes) == {name for name in modules if script.files(name)} - {
        "__init__",
        "__main__",
    }
    for x, y, w, h in boxes.values():
        assert 0 <= x <= width - w
        assert 0 <= y <= height - h
    for (x, y, w, h), (u, v, k, m) in combinations(boxes.values(), 2):
        assert x + w < u or u + k < x or y + h < v or v + m < y
    # The lines: every one goes down.
    for path in svg.iter(f"{space}path"):
        numbers = re.findall(r"[\d.]+", path.attrib["d"])
        assert float(numbers[1]) < float(numbers[-1])
