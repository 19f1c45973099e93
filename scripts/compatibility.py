"""Draw the table of `docs/compatibility.md`, and of its Chinese page.

    python scripts/compatibility.py

The rows are kept in docs/compatibility.json; `make matrix` adds to them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from translations import accept, problem

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "compatibility.json"
PAGES = {
    "en": ROOT / "docs" / "compatibility.md",
    "zh": ROOT / "docs" / "zh" / "compatibility.md",
}
MARKS = "<!-- matrix: begin -->", "<!-- matrix: end -->"
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
OTHERS = {"numpy": "NumPy", "keras-tuner": "Keras Tuner", "matplotlib": "matplotlib"}
WORDS = {
    "en": {
        "head": ["Versions", "Python", "Keras", *BACKENDS.values(), "tried"],
        "inside": ["Versions", "beside them", "install", "changed", "programs"],
        "passed": "{passed} passed",
        "failed": "**{failed} failed**",
        "skipped": "{skipped} skipped",
        "reason": "not available: {reason[en]}",
        "size": "{megabytes} MB, {seconds} s",
        "nothing": "nothing",
        "quickstart": ("quickstart", "**quickstart failed**"),
        "killed": ("killed run", "**killed run failed**"),
    },
    "zh": {
        "head": ["版本", "Python", "Keras", *BACKENDS.values(), "测试于"],
        "inside": ["版本", "同一环境中", "安装", "被改变的", "程序"],
        "passed": "{passed} 个通过",
        "failed": "**{failed} 个失败**",
        "skipped": "{skipped} 个跳过",
        "reason": "未能测试：{reason[zh]}",
        "size": "{megabytes} MB，{seconds} 秒",
        "nothing": "无",
        "quickstart": ("快速上手", "**快速上手失败**"),
        "killed": ("被杀掉的训练", "**被杀掉的训练失败**"),
    },
}


def kept() -> dict:
    """Return the rows: corner, then backend."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def merge(table: dict, name: str, title: dict[str, str], rows: list[dict]) -> dict:
    """Return the table with a corner's new rows; what was tried once stays tried."""
    old = table.get(name, {}).get("rows", {})
    new = {
        row["backend"]: row
        for row in rows
        if "reason" not in row or "reason" in old.get(row["backend"], row)
    }
    ordered = {b: (old | new)[b] for b in BACKENDS if b in old | new}
    return table | {name: {"title": title, "rows": ordered}}


def record(name: str, titles: dict[str, dict[str, str]], rows: list[dict]) -> None:
    """Keep a corner's rows, in the order of `titles`, and draw both pages again."""
    table = merge(kept(), name, titles[name], rows)
    ordered = {name: table[name] for name in titles if name in table}
    text = json.dumps(ordered, ensure_ascii=False, indent=1)
    KEPT.write_text(text + "\n", encoding="utf-8")
    draw_pages()


def draw_pages() -> None:
    """Put the table into both pages; a translation that was up to date stays so."""
    outdated = problem(PAGES["zh"], PAGES["en"])
    for language, page in PAGES.items():
        text = page.read_text(encoding="utf-8")
        before, _, rest = text.partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        drawn = f"{MARKS[0]}\n{draw(kept(), language)}\n{MARKS[1]}"
        page.write_text(before + drawn + after, encoding="utf-8")
    if outdated is None:
        accept(PAGES["zh"])


def draw(table: dict, language: str) -> str:
    """Return what came out, and below it what else was in each environment."""
    words = WORDS[language]
    results, inside = [words["head"]], [words["inside"]]
    for corner in table.values():
        title, rows = corner["title"][language], corner["rows"]
        results.append([title, *result(rows, words)])
        tried = {name: row for name, row in rows.items() if "versions" in row}
        if tried:
            inside.append([title, *environment(tried, words)])
    return "\n\n".join(markdown(lines) for lines in (results, inside))


def markdown(lines: list[list[str]]) -> str:
    """Return a table; its first line is the head."""
    head, *rest = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rest])


def result(rows: dict, words: dict) -> list[str]:
    """Return the cells of a corner in the first table, its title left out."""
    versions = [row["versions"] for row in rows.values() if "versions" in row]
    return [
        each(found["python"] for found in versions),
        each(found.get("keras-nightly") or found["keras"] for found in versions),
        *(outcome(rows.get(name), words) for name in BACKENDS),
        each(f"{row['date']}, `{row['commit']}`" for row in rows.values()),
    ]


def outcome(row: dict | None, words: dict) -> str:
    """Return what came out on one backend; a dash where the corner has none."""
    if row is None:
        return "–"
    if "reason" in row:
        return words["reason"].format(**row)
    kinds = [kind for kind in ("passed", "failed", "skipped") if row[kind]]
    counted = ", ".join(words[kind].format(**row) for kind in kinds)
    return f"{row['versions'][row['backend']]}: {counted}"


def environment(rows: dict, words: dict) -> list[str]:
    """Return the cells of a corner in the second table, its title left out."""
    return [
        each(beside(row["versions"]) for row in rows.values()),
        each(words["size"].format(**row) for row in rows.values()),
        each(", ".join(row["changed"]) or words["nothing"] for row in rows.values()),
        each(programs(row, words) for row in rows.values()),
    ]


def beside(versions: dict[str, str]) -> str:
    """Return what else than Keras and its backends an environment has."""
    names = [name for name in OTHERS if name in versions]
    return ", ".join(f"{OTHERS[name]} {versions[name]}" for name in names)


def programs(row: dict, words: dict) -> str:
    """Return which programs ran on a backend, and which failed."""
    ran = [words[p][not row[p]] for p in ("quickstart", "killed") if p in row]
    return ", ".join(ran) or "–"


def each(texts: Iterable[str]) -> str:
    """Return the texts in their order, each once; a dash if there is none."""
    return "; ".join(dict.fromkeys(texts)) or "–"


if __name__ == "__main__":
    draw_pages()
