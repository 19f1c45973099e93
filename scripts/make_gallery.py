"""Run the examples at full size; write their figures, tables and `docs/gallery.md`.

    python scripts/make_gallery.py            # those that changed since their figures
    python scripts/make_gallery.py NAME ...   # these
    python scripts/make_gallery.py --all      # all of them: minutes
    python scripts/make_gallery.py --check    # run nothing, say what is out of date

Each example runs in a folder of its own, as a user would run it. What it draws, for
light pages and for dark ones, is stored smaller under `docs/figures/gallery`, and what
it prints in `manifest.json` there, with the SHA-256 of the program and of each picture:
so a program that is newer than its figure is found, and a figure that did not come from
this command.
"""

import argparse
import ast
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 100_000  # bytes of a picture
# The quickstart first, then tutorial by tutorial; what isn't named here comes last.
ORDER = ("quickstart", "tf2", "tf1", "paddle", "keras")
# What the tutorial's own length takes, where the program's default is shorter.
ARGUMENTS = {
    "tf1_mnist_ema": ["--steps", "10000"],
    "tf2_gradient_tape": ["--epochs", "20"],
}
HEAD = """\
# Gallery

Every program in `examples/`, run at its full size: what it drew and what it printed.
Fashion-MNIST was the full set, MNIST the 6,000 and 1,000 real digits in the package.
None needs a network. Each saves its figure and its table in `outputs/`, takes the full
data set where it is on the machine, and falls back to the sample in the package.
[From the tutorials](guides/tutorials.md) lists which part of which tutorial is where.
`notebooks/` has the tutorials' programs as notebooks, which [open in
Colab](getting-started.md) too.

`make gallery` writes this page, its figures and its tables; a test fails if a program
is newer than its figure.
"""


def digest(content: bytes) -> str:
    """Return the SHA-256 of a text or picture, whatever its line ends are."""
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


class Gallery:
    """The examples of one checkout, and what is stored about them."""

    def __init__(self, root: Path = ROOT):
        self.root = root
        self.figures = root / "docs" / "figures" / "gallery"
        self.page = root / "docs" / "gallery.md"
        self.manifest = self.figures / "manifest.json"

    def examples(self) -> list[Path]:
        """Return the programs in the order of the page."""

        def place(path: Path) -> tuple[int, str]:
            first = path.stem.split("_")[0]
            return ORDER.index(first) if first in ORDER else len(ORDER), path.stem

        return sorted((self.root / "examples").glob("*.py"), key=place)

    def entries(self) -> dict[str, dict]:
        """Return what is stored, by the name of the example."""
        if not self.manifest.exists():
            return {}
        return json.loads(self.manifest.read_text(encoding="utf-8"))

    def outdated(self) -> dict[str, str]:
        """Return the examples whose figures don't belong to them, and why not."""
        found, entries = {}, self.entries()
        for path in self.examples():
            entry = entries.pop(path.stem, None)
            if entry is None:
                found[path.stem] = "has no figure yet"
            elif entry["program"] != digest(path.read_bytes()):
                found[path.stem] = "is newer than its figure"
            elif entry.get("arguments", []) != ARGUMENTS.get(path.stem, []):
                found[path.stem] = "has a figure of another length"
            elif not all(self._unchanged(*item) for item in entry["figures"].items()):
                found[path.stem] = "has a figure that this command did not make"
        found |= dict.fromkeys(entries, "has a figure and no program")
        return found

    def _unchanged(self, name: str, sha256: str) -> bool:
        path = self.figures / name
        return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256

    def make(self, names: list[str]) -> None:
        """Run the named examples and store what came out."""
        self.figures.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = self.root / "examples" / f"{name}.py"
            entry = None
            if path.exists():
                print(f"{name} ...", flush=True)
                entry = self._run(path)
            entries = self.entries()
            kept = entry["figures"] if entry else {}
            for figure in entries.pop(name, {}).get("figures", ()):
                if figure not in kept:
                    (self.figures / figure).unlink(missing_ok=True)
            if entry:
                entries[name] = entry
            text = json.dumps(dict(sorted(entries.items())), indent=1)
            self.manifest.write_text(text + "\n", encoding="utf-8")

    def _run(self, path: Path) -> dict:
        """Run one example as a user does; return its entry in the manifest."""
        program = digest(path.read_bytes())
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            printed = run_program(path, folder, self.root)
            seconds = round(time.perf_counter() - begin)
            output = Path(folder) / "outputs"
            figures = {}
            for picture in sorted(output.glob("*.png")):
                same = picture.stem in (path.stem, f"{path.stem}-dark")
                name = picture.name if same else f"{path.stem}-{picture.name}"
                (self.figures / name).write_bytes(small_png(picture))
                content = (self.figures / name).read_bytes()
                figures[name] = hashlib.sha256(content).hexdigest()
            lines = table_in(output, path.stem) or last_paragraph(printed, folder)
        print(f"{path.stem}: {seconds} s, {len(figures)} figures", flush=True)
        return {
            "program": program,
            "arguments": ARGUMENTS.get(path.stem, []),
            "figures": figures,
            "seconds": seconds,
            "printed": lines,
        }

    def text(self) -> str:
        """Return the page, from the programs and what is stored of their runs."""
        entries, parts = self.entries(), [HEAD]
        for path in self.examples():
            if path.stem not in entries:
                continue
            entry, sentence = entries[path.stem], first_sentence(path)
            light = [f for f in entry["figures"] if not f.endswith("-dark.png")]
            pictures = [f"![{sentence}](figures/gallery/{f})" for f in light]
            given = ARGUMENTS.get(path.stem, [])
            command = " ".join(["python", f"examples/{path.name}", *given])
            parts += [
                f"## {path.stem}\n",
                f"{sentence}\n",
                f"```bash\n{command}\n```\n",
                *(f"{picture}\n" for picture in pictures),
                "\n".join(entry["printed"]) + "\n",
            ]
        return "\n".join(parts)


def first_sentence(path: Path) -> str:
    """Return the first paragraph of a program's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def run_program(path: Path, folder: str, root: Path) -> str:
    """Run a program in `folder`; return what it printed."""
    setting = {
        "PYTHONPATH": os.pathsep.join([str(root / "src"), str(ROOT / "scripts")]),
        "MPLBACKEND": "module://both_themes",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": os.environ.get("KERAS_BACKEND", "tensorflow"),
    }
    done = subprocess.run(
        [sys.executable, str(path), *ARGUMENTS.get(path.stem, [])],
        cwd=folder,
        env=os.environ | setting,
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise SystemExit(f"{path.name} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def table_in(output: Path, name: str) -> list[str]:
    """Return the table that a program saved, Markdown or CSV, as lines of Markdown."""
    if (path := output / f"{name}.md").exists():
        return path.read_text(encoding="utf-8").splitlines()
    if (path := output / f"{name}.csv").exists():
        head, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        cells = [head, ["---"] * len(head), *rows]
        return [f"| {' | '.join(row)} |" for row in cells]
    return []


def last_paragraph(printed: str, folder: str) -> list[str]:
    """Return what a program without a table printed last, but for paths of here."""
    lines = printed.strip().split("\n\n")[-1].splitlines()
    return ["```text", *(line for line in lines if folder not in line), "```"]


def small_png(picture: Path) -> bytes:
    """Return the picture in at most 64 colours, narrower where it is too large."""
    with Image.open(picture) as drawn:
        image = drawn.convert("RGB")
    while True:
        stream = io.BytesIO()
        reduced = image.quantize(64, dither=Image.Dither.NONE)
        reduced.save(stream, "PNG", optimize=True)
        if stream.tell() < LARGEST:
            return stream.getvalue()
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5))


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="examples to run, without .py")
    parser.add_argument("--all", action="store_true", help="run every example")
    parser.add_argument("--check", action="store_true", help="run none")
    options = parser.parse_args()
    gallery = Gallery()
    if not options.check:
        every = [path.stem for path in gallery.examples()]
        names = every if options.all else options.names or list(gallery.outdated())
        if unknown := set(options.names) - set(every):
            parser.error(f"no such example: {sorted(unknown)}; there are {every}")
        gallery.make(names)
        gallery.page.write_text(gallery.text(), encoding="utf-8")
    wrong = gallery.outdated()
    for name, reason in wrong.items():
        print(f"{name} {reason}: run `make gallery`.")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
