"""`keep_compiled_programs`: what XLA compiled, for the next start."""

from __future__ import annotations

import os
from typing import Any

import keras

__all__ = ["folder_of_programs", "keep_compiled_programs"]


def keep_compiled_programs(directory: str | os.PathLike[str]) -> None:
    """Keep in a folder what JAX compiles, so that the next start need not.

    Call it before the model is made: its first weights are drawn by compiled
    programs too. It holds for the whole process, or until it is called with another
    folder. The programs are the same as without it, and so are the bits.

    Args:
        directory: The folder; it is made if it isn't there. What is read from it is
            run, so nobody else may be able to write to it. A process that trains
            beside this one needs a folder of its own.

    Raises:
        NotImplementedError: If Keras's backend is not JAX.
        RuntimeError: If another folder is in use, and this JAX can't leave it.

    Examples:
        >>> import keras, tempfile
        >>> if keras.backend.backend() == "jax":
        ...     keep_compiled_programs(tempfile.mkdtemp())
    """
    backend = keras.backend.backend()
    if backend != "jax":
        raise NotImplementedError(
            f"JAX can keep what it compiled, and Keras's backend {backend!r} can't. "
            "Leave out `keep_compiled_programs`, or set KERAS_BACKEND=jax."
        )
    import jax

    folder, before = os.fsdecode(directory), folder_of_programs()
    if "://" not in folder:  # such as gs://bucket, which JAX takes too
        folder = os.path.abspath(folder)
    reset = _reset_of_jax()
    if reset is None and before not in (None, folder):
        raise RuntimeError(
            f"This JAX keeps its programs in {before!r} until the process ends; got "
            f"{folder!r}. Call `keep_compiled_programs` once, before anything else."
        )
    jax.config.update("jax_compilation_cache_dir", folder)
    # Left to itself it keeps what took more than a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if reset is not None and before != folder:
        reset()


def folder_of_programs() -> str | None:
    """Return the folder in which JAX keeps what it compiles; `None` if in none."""
    import jax

    folder: str | None = jax.config.jax_compilation_cache_dir
    return folder


def _reset_of_jax() -> Any:
    """Return what lets JAX look for its folder anew; `None` if it has nothing.

    It looks once in a process, when it compiles its first program.
    """
    try:
        from jax.experimental.compilation_cache import compilation_cache
    except ImportError:
        return None
    return getattr(compilation_cache, "reset_cache", None)
