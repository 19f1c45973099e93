"""What the site's build adds to mkdocs: shared pages, and formulas without a script.

- Home, Changelog and Contributing are the files of the repository's first screen, so
  each text stands in one place.
- Formulas become MathML while the site is built. Every current browser draws MathML
  itself, so the pages need no script, from here or elsewhere.
"""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
SHARED = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)
# How the shared files link to each other, and how their pages do.
LINKS = {f"]({source})": f"]({page})" for page, source in SHARED.items()}


def on_files(files, config):
    """Add the shared files as pages."""
    for page, source in SHARED.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        for old, new in LINKS.items():
            text = text.replace(old, new)
        files.append(File.generated(config, page, content=text))
    for example in sorted((ROOT / "examples").glob("*.py")):
        files.append(
            File.generated(
                config, f"examples/{example.name}", abs_src_path=str(example)
            )
        )
    return files


def on_page_content(page_html, page, **_):
    """Turn each formula into MathML; a formula that can't be read stops the build."""

    def to_mathml(match):
        _, bracket, latex = match.groups()
        try:
            if bracket == "(":
                return convert(html.unescape(latex), display="inline")
            # A long formula scrolls in its own box, so that a phone shows the page.
            drawn = convert(html.unescape(latex), display="block")
            return f'<div class="formula">{drawn}</div>'
        except Exception as error:
            raise ValueError(f"{page.file.src_path}: formula {latex!r}") from error

    return FORMULA.sub(to_mathml, page_html)
