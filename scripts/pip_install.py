"""Run `pip install`; where the reason of a failure is a known one, say it in one line.

The Makefile passes what is to be installed, and what the user typed:

    .venv/bin/python scripts/pip_install.py "make quickstart" -e .

Of what pip prints nothing is lost: it is shown whole unless its reason is known, and it
is always in `pip.log` in the virtual environment.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
# The first import compiles what it needs; pip would compile all, twice as much.
LATER = [] if sys.dont_write_bytecode else ["--no-compile"]
NO_NETWORK = (
    r"Failed to establish a new connection|NameResolutionError|ConnectTimeoutError"
    r"|ProxyError|Network is unreachable"
)
NO_COMPILER = (
    r"[Uu]nable to find a compiler|command '\S*(gcc|cc|clang|g\+\+)\S*' failed"
    r"|Microsoft Visual C\+\+ .* is required"
    r"|No such file or directory: '(gcc|cc|g\+\+)'"
)
REASONS = {
    NO_NETWORK: (
        "pip can't reach its package index: there is no network, or a proxy that pip "
        "doesn't know. When there is one, type: {typed}"
    ),
    r"No space left on device": (
        "The disk is full: the packages take some 3 GB. Make room, and type: {typed}"
    ),
    NO_COMPILER: (
        "A package has no wheel for this Python, and to build it there is no compiler. "
        "Type: make clean && {typed} PYTHON=python3.12"
    ),
}


def reason(printed: str, typed: str) -> str | None:
    """Return one line that says why pip failed, if that is known."""
    found = (line for sign, line in REASONS.items() if re.search(sign, printed))
    line = next(found, None)
    return line and line.format(typed=typed)


def main(typed: str, *what: str) -> int:
    """Install; return the status to exit with."""
    # pip's own five retries, for each package, are two minutes without a network.
    env = {"PIP_RETRIES": "2"} | os.environ
    done = subprocess.run(
        [*PIP, *LATER, *what], stderr=subprocess.PIPE, text=True, env=env
    )
    if done.stderr:
        log = Path(sys.prefix, "pip.log")
        log.write_text(done.stderr, encoding="utf-8")
    if not done.returncode:
        sys.stderr.write(done.stderr)
        return 0
    known = reason(done.stderr, typed)
    sys.stderr.write(f"{known} (pip's words: {log})\n" if known else done.stderr)
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
