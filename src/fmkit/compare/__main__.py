"""Find where two runs part, from the command line: `python -m fmkit.compare A B`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fmkit.compare import compare_runs

_DESCRIPTION = """\
Find the first step, and in it the first variable, in which two runs differ. A and B are
either directories of fmkit's ExactResume or files of its Fingerprint.
"""

_EPILOG = """\
exit status:
  0  nothing differs at the steps that both runs have
  1  something differs
  2  A or B can't be read, or they have no step in common
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fmkit.compare",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", type=Path, metavar="A", help="one run")
    parser.add_argument("b", type=Path, metavar="B", help="the other one")
    options = parser.parse_args(arguments)
    try:
        found = compare_runs(options.a, options.b)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    sys.stdout.write(f"{found}\n")
    return 0 if found.equal else 1


if __name__ == "__main__":
    sys.exit(main())
