"""`keep_compiled_programs`: what XLA compiled, for the next start."""

from __future__ import annotations

import os

import keras

__all__ = ["keep_compiled_programs"]


def keep_compiled_programs(directory: str | os.PathLike[str]) -> None:
    """Keep in a folder what JAX compiles, so that the next start need not.

    Call it before the model is made: its first weights are drawn by compiled
    programs too. It holds for the whole process. The programs are the same as without
    it, and so are the bits.

    Args:
        directory: The folder; it is made if it isn't there. What is read from it is
            run, so nobody else may be able to write to it. A process that trains
            beside this one needs a folder of its own.

    Raises:
        NotImplementedError: If Keras's backend is not JAX.

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

    jax.config.update("jax_compilation_cache_dir", os.fspath(directory))
    # Left to itself it keeps what took more than a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
