"""Schedules against TensorFlow 1 in float64, Python's integers and hand arithmetic."""

import functools
import math
import re
from fractions import Fraction

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from fmkit import schedules, visualization
from fmkit.schedules._decay import _divide_exactly


def decay():
    return schedules.ExponentialDecay(
        0.2,
        468.75,
        0.9,
        True,
        end_value=0.001,
        warmup_steps=3,
        warmup_initial=0.01,
        transition_begin=7,
    )


END = {"end_value": 0.01, "warmup_steps": 50, "warmup_initial": 0.02}
# One row per class, with every argument away from its default: tests/test_contracts.py.
SCHEDULES = {
    "ExponentialDecay": decay,
    "CyclicDecay": lambda: schedules.CyclicDecay(0.5, 0.1, 7),
    "CosineDecay": lambda: schedules.CosineDecay(0.3, 700, **END),
    "CosineDecayRestarts": lambda: schedules.CosineDecayRestarts(
        0.3, 100, cycle_factor=3, **END
    ),
    "PolynomialDecay": lambda: schedules.PolynomialDecay(0.3, 700, power=2.5, **END),
    "WarmupStableDecay": lambda: schedules.WarmupStableDecay(0.3, 300, 700, **END),
    "OneCycle": lambda: schedules.OneCycle(
        0.3, 50, 700, warmup_initial=0.02, end_value=0.01
    ),
    "OneCycleMomentum": lambda: schedules.OneCycleMomentum(
        50, 700, lowest=0.2, highest=0.7
    ),
    "InverseSquareRoot": lambda: schedules.InverseSquareRoot(0.3, 70, **END),
    "join": lambda: schedules.join([0.1, decay()], [50]),
}


def rates(schedule, steps):
    """Rates at each of `steps`, through an integer tensor as an optimizer would."""
    return ops.convert_to_numpy(schedule(ops.convert_to_tensor(np.asarray(steps))))


def tf1_rates(learning_rate, steps, decay_steps, decay_rate, staircase):
    import tensorflow as tf

    decayed = tf.compat.v1.train.exponential_decay(
        tf.constant(learning_rate, tf.float64),
        tf.constant(steps, tf.int64),
        tf.constant(decay_steps, tf.float64),
        tf.constant(decay_rate, tf.float64),
        staircase=staircase,
    )
    return np.asarray(decayed() if callable(decayed) else decayed)


@pytest.mark.needs("tensorflow")
@pytest.mark.parametrize("staircase", [False, True])
@pytest.mark.parametrize(
    ("learning_rate", "decay_steps", "decay_rate"),
    [(0.1, 100, 0.99), (0.8, 468.75, 0.96), (1e-3, 7, 0.9), (0.01, 1000, 1.05)],
)
def test_agrees_with_tensorflow_1_over_ten_thousand_steps(
    learning_rate, decay_steps, decay_rate, staircase
):
    steps = np.arange(0, 10_000, 7)
    schedule = schedules.ExponentialDecay(
        learning_rate, decay_steps, decay_rate, staircase
    )
    expected = tf1_rates(learning_rate, steps, decay_steps, decay_rate, staircase)
    normal = expected > 1e-37  # below it float32 has fewer digits
    np.testing.assert_allclose(
        rates(schedule, steps)[normal], expected[normal], rtol=1e-6
    )


def test_the_tutorials_rates_by_hand():
    schedule = schedules.ExponentialDecay.from_epochs(
        0.1, 0.99, num_examples=8, batch_size=8, staircase=True
    )
    np.testing.assert_allclose(
        rates(schedule, [0, 1, 2, 3]), [0.1, 0.099, 0.09801, 0.0970299], rtol=1e-6
    )


def test_the_epochs_of_an_exponential_decay_have_the_steps_of_the_batches():
    make = functools.partial(
        schedules.ExponentialDecay.from_epochs, 0.1, 0.5, staircase=True
    )
    # 100 samples in batches of 8 are 12.5 steps, or 13 with the smaller batch.
    exact, whole = make(num_examples=100, batch_size=8), make(steps_per_epoch=13)
    assert exact.get_config()["decay_steps"] == [25, 2]
    assert whole.get_config()["decay_steps"] == 13
    assert make(steps_per_epoch=12.5).get_config() == exact.get_config()
    for bad in ({}, {"num_examples": 100}, {"batch_size": 8, "steps_per_epoch": 3}):
        with pytest.raises(ValueError, match="Pass either num_examples=60_000, batch"):
            make(**bad)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be a finite"):
        make(steps_per_epoch=0)


@pytest.mark.parametrize("period", [1, 3, 1000003, 2**31 - 1, 2**40 + 1])
@pytest.mark.parametrize("stairs", [1, 40, 511])
def test_a_stair_comes_at_exactly_its_step_up_to_two_to_the_53(period, stairs):
    # A rate of 1/2 makes every stair an exact power of two.
    schedule = schedules.ExponentialDecay(1.0, period, 0.5, staircase=True)
    edge = period * stairs
    assert edge <= 2**53
    for step in (edge - 1, edge, edge + 1):
        exact = math.ldexp(1.0, -(step // period))
        if exact < 1e-38:
            exact = 0.0
        assert float(schedule(step)) == pytest.approx(exact, rel=1e-6, abs=1e-38)


@pytest.mark.parametrize("period", [3, 1000003, 2**31 - 1, 2**40 + 1])
def test_a_stair_comes_at_exactly_its_step_inside_a_compiled_step(period):
    # The counter is the one each backend gives its optimizers.
    limit = 2**31 - 1 if keras.backend.backend() == "jax" else 2**53
    schedule = schedules.ExponentialDecay(1.0, period, 0.5, staircase=True)
    for stairs in (1, 40):
        steps = [s for s in (period * stairs - 1, period * stairs) if s <= limit]
        dtype = "int32" if keras.backend.backend() == "jax" else "int64"
        for step in steps:
            counter = ops.convert_to_tensor(np.array(step, dtype), dtype=dtype)
            assert float(schedule(counter)) == pytest.approx(
                0.5 ** (step // period), rel=1e-6
            )


@settings(deadline=None, max_examples=60)
@given(
    numerator=st.integers(1, 2**29),
    denominator=st.integers(1, 65_536),
    step=st.integers(0, 2**31 - 1),
)
def test_the_quotient_of_a_fraction_is_exact_in_32_bits(numerator, denominator, step):
    period = Fraction(numerator, denominator)
    counter = ops.convert_to_tensor(np.array(step, "int32"))
    # floor(step / period) itself must fit the counter.
    if step / period < 2**31:
        whole, rest = _divide_exactly(counter, period)
        assert int(whole) == step // period
        assert float(rest) == pytest.approx(float(step / period % 1), abs=1e-6)


def test_a_float_period_means_the_fraction_that_was_written():
    schedule = schedules.ExponentialDecay(1.0, 55_000 / 96, 0.5, staircase=True)
    assert schedule.decay_steps == Fraction(55_000, 96)
    # 12 periods are exactly 6875 steps.
    np.testing.assert_allclose(
        rates(schedule, [6874, 6875]), [0.5**11, 0.5**12], rtol=1e-6
    )


def test_one_rate_whether_the_step_is_a_number_or_a_tensor():
    schedule = schedules.ExponentialDecay(
        0.3, Fraction(7, 3), 0.97, transition_begin=5, warmup_steps=10, end_value=0.01
    )
    steps = np.arange(0, 400)
    one_by_one = [float(schedule(int(step))) for step in steps]
    np.testing.assert_allclose(rates(schedule, steps), one_by_one, rtol=1e-6)


def test_warm_up_then_waits_then_decays_then_stops_at_the_end_value():
    schedule = schedules.ExponentialDecay(
        0.4, 2, 0.5, transition_begin=3, warmup_steps=4, end_value=0.1
    )
    expected = [0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4 * 0.5**0.5, 0.2]
    np.testing.assert_allclose(rates(schedule, np.arange(10)), expected, rtol=1e-6)
    np.testing.assert_allclose(rates(schedule, [11, 12, 1000]), 0.1, rtol=1e-6)


def test_a_growing_rate_is_bounded_from_above():
    schedule = schedules.ExponentialDecay(0.1, 1, 2.0, end_value=0.5)
    np.testing.assert_allclose(
        rates(schedule, [0, 1, 2, 3, 200]), [0.1, 0.2, 0.4, 0.5, 0.5], rtol=1e-6
    )


def test_schedules_in_sequence_each_count_from_their_own_start():
    schedule = schedules.join(
        [0.5, schedules.ExponentialDecay(1.0, 1, 0.5, staircase=True), 0.01], [2, 5]
    )
    expected = [0.5, 0.5, 1.0, 0.5, 0.25, 0.01, 0.01]
    np.testing.assert_allclose(rates(schedule, np.arange(7)), expected, rtol=1e-6)
    np.testing.assert_allclose([float(schedule(n)) for n in range(7)], expected, 1e-6)


CONSTANT = {
    "number": lambda: schedules.join([0.1], []),
    "warm-up": lambda: schedules.WarmupStableDecay(
        0.1, 0, 1, end_value=0.1, warmup_steps=4
    ),
}


@pytest.mark.parametrize(("kind", "begin"), [("number", 0), ("warm-up", 4)])
def test_a_constant_is_the_same_bits_at_each_step_of_a_run(kind, begin):
    schedule, steps = CONSTANT[kind](), [*range(9), 999, 2**31 - 1]
    found, numbers = rates(schedule, steps), [float(schedule(n)) for n in steps]
    np.testing.assert_array_equal(found[begin:], np.float32(0.1))
    np.testing.assert_array_equal(numbers[begin:], np.float32(0.1))
    np.testing.assert_allclose(found[:begin], [0, 0.025, 0.05, 0.075][:begin], 1e-6)
    copy = type(schedule).from_config(schedule.get_config())
    np.testing.assert_array_equal(rates(copy, steps), found)


def test_the_optimizer_takes_the_rate_of_its_own_count():
    variable = keras.Variable(np.zeros(1, "float32"))
    optimizer = keras.optimizers.SGD(
        schedules.ExponentialDecay(1.0, 2, 0.5, staircase=True)
    )
    gradient = ops.convert_to_tensor(np.array([-1.0], "float32"))
    seen = []
    for _ in range(5):
        optimizer.apply([gradient], [variable])
        seen.append(float(ops.convert_to_numpy(variable)[0]))
    assert seen == [1.0, 2.0, 2.5, 3.0, 3.25]


def test_a_saved_model_keeps_joined_schedules(tmp_path):
    schedule = schedules.join(
        [0.5, schedules.ExponentialDecay(1.0, 1, 0.5, staircase=True)], [2]
    )
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(schedule), "mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    found = loaded.optimizer.get_config()["learning_rate"]
    assert found["registered_name"] == "fmkit>Joined"
    found = keras.optimizers.schedules.deserialize(found)
    assert isinstance(found, keras.optimizers.schedules.LearningRateSchedule)
    assert [float(found(step)) for step in range(5)] == [0.5, 0.5, 1.0, 0.5, 0.25]


@pytest.mark.needs("matplotlib")
def test_the_curve_shows_the_rates_of_each_step():
    schedule = schedules.ExponentialDecay(0.1, 2, 0.5, staircase=True)
    ax = visualization.learning_rate_curve(schedule, 6, label="decay")
    x, y = ax.lines[0].get_data()
    assert list(x) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(y, [0.1, 0.1, 0.05, 0.05, 0.025, 0.025], rtol=1e-6)
    assert ax.get_xlabel() == "step"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"decay_steps": -5}, ValueError, "`decay_steps` must be at least 1"),
        ({"decay_steps": 0.0}, ValueError, "above 0"),
        ({"decay_steps": (1, 2, 3)}, ValueError, "(numerator, denominator)"),
        ({"decay_steps": "600"}, TypeError, "`decay_steps` must be a number"),
        ({"decay_steps": (2**30 + 1, 2)}, ValueError, "Round it to a whole number"),
        ({"decay_rate": 0}, ValueError, "`decay_rate` must be"),
        ({"initial_learning_rate": math.nan}, ValueError, "initial_learning_rate"),
        ({"transition_begin": -1}, ValueError, "`transition_begin` must be at least 0"),
        ({"warmup_steps": 1.5}, TypeError, "`warmup_steps` must be an integer"),
        ({"end_value": 0.5}, ValueError, "at most the initial learning rate"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_rule(arguments, error, message):
    given_arguments = {
        "initial_learning_rate": 0.1,
        "decay_steps": 10,
        "decay_rate": 0.5,
    } | arguments
    with pytest.raises(error, match=re.escape(message)):
        schedules.ExponentialDecay(**given_arguments)


def test_a_step_that_is_not_whole_is_refused():
    schedule = schedules.ExponentialDecay(0.1, 10, 0.5)
    with pytest.raises(TypeError, match="whole optimizer steps"):
        schedule(0.5)


@pytest.mark.parametrize(
    ("parts", "boundaries", "error"),
    [
        ([0.1, 0.2], [], ValueError),
        ([0.1, 0.2, 0.3], [5, 5], ValueError),
        ([0.1, "adam"], [5], TypeError),
        ([0.1, lambda step: step], [5], TypeError),
        ([0.1, 0.2], [0], ValueError),
    ],
)
def test_a_sequence_that_does_not_fit_is_refused(parts, boundaries, error):
    with pytest.raises(error, match=r"`schedules`|`boundaries`"):
        schedules.join(parts, boundaries)


# Cycles, as in the paper of stochastic weight averaging.


@pytest.mark.parametrize("cycle", [1, 5, 469])
def test_each_cycle_falls_in_a_line_and_ends_at_the_final_rate(cycle):
    steps = np.arange(3 * cycle)
    found = rates(schedules.CyclicDecay(0.05, 0.01, cycle), steps)
    # Izmailov et al. 2018, section 3.1, whose first step is 1.
    i = steps + 1
    t = ((i - 1) % cycle + 1) / cycle
    np.testing.assert_allclose(found, (1 - t) * 0.05 + t * 0.01, rtol=1e-6)
    assert found[cycle - 1] == found[-1] == np.float32(0.01)


def test_averages_at_the_ends_of_cycles_see_the_final_rate():
    from fmkit.optimizers import EqualRule

    schedule = schedules.join([0.1, schedules.CyclicDecay(0.05, 0.01, 10)], [30])
    rule = EqualRule(start_step=30, update_interval=10)
    averaged = [n for n in range(1, 71) if 0 <= rule.decay_at(n) < 1 and n > 30]
    assert averaged == [40, 50, 60, 70]
    # Update n is made at step n - 1, by the last rate of a cycle.
    assert set(rates(schedule, np.array(averaged) - 1)) == {np.float32(0.01)}


@pytest.mark.parametrize("bad", [{"cycle_steps": 0}, {"final_learning_rate": -1.0}])
def test_a_cycle_needs_steps_and_rates(bad):
    good = {"initial_learning_rate": 0.1, "final_learning_rate": 0.0, "cycle_steps": 3}
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
        schedules.CyclicDecay(**good | bad)


# One shape each: PyTorch's schedulers and optax's formulas as oracles.


def torch_rates(make, count, rate=0.3):
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(found)


ORACLES = {
    "cosine": (
        lambda: schedules.CosineDecay(0.3, 200, end_value=0.02),
        lambda m, o: m.CosineAnnealingLR(o, 200, eta_min=0.02),
        200,  # PyTorch's rises again afterwards
    ),
    "equal restarts": (
        lambda: schedules.CosineDecayRestarts(0.3, 70, end_value=0.02),
        lambda m, o: m.CosineAnnealingWarmRestarts(o, 70, 1, eta_min=0.02),
        300,
    ),
    "growing restarts": (
        lambda: schedules.CosineDecayRestarts(0.3, 10, cycle_factor=3, end_value=0.02),
        lambda m, o: m.CosineAnnealingWarmRestarts(o, 10, 3, eta_min=0.02),
        500,
    ),
    "polynomial": (
        lambda: schedules.PolynomialDecay(0.3, 200, power=2.5),
        lambda m, o: m.PolynomialLR(o, 200, power=2.5),
        250,
    ),
    "linear": (
        lambda: schedules.PolynomialDecay(0.3, 200, end_value=0.03),
        lambda m, o: m.LinearLR(o, 1.0, 0.1, 200),
        250,
    ),
    "trapezoid": (
        lambda: schedules.WarmupStableDecay(0.3, 100, 50, end_value=0.03),
        lambda m, o: m.SequentialLR(
            o, [m.ConstantLR(o, 1.0, 1), m.LinearLR(o, 1.0, 0.1, 50)], [100]
        ),
        200,
    ),
    "one cycle": (
        lambda: schedules.OneCycle(0.3, 29, 70),
        lambda m, o: m.OneCycleLR(o, 0.3, total_steps=100, pct_start=0.3),
        100,
    ),
    "inverse square root": (
        lambda: schedules.InverseSquareRoot(0.3, 40, warmup_steps=40),
        # Vaswani et al. 2017, eq. 3, with its peak at 0.3.
        lambda m, o: m.LambdaLR(
            o, lambda n: 40**0.5 * min(max(n, 1e-9) ** -0.5, n * 40**-1.5)
        ),
        300,
    ),
}


@pytest.mark.needs("torch")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch, about its own order
@pytest.mark.parametrize("name", ORACLES)
def test_a_shape_has_the_rates_of_pytorch(name):
    make, theirs, count = ORACLES[name]
    expected, steps = torch_rates(theirs, count), np.arange(count)
    np.testing.assert_allclose(rates(make(), steps), expected, rtol=2e-5, atol=2e-8)
    alone = [float(make()(int(step))) for step in steps[::7]]
    np.testing.assert_allclose(alone, expected[::7], rtol=1e-5, atol=1e-8)
    # Negative control: one step later is another rate.
    later = rates(make(), steps + 1)
    assert np.abs(later - expected).max() > 1e-4


# Printed by optax 0.2.8 at these steps, in float32.
OPTAX_STEPS = [0, 1, 25, 49, 50, 51, 139, 140, 200, 349, 350, 351, 1000]
OPTAX = {
    # constant_schedule(0.3)
    "constant": (lambda: schedules.join([0.3], []), [0.3] * 13),
    # linear_schedule(0.3, 0.03, 300, 50)
    "linear": (
        lambda: schedules.WarmupStableDecay(0.3, 50, 300, end_value=0.03),
        "0.3 0.3 0.3 0.3 0.3 0.2991 0.2199 0.219 0.165 0.0309 0.03 0.03 0.03",
    ),
    # polynomial_schedule(0.3, 0.01, 2.5, 300, 50)
    "polynomial": (
        lambda: schedules.join(
            [0.3, schedules.PolynomialDecay(0.3, 300, power=2.5, end_value=0.01)], [50]
        ),
        "0.3 0.3 0.3 0.3 0.3 0.2975894 0.1303098 0.1288894 0.06126524 0.01000019 "
        "0.01 0.01 0.01",
    ),
    # cosine_decay_schedule(0.3, 350, alpha=0.1)
    "cosine": (
        lambda: schedules.CosineDecay(0.3, 350, end_value=0.03),
        "0.3 0.2999946 0.2966153 0.2871517 0.2866308 0.2861001 0.2078681 0.2067173 "
        "0.1349597 0.03000544 0.03 0.03 0.03",
    ),
    # warmup_cosine_decay_schedule(0.02, 0.3, 50, 140, 0.01)
    "warm-up and cosine": (
        lambda: schedules.CosineDecay(0.3, 90, **END),
        "0.02 0.0256 0.16 0.2944 0.3 0.2999117 0.01008833 0.01 0.01 0.01 0.01 0.01 "
        "0.01",
    ),
    # sgdr_schedule, of 90 and 270 steps after the warm-up, which ends there
    "restarts": (
        lambda: schedules.CosineDecayRestarts(0.3, 90, cycle_factor=3, **END),
        "0.02 0.0256 0.16 0.2944 0.3 0.2999117 0.01008833 0.3 0.2660764 0.04501551 "
        "0.04392353 0.0428466",
    ),
    # cosine_onecycle_schedule(400, 0.3, 0.125, 15.0, 100.0)
    "one cycle": (
        lambda: schedules.OneCycle(0.3, 50, 350, warmup_initial=0.02, end_value=0.0002),
        "0.02 0.02027628 0.16 0.2997237 0.3 0.2999939 0.2546586 0.2536903 0.1834559 "
        "0.01563398 0.01504476 0.01446641 0.0002",
    ),
    # join_schedules of linear, constant and linear, at [50, 200]
    "trapezoid": (
        lambda: schedules.WarmupStableDecay(0.3, 150, 150, **END),
        "0.02 0.0256 0.16 0.2944 0.3 0.3 0.3 0.3 0.3 0.01193333 0.01 0.01 0.01",
    ),
    # exponential_decay(0.3, 100, 0.5, transition_begin=50, end_value=0.02)
    "exponential": (
        lambda: schedules.ExponentialDecay(
            0.3, 100, 0.5, transition_begin=50, end_value=0.02
        ),
        "0.3 0.3 0.3 0.3 0.3 0.2979278 0.1618842 0.160766 0.106066 0.03776083 0.0375 "
        "0.03724097 0.02",
    ),
    # the same with staircase=True
    "stairs": (
        lambda: schedules.ExponentialDecay(
            0.3, 100, 0.5, True, transition_begin=50, end_value=0.02
        ),
        "0.3 0.3 0.3 0.3 0.3 0.3 0.3 0.3 0.15 0.075 0.0375 0.0375 0.02",
    ),
    # join_schedules([constant_schedule(0.3), cosine_decay_schedule(0.2, 100)], [140])
    "join": (
        lambda: schedules.join([0.3, schedules.CosineDecay(0.2, 100)], [140]),
        "0.3 0.3 0.3 0.3 0.3 0.3 0.3 0.2 0.06909829 0 0 0 0",
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_rates_are_those_that_optax_prints(name):
    make, printed = OPTAX[name]
    expected = np.array(printed.split() if isinstance(printed, str) else printed, float)
    steps = np.array(OPTAX_STEPS[: len(expected)])
    found = rates(make(), steps)
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-8)
    # Negative control: one step later is another rate, unless it is a constant.
    same = np.allclose(rates(make(), steps + 1), expected, rtol=3e-6, atol=1e-8)
    assert same == (name == "constant")


IN_EPOCHS = [
    (
        schedules.CosineDecay.from_epochs(
            0.3, 40, end_value=0.1, warmup_epochs=0.5, steps_per_epoch=235
        ),
        schedules.CosineDecay(0.3, 9400, end_value=0.1, warmup_steps=118),
    ),
    (
        schedules.CosineDecayRestarts.from_epochs(
            0.3, first_cycle_epochs=2, cycle_factor=3, steps_per_epoch=468.75
        ),
        schedules.CosineDecayRestarts(0.3, 938, cycle_factor=3),
    ),
    (
        schedules.WarmupStableDecay.from_epochs(0.3, 0, 0.1, steps_per_epoch=30),
        schedules.WarmupStableDecay(0.3, 0, 3),
    ),
    (
        schedules.InverseSquareRoot.from_epochs(0.3, timescale=2, steps_per_epoch=10),
        schedules.InverseSquareRoot(0.3, 20),
    ),
    (
        schedules.OneCycleMomentum.from_epochs(3, 7, lowest=0.5, steps_per_epoch=10),
        schedules.OneCycleMomentum(30, 70, lowest=0.5),
    ),
    (
        schedules.CyclicDecay.from_epochs(0.5, 0.1, cycle_epochs=1, steps_per_epoch=9),
        schedules.CyclicDecay(0.5, 0.1, 9),
    ),
]


@pytest.mark.parametrize(("found", "expected"), IN_EPOCHS)
def test_lengths_in_epochs_are_lengths_in_steps(found, expected):
    assert type(found) is type(expected)
    assert found.get_config() == expected.get_config()


def test_epochs_that_are_missing_unknown_or_no_numbers_are_refused():
    make = schedules.CosineDecay.from_epochs
    with pytest.raises(TypeError, match="decay_epochs"):
        make(0.3, steps_per_epoch=9)
    with pytest.raises(TypeError, match="warmup_steps"):
        make(0.3, 4, warmup_steps=9, steps_per_epoch=9)
    with pytest.raises(TypeError, match="`decay_epochs` must be a number"):
        make(0.3, "4", steps_per_epoch=9)
    with pytest.raises(
        ValueError, match="`steps_per_epoch` must be a finite number above 0"
    ):
        make(0.3, 4, steps_per_epoch=0)


def test_a_rate_that_stays_ignores_its_end_and_is_the_rate_to_the_bit():
    steady = schedules.ExponentialDecay(0.1, 10, 1.0, end_value=0.01)
    assert set(rates(steady, [0, 10, 10_000])) == {np.float32(0.1)}
    assert float(steady(7)) == np.float32(0.1)
    warm = schedules.WarmupStableDecay(0.3, 0, 7, end_value=0.3, warmup_steps=10)
    assert set(rates(warm, np.arange(10, 40))) == {np.float32(0.3)}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_width_of_a_counter_changes_nothing(name):
    schedule, steps = SCHEDULES[name](), [0, 5, 120, 127]
    expected = rates(schedule, np.array(steps, "int32"))
    for dtype in ("int8", "uint8", "int16", "uint32"):
        found = ops.convert_to_numpy(schedule(ops.convert_to_tensor(steps, dtype)))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.backend("tensorflow", "torch")
def test_an_unsigned_counter_beyond_an_int32_does_not_wrap_around():
    schedule = schedules.ExponentialDecay(0.1, 2**31, 0.5, staircase=True)
    assert float(schedule(ops.convert_to_tensor(2**31 + 5, "uint32"))) == np.float32(
        0.05
    )


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.CyclicDecay(0.5, 0.1, 2**31),
        schedules.CosineDecayRestarts(0.5, 2**31),
    ],
)
def test_a_cycle_may_be_longer_than_a_counter_can_count(schedule):
    found = rates(schedule, np.array([0, 2**30], "int32"))
    assert found[0] > found[1]
    np.testing.assert_allclose(found[1], float(schedule(2**30)), rtol=1e-5)


OTHERS = ("ExponentialDecay", "CyclicDecay", "OneCycleMomentum", "join")
SHAPES = [n for n in SCHEDULES if n not in OTHERS]


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_changes_at_exactly_its_step_and_stays_at_its_end(name):
    schedule = SCHEDULES[name]()
    first, before, peak = rates(schedule, [0, 49, 50])
    assert first == np.float32(0.02)
    assert before < peak == np.float32(0.3)
    steps = np.array([0, 3, 49, 50, 51, 149, 150, 349, 350, 449, 450, 749, 750, 10**7])
    found = rates(schedule, steps)
    alone = [float(schedule(int(step))) for step in steps]
    np.testing.assert_allclose(found, alone, rtol=2e-5)
    assert found.max() == np.float32(0.3)
    assert found.min() >= np.float32(0.01)
    ends = {"CosineDecay": 750, "PolynomialDecay": 750, "OneCycle": 750}
    ends["WarmupStableDecay"] = 1050
    if name in ends:
        end = ends[name]
        late = rates(schedule, [end - 20, end, 2**31 - 1])
        assert late[0] > late[1] == late[2] == np.float32(0.01)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_each_cycle_begins_at_exactly_its_step_up_to_the_end_of_an_int32(factor):
    schedule = schedules.CosineDecayRestarts(0.5, 1000, cycle_factor=factor)
    start, steps = 0, 1000
    for _ in range(12):
        start, steps = start + steps, steps * factor
        if start < 2**31 - 1:
            before, at = rates(schedule, [start - 1, start])
            assert before < 1e-5
            assert at == np.float32(0.5)
            assert float(schedule(start)) == np.float32(0.5)
    while start <= 2**40:  # Python's integers have no end
        start, steps = start + steps, steps * factor
        start = start if factor > 1 else 10**15
    assert float(schedule(start)) == np.float32(0.5)
    assert float(schedule(start - 1)) < 1e-5


FAR = 2**31


@pytest.mark.parametrize(
    ("schedule", "at_1000"),
    [
        (schedules.CosineDecay(0.5, 10, warmup_steps=FAR), 0.5 * 1000 / FAR),
        (schedules.WarmupStableDecay(0.5, FAR, 10), 0.5),
        (schedules.ExponentialDecay(0.5, 10, 0.5, transition_begin=FAR), 0.5),
        (
            schedules.ExponentialDecay(0.5, 10, 0.5, warmup_steps=FAR),
            0.5 * 1000 / FAR,
        ),
        (schedules.join([0.5, 0.1], [FAR]), 0.5),
    ],
)
def test_a_length_that_a_counter_never_reaches_is_no_error(schedule, at_1000):
    for dtype in ("int32", "int64"):
        step = ops.convert_to_tensor(np.array(1000, dtype))
        assert float(schedule(step)) == pytest.approx(at_1000, rel=1e-6)
    assert float(schedule(1000)) == pytest.approx(at_1000, rel=1e-6)
    assert float(schedule(FAR + 10)) != pytest.approx(at_1000, rel=1e-6)


def test_a_cosine_longer_than_an_int32_falls_as_slowly_as_asked():
    step = ops.convert_to_tensor(np.array(2**30, "int32"))
    schedule = schedules.CosineDecay(0.5, 2**31)
    assert float(schedule(step)) == pytest.approx(0.25, rel=1e-5)


def test_a_one_cycle_without_ends_has_those_of_pytorch():
    config = schedules.OneCycle(0.5, 3, 7).get_config()
    assert config["warmup_initial"] == 0.02
    assert config["end_value"] == 2e-6


@pytest.mark.needs("torch")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch, about its own order
def test_the_momentum_of_a_one_cycle_is_that_of_pytorch():
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1)], 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.3, total_steps=100, pct_start=0.3
    )
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    schedule = schedules.OneCycleMomentum(29, 70)
    found = rates(schedule, np.arange(100))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    alone = [float(schedule(step)) for step in range(100)]
    np.testing.assert_allclose(alone, expected, rtol=1e-6)
    # Exact where the phases meet, and after the end.
    ends = np.float32([0.95, 0.85, 0.95, 0.95])
    assert (rates(schedule, [0, 29, 99, 2**31 - 1]) == ends).all()
    # Negative control: one step later is another momentum.
    assert np.abs(rates(schedule, np.arange(1, 101)) - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.OneCycleMomentum(3, 5, lowest=0.95), "`lowest`"),
        (lambda: schedules.OneCycleMomentum(3, 5, highest=1.5), "`highest`"),
        (lambda: schedules.OneCycleMomentum(0, 5), "`warmup_steps`"),
        (lambda: schedules.CosineDecay(0.1, 0), "`decay_steps`"),
        (lambda: schedules.CosineDecay(0.1, 5, end_value=0.2), "`end_value`"),
        (lambda: schedules.CosineDecayRestarts(0.1, 5, cycle_factor=0), "`cycle_fact"),
        (lambda: schedules.PolynomialDecay(0.1, 5, power=0), "`power`"),
        (lambda: schedules.WarmupStableDecay(0.1, -1, 5), "`stable_steps`"),
        (lambda: schedules.OneCycle(0.1, 0, 5), "`warmup_steps` must be at least 1"),
        (lambda: schedules.InverseSquareRoot(0.1, 0), "`timescale`"),
        (lambda: schedules.CosineDecay(-0.1, 5), "`initial_learning_rate`"),
    ],
)
def test_a_shape_refuses_a_wrong_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
