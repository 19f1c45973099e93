"""fmkit's benchmarks: `python -m benchmarks` measures, compares and prints ratios."""
