"""What a callback has counted belongs to the settings it was counted with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["check_settings"]


def check_settings(
    callback: str, state: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Refuse a state that was saved with settings different from the callback's own.

    Args:
        callback: Its name, for the message.
        state: What `get_state` returned, with the settings under `"settings"`.
        own: The settings without which what was counted means something else.

    Raises:
        ValueError: If a setting had another value when the state was saved.
    """
    saved = state.get("settings", {})
    names = [name for name in own if name in saved and saved[name] != own[name]]
    if not names:
        return
    then = ", ".join(f"{name}={saved[name]!r}" for name in names)
    now = ", ".join(f"{name}={own[name]!r}" for name in names)
    raise ValueError(
        f"The state given to {callback} was saved with {then}, but the callback has "
        f"{now}, which would change the meaning of its counts. Set {then} as before "
        "(callbacks of one class also keep their order in the list), or begin a new "
        "run: without `set_state`, and with `ExactResume` in another directory."
    )
