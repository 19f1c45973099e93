"""One switch for operations that give the same bits each time, on every backend."""

from __future__ import annotations

import os

import keras

__all__ = ["enable_op_determinism"]

_XLA_FLAG = "--xla_gpu_deterministic_ops=true"


def enable_op_determinism() -> None:
    """Let operations give the same bits each time they run on the same inputs.

    Call it at the start of a program, before the first operation, and together with
    `set_random_seed`. It lasts until the process ends. The same machine, library
    versions and number of threads are assumed; it does not affect the order of the
    data.

    - TensorFlow: `tf.config.experimental.enable_op_determinism()`. On CPU and GPU. Also
      `tf.data` runs functions that draw random numbers one after another. An operation
      that has no deterministic form raises an error, and so does one that draws random
      numbers when no seed was set.
    - PyTorch: `torch.use_deterministic_algorithms(True)`, no benchmarking of cuDNN's
      algorithms, and `CUBLAS_WORKSPACE_CONFIG=:4096:8` if that is not set, which takes
      some megabytes of the GPU's memory. An operation without a deterministic form
      raises an error. On a CPU a few operations become serial (accumulating
      `index_put`), and `torch.empty` is filled.
    - JAX: adds `--xla_gpu_deterministic_ops=true` to `XLA_FLAGS`: XLA then neither
      tries out algorithms nor adds in the order in which threads arrive. On a CPU it
      changes nothing.

    What it costs depends on the operations: one that was fast because its order was
    free becomes slower, such as scattered additions (the gradient of indexing) and
    `tf.data` with functions in Python. It was not tested or measured on a GPU.

    Raises:
        RuntimeError: If a GPU is in use already, on JAX or PyTorch: too late.

    Examples:
        >>> import fmkit
        >>> fmkit.enable_op_determinism()  # doctest: +SKIP
        >>> fmkit.set_random_seed(1)
    """
    switches = {"tensorflow": _tensorflow, "torch": _torch, "jax": _jax}
    switches.get(keras.backend.backend(), lambda: None)()


def _tensorflow() -> None:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def _torch() -> None:
    import torch

    if torch.cuda.is_initialized() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        raise _too_late("CUBLAS_WORKSPACE_CONFIG=:4096:8")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _jax() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if _XLA_FLAG in flags.split():
        return
    if _jax_has_devices():
        import jax

        if jax.default_backend() != "cpu":
            raise _too_late(f"XLA_FLAGS={_XLA_FLAG}")
    os.environ["XLA_FLAGS"] = f"{flags} {_XLA_FLAG}".strip()


def _jax_has_devices() -> bool:
    """Whether JAX has looked for devices, and so has read its flags."""
    try:
        from jax._src.xla_bridge import backends_are_initialized
    except ImportError:  # it is private
        return False
    return bool(backends_are_initialized())


def _too_late(setting: str) -> RuntimeError:
    return RuntimeError(
        "`enable_op_determinism` must come before the first operation, but the GPU is "
        "in use already. Call it right after `import fmkit`, or start the program with "
        f"{setting} in its environment."
    )
