r"""Pictures of data and results: plain numbers in, matplotlib `Axes` out.

Every function draws into `ax`, or makes a figure of its own where `ax` is `None`,
and returns the `Axes`. None shows a window or writes a file: that is
`ax.figure.savefig("name.png")`. None needs a display.

What a picture tells apart by colour it also tells apart by marker, line style or
words, so that it can be read in greyscale and by colour-blind readers. The colours
are those of Okabe and Ito.

Names in Chinese, Japanese or Korean are drawn with an installed font that has the
characters (such as Noto Sans CJK, WenQuanYi, SimHei, PingFang). Where no font has
them, matplotlib draws boxes and warns.
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
from fmkit.visualization._sweep import sweep

__all__ = [
    "confusion_matrix",
    "decision_boundary",
    "image_grid",
    "learning_curves",
    "learning_rate_curve",
    "raw_against_averaged",
    "sweep",
]
