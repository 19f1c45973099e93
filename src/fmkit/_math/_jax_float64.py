"""Float64 on JAX, inside of a program in which JAX has switched it off.

JAX makes no array of float64 unless a flag is set, and the flag is read wherever an
operation is traced: by the cost, but also by the rules that form its gradient, which
JAX applies later. So the gradient is given as a function of its own, which sets the
flag for itself and has a gradient of the same kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

Tensor = Any


def compute(plain: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
    """Return `plain(*arrays)`, computed in float64 and rounded to their dtype.

    Args:
        plain: Computes each element of the result from those of its arguments.
        arrays: Of one dtype and one shape.
    """
    return _rounded(plain)(*arrays) if is_kept() else plain(*arrays)


@functools.cache
def is_kept() -> bool:
    """Whether programs keep float64: on a CPU or GPU, and with JAX 0.7.2 or newer.

    Older ones make float32 of a number beside it, and refuse the program.
    """
    if jax.default_backend() not in ("cpu", "gpu"):
        return False
    probe = jax.jit(_rounded(lambda x: jax.numpy.ones_like(x) * x))
    try:
        probe.lower(jax.ShapeDtypeStruct((2,), "float32"))
    except ValueError as error:
        if "verifier errors" in str(error):
            return False
        raise
    return True


def _rounded(plain: Callable[..., Tensor]) -> Any:
    def value(*arrays: Tensor) -> Tensor:
        with _float64():
            wide = plain(*(each.astype("float64") for each in arrays))
            return wide.astype(arrays[0].dtype)

    def differentiate(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        known = [
            _rounded(_slope(plain, place))(*primals) * tangent
            for place, tangent in enumerate(tangents)
            if not isinstance(tangent, jax.custom_derivatives.SymbolicZero)
        ]
        return function(*primals), sum(known[1:], known[0])

    function = jax.custom_jvp(value)
    function.defjvp(differentiate, symbolic_zeros=True)
    return function


def _slope(plain: Callable[..., Tensor], place: int) -> Callable[..., Tensor]:
    """Return the derivative of `plain` in one of its arguments."""

    def slope(*arrays: Tensor) -> Tensor:
        def along(each: Tensor) -> Tensor:
            return plain(*arrays[:place], each, *arrays[place + 1 :])

        ones = jax.numpy.ones_like(arrays[place])
        return jax.jvp(along, (arrays[place],), (ones,))[1]

    return slope


def _float64() -> Any:
    # Older versions have the flag in another place.
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()
