"""The one place where fmkit touches what Keras keeps private.

`docs/architecture.md` has the table: each private thing, why nothing public does, what
breaks without it, which test says so. Tried on the releases in `CHECKED_ON`;
`tests/test_keras_private.py` fails with the name of the missing piece when another
version moves it, and `tests/test_fence.py` finds private names anywhere else.
"""

from fmkit._keras_private._adapter import (
    DataSource,
    Feed,
    Request,
    add_requests,
    executions,
    stacks_batches,
)
from fmkit._keras_private._batches import (
    add_to_steps_seen,
    epoch_counter,
    forget_read_ahead,
    gather_arrays,
    is_used_up,
    kind_of_data,
    peeked,
    reads_on_device,
    replicas,
    symbolic_batch,
    watch,
    wrap_batches,
)
from fmkit._keras_private._callback_list import (
    around_epoch_end,
    around_steps,
    bind_hook,
    model_of,
    put_back,
    put_first,
    put_last,
    remove_later,
    take_out,
)
from fmkit._keras_private._callbacks import (
    CALLBACK_ATTRIBUTES,
    STATELESS_CALLBACKS,
    attribute_of_callback,
)
from fmkit._keras_private._calls import (
    FitCall,
    initial_epoch,
    running_fit,
    set_initial_epoch,
)
from fmkit._keras_private._frames import is_in_fit, is_running
from fmkit._keras_private._global_state import (
    forget_global_seed,
    global_seed_variable,
    print_msg,
)
from fmkit._keras_private._model import (
    all_layers,
    attributes_of_every_layer,
    build_variables,
    compile_arguments,
    divides_activity_losses,
    is_activated,
    is_masked,
    marks_masks,
    metric_directions,
    synchronize,
    train_step_replaced,
)
from fmkit._keras_private._optimizer import (
    count_of_schedules,
    in_stateless_scope,
    move_arrays,
    rate_of_last_step,
    trainable_variables,
)
from fmkit._keras_private._pieces import (
    CHECKED_ON,
    PIECES,
    MissingPieceError,
    missing_pieces,
)
from fmkit._keras_private._seeds import generators_made_by
from fmkit._keras_private._tensorboard import begin_event_files, event_files
from fmkit._keras_private._tensorflow import (
    is_seeded,
    stateful_operations,
    tensor_interface,
    tensorflow_unloaded,
    ways_through,
)
from fmkit._keras_private._tuner import restore_grid

__all__ = [
    "CALLBACK_ATTRIBUTES",
    "CHECKED_ON",
    "PIECES",
    "STATELESS_CALLBACKS",
    "DataSource",
    "Feed",
    "FitCall",
    "MissingPieceError",
    "Request",
    "add_requests",
    "add_to_steps_seen",
    "all_layers",
    "around_epoch_end",
    "around_steps",
    "attribute_of_callback",
    "attributes_of_every_layer",
    "begin_event_files",
    "bind_hook",
    "build_variables",
    "compile_arguments",
    "count_of_schedules",
    "divides_activity_losses",
    "epoch_counter",
    "event_files",
    "executions",
    "forget_global_seed",
    "forget_read_ahead",
    "gather_arrays",
    "generators_made_by",
    "global_seed_variable",
    "in_stateless_scope",
    "initial_epoch",
    "is_activated",
    "is_in_fit",
    "is_masked",
    "is_running",
    "is_seeded",
    "is_used_up",
    "kind_of_data",
    "marks_masks",
    "metric_directions",
    "missing_pieces",
    "model_of",
    "move_arrays",
    "peeked",
    "print_msg",
    "put_back",
    "put_first",
    "put_last",
    "rate_of_last_step",
    "reads_on_device",
    "remove_later",
    "replicas",
    "restore_grid",
    "running_fit",
    "set_initial_epoch",
    "stacks_batches",
    "stateful_operations",
    "symbolic_batch",
    "synchronize",
    "take_out",
    "tensor_interface",
    "tensorflow_unloaded",
    "train_step_replaced",
    "trainable_variables",
    "watch",
    "ways_through",
    "wrap_batches",
]
