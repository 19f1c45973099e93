"""Installed fonts for characters that the default font lacks."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

# Families with Chinese, Japanese and Korean characters that systems ship, the most
# complete first; any other installed font is tried after them.
_CJK_FAMILIES = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "SimHei",
    "Malgun Gothic",
    "Droid Sans Fallback",
    "Arial Unicode MS",
)


def font_for(texts: Iterable[Any]) -> dict[str, Any]:
    """Return the `fontfamily` keyword for texts that the default font can't draw.

    Matplotlib searches the families for each character, so Latin letters stay in the
    default font.
    """
    from matplotlib import font_manager, rcParams

    needed = {c for text in texts for c in str(text) if not c.isspace()}
    family = list(rcParams["font.family"])
    usual = font_manager.findfont(font_manager.FontProperties(family=family))
    missing = needed - _characters(usual)
    if not missing:
        return {}
    for name, path in _installed_fonts():
        found = missing & _characters(path)
        if found:
            family.append(name)
            missing -= found
        if not missing:
            break
    return {"fontfamily": family}


def _installed_fonts() -> list[tuple[str, str]]:
    """Return names and files of upright regular fonts, the likely ones first."""
    from matplotlib import font_manager

    order = {name: place for place, name in enumerate(("DejaVu Sans", *_CJK_FAMILIES))}
    fonts = {
        entry.name: entry.fname
        for entry in font_manager.fontManager.ttflist
        # A "last resort" font has a box for every character there is.
        if entry.style == "normal"
        and "lastresort" not in entry.name.lower().replace(" ", "")
    }
    return sorted(fonts.items(), key=lambda item: (order.get(item[0], 99), item[0]))


@functools.lru_cache(maxsize=512)
def _characters(path: str) -> frozenset[str]:
    from matplotlib import font_manager

    try:
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except (OSError, RuntimeError):  # a damaged or foreign font file
        return frozenset()
