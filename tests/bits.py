"""Values of any backend as NumPy arrays, to compare bit by bit."""

import numpy as np
from keras import ops


def array(value):
    return np.asarray(ops.convert_to_numpy(value))


def bits(values):
    return [array(value).tobytes() for value in values]


def state(model):
    """The bits of a model's variables and of its optimizer's."""
    return bits(model.variables) + bits(model.optimizer.variables)


def same_bits(ours, theirs):
    """Whether two lists of variables hold the same bits, not only the same numbers."""
    pairs = zip(map(array, ours), map(array, theirs), strict=True)
    return all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        for a, b in pairs
    )
