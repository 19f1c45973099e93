"""The promised ranges, the corners that try them, and the table that says so."""

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import check_wheel
import compatibility
import matrix

pytestmark = pytest.mark.backend("torch")

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "tests" / "constraints"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FLOOR = re.compile(r"([\w-]+)>=([\d.]+)(,<4)?$")
TITLE = {"en": "Oldest", "zh": "最旧"}
REPORT = """\
<testsuites><testsuite tests="7" failures="2" errors="1" skipped="1"/></testsuites>
"""


def pins(name):
    lines = (PINS / name).read_text("utf-8").splitlines()
    needs = [line.partition(";")[0] for line in lines if line and line[0] != "#"]
    return dict(need.strip().split("==") for need in needs)


def ranges():
    optional = PROJECT["optional-dependencies"]
    needs = [*PROJECT["dependencies"], *optional["jax"], *optional["torch"]]
    return [need.partition(";")[0] for need in needs]


def closed(needs):
    """Return the requirements that have a ceiling, Keras 4 left out."""
    return [
        need
        for need in needs
        if not (found := FLOOR.match(need)) or (found[3] and found[1] != "keras")
    ]


def test_no_range_has_a_ceiling_but_keras_below_4():
    assert closed(ranges()) == []
    assert "keras>=3.12,<4" in ranges()
    assert "<" not in PROJECT["requires-python"]


@pytest.mark.parametrize(
    "need", ["keras>=3.12,<3.17", "torch==2.13.0", "jax>=0.5,<4", "numpy<3", "numpy"]
)
def test_a_ceiling_is_seen(need):
    # Negative control.
    assert closed([need]) == [need]


def test_the_wheels_metadata_is_searched_for_ceilings():
    fine = "Requires-Dist: keras<4,>=3.12\nRequires-Dist: jax>=0.5; extra == 'jax'\n"
    tool = "Requires-Dist: mkdocs<2,>=1.6; extra == 'docs'\n"
    assert check_wheel.ceilings(fine + tool) == []
    for name in ("keras<3.17,>=3.12", "torch==2.13.0", "tensorflow<2.22,>=2.18"):
        assert check_wheel.ceilings(f"{fine}Requires-Dist: {name}\n") == [name]


def test_the_oldest_corner_pins_every_floor():
    oldest = pins("oldest.txt")
    needs = [*ranges(), *PROJECT["optional-dependencies"]["test"]]
    for need in needs:
        name, floor, _ = FLOOR.match(need).groups()
        assert f"{oldest[name]}.".startswith(f"{floor}."), need


def test_every_corner_has_its_pins_a_python_and_backends():
    for corner in matrix.corners().values():
        assert (PINS / corner.constraints).is_file()
        assert corner.pythons
        assert set(corner.backends) <= set(compatibility.BACKENDS)
        assert {*corner.large, *corner.missing} <= set(corner.backends)
        texts = [corner.title, *corner.large.values(), *corner.missing.values()]
        assert all(set(text) == {"en", "zh"} for text in texts)
    used = {corner.constraints for corner in matrix.corners().values()}
    files = {path.name for path in PINS.glob("*.txt")}
    assert files == used | {"develop.txt"}


def test_only_the_corners_of_their_own_go_without_tensorflow():
    for name, corner in matrix.corners().items():
        needs = corner.needs(corner.backends)
        alone = name.endswith("-alone") or "tensorflow" in corner.missing
        assert ("tensorflow" in needs) != alone
        assert ("scikit-learn>=1.5" in corner.tools()) != name.endswith("-alone")
        assert {"keras", *corner.backends} - {*corner.missing} <= set(needs)


def test_every_core_test_exists():
    assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in matrix.CORE)


def test_a_python_that_is_not_here_is_a_reason():
    here = "{}.{}".format(*sys.version_info)
    assert shutil.which(matrix.interpreter(["3.1", here]))
    with pytest.raises(LookupError, match=r"no python3\.1 or python3\.2 here"):
        matrix.interpreter(["3.1", "3.2"])


def test_pytests_report_is_counted(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    found = matrix.counts(tmp_path / "report.xml")
    assert found == {"passed": 3, "failed": 3, "skipped": 1}


def test_what_an_installation_replaced_is_named():
    before = ["keras==3.13.2", "numpy==2.0.2"]
    assert matrix.changes(before, [*before, "fmkit @ file:///x"]) == []
    after = ["keras==3.15.1", "numpy==2.0.2"]
    assert matrix.changes(before, after) == ["keras==3.13.2"]


def row(**changes):
    made = {
        "backend": "jax",
        "versions": {"python": "3.11.7", "keras": "3.12.0", "jax": "0.5.0"},
        "changed": [],
        "seconds": 60,
        "megabytes": 900,
        "passed": 5,
        "failed": 0,
        "skipped": 1,
        "date": "2026-11-28",
        "commit": "abcdef0",
    }
    return made | changes


@pytest.mark.parametrize(
    ("changes", "is_bad"),
    [
        ({}, False),
        ({"quickstart": True, "killed": True}, False),
        ({"failed": 1}, True),
        ({"passed": 0}, True),
        ({"changed": ["keras==3.12.0"]}, True),
        ({"quickstart": True, "killed": False}, True),
    ],
)
def test_a_bad_row_is_told_from_a_good_one(changes, is_bad):
    assert matrix.bad(row(**changes)) is is_bad


def test_what_this_machine_can_not_try_has_a_reason(monkeypatch):
    corner = matrix.Corner(
        name="old",
        title=TITLE,
        pythons=["{}.{}".format(*sys.version_info)],
        constraints="oldest.txt",
        backends=["tensorflow", "jax", "torch"],
        large={"torch": {"en": "3 GB"}},
        missing={"tensorflow": {"en": "no release"}},
    )
    every = corner.backends
    monkeypatch.setattr(sys, "platform", "linux")
    assert [*matrix.reasons(corner, every, large=False)] == ["torch", "tensorflow"]
    assert [*matrix.reasons(corner, every, large=True)] == ["tensorflow"]
    assert matrix.reasons(corner, ["jax"], large=False) == {}
    corner.pythons[:] = ["3.1"]
    assert set(matrix.reasons(corner, every, large=True)) == set(every)


def test_a_row_that_could_not_be_tried_is_not_bad():
    assert not matrix.bad({"backend": "jax", "reason": "no python3.14 here"})


def test_rows_that_were_not_tried_again_stay():
    old = compatibility.merge({}, "oldest", TITLE, [row(), row(backend="tensorflow")])
    new = compatibility.merge(old, "oldest", TITLE, [row(date="2026-12-24")])
    rows = new["oldest"]["rows"]
    assert [*rows] == ["tensorflow", "jax"]
    assert [r["date"] for r in rows.values()] == ["2026-11-28", "2026-12-24"]


def test_what_was_tried_stays_where_it_can_not_be_tried():
    unable = {"backend": "jax", "reason": "no python3.11 here"}
    old = compatibility.merge({}, "oldest", TITLE, [row()])
    new = compatibility.merge(old, "oldest", TITLE, [unable])
    assert new["oldest"]["rows"]["jax"]["passed"] == 5
    alone = compatibility.merge({}, "oldest", TITLE, [unable])
    assert alone["oldest"]["rows"]["jax"] == unable


def test_a_corner_is_recorded_in_its_place_and_drawn(monkeypatch, tmp_path):
    pages = {"en": tmp_path / "en.md", "zh": tmp_path / "zh.md"}
    for page in pages.values():
        page.write_text(
            f"before\n{compatibility.MARKS[0]}\nold\n{compatibility.MARKS[1]}"
        )
    monkeypatch.setattr(compatibility, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(compatibility, "PAGES", pages)
    monkeypatch.setattr(compatibility, "problem", lambda chinese, english: "outdated")
    titles = {"oldest": TITLE, "newest": {"en": "Newest", "zh": "最新"}}
    compatibility.record("newest", titles, [row()])
    compatibility.record("oldest", titles, [row()])
    assert [*compatibility.kept()] == ["oldest", "newest"]
    for language, page in pages.items():
        text = page.read_text(encoding="utf-8")
        assert text.startswith("before\n")
        assert "old\n" not in text
        assert compatibility.draw(compatibility.kept(), language) in text


def test_the_table_names_failures_and_reasons():
    reason = {"en": "3 GB", "zh": "3 GB"}
    unable = {"backend": "torch", "reason": reason, "date": "d", "commit": "c"}
    rows = [row(failed=2, killed=False), unable]
    drawn = compatibility.draw(
        compatibility.merge({}, "oldest", TITLE, rows), "en"
    ).splitlines()
    assert (
        "| 3.11.7 | 3.12.0 | – | 0.5.0: 5 passed, **2 failed**, 1 skipped "
        "| not available: 3 GB |"
    ) in drawn[2]
    assert "**killed run failed**" in drawn[-1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_pages_show_what_is_kept(language):
    page = compatibility.PAGES[language].read_text(encoding="utf-8")
    table = json.loads(compatibility.KEPT.read_text(encoding="utf-8"))
    assert compatibility.draw(table, language) in page
    assert len(table) >= 1


def test_a_failed_command_ends_the_matrix():
    # A failed installation is no row of the table: it must not pass for one.
    with pytest.raises(SystemExit, match="failed: no such thing"):
        matrix.output(sys.executable, "-c", "import sys; sys.exit('no such thing')")
