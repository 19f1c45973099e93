"""What the site's build adds to mkdocs: shared pages, and formulas without a script.

- Home, Changelog and Contributing are the files of the repository's first screen, so
  each text stands in one place.
- Formulas become MathML while the site is built. Every current browser draws MathML
  itself, so the pages need no script, from here or elsewhere.
- A figure is drawn for light pages and for dark ones (`both_themes.py`).
- The picture of the floors is drawn from the imports, and the figures of the guides by
  the programs in `docs/figures`. (Those of the gallery take minutes: `make gallery`.)
- Pages under `zh/` have the theme's words in Chinese, and each page that exists in both
  languages leads to the other.
"""

import html
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from architecture import picture  # noqa: E402

SHARED = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
PAGES: dict[str, str] = {}  # source of each page -> its address in the site
# Pictures with a dark twin beside them, by the last part of their address.
TWINS: set[str] = set()
PICTURE = re.compile(r'<img [^>]*?src="(?P<base>[^"]*/(?P<name>[^"/]+))\.png"[^>]*>')
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
    floors = File.generated(config, "figures/architecture.svg", content=picture())
    files.append(floors)
    for name, content in drawn_figures().items():
        files.append(File.generated(config, f"figures/{name}", content=content))
    PAGES.update({file.src_uri: file.url for file in files.documentation_pages()})
    stems = {Path(file.src_uri).stem for file in files.media_files()}
    TWINS.update(stem for stem in stems if f"{stem}-dark" in stems)
    return files


def drawn_figures():
    """Run the programs in `docs/figures`; return the pictures that they write."""
    with tempfile.TemporaryDirectory() as folder:
        for program in sorted((ROOT / "docs" / "figures").glob("*.py")):
            setting = {
                "MPLBACKEND": "module://both_themes",
                "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), *sys.path]),
                "TF_CPP_MIN_LOG_LEVEL": "3",
            }
            subprocess.run(
                [sys.executable, program, folder], env=os.environ | setting, check=True
            )
        return {path.name: path.read_bytes() for path in Path(folder).glob("*.png")}


def on_page_context(context, page, config, nav):
    """Give the theme's own words the language of the page."""
    config.theme["language"] = "zh" if page.file.src_uri.startswith("zh/") else "en"
    return context


def other_language(page):
    """Return the link from a page to its translation, or nothing.

    The theme's own menu of languages asks for a sitemap, which fails in a folder.
    """
    address = page.file.src_uri
    chinese = address.startswith("zh/")
    other = address.removeprefix("zh/") if chinese else f"zh/{address}"
    if other not in PAGES:
        return ""
    link = get_relative_url(PAGES[other], page.url)
    lang, name = ("en", "English") if chinese else ("zh", "中文")
    return f'<p class="language"><a href="{link}" lang="{lang}">{name}</a></p>'


def on_page_content(page_html, page, **_):
    """Turn formulas into MathML (one that can't be read stops the build); link."""

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

    page_html = PICTURE.sub(for_both_themes, page_html)
    return other_language(page) + FORMULA.sub(to_mathml, page_html)


def for_both_themes(match):
    """Return a picture with its dark twin: the theme shows the one that fits."""
    image, base = match.group(), match["base"]
    if match["name"] not in TWINS:
        return image
    light = image.replace(f"{base}.png", f"{base}.png#only-light")
    return light + image.replace(f"{base}.png", f"{base}-dark.png#only-dark")
