"""A computation of PyTorch's as a graph of plain operations."""

from fmkit.performance._graph._nodes import UntraceableError
from fmkit.performance._graph._trace import Graph

__all__ = ["Graph", "UntraceableError"]
