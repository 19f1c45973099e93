"""Run the core tests on the versions that people have: `make matrix`.

    python scripts/matrix.py [colab nightly ...] [--backends jax] [--no-record]

builds one virtual environment per corner of tests/constraints/corners.toml, installs
fmkit into it as a user would, and runs the core tests there on each backend. What came
out is kept in docs/compatibility.json, from which `docs/compatibility.md` and its
Chinese page are drawn (scripts/compatibility.py). Corners that were not asked for keep
their rows and dates. An environment is kept, and made again when its recipe changes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from compatibility import record

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "tests" / "constraints"
FOLDER = Path(os.environ.get("MATRIX_DIR") or ROOT / ".matrix")

# What a version of Keras or NumPy could change, and not what it could not.
CORE = (
    *("keras_private", "batches", "optimizers", "commits", "exact_resume", "losses"),
    *("metrics", "schedules", "threshold_stopping_fit", "models", "public_api"),
    "fused_model",
)
# Without these no core test can be collected; `alone` corners get nothing else.
TOOLS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist", "scipy")

PROGRAMS = ("quickstart", "killed")

VERSIONS = """
import importlib.metadata, json, platform
names = ("keras", "keras-nightly", "tensorflow", "jax", "torch", "numpy",
         "keras-tuner", "matplotlib")
found = {"python": platform.python_version()}
for name in names:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Corner:
    """One table of corners.toml."""

    name: str
    title: dict[str, str]
    pythons: list[str]
    constraints: str
    backends: list[str]
    large: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    over: str = ""
    alone: bool = False
    programs: bool = False

    def needs(self, backends: list[str]) -> list[str]:
        """Return what the user has before fmkit comes."""
        if self.alone:
            return ["keras", "numpy", *backends]
        # fmkit brings TensorFlow along wherever there is one.
        more = {"tensorflow", *backends} - set(self.missing)
        # Keras Tuner imports `six`, which TensorFlow brings and it doesn't ask for.
        return ["keras", "keras-tuner", "matplotlib", "numpy", "six", *sorted(more)]

    def tools(self) -> list[str]:
        """Return what the tests need beside fmkit."""
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        extras = tomllib.loads(text)["project"]["optional-dependencies"]
        return [
            need
            for need in extras["test"]
            if not self.alone or need.partition(">")[0] in TOOLS
        ]


def corners() -> dict[str, Corner]:
    """Read corners.toml."""
    text = (PINS / "corners.toml").read_text(encoding="utf-8")
    return {name: Corner(name, **made) for name, made in tomllib.loads(text).items()}


def interpreter(pythons: list[str]) -> str:
    """Return the first of these Pythons that is here and runs."""
    for version in pythons:
        # A name on the path may be a shim that runs nothing.
        for name in (f"python{version}", sys.executable):
            code = "import sys; print('%d.%d' % sys.version_info[:2])"
            path = shutil.which(name)
            if path and output(path, "-c", code, check=False).strip() == version:
                return path
    raise LookupError(f"no python{' or python'.join(pythons)} here")


def output(*command: str | Path, check: bool = True) -> str:
    """Return what a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if check and done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nfailed: {done.stderr[-3000:]}")
    return done.stdout


class Environment:
    """The virtual environment of one corner."""

    def __init__(self, corner: Corner, backends: list[str]):
        self.corner = corner
        self.backends = backends
        self.folder = FOLDER / corner.name
        scripts = "Scripts" if sys.platform == "win32" else "bin"
        self.python = self.folder / scripts / "python"
        self.made: dict[str, object] = {}

    def pip(self, *arguments: str) -> None:
        """Run pip inside."""
        quiet = ["-q", "--disable-pip-version-check"]
        output(self.python, "-m", "pip", *arguments[:1], *quiet, *arguments[1:])

    def recipe(self) -> str:
        """Return all that decides what is inside, fmkit left out."""
        pins = (PINS / self.corner.constraints).read_text(encoding="utf-8")
        inside = [*self.corner.needs(self.backends), *self.corner.tools()]
        return "\n".join([interpreter(self.corner.pythons), pins, *inside])

    def make(self) -> None:
        """Make it, or take the one that is there; put today's fmkit into it."""
        kept = self.folder / "made.json"
        self.made = json.loads(kept.read_text()) if kept.exists() else {}
        if self.made.get("recipe") != self.recipe():
            self.build()
            kept.write_text(json.dumps(self.made))
        self.pip("install", "--no-deps", "--force-reinstall", ".")

    def build(self) -> None:
        """Install what the user has, then fmkit, then the tests' tools."""
        pinned = ["install", "--no-compile", "-c", str(PINS / self.corner.constraints)]
        shutil.rmtree(self.folder, ignore_errors=True)
        began = time.monotonic()
        output(interpreter(self.corner.pythons), "-m", "venv", self.folder)
        self.pip(*pinned, *self.corner.needs(self.backends))
        if self.corner.over:
            self.pip("uninstall", "-y", "keras")
            self.pip("install", "--no-compile", "--no-deps", "--pre", self.corner.over)
        before = self.freeze()
        by_hand = self.corner.alone or self.corner.over
        self.pip("install", *(["--no-deps"] if by_hand else []), ".")
        self.made = {
            "recipe": self.recipe(),
            "changed": changes(before, self.freeze()),
            "seconds": round(time.monotonic() - began),
            "megabytes": size(self.folder),
        }
        self.pip(*pinned, *self.corner.tools())

    def freeze(self) -> list[str]:
        """Return what is installed, one `name==version` each."""
        return output(self.python, "-m", "pip", "freeze", "--all").splitlines()

    def versions(self) -> dict[str, str]:
        """Return which versions are there, by their own metadata."""
        return json.loads(output(self.python, "-c", VERSIONS))

    def run(self, backend: str, log: str, *command: str) -> int:
        """Run Python inside on one backend; what it prints goes into a log."""
        settings = {"KERAS_BACKEND": backend, "MPLBACKEND": "Agg"}
        with (self.folder / f"{backend}-{log}.log").open("wb") as file:
            return subprocess.run(
                [self.python, *command],
                cwd=ROOT,
                env=os.environ | settings,
                stdout=file,
                stderr=subprocess.STDOUT,
            ).returncode

    def test(self, backend: str, jobs: int, core: list[str]) -> dict[str, int]:
        """Run test files on one backend; return how many tests passed and failed.

        The whole core includes what is slow on this backend, a part of it does not.
        """
        marks = "not long" if core == CORE else "not long and not slow"
        report = self.folder / f"{backend}.xml"
        report.unlink(missing_ok=True)
        options = ["-q", "-n", str(jobs), "-m", marks, f"--junitxml={report}"]
        options += ["-p", "no:cacheprovider"]
        files = [f"tests/test_{name}.py" for name in core]
        code = self.run(backend, "tests", "-m", "pytest", *options, *files)
        if not report.exists():
            return {"passed": 0, "failed": 1, "skipped": 0}
        found = counts(report)
        # pytest's own trouble, such as a file that can't be collected, is a failure.
        return found if code in (0, 1) else {**found, "failed": found["failed"] + 1}

    def programs(self, backend: str) -> dict[str, bool]:
        """Run the quickstart, and a training that is killed once."""
        kill = ("tests/chaos/lab.py", "--kills", "1")
        return {
            "quickstart": not self.run(backend, "quickstart", "examples/quickstart.py"),
            "killed": not self.run(backend, "killed", *kill),
        }


def changes(before: list[str], after: list[str]) -> list[str]:
    """Return what an installation took away or replaced."""
    return sorted(set(before) - set(after))


def size(folder: Path) -> int:
    """Return a folder's size in megabytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return round(sum(path.stat(follow_symlinks=False).st_size for path in files) / 1e6)


def counts(report: Path) -> dict[str, int]:
    """Return how many tests passed, failed and were skipped, from pytest's XML."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    total = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for name in total:
            total[name] += int(suite.get(name, 0))
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - failed - total["skipped"]
    return {"passed": passed, "failed": failed, "skipped": total["skipped"]}


def stamp() -> dict[str, str]:
    """Return the day and the commit; a `+` says that files differ from it."""
    commit = output("git", "rev-parse", "--short", "HEAD").strip()
    dirty = output(
        "git", "status", "--porcelain", "--untracked-files=no", "src", "tests"
    )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "commit": commit + "+" * bool(dirty.strip())}


def reasons(corner: Corner, wanted: list[str], large: bool) -> dict[str, dict]:
    """Return why this machine can't try some of a corner's backends, if so."""
    try:
        interpreter(corner.pythons)
    except LookupError as error:
        here = {"en": str(error), "zh": f"本机没有 Python {corner.pythons[0]}"}
        return dict.fromkeys(wanted, here)
    small = large or sys.platform != "linux"
    unable = {**({} if small else corner.large), **corner.missing}
    return {name: why for name, why in unable.items() if name in wanted}


def try_corner(corner: Corner, asked: argparse.Namespace) -> list[dict]:
    """Return one row per backend of a corner."""
    wanted = [name for name in corner.backends if name in asked.backends]
    unable = reasons(corner, wanted, asked.large)
    rows = [{"backend": name, "reason": why, **stamp()} for name, why in unable.items()]
    taken = [name for name in wanted if name not in unable]
    if not taken:
        return rows
    environment = Environment(corner, taken)
    environment.make()
    facts = {key: environment.made[key] for key in ("changed", "seconds", "megabytes")}
    facts |= {"versions": environment.versions(), **stamp()}
    for backend in taken:
        found = environment.test(backend, asked.jobs, asked.core)
        row = {"backend": backend, **facts, **found}
        if corner.programs and asked.core == CORE:
            row |= environment.programs(backend)
        rows.append(row)
    return rows


def say(row: dict) -> str:
    """Return a row in words, for the terminal."""
    if "reason" in row:
        return f"not available: {row['reason']['en']}"
    parts = [f"{row[key]} {key}" for key in ("passed", "failed", "skipped")]
    parts += [f"{k} {'ran' if row[k] else 'FAILED'}" for k in PROGRAMS if k in row]
    if row["changed"]:
        parts.append(f"installing fmkit CHANGED {', '.join(row['changed'])}")
    return ", ".join(parts)


def bad(row: dict) -> bool:
    """Whether a row that was tried is not as it must be."""
    if "reason" in row:
        return False
    stopped = not all(row.get(name, True) for name in PROGRAMS)
    return bool(row["failed"] or not row["passed"] or row["changed"] or stopped)


def main() -> None:
    """Try the corners that were asked for, and record them."""
    known = corners()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corners", nargs="*", help=f"of {', '.join(known)}")
    parser.add_argument("--backends", nargs="*", default=["tensorflow", "jax", "torch"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--large", action="store_true", help="install CUDA builds too")
    parser.add_argument("--no-record", action="store_true", help="only print")
    parser.add_argument(
        "--core", nargs="+", default=CORE, help="fewer files, no slow test, no program"
    )
    asked = parser.parse_args()
    if asked.core != CORE and not asked.no_record:
        raise SystemExit("A row of the table has all core tests: add --no-record.")
    if unknown := set(asked.corners) - set(known):
        raise SystemExit(f"There is no corner {sorted(unknown)}; there are {[*known]}.")
    failed = []
    for name in asked.corners or known:
        began = time.monotonic()
        print(f"== {name}", flush=True)
        rows = try_corner(known[name], asked)
        for row in rows:
            print(f"   {row['backend']}: {say(row)}", flush=True)
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
        failed += [f"{name} on {row['backend']}" for row in rows if bad(row)]
        if not asked.no_record:
            record(name, {name: c.title for name, c in known.items()}, rows)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}. The logs are in {FOLDER}.")


if __name__ == "__main__":
    main()
