r"""Plots of data and results: plain numbers in, matplotlib `Axes` out.

Every function draws into `ax`, or into a new figure if `ax` is `None`, and returns the
`Axes`. None opens a window, needs a display or writes a file: to save a plot, call
`ax.figure.savefig("name.png")`.

What a plot distinguishes by colour it also distinguishes by marker, line style or
words, so it can be read in greyscale and by colour-blind readers. The colours are those
of Okabe and Ito.

Names in Chinese, Japanese or Korean are drawn with an installed font that has the
characters (such as Noto Sans CJK, WenQuanYi, SimHei, PingFang). If no font has them,
matplotlib draws boxes and warns.
"""

from __future__ import annotations

from fmkit.visualization._confusion import confusion_matrix
from fmkit.visualization._curves import (
    learning_curves,
    learning_rate_curve,
    raw_against_averaged,
)
from fmkit.visualization._images import image_grid
from fmkit.visualization._plane import decision_boundary
from fmkit.visualization._rates import loss_by_learning_rate
from fmkit.visualization._reliability import reliability_diagram
from fmkit.visualization._sweep import sweep

__all__ = [
    "confusion_matrix",
    "decision_boundary",
    "image_grid",
    "learning_curves",
    "learning_rate_curve",
    "loss_by_learning_rate",
    "raw_against_averaged",
    "reliability_diagram",
    "sweep",
]
