"""A backend of matplotlib that draws every PNG twice: for light pages and for dark.

    MPLBACKEND=module://both_themes PYTHONPATH=scripts python docs/figures/losses.py

Beside `name.png` comes `name-dark.png`: the same figure on the paper of the site's dark
theme. White and black change places, and dark colours become lighter, as their hue
stays. Pictures inside a figure, and what a colour map has coloured, stay as they are.
"""

import colorsys
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

PAPER = "#1e2129"  # of the theme `slate` of mkdocs-material
INK = "#e2e4e9"
# Of a line or an area on that paper; lighter ones are legible as they are.
LEAST_LIGHTNESS = 0.58
# What has colours, and the names of its properties.
COLOURED = {
    Text: ("color",),
    Patch: ("facecolor", "edgecolor"),
    Line2D: ("color", "markerfacecolor", "markeredgecolor"),
    Collection: ("facecolor", "edgecolor"),
}


def dark_name(path: str | Path) -> Path:
    """Return the name of the dark picture beside a light one."""
    path = Path(path)
    return path.with_name(f"{path.stem}-dark{path.suffix}")


def dark(colour: Any) -> tuple[float, ...]:
    """Return a colour for dark paper: grey from INK to PAPER, others no darker."""
    red, green, blue, alpha = colors.to_rgba(colour)
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if max(red, green, blue) - min(red, green, blue) < 0.05:
        ink, paper = (np.array(colors.to_rgb(each)) for each in (INK, PAPER))
        return (*(ink + lightness * (paper - ink)), alpha)
    lighter = max(lightness, LEAST_LIGHTNESS)
    return (*colorsys.hls_to_rgb(hue, lighter, saturation), alpha)


def recoloured(value: Any) -> Any:
    """Return the dark form of what a property holds: a colour, several, or a word."""
    if isinstance(value, str) and value in ("none", "auto", "face"):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 2:
        return [dark(each) for each in value]
    return dark(value)


def parts(figure: Figure) -> Iterator[Any]:
    """Yield all that a figure draws, and the boxes of its texts."""
    for artist in figure.findobj():
        yield artist
        if isinstance(artist, Text) and artist.get_bbox_patch() is not None:
            yield artist.get_bbox_patch()


def properties(artist: Any) -> tuple[str, ...]:
    """Return the names of an artist's colours; none of what a colour map coloured."""
    if isinstance(artist, Collection) and artist.get_array() is not None:
        return ()
    return next((COLOURED[kind] for kind in COLOURED if isinstance(artist, kind)), ())


@contextlib.contextmanager
def in_the_dark(figure: Figure) -> Iterator[None]:
    """Give a figure the colours for dark paper, and then its own ones back."""
    # All are read before any is changed: some follow another, such as a mark its line.
    old = [
        (artist, name, getattr(artist, f"get_{name}")())
        for artist in parts(figure)
        for name in properties(artist)
    ]
    for artist, name, colour in old:
        getattr(artist, f"set_{name}")(recoloured(colour))
    try:
        yield
    finally:
        for artist, name, colour in old:
            getattr(artist, f"set_{name}")(colour)


class FigureCanvas(FigureCanvasAgg):
    """Saves a PNG and its dark twin."""

    def print_png(self, filename_or_obj: Any, **options: Any) -> None:
        """Write both; only the light one if it goes to no file."""
        # matplotlib passes to other backends what a PNG has no use for.
        own = {key: options.get(key) for key in ("metadata", "pil_kwargs")}
        super().print_png(filename_or_obj, **own)
        if isinstance(filename_or_obj, str | Path):
            with in_the_dark(self.figure):
                super().print_png(dark_name(filename_or_obj), **own)
