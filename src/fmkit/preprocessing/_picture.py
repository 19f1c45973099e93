"""`read_image`: a picture of one's own, as MNIST's pictures of digits are made.

LeCun, Cortes and Burges (1998, http://yann.lecun.com/exdb/mnist/) say how: each digit
was scaled to fit into 20 by 20 pixels, its proportions kept, which made it grey at the
edges; then put into 28 by 28 so that its centre of mass is in the middle.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

from fmkit._requirements import require

__all__ = ["read_image"]

_SIDE, _BOX = 28, 20
# Those of pictures. Pillow would give PostScript to a program that executes it.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
# Of the strongest stroke: what is fainter is paper.
_FAINT = 0.15
# Grey levels, of 255, that a stroke must differ from the paper.
_LEAST_CONTRAST = 16


def read_image(source: str | os.PathLike[str] | np.ndarray) -> np.ndarray:
    """Return a drawn digit as a picture like MNIST's: light on dark, centred.

    The paper is what most of the picture's border shows; whatever differs from it is
    taken for the drawing. Colours become grey, and what is transparent is white. The
    drawing is scaled to 20 pixels on its longer side and moved so that its centre of
    mass is in the middle, as far as it then stays inside.

    Args:
        source: A file (PNG, JPEG, GIF, BMP, TIFF, WebP or PPM), or an array `(height,
            width)`, or with a last axis of 1, 3 or 4 channels: uint8, boolean, or
            floats from 0 to 1.

    Returns:
        uint8 `(28, 28)`: 0 is paper, 255 the strongest stroke.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, a damaged one, larger than Pillow takes for
            safe, or shows nothing; if an array has another shape, type or range.
        ModuleNotFoundError: If Pillow is not installed.

    Examples:
        >>> drawing = np.full((90, 60), 255, "uint8")  # a 1, black on white
        >>> drawing[10:80, 25:35] = 0
        >>> picture = read_image(drawing)
        >>> picture.shape, picture[14, 14], picture[14, 4]
        ((28, 28), np.uint8(255), np.uint8(0))
    """
    images = require("PIL.Image", "read_image")
    if isinstance(source, np.ndarray):
        grey = _grey(images.fromarray(_bytes(source)))
    else:
        grey = _grey_of_file(images, source)
    strokes = _strokes(np.asarray(grey, np.float64))
    rows, columns = (np.flatnonzero(strokes.any(axis=axis)) for axis in (1, 0))
    found = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = _BOX / max(found.shape)
    height, width = (max(1, round(side * scale)) for side in found.shape)
    ways = images.Resampling
    small = images.fromarray(found.astype(np.float32)).resize(
        (width, height), ways.BILINEAR if scale < 1 else ways.BICUBIC
    )
    values = np.clip(np.asarray(small), 0, None)
    values = np.rint(values / values.max() * 255).astype(np.uint8)
    return _centred(values)


def _bytes(array: np.ndarray) -> np.ndarray:
    """Return an array as Pillow takes it."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise ValueError(
            "A picture is an array (height, width), or with a last axis of 1, 3 or 4 "
            f"channels; got the shape {array.shape}. Give one picture, such as "
            "images[0]."
        )
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                "A picture of floats has values from 0 to 1, none of them NaN; got "
                f"{array.min()} to {array.max()}. Divide it by its largest value, or "
                "pass uint8."
            )
        array = np.rint(array * 255)
    elif array.dtype == bool:
        array = array * 255
    elif array.dtype != np.uint8:
        raise ValueError(
            f"A picture is uint8, boolean or float, got {array.dtype}. Type: "
            'array.astype("uint8"), if its values are 0 to 255.'
        )
    array = array.astype(np.uint8)
    return array[:, :, 0] if channels == 1 and array.ndim == 3 else array


def _grey_of_file(images: Any, path: str | os.PathLike[str]) -> Any:
    name = os.fspath(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns of more pixels than MAX_IMAGE_PIXELS, and refuses twice them.
            warnings.simplefilter("error", images.DecompressionBombWarning)
            with images.open(path, formats=_FORMATS) as image:
                return _grey(image)
    except FileNotFoundError:
        raise
    except (images.DecompressionBombWarning, images.DecompressionBombError) as error:
        raise ValueError(
            f"{name} has more pixels than Pillow takes for safe ({error}). Make it "
            "smaller."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{name} is no picture that Pillow can read, or a damaged one ({error}). "
            "Save it again as PNG."
        ) from None


def _grey(image: Any) -> Any:
    """Return a picture in grey, what is transparent over white."""
    if image.mode in ("I;16", "I;16B", "I"):
        values = np.asarray(image, np.float64)
        return np.rint(values / max(values.max(), 1) * 255)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = image.copy()
        paper.paste((255, 255, 255, 255), (0, 0, *image.size))
        paper.alpha_composite(image)
        image = paper
    return image.convert("L")


def _strokes(grey: np.ndarray) -> np.ndarray:
    """Return how much each pixel differs from the paper, of what differs most."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    strokes = np.abs(grey - np.median(border))
    most = strokes.max()
    if most < _LEAST_CONTRAST:
        raise ValueError(
            "The picture shows nothing: its pixels differ by less than "
            f"{_LEAST_CONTRAST} of 255 from its border. Draw with a thicker pen, or "
            "cut the picture out closer."
        )
    strokes /= most
    strokes[strokes < _FAINT] = 0
    return strokes


def _centred(values: np.ndarray) -> np.ndarray:
    """Return a small picture in a large one, its centre of mass in the middle."""
    found = np.zeros((_SIDE, _SIDE), np.uint8)
    corner = []
    for axis in (0, 1):
        mass = values.sum(axis=1 - axis, dtype=np.float64)
        # Pixels are counted from 0: the mean of each of MNIST's digits is 14, rounded.
        centre = (mass * np.arange(len(mass))).sum() / mass.sum()
        first = round(_SIDE / 2 - centre)
        corner.append(min(max(first, 0), _SIDE - len(mass)))
    top, left = corner
    found[top : top + values.shape[0], left : left + values.shape[1]] = values
    return found
