"""Every rule of averages, several at once, and Lookahead, against other libraries."""

import json

import keras
import numpy as np
import pytest
from bits import array, bits
from contracts import assert_complete
from fresh_process import run_python
from keras import ops
from resuming import broken_and_resumed, build, data, fit
from test_optimizers import Follow, walk, weight

import fmkit
from fmkit import optimizers, performance
from fmkit.optimizers import (
    AverageRule,
    EqualRule,
    ExponentialMovingAverage,
    ExponentialRule,
    Lookahead,
    PowerRule,
    WarmupRule,
    WeightAverages,
    averaged,
    averaged_model,
)

BACKEND = keras.backend.backend()

# Every argument away from its default.
RULES = {
    "ExponentialRule": lambda: ExponentialRule(
        0.95,
        num_updates="before",
        zero_debias=True,
        start_step=3,
        update_interval=2,
        name="tf1",
    ),
    "WarmupRule": lambda: WarmupRule(
        0.95,
        gamma=3.0,
        power=0.75,
        min_decay=0.2,
        start_step=4,
        update_interval=3,
        name="timm",
    ),
    "EqualRule": lambda: EqualRule(start_step=5, update_interval=4, name="swa5"),
    "PowerRule": lambda: PowerRule(
        gamma=6.94, start_step=2, update_interval=3, name="karras"
    ),
}
STEPS = 10_000


def compiled(optimizer, variable):
    """Return a compiled step that puts its argument into the weight."""
    optimizer.build([variable])
    if BACKEND == "jax":
        import jax

        step = jax.jit(lambda o, g, t: optimizer.stateless_apply(o, [g], t))
        state = [[v.value for v in optimizer.variables], [variable.value]]

        def follow(target):
            state[1], state[0] = step(state[0], target, state[1])
            for own, value in zip(optimizer.variables, state[0], strict=True):
                own.assign(value)
            variable.assign(state[1][0])

        return follow

    def follow(target):
        optimizer.apply([target], [variable])

    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(follow)
    import torch

    return torch.no_grad()(follow)


def averages_of(rules, path, start=None):
    """Return the last average of `path` by each rule, under the code that is tested."""
    variable = weight(path[0] if start is None else start)
    optimizer = WeightAverages(Follow(), rules)
    follow = compiled(optimizer, variable)
    for target in path:
        follow(ops.convert_to_tensor(target))
    return {name: array(optimizer.average(variable, name)) for name in optimizer.kept}


# The contract


def test_every_rule_has_a_row():
    found = {
        name
        for name in optimizers.__all__
        if isinstance(kind := getattr(optimizers, name), type)
        and issubclass(kind, AverageRule)
        and kind is not AverageRule
    }
    assert_complete(RULES, found)


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
def test_a_rule_survives_its_config(make):
    rule = make()
    told = json.loads(json.dumps(keras.saving.serialize_keras_object(rule)))
    again = keras.saving.deserialize_keras_object(told)
    assert type(again) is type(rule)
    assert again.get_config() == rule.get_config()
    assert [again.decay_at(n) for n in range(1, 50)] == [
        rule.decay_at(n) for n in range(1, 50)
    ]


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
def test_the_compiled_step_takes_the_decays_that_the_rule_tells(make):
    rule = make()
    for count in range(rule.update_interval, 3000, 7 * rule.update_interval):
        size = float(
            ops.convert_to_tensor(rule.step_size(ops.convert_to_tensor(count)))
        )
        expected = 1 - rule.decay_of(count)
        assert size == pytest.approx(expected, rel=1e-6), count


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
def test_before_its_start_an_average_equals_the_weights(make):
    rule = make()
    path = walk(rule.start_step)
    assert bits([averages_of([rule], path)[rule.name]]) == bits([path[-1]])


def test_there_is_an_average_from_its_first_update_on():
    variable = weight([0.0])
    optimizer = WeightAverages(Follow(), [EqualRule(start_step=2, update_interval=3)])
    optimizer.build([variable])
    found = []
    for step in range(6):
        optimizer.apply([ops.convert_to_tensor([float(step)])], [variable])
        found.append(optimizer.has_averages)
    assert found == [False] * 4 + [True] * 2


def test_a_rule_of_ones_own_is_averaged_by():
    class Half(AverageRule):
        def decay_of(self, count):
            return 0.5

        def step_size(self, count):
            return 0.5

    path = np.array([[1.0], [3.0], [5.0]], "float32")
    found = averages_of([Half(name="half")], path, start=[0.0])
    assert found["half"] == ((0.5 + 3) / 2 + 5) / 2


def test_a_rule_without_its_two_methods_says_so():
    rule = AverageRule(name="mine")
    with pytest.raises(NotImplementedError):
        rule.decay_at(1)
    with pytest.raises(NotImplementedError):
        rule.step_size(ops.convert_to_tensor(1))


# Against other libraries, over ten thousand random steps


def by_decays(decays, path, start):
    """The recursion that all of them write, in float64."""
    average = np.array(start, "float64")
    for decay, w in zip(decays, np.asarray(path, "float64"), strict=True):
        average = decay * average + (1 - decay) * w
    return average


def timm_decay(step, decay=0.999, min_decay=0.0, gamma=1.0, power=2 / 3, after=0):
    """`timm.utils.ModelEmaV3.get_decay` with `use_warmup`, as it is published."""
    step = max(0, step - after - 1)
    if step <= 0:
        return 0.0
    grown = 1 - (1 + step / gamma) ** -power
    return max(min(grown, decay), min_decay)


def ema_pytorch_decay(step, beta=0.999, min_value=0.0, inv_gamma=1.0, power=2 / 3):
    """`ema_pytorch.EMA.get_current_decay`, as it is published, after no delay."""
    epoch = max(step - 1, 0)
    if epoch <= 0:
        return 0.0
    return min(max(1 - (1 + epoch / inv_gamma) ** -power, min_value), beta)


def test_all_rules_agree_with_the_libraries_they_come_from():
    path, start = walk(STEPS, 3), np.array([4.0, -1.0, 0.5], "float32")
    found = averages_of(
        [
            ExponentialRule(0.99, num_updates=None, name="constant"),
            ExponentialRule(0.9999, name="tf1"),
            WarmupRule(0.999, name="timm"),
            WarmupRule(0.9995, gamma=5, power=0.75, min_decay=0.3, name="lucidrains"),
            EqualRule(start_step=2000, update_interval=50),
            EqualRule(name="mean"),
            PowerRule(0.05),
            PowerRule(0.1),
        ],
        path,
        start,
    )
    n = np.arange(1, STEPS + 1)
    oracles = {
        "constant": by_decays(np.full(STEPS, 0.99), path, start),
        "tf1": by_decays(np.minimum(0.9999, (1 + n) / (10 + n)), path, start),
        "timm": by_decays([timm_decay(k) for k in n], path, start),
        "lucidrains": by_decays(
            [ema_pytorch_decay(k, 0.9995, 0.3, 5, 0.75) for k in n], path, start
        ),
        "swa": path[2049::50].astype("float64").mean(axis=0),
        "mean": path.astype("float64").mean(axis=0),
        "power_0.05": by_decays((1 - 1 / n) ** (gamma(0.05) + 1), path, start),
        "power_0.1": by_decays((1 - 1 / n) ** (gamma(0.1) + 1), path, start),
    }
    assert set(found) == set(oracles)
    for name, expected in oracles.items():
        # Each update of a float32 rounds; what a long average has gathered of that is
        # the sum of so many roundings, in every library.
        tolerance = 1e-6 if name in ("constant", "swa") else 4e-6
        np.testing.assert_allclose(found[name], expected, tolerance, err_msg=name)


def gamma(width):
    """The exponent by the formula of Karras et al. 2023, solved by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        spread = (middle + 1) ** 0.5 / ((middle + 2) * (middle + 3) ** 0.5)
        low, high = (middle, high) if spread > width else (low, middle)
    return low


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.28])
def test_widths_and_exponents_are_those_of_the_paper(width):
    rule = PowerRule(width)
    assert rule.gamma == pytest.approx(gamma(width), rel=1e-9)
    assert rule.width == pytest.approx(width, rel=1e-12)
    # The width is the spread of the shares, as a part of the training.
    shares = np.diff((np.arange(20_001) / 20_000) ** (rule.gamma + 1))
    times = (np.arange(20_000) + 0.5) / 20_000
    mean = (shares * times).sum()
    spread = np.sqrt((shares * (times - mean) ** 2).sum())
    assert spread == pytest.approx(width, rel=1e-3)


@pytest.mark.needs("torch")
def test_equal_averages_are_those_of_torchs_swa_utils():
    import torch

    path = walk(2000)
    module = torch.nn.Linear(5, 1, bias=False)
    theirs = torch.optim.swa_utils.AveragedModel(module)
    for step, w in enumerate(path, 1):
        with torch.no_grad():
            module.weight.copy_(torch.tensor(w[None]))
        if step > 500 and (step - 500) % 10 == 0:
            theirs.update_parameters(module)
    found = averages_of([EqualRule(start_step=500, update_interval=10)], path)
    expected = theirs.module.weight.detach().numpy()[0]
    np.testing.assert_allclose(found["swa"], expected, rtol=1e-6)


# In bfloat16


def test_an_average_in_bfloat16_is_off_by_no_more_than_is_said():
    path, start = walk(STEPS, 3), np.array([4.0, -1.0, 0.5], "float32")
    rules = [
        ExponentialRule(0.9, num_updates=None, dtype="bfloat16", name="a"),
        ExponentialRule(0.9, update_interval=100, dtype="bfloat16", name="b"),
        WarmupRule(0.75, dtype="bfloat16", name="c"),
        ExponentialRule(0.9, num_updates=None, name="wide"),
    ]
    found = averages_of(rules, path, start)
    largest = np.abs(path).max(axis=0)
    off = {}
    for rule in rules:
        decays = [rule.decay_at(n) for n in range(1, STEPS + 1)]
        error = np.abs(found[rule.name] - by_decays(decays, path, start)) / largest
        off[rule.name] = error.max()
        assert error.max() < 2**-8 / (1 - rule.decay), rule.name
    # Negative control: bfloat16 it is.
    assert off["wide"] < 1e-6 < min(off[name] for name in "abc"), off


def test_a_long_average_in_bfloat16_is_refused_as_it_would_stand_still():
    for make in (ExponentialRule, WarmupRule):
        with pytest.raises(ValueError, match=r"update_interval=n"):
            make(0.999, dtype="bfloat16")
    with pytest.raises(ValueError, match="'bfloat16', got dtype='float16'"):
        ExponentialRule(0.5, dtype="float16")
    for dtype, moves in (("bfloat16", False), ("float32", True)):
        average = ops.cast(1.0, dtype)
        for _ in range(100):
            average = average + ops.cast(0.001, dtype) * (
                ops.cast(2.0, dtype) - average
            )
        assert (float(ops.cast(average, "float32")) > 1.0) == moves, dtype


def test_averages_in_bfloat16_are_saved_and_swapped_to_the_bit(tmp_path):
    def half():
        return WeightAverages("adam", [ExponentialRule(0.5, dtype="bfloat16"), 0.9])

    model = trained(half())
    kept = [average for _, average in model.optimizer.kept["ema_0.5"].averages]
    assert {keras.backend.standardize_dtype(each.dtype) for each in kept} == {
        "bfloat16"
    }
    raw = bits(model.trainable_variables)
    with averaged(model, "ema_0.5"):
        inside = [array(w) for w in model.trainable_variables]
        assert bits(inside) == bits([array(ops.cast(a, "float32")) for a in kept])
    assert bits(model.trainable_variables) == raw
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    with averaged(again, "ema_0.5"):
        assert bits(again.trainable_variables) == bits(inside)


def test_averages_in_bfloat16_are_resumed_to_the_bit(tmp_path):
    def train(directory, *callbacks):
        rules = [ExponentialRule(0.5, dtype="bfloat16"), 0.9]
        model, _, history = fit(
            directory, *callbacks, model=build(optimizer=WeightAverages("adam", rules))
        )
        kept = model.optimizer.kept["ema_0.5"].averages
        wide = [array(ops.cast(average, "float32")) for _, average in kept]
        return bits(model.variables), bits(wide), history.history

    straight = train(tmp_path / "straight")
    assert broken_and_resumed(tmp_path / "broken", train) == straight


# Several at once


def test_several_at_once_have_the_bits_that_each_has_alone():
    path, start = walk(60), np.zeros(5, "float32")
    rules = [make() for make in RULES.values()]
    together = averages_of(rules, path, start)
    for rule in rules:
        alone = averages_of([rule], path, start)[rule.name]
        assert bits([together[rule.name]]) == bits([alone]), rule.name
    assert len({array.tobytes() for array in together.values()}) == len(rules)


def trained(optimizer, epochs=2):
    model = build(optimizer=optimizer)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(48, 3)).astype("float32")
    y = (x.sum(axis=1) > 0).astype("int32")
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return model


def test_a_list_of_decays_keeps_one_average_each():
    model = trained(ExponentialMovingAverage("sgd", decay=[0.5, 0.9], start_step=2))
    assert list(model.optimizer.kept) == ["ema_0.5", "ema_0.9"]
    raw = bits(model.trainable_variables)
    seen = {}
    for name in (None, "ema_0.5", "ema_0.9"):
        with averaged(model, name):
            seen[name] = bits(model.trainable_variables)
            assert bits(averaged_model(model, name).trainable_variables) == seen[name]
        assert bits(model.trainable_variables) == raw
    assert seen[None] == seen["ema_0.5"] != seen["ema_0.9"]
    for decay in (0.5, 0.9):
        alone = trained(ExponentialMovingAverage("sgd", decay=decay, start_step=2))
        with averaged(alone):
            assert bits(alone.trainable_variables) == seen[f"ema_{decay}"]
    config = model.optimizer.get_config()
    assert config["decay"] == [0.5, 0.9]
    again = ExponentialMovingAverage.from_config(config)
    assert list(again.kept) == ["ema_0.5", "ema_0.9"]


def test_several_averages_are_saved_and_loaded(tmp_path):
    model = trained(WeightAverages("adam", [0.9, EqualRule(start_step=3)]))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for name in model.optimizer.kept:
        with averaged(model, name), averaged(again, name):
            assert bits(again.variables) == bits(model.variables), name


def test_wrong_names_and_rules_are_refused_with_what_to_type():
    model = trained(WeightAverages("sgd", [0.9, EqualRule()]), epochs=1)
    message = r"keeps no average 'swe', only \['ema_0.9', 'swa'\].*'swa'"
    with pytest.raises(ValueError, match=message), averaged(model, "swe"):
        pass
    with pytest.raises(ValueError, match=r"\['swa'\] are there twice"):
        WeightAverages("sgd", [EqualRule(), EqualRule(start_step=3)])
    with pytest.raises(ValueError, match="at least one rule"):
        WeightAverages("sgd", [])
    with pytest.raises(TypeError, match=r"a decay such as 0\.99, or a rule"):
        WeightAverages("sgd", "swa")
    for bad in ("raw", "a/b", ""):
        with pytest.raises(ValueError, match="`name` must"):
            AverageRule(name=bad)
    with pytest.raises(ValueError, match="one of `width` and `gamma`"):
        PowerRule()
    with pytest.raises(ValueError, match=r"`width` must be .* below 0\.288675"):
        PowerRule(0.3)
    with pytest.raises(ValueError, match="`min_decay` must be at most"):
        WarmupRule(0.5, min_decay=0.6)


def test_an_equal_average_by_epochs():
    rule = EqualRule.from_epochs(3, steps_per_epoch=100)
    assert (rule.start_step, rule.update_interval) == (300, 100)
    # The weights at the end of the fourth epoch are the first that count.
    assert [rule.decay_at(n) for n in (300, 399, 400, 500)] == [0.0, 1.0, 0.0, 0.5]


def test_the_copy_measures_its_batch_norm_statistics_on_data():
    fmkit.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    )
    model.compile(WeightAverages("sgd", [EqualRule()]), "mse")
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    model.fit(x, x[:, :1] + np.zeros(4), verbose=0)
    made = averaged_model(model, batch_norm_data=x)
    with averaged(model):
        activations = array(model.layers[0](x))
    mean = array(made.layers[1].moving_mean)
    np.testing.assert_allclose(mean, activations.mean(axis=0), rtol=1e-4, atol=1e-6)
    plain = averaged_model(model).layers[1].moving_mean
    assert abs(array(plain) - mean).max() > 1e-3


# Lookahead


def lookahead_by_hand(path, period, share, start):
    """The slow weights, and the weights after each step, where steps add increments."""
    slow, fast = np.array(start, "float64"), np.array(start, "float64")
    for step, gradient in enumerate(np.asarray(path, "float64"), 1):
        fast = fast - gradient
        if step % period == 0:
            slow = slow + share * (fast - slow)
            fast = slow
    return slow, fast


@pytest.mark.parametrize("steps", [12, 1000, 1003])
def test_lookahead_does_what_the_paper_says(steps):
    start = np.array([1.0, -2.0, 3.0], "float32")
    path = np.random.default_rng(0).normal(0, 0.01, (steps, 3)).astype("float32")
    variable = weight(start)
    optimizer = Lookahead(keras.optimizers.SGD(1.0), 5, 0.5)
    follow = compiled(optimizer, variable)
    for gradient in path:
        follow(ops.convert_to_tensor(gradient))
    slow, fast = lookahead_by_hand(path, 5, 0.5, start)
    np.testing.assert_allclose(array(optimizer.copies[0][1]), slow, rtol=1e-5)
    np.testing.assert_allclose(array(variable), fast, rtol=1e-5)
    if steps % 5:  # else a rule that never synchronises would pass, but for `slow`
        assert abs(fast - slow).max() > 1e-3


def test_lookahead_counts_updates_and_not_accumulated_steps():
    def run(inner, steps):
        variable = weight([1.0, 1.0])
        optimizer = Lookahead(inner, 2)
        optimizer.build([variable])
        for _ in range(steps):
            optimizer.apply([ops.convert_to_tensor([0.1, 0.2])], [variable])
        return array(variable), optimizer.updates

    sgd = keras.optimizers.SGD
    plain, updates = run(sgd(0.5), 5)
    accumulated, same = run(sgd(0.5, gradient_accumulation_steps=2), 10)
    assert updates == same == 5
    np.testing.assert_allclose(accumulated, plain, rtol=1e-6)
    every, _ = run(keras.optimizers.SGD(0.5), 10)
    assert abs(every - plain).max() > 1e-3


def averaging():
    inner = Lookahead(keras.optimizers.Adam(0.01), sync_period=3)
    return WeightAverages(inner, [0.9, EqualRule(start_step=2, update_interval=2)])


def composed():
    return keras.optimizers.LossScaleOptimizer(averaging())


def test_averages_lookahead_and_loss_scaling_compose_and_resume_to_the_bit(tmp_path):
    def train(directory, *callbacks):
        model, _, history = fit(
            directory, *callbacks, model=build(optimizer=composed())
        )
        return bits(model.variables), history.history

    straight = train(tmp_path / "straight")
    assert broken_and_resumed(tmp_path / "broken", train) == straight


def test_a_composed_optimizer_survives_its_config():
    config = json.dumps(composed().get_config())
    again = keras.optimizers.LossScaleOptimizer.from_config(json.loads(config))
    assert json.dumps(again.get_config()) == config
    assert isinstance(again.inner_optimizer.inner_optimizer, Lookahead)


@pytest.mark.parametrize(
    ("bad", "name"),
    [({"sync_period": 0}, "sync_period"), ({"slow_step_size": 2}, "slow")],
)
def test_lookahead_refuses_what_makes_no_sense(bad, name):
    with pytest.raises(ValueError, match=name):
        Lookahead("sgd", **bad)
    with pytest.raises(ValueError, match="must not average already"):
        WeightAverages(WeightAverages("sgd", [0.9]), [0.9])


# Keras's schedule-free optimizer


@pytest.fixture
def schedule_free():
    if not hasattr(keras.optimizers, "ScheduleFreeAdamW"):
        pytest.skip("Keras has it from 3.14 on")
    return keras.optimizers.ScheduleFreeAdamW(0.05)


def test_a_schedule_free_model_is_evaluated_at_its_average(schedule_free):
    start = np.array([1.0, -2.0], "float32")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(schedule_free, "mse")
    model.layers[0].kernel.assign(start[:, None])
    # On TensorFlow `fit` would leave its z at 0, for want of a value to copy.
    model.optimizer.build(model.trainable_variables)
    x = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
    y = x @ np.array([[3.0], [1.0]], "float32")
    before = bits(model.variables)
    with averaged(model):  # before the first step
        assert bits(model.variables) == before
    # Defazio et al. 2024: gradients at y; z follows them; x is the mean of all z.
    z, mean, velocity = start.astype("float64"), start.astype("float64"), np.zeros(2)
    beta_1, beta_2, at = 0.9, 0.999, start.astype("float64")
    for step in range(1, 13):
        rows = slice((step - 1) % 4 * 8, (step - 1) % 4 * 8 + 8)
        gradient = 2 * x[rows].T @ (x[rows] @ at - y[rows, 0]) / 8
        velocity = beta_2 * velocity + (1 - beta_2) * gradient**2
        size = np.sqrt(velocity / (1 - beta_2**step)) + 1e-8
        z = z - 0.05 * gradient / size
        if BACKEND != "jax":
            # tests/test_keras_traps_averages.py: there Keras takes the new z for the
            # old one.
            mean = (at - (1 - beta_1) * z) / beta_1
        mean = mean + (z - mean) / step
        at = (1 - beta_1) * z + beta_1 * mean
    model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(array(model.layers[0].kernel)[:, 0], at, rtol=1e-4)
    raw = bits(model.variables)
    with averaged(model):
        found = array(model.layers[0].kernel)[:, 0]
    np.testing.assert_allclose(found, mean, rtol=1e-4)
    assert abs(mean - at).max() > 1e-2
    assert bits(model.variables) == raw


def test_a_schedule_free_optimizer_is_not_averaged_twice(schedule_free):
    with pytest.raises(ValueError, match="must not average already"):
        WeightAverages(schedule_free, [0.9])


# Where they train


def test_a_fused_model_keeps_the_same_averages():
    def train(fuse):
        model = fuse(build(optimizer=averaging()))
        model.fit(data(), epochs=3, verbose=0)
        assert getattr(model, "why_not_fused", None) is None
        kept = model.optimizer.kept.values()
        return [array(average) for each in kept for _, average in each.averages]

    pairs = list(zip(train(lambda model: model), train(performance.fused), strict=True))
    for plain, fused in pairs:
        np.testing.assert_allclose(fused, plain, rtol=1e-5, atol=1e-6)
    if BACKEND == "torch":  # the same kernels
        assert all(plain.tobytes() == fused.tobytes() for plain, fused in pairs)


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_three_mirrored_replicas_look_ahead_alike():
    code = """
        import numpy as np, tensorflow as tf, keras
        from fmkit.optimizers import EqualRule, Lookahead, WeightAverages
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 3)
        x = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
        y = x.sum(axis=1, keepdims=True)

        def train():
            keras.utils.set_random_seed(0)
            model = keras.Sequential([
                keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
            inner = Lookahead(keras.optimizers.SGD(0.05), sync_period=3)
            model.compile(WeightAverages(inner, [0.9, EqualRule()]), "mse")
            model.fit(x, y, batch_size=12, epochs=3, shuffle=False, verbose=0)
            return model

        alone = train()
        places = [f"CPU:{i}" for i in range(3)]
        with tf.distribute.MirroredStrategy(places).scope():
            model = train()
        for a, b in zip(alone.variables + alone.optimizer.variables,
                        model.variables + model.optimizer.variables):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
        for v in model.trainable_variables:
            parts = [p.numpy().tobytes() for p in v.value.values]
            assert len(parts) == 3 and len(set(parts)) == 1, v.path
        lookahead = model.optimizer.inner_optimizer
        for weight, slow in lookahead.copies:  # 12 updates: the last one synchronised
            assert weight.numpy().tobytes() == slow.numpy().tobytes(), weight.path
        print("same")
    """
    assert run_python(code).split()[-1] == "same"


@pytest.mark.long
@pytest.mark.backend("tensorflow")
def test_an_exported_average_predicts_the_same_where_fmkit_is_not(tmp_path):
    model = trained(WeightAverages("adam", [0.9, EqualRule(start_step=3)]))
    x = np.random.default_rng(2).normal(size=(5, 3)).astype("float32")
    averaged_model(model, "swa").export(tmp_path / "served", verbose=False)
    code = f"""
        import sys, numpy as np, tensorflow as tf
        served = tf.saved_model.load({str(tmp_path / "served")!r})
        np.save({str(tmp_path / "y.npy")!r}, served.serve(tf.constant({x.tolist()})))
        print("fmkit" in sys.modules)
    """
    assert run_python(code).split()[-1] == "False"
    with averaged(model, "swa"):
        expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-6)
    raw = model.predict(x, verbose=0)
    assert abs(raw - expected).max() > 1e-4
