r"""The tutorials' networks, as plain, uncompiled Keras models.

Every factory returns an ordinary `keras.Model` that outputs logits, so that the loss
can be computed from them exactly; `output_activation` adds a softmax or a sigmoid.
Images can be passed as they are: `mlp` flattens them, the convolutional networks add
the channel axis.

Arguments that the factories share:

- `input_shape`: Shape of one example, without the batch axis. For the
  convolutional networks `(height, width)`, or with a channel axis where the
  data format has it.
- `activation`: Name or function; `None` or `"linear"` for none.
- `kernel_initializer`, `bias_initializer`: A Keras name (`"he_normal"`), a name
  with its arguments (`("truncated_normal", {"stddev": 0.1})`), a number for a
  constant, or an initializer object.
- `l1`, `l2`: Penalty on the weights, never on the biases: a layer with weights
  $w$ adds $\lambda_1 \sum |w| + \lambda_2 \sum w^2$ to the loss.
- `half_l2`: Count the square as TensorFlow 1's `l2_regularizer` does, which is
  $\lambda_2 \sum w^2 / 2$.
- `seed`: Fixes the initial weights and the dropout masks (on one backend: each backend
  has its own generator). Every layer derives its own seed from it. Without it they
  follow `fmkit.set_random_seed`. An initializer object with a seed keeps it.
"""

from __future__ import annotations

from fmkit.models._convolutional import simple_cnn, small_resnet
from fmkit.models._dense import linear, mlp
from fmkit.models._lenet import lenet5, scaled_tanh
from fmkit.models._outputs import check_outputs

__all__ = [
    "check_outputs",
    "lenet5",
    "linear",
    "mlp",
    "scaled_tanh",
    "simple_cnn",
    "small_resnet",
]
