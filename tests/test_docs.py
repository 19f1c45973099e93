"""Every Python block of the README and the docs runs, page by page, in order.

A page is one program: its blocks share one namespace and one empty folder. A block
that shows what fails is fenced as ```` ```pycon ```` or ```` ```text ```` instead.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A Chinese page has the blocks of its English one: scripts/translations.py checks it.
ENGLISH = [p for p in (ROOT / "docs").rglob("*.md") if "zh" not in p.parts]
PAGES = sorted([ROOT / "README.md", *ENGLISH])
PROGRAMS = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "page", PROGRAMS, ids=[str(page.relative_to(ROOT)) for page in PROGRAMS]
)
def test_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    namespace = {"__name__": "__page__"}
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1))
        # Empty lines in front make a traceback name the line of the page.
        source = "\n" * line + match.group(1)
        exec(compile(source, str(page), "exec"), namespace)
