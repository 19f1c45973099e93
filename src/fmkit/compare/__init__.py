"""Where two runs part: `python -m fmkit.compare A B`, or `compare_runs(a, b)`."""

from fmkit.compare._runs import Comparison, compare_runs

__all__ = ["Comparison", "compare_runs"]
