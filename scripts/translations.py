"""Which Chinese pages are older than the English ones they translate.

    python scripts/translations.py             # fails if one is missing or old
    python scripts/translations.py --accept docs/zh/guides/data.md ...

A Chinese page begins with the digest of the English text it was made from. Once the
translation says what the English page says now, `--accept` writes the new digest.
Both pages run the same program: their code blocks must be equal, so testing one page
tests both.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SINGLE = ("getting-started", "compatibility")
HEAD = "<!-- English: {digest} -->\n"


def pairs(root: Path = ROOT) -> dict[Path, Path]:
    """Return the English page of each Chinese page that must exist."""
    english = [root / "docs" / f"{name}.md" for name in SINGLE]
    english += sorted((root / "docs" / "guides").glob("*.md"))
    chinese = {
        root / "docs" / "zh" / page.relative_to(root / "docs"): page for page in english
    }
    return {root / "docs" / "zh" / "index.md": root / "README.md", **chinese}


def digest(page: Path) -> str:
    """Return what changes when the page's text does, on every platform."""
    text = page.read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def problem(chinese: Path, english: Path, root: Path = ROOT) -> str | None:
    """Return what is wrong with a Chinese page, or None."""
    name = chinese.relative_to(root).as_posix()
    if not chinese.exists():
        return f"{name} is missing: translate {english.relative_to(root).as_posix()}."
    text = chinese.read_text(encoding="utf-8")
    if BLOCK.findall(text) != BLOCK.findall(english.read_text(encoding="utf-8")):
        return f"{name}: its Python blocks differ from those of the English page."
    if not text.startswith(HEAD.format(digest=digest(english))):
        return (
            f"{name} is older than {english.relative_to(root).as_posix()}. Bring it up "
            f"to date, then type: python scripts/translations.py --accept {name}"
        )
    return None


def problems(root: Path = ROOT) -> list[str]:
    """Return what is wrong, one line a page."""
    found = (
        problem(chinese, english, root) for chinese, english in pairs(root).items()
    )
    return [line for line in found if line is not None]


def accept(chinese: Path, root: Path = ROOT) -> None:
    """Write the digest of the present English text into a Chinese page."""
    wanted = pairs(root)
    if chinese not in wanted:
        sys.exit(f"{chinese} is no translation; there are {sorted(map(str, wanted))}.")
    text = re.sub(r"\A<!-- English: \w* -->\n", "", chinese.read_text(encoding="utf-8"))
    head = HEAD.format(digest=digest(wanted[chinese]))
    chinese.write_text(head + text, encoding="utf-8", newline="\n")


def main() -> None:
    """Report, or accept what was brought up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accept", nargs="+", type=Path, default=[], metavar="PAGE")
    for page in parser.parse_args().accept:
        accept(page.resolve())
    found = problems()
    print(*found, sep="\n")
    print(f"{len(pairs())} pages, {len(found)} to bring up to date.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
