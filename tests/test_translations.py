"""The check of the Chinese pages finds what is missing, old, or another program.

Whether the pages are up to date is no test: `make translations` says so, for those who
can read them.
"""

import pytest

pytestmark = pytest.mark.backend("torch")


@pytest.fixture(scope="module")
def translations(program):
    return program("scripts/translations.py")


@pytest.fixture
def site(tmp_path, translations):
    (tmp_path / "docs" / "zh" / "guides").mkdir(parents=True)
    (tmp_path / "docs" / "guides").mkdir()
    for name, title in (
        ("README.md", "# fmkit"),
        ("docs/getting-started.md", "# Start"),
        ("docs/compatibility.md", "# Versions"),
        ("docs/guides/data.md", "# Data\n\n```python\nx = 1\n```\n"),
        ("docs/zh/index.md", "# fmkit"),
        ("docs/zh/getting-started.md", "# 开始"),
        ("docs/zh/compatibility.md", "# 版本"),
        ("docs/zh/guides/data.md", "# 数据\n\n```python\nx = 1\n```\n"),
    ):
        (tmp_path / name).write_text(title, encoding="utf-8")
    for chinese in translations.pairs(tmp_path):
        translations.accept(chinese, tmp_path)
    return tmp_path


def test_accepted_pages_are_up_to_date(site, translations):
    assert translations.problems(site) == []


def test_a_changed_english_page_makes_its_translation_old(site, translations):
    with (site / "docs" / "guides" / "data.md").open("a", encoding="utf-8") as page:
        page.write("One more rule.\n")
    (line,) = translations.problems(site)
    assert line.startswith("docs/zh/guides/data.md is older than docs/guides/data.md")
    translations.accept(site / "docs" / "zh" / "guides" / "data.md", site)
    assert translations.problems(site) == []


def test_a_changed_program_and_a_missing_page_are_told(site, translations):
    chinese = site / "docs" / "zh" / "guides" / "data.md"
    text = chinese.read_text(encoding="utf-8")
    chinese.write_text(text.replace("x = 1", "x = 2"), encoding="utf-8")
    (line,) = translations.problems(site)
    assert "Python blocks differ" in line
    chinese.unlink()
    (line,) = translations.problems(site)
    assert "is missing: translate docs/guides/data.md" in line
