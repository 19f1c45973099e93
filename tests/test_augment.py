"""Draws per sample, and `Batches(augment=...)`: the same whatever reads the data."""

import itertools
import statistics
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from bits import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from resuming import X, Y, broken_and_resumed, data, fit
from scipy import special
from test_batches import recording_model

from fmkit import _splitmix
from fmkit.augmentation import Draws, augment
from fmkit.augmentation._quantiles import beta_quantiles
from fmkit.data import Batches

BACKEND = keras.backend.backend()


# Draws


@pytest.mark.backend("torch")
def test_words_are_those_of_the_published_generator():
    # Printed at https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64.
    assert _splitmix.word(1234567, range(5)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def splitmix(seed, number):
    """Word `number` of SplitMix64, in Python's integers and step by step."""
    mask = 2**64 - 1
    for _ in range(number + 1):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
    z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@pytest.mark.backend("torch")
def test_a_key_is_the_path_from_the_seed_to_the_element():
    draws = Draws(5, 2, [3, 9], number=1)
    draws.uniform()
    found = draws.bits((2,))
    for row, index in enumerate([3, 9]):
        key = 0
        for level in (5, 2, index, 1, 1):  # seed, epoch, sample, function, call
            key = splitmix(key, level)
        assert found[row].tolist() == [splitmix(key, 0), splitmix(key, 1)]


@pytest.mark.backend("torch")
def test_draws_are_the_ones_of_every_release():
    # Pinned: another Python, NumPy or platform that changed them shows here.
    draws = Draws(2**64 - 1, 10**6, [0, 2**40])
    assert draws.bits().tolist() == GOLDEN["bits"]
    assert draws.uniform(-1, 3).tolist() == GOLDEN["uniform"]
    assert draws.integers(-2, 1000).tolist() == GOLDEN["integers"]
    assert draws.bernoulli(0.5, (4,)).tolist() == GOLDEN["bernoulli"]
    normal = draws.normal(shape=(2,))
    assert normal.dtype == np.float32
    assert normal.view(np.uint32).tolist() == GOLDEN["normal"]
    for concentration, expected in GOLDEN["beta"].items():
        found = Draws(1, 0, [0, 2**40]).beta(concentration)
        assert found.dtype == np.float32
        assert found.view(np.uint32).tolist() == expected


@pytest.mark.backend("torch")
def test_draws_have_the_range_and_the_chances_that_they_promise():
    draws = Draws(1, 0, np.arange(50_000))
    uniform = draws.uniform(2.0, 5.0)
    assert 2.0 <= uniform.min() < 2.001 < 4.999 < uniform.max() < 5.0
    assert uniform.mean() == pytest.approx(3.5, abs=5 * 3 / (12 * 50_000) ** 0.5)
    counts = np.bincount(draws.integers(-3, 4) + 3, minlength=7)
    chi2 = ((counts - 50_000 / 7) ** 2 / (50_000 / 7)).sum()
    assert chi2 < 6 + 5 * 12**0.5  # 6 degrees of freedom
    assert draws.bernoulli(0.2).mean() == pytest.approx(0.2, abs=0.009)
    assert not draws.bernoulli(0.0).any()
    assert draws.bernoulli(1.0).all()
    normal = draws.normal(1.0, 2.0).astype(float)
    assert normal.mean() == pytest.approx(1.0, abs=0.045)
    assert normal.std() == pytest.approx(2.0, abs=0.032)
    assert draws.beta(0.2).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.backend("torch")
def test_quantiles_are_those_of_the_distributions():
    chances = (np.arange(2**16) + 0.5) / 2**16
    draws = Draws(0, 0, np.arange(60_000))
    found = np.unique(draws.normal(shape=(20,)))
    np.testing.assert_allclose(found, special.ndtri(chances), rtol=2e-7)
    assert float(found[-1]) == pytest.approx(
        statistics.NormalDist().inv_cdf(chances[-1]), rel=1e-6
    )
    for alpha in (0.1, 0.4, 1.0, 3.0, 500.0):
        np.testing.assert_allclose(
            beta_quantiles(alpha), special.betaincinv(alpha, alpha, chances), atol=1e-6
        )


@pytest.mark.backend("torch")
def test_samples_epochs_functions_and_calls_draw_independently():
    index, n = np.arange(20_000), 20_000
    first = Draws(3, 0, index)
    streams = [
        first.uniform(),
        first.uniform(),
        Draws(3, 1, index).uniform(),
        Draws(4, 0, index).uniform(),
        Draws(3, 0, index, number=1).uniform(),
        np.roll(Draws(3, 0, index).uniform(), 1),
        *Draws(3, 0, index).uniform(shape=(2,)).T[1:],
    ]
    for a, b in itertools.combinations(streams, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / n**0.5
    # Negative control: the same path draws the same.
    again = Draws(3, 0, index).uniform()
    assert np.corrcoef(streams[0], again)[0, 1] == pytest.approx(1.0)


@pytest.mark.backend("torch")
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**40),
    index=st.lists(st.integers(0, 2**50), min_size=1, max_size=9),
    shape=st.sampled_from([(), (3,), (2, 5)]),
)
def test_a_row_draws_alone_what_it_draws_in_a_block(seed, epoch, index, shape):
    def drawn(index):
        draws = Draws(seed, epoch, index)
        return [
            draws.uniform(shape=shape),
            draws.normal(shape=shape),
            draws.integers(0, 10, shape),
            draws.bernoulli(0.5, shape),
        ]

    for row, sample in enumerate(index):
        for alone, block in zip(drawn([sample]), drawn(index), strict=True):
            assert block.shape == (len(index), *shape)
            np.testing.assert_array_equal(alone[0], block[row])


@pytest.mark.backend("torch")
def test_what_is_drawn_at_another_epoch_stays_with_the_sample():
    fixed = [Draws(0, e, range(50)).at_epoch(0).bernoulli().tolist() for e in range(3)]
    assert fixed[0] == fixed[1] == fixed[2]
    assert Draws(0, 1, range(50)).bernoulli().tolist() != fixed[0]


@pytest.mark.backend("torch")
def test_wrong_draws_are_refused():
    with pytest.raises(OverflowError):
        Draws(2**64, 0, [0])
    draws = Draws(0, 0, [1])
    with pytest.raises(ValueError, match="`high` must be above `low`"):
        draws.integers(3, 3)
    with pytest.raises(ValueError, match="`concentration`"):
        draws.beta(0.0)
    with pytest.raises(ValueError, match="`samples` needs data"):
        draws.samples([0])
    with pytest.raises(ValueError, match="`size` needs data"):
        draws.size  # noqa: B018
    with pytest.raises(ValueError, match="`seed`"):
        Draws(-1, 0, [1])


GOLDEN = {
    "bits": [5676314334015741005, 2464290222714532653],
    "uniform": [0.6446402852828341, 0.07954114369931231],
    "integers": [175, 144],
    "bernoulli": [[True, True, True, False], [True, True, True, True]],
    "normal": [[3215640969, 3214129555], [3190129233, 1057162113]],
    "beta": {
        0.2: [983128653, 1028122858],
        1.0: [1040953856, 1049903872],
        3.0: [1049548802, 1053060200],
    },
}


# In Batches


def jitter(x, y, draws):
    return x + draws.uniform(0, 0.25, (3,)).astype("float32"), y


def average_with_another(x, y, draws):
    """Mix with a sample chosen among all."""
    other, label = draws.samples(draws.integers(0, draws.size))
    return (x + other) / 2, y + 1000 * label


FUNCTIONS = [jitter, average_with_another, jitter]


def numbers(n):
    x = np.repeat(np.arange(n, dtype=np.float32)[:, None], 3, axis=1)
    return x, np.arange(n, dtype=np.int64)


def by_hand(n, seed, epoch, functions=FUNCTIONS):
    """Each sample by itself: what `Batches` must show of it."""
    x, y = numbers(n)
    return {
        i: augment(
            x[i : i + 1],
            y[i : i + 1],
            functions,
            seed=seed,
            epoch=epoch,
            index=[i],
            read=lambda index: (x[index], y[index]),
            size=n,
        )
        for i in range(n)
    }


def differing(batches, epoch, start=0, functions=FUNCTIONS):
    """Compare the batches of an epoch with each sample by itself; name the others."""
    expected = by_hand(batches.num_samples, batches.seed, epoch, functions)
    batches.seek(epoch, start)
    order = batches.order(epoch)[start * batches.batch_size :]
    rows = [row for x, y in batches for row in zip(x, y, strict=True)]
    assert len(rows) == len(order)
    return [
        index
        for index, (x, y) in zip(order, rows, strict=True)
        if x.tobytes() != expected[index][0].tobytes() or y != expected[index][1]
    ]


@settings(deadline=None, max_examples=12)
@given(
    size=st.integers(1, 40),
    shard=st.sampled_from([(0, 1), (0, 2), (2, 3)]),
    epoch=st.integers(0, 5),
    start=st.integers(0, 2),
    shuffle=st.booleans(),
)
def test_a_sample_is_the_same_in_any_batch_shard_epoch_order_and_start(
    size, shard, epoch, start, shuffle
):
    n = 66
    options = {"seed": 7, "map": None, "shuffle": shuffle, "drop_remainder": True}
    size = min(size, n // shard[1])
    batches = Batches(*numbers(n), size, augment=FUNCTIONS, shard=shard, **options)
    start = min(start, len(batches) - 1)
    assert differing(batches, epoch, start) == []


def test_the_comparison_sees_what_is_no_function_of_the_sample():
    # Negative control: a draw of NumPy's, the mean of a block, another epoch's draws.
    rng = np.random.default_rng(0)
    for function in (
        lambda x, y, draws: (x + rng.random(x.shape, np.float32), y),
        lambda x, y, draws: (x - x.mean(), y),
        lambda x, y, draws: (x + rng.random() * draws.normal(shape=(3,)), y),
    ):
        batches = Batches(*numbers(30), 8, map=None, augment=function)
        assert len(differing(batches, 0, functions=[function])) > 20


def test_threads_that_read_at_once_get_the_same_rows():
    batches = Batches(*numbers(300), 10, seed=3, map=None, augment=FUNCTIONS)

    def read(step):
        return next(batches._reader.batches(2, step, step + 1))

    alone = [read(step) for step in range(30)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(read, [*range(30)] * 4))
    for one, other in zip(alone * 4, together, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_what_is_augmented_is_then_mapped():
    x = np.zeros((6, 2, 2), np.uint8)
    white = Batches(x, np.arange(6), 4, augment=lambda x, y, draws: (x + 255, y + 1))
    images, labels = white.peek()
    assert (images == 1).all()
    assert labels.tolist() == [i + 1 for i in white.order(0)[:4]]
    alone = Batches(x, batch_size=4, augment=lambda x, y, draws: (x + 51, y))
    assert (next(iter(alone)) == np.float32(0.2)).all()
    several = Batches(
        {"b": x, "a": (x, x + 1)},
        np.arange(6),
        4,
        map=None,
        sample_weight=np.arange(6),
        augment=lambda x, y, draws: ({"a": x["a"], "b": x["b"] + 5}, y),
    )
    inputs, labels, weight = several.peek()
    assert (inputs["b"] == 5).all()
    assert (inputs["a"][1] == 1).all()
    assert (labels == weight).all()


def test_fit_trains_on_augmented_rows_and_nothing_else_sees_them():
    n, size = 21, 4
    x, y = numbers(n)
    batches = Batches(x, y % 2, size, seed=9, map=None, augment=jitter)
    model = recording_model()
    model.fit(batches, epochs=2, validation_data=batches, verbose=0)
    total, step = 0.0, 0
    for epoch in range(2):
        rows, order = by_hand(n, 9, epoch, [jitter]), batches.order(epoch)
        for start in range(0, n, size):
            step += 1
            part = [rows[i][0][0, 0] for i in order[start : start + size]]
            total += step * sum(part) / 1024
    recorder = model.get_layer("recorder")
    assert float(recorder.total) == pytest.approx(total, rel=1e-6)
    # Negative control: without `augment` the sum is another.
    plain = recording_model()
    plain.fit(Batches(x, y % 2, size, seed=9, map=None), epochs=2, verbose=0)
    unaugmented = float(plain.get_layer("recorder").total)
    assert unaugmented != pytest.approx(total, rel=1e-4)
    np.testing.assert_allclose(
        model.predict(batches, verbose=0), model.predict(x, verbose=0), rtol=1e-5
    )
    assert model.evaluate(batches, verbose=0) == pytest.approx(
        model.evaluate(x, y % 2, verbose=0), rel=1e-5
    )


def test_a_run_broken_off_inside_an_epoch_ends_with_the_same_bits(tmp_path):
    def train(directory, *callbacks, functions=(jitter,)):
        batches = data(augment=list(functions))
        return fit(directory, *callbacks, batches=batches)[0].variables

    whole = train(tmp_path / "whole")
    assert same_bits(broken_and_resumed(tmp_path / "broken", train), whole)
    # Negative control: without the augmentation the bits are others.
    assert not same_bits(train(tmp_path / "plain", functions=()), whole)


@pytest.mark.backend("torch")
def test_wrong_functions_are_refused():
    with pytest.raises(TypeError, match="`augment` must be a function"):
        Batches(X, Y, augment="flip")
    with pytest.raises(ValueError, match="must return a pair"):
        Batches(X, Y, map=None, augment=lambda x, y, draws: x).peek()
    with pytest.raises(ValueError, match="arrays and rows it was given"):
        Batches(X, Y, map=None, augment=lambda x, y, draws: (x[1:], y)).peek()
