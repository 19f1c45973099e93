"""Entropies against SciPy, hand arithmetic and the identities that hold exactly."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops
from scipy import special, stats
from scipy.spatial.distance import jensenshannon
from test_losses_exact import value_and_gradient

from fmkit import information as info

WEIGHT = st.floats(0, 100).map(lambda w: w if w > 1e-6 else 0.0)


def counts(*shape):
    return arrays("float64", shape, elements=WEIGHT).filter(lambda a: a.sum() > 1)


@pytest.mark.parametrize(("unit", "base"), [("nats", np.e), ("bits", 2), ("bans", 10)])
def test_measures_agree_with_scipy_in_every_unit(unit, base):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), 3), rng.dirichlet(np.ones(5), 3)
    kl = stats.entropy(p, q, base=base, axis=1)
    entropy = stats.entropy(p, base=base, axis=1)
    np.testing.assert_allclose(info.entropy(p, unit=unit), entropy, rtol=1e-12)
    np.testing.assert_allclose(info.kl_divergence(p, q, unit=unit), kl, rtol=1e-12)
    np.testing.assert_allclose(
        info.cross_entropy(p, q, unit=unit), entropy + kl, rtol=1e-12
    )
    np.testing.assert_allclose(
        info.jensen_shannon_divergence(p, q, unit=unit),
        jensenshannon(p, q, base=base, axis=1) ** 2,
        rtol=1e-12,
    )
    np.testing.assert_allclose(info.perplexity(p), base**entropy, rtol=1e-12)
    np.testing.assert_allclose(
        info.perplexity(p, q), base ** (entropy + kl), rtol=1e-12
    )


def test_cross_entropy_gives_the_numbers_that_the_tutorial_prints():
    sure = [1.0, 0.0]
    assert round(float(info.cross_entropy(sure, [0.6, 0.4], unit="bans")), 3) == 0.222
    assert round(float(info.cross_entropy(sure, [0.8, 0.2], unit="bans")), 3) == 0.097
    assert round(float(info.cross_entropy(sure, [0.6, 0.4])), 4) == 0.5108
    assert round(float(info.cross_entropy(sure, [0.8, 0.2])), 4) == 0.2231


def test_the_joint_table_of_cover_and_thomas_comes_out_by_hand():
    # Example 2.2.1: rows are Y, columns X, in the book's picture.
    table = np.array(
        [
            [1 / 8, 1 / 16, 1 / 32, 1 / 32],
            [1 / 16, 1 / 8, 1 / 32, 1 / 32],
            [1 / 16, 1 / 16, 1 / 16, 1 / 16],
            [1 / 4, 0, 0, 0],
        ]
    )
    assert info.joint_entropy(table, unit="bits") == pytest.approx(27 / 8, rel=1e-14)
    assert info.conditional_entropy(table, unit="bits") == pytest.approx(11 / 8)
    assert info.conditional_entropy(table.T, unit="bits") == pytest.approx(13 / 8)
    assert info.mutual_information(table, unit="bits") == pytest.approx(3 / 8)


@settings(max_examples=60, deadline=None)
@given(counts(3, 4))
def test_the_chain_rule_and_the_symmetry_of_mutual_information_hold(table):
    joint = info.joint_entropy(table, form="counts")
    rows = info.entropy(table.sum(axis=1), form="counts")
    columns = info.entropy(table.sum(axis=0), form="counts")
    given_rows = info.conditional_entropy(table, form="counts")
    mutual = info.mutual_information(table, form="counts")
    assert given_rows == pytest.approx(joint - rows, abs=1e-13)
    assert mutual == pytest.approx(rows + columns - joint, abs=1e-13)
    assert mutual == pytest.approx(
        info.mutual_information(table.T, form="counts"), rel=1e-9, abs=1e-15
    )
    assert given_rows >= 0.0
    assert mutual >= 0.0


@settings(max_examples=60, deadline=None)
@given(counts(5), counts(5))
def test_cross_entropy_is_entropy_plus_divergence_and_none_is_negative(p, q):
    entropy = info.entropy(p, form="counts")
    kl = info.kl_divergence(p, q, form="counts")
    js = info.jensen_shannon_divergence(p, q, form="counts")
    crossed = info.cross_entropy(p, q, form="counts")
    assert kl >= 0.0
    assert 0.0 <= entropy <= np.log(5) + 1e-12
    assert 0.0 <= js <= np.log(2) + 1e-12
    assert crossed == pytest.approx(entropy + kl, rel=1e-12, abs=1e-13)
    assert info.kl_divergence(p, p, form="counts") == 0.0
    assert js == pytest.approx(
        info.jensen_shannon_divergence(q, p, form="counts"), rel=1e-9, abs=1e-15
    )


def test_every_form_of_the_same_distribution_gives_the_same_entropy():
    p = np.array([[0.5, 0.25, 0.25, 0.0]])
    true = 1.5 * np.log(2)
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    for form, x in {
        "probabilities": p,
        "log_probabilities": log_p,
        "logits": log_p + 7.0,
        "counts": 12 * p,
    }.items():
        assert info.entropy(x, form=form)[0] == pytest.approx(true, rel=1e-14)
        moved = info.entropy(x.T, form=form, axis=0)[0]
        assert moved == pytest.approx(true, rel=1e-14)
        other = info.kl_divergence(p, x, q_form=form)[0]
        assert other == pytest.approx(0.0, abs=1e-15)


def test_impossible_outcomes_weigh_nothing_and_forbidden_ones_infinity():
    assert info.entropy([1.0, 0.0]) == 0.0
    assert info.kl_divergence([1.0, 0.0], [0.5, 0.5]) == pytest.approx(np.log(2))
    assert info.kl_divergence([0.5, 0.5], [1.0, 0.0]) == np.inf
    assert info.cross_entropy([0.5, 0.5], [1.0, 0.0]) == np.inf
    masked = [0.0, -np.inf, 0.0]
    assert info.entropy(masked, form="logits") == pytest.approx(np.log(2))
    assert info.kl_divergence(masked, [1.0, -np.inf, 1.0], form="logits") == 0.0


def test_divergence_of_nearly_equal_logits_keeps_its_digits():
    # D is half the variance of the difference, to second order: here 1/8 of 1e-16.
    z, w = np.array([0.0, 1e-8]), np.array([0.0, 0.0])
    got = info.kl_divergence(w, z, form="logits")
    assert got == pytest.approx(1e-16 / 8, rel=1e-6)


def test_labels_give_what_their_table_of_counts_gives():
    rng = np.random.default_rng(1)
    x = rng.integers(0, 3, (5, 8))
    y = (x + rng.integers(0, 2, (5, 8))) % 3
    table = info.joint_counts(x, y)
    true = np.zeros((3, 3), int)
    for a, b in zip(x.ravel(), y.ravel(), strict=True):
        true[a, b] += 1
    np.testing.assert_array_equal(table, true)
    p = true / true.sum()
    joint = special.entr(p).sum()
    marginal = special.entr(p.sum(axis=1)).sum()
    assert info.joint_entropy(x, y) == pytest.approx(joint, rel=1e-13)
    assert info.conditional_entropy(x, y) == pytest.approx(joint - marginal, rel=1e-12)
    tensors = [ops.convert_to_tensor(a.astype("int32")) for a in (x, y)]
    assert info.joint_entropy(*tensors) == pytest.approx(joint, rel=1e-13)


def test_a_joint_table_may_be_given_as_logits_and_may_be_stacked():
    rng = np.random.default_rng(2)
    tables = rng.dirichlet(np.ones(6), 4).reshape(4, 2, 3)
    one_by_one = [info.mutual_information(t) for t in tables]
    np.testing.assert_allclose(info.mutual_information(tables), one_by_one)
    np.testing.assert_allclose(
        info.mutual_information(np.log(tables) + 3.0, form="logits"),
        one_by_one,
        rtol=1e-10,
    )


def test_tensors_give_tensors_of_their_own_float_type():
    z = np.random.default_rng(3).standard_normal((4, 5)).astype("float32") * 4
    w = z[::-1].copy()
    p = special.softmax(z.astype("float64"), axis=1)
    q = p[::-1]
    tz, tw = ops.convert_to_tensor(z), ops.convert_to_tensor(w)
    for got, true in (
        (info.entropy(tz, form="logits"), stats.entropy(p, axis=1)),
        (info.kl_divergence(tz, tw, form="logits"), stats.entropy(p, q, axis=1)),
        (info.perplexity(tz, form="logits"), np.exp(stats.entropy(p, axis=1))),
        (
            info.jensen_shannon_divergence(tz, tw, form="logits"),
            jensenshannon(p, q, axis=1) ** 2,
        ),
    ):
        assert ops.is_tensor(got)
        assert keras.backend.standardize_dtype(got.dtype) == "float32"
        np.testing.assert_allclose(ops.convert_to_numpy(got), true, rtol=1e-5)
    table = ops.convert_to_tensor(np.array([[0.25, 0.25], [0.5, 0.0]], "float32"))
    mutual = info.mutual_information(table)
    assert ops.is_tensor(mutual)
    assert float(mutual) == pytest.approx(
        info.mutual_information([[0.25, 0.25], [0.5, 0.0]]), rel=1e-6
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info.entropy([0.5, 0.4]), "form='counts'"),
        (lambda: info.entropy([1.5, -0.5]), "negative"),
        (lambda: info.entropy([0.0, 0.0], form="counts"), "not all 0"),
        (lambda: info.entropy([0.5, 0.5], unit="dits"), "unit"),
        (lambda: info.entropy([0.5, 0.5], form="logit"), "Did you mean 'logits'"),
        (lambda: info.entropy(0.5), "distribution along"),
        (lambda: info.entropy([0.5, 0.5], axis=1), "axis=1"),
        (lambda: info.kl_divergence([0.5, 0.5], [1.0]), "same shape"),
        (lambda: info.mutual_information([0.5, 0.5]), "joint table"),
        (lambda: info.joint_counts([0, 1], [0]), "same shape"),
        (lambda: info.joint_counts([0, -1], [0, 1]), "whole numbers"),
        (lambda: info.joint_counts([0.5], [0]), "whole numbers"),
    ],
)
def test_bad_input_is_refused_with_what_to_write_instead(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_check_of_the_sum_can_be_turned_off():
    got = info.entropy([2.0, 2.0], sum_tolerance=None)
    assert got == pytest.approx(np.log(2))


@pytest.mark.parametrize("rare", [1e-17, 1e-9, 1e-300])
def test_the_divergence_of_a_rare_outcome_is_finite_and_right(rare):
    p, q = np.array([rare, 1.0]), np.array([0.5, 0.5])
    assert info.kl_divergence(p, q) == pytest.approx(stats.entropy(p, q), rel=1e-12)
    assert info.kl_divergence(q, p) == pytest.approx(stats.entropy(q, p), rel=1e-12)
    js = jensenshannon(p, q) ** 2
    assert info.jensen_shannon_divergence(p, q) == pytest.approx(js, rel=1e-12)


def test_the_divergence_of_a_rare_outcome_in_float32_has_a_gradient():
    rare, even = np.float32([1e-30, 1.0]), np.float32([0.5, 0.5])
    rare, even = ops.convert_to_tensor(rare), ops.convert_to_tensor(even)
    assert float(info.kl_divergence(rare, even)) == pytest.approx(np.log(2), rel=1e-6)
    wide = stats.entropy([0.5, 0.5], [1e-30, 1.0])
    assert float(info.kl_divergence(even, rare)) == pytest.approx(wide, rel=1e-6)
    for measure in (info.kl_divergence, info.jensen_shannon_divergence):
        _, slope = value_and_gradient(lambda p, of=measure: of(p, even), [1e-30, 1.0])
        assert np.isfinite(slope).all()


@pytest.mark.backend("torch")  # the others may round so small a number to 0
def test_a_quotient_beyond_float32_is_taken_by_its_logarithms():
    p = ops.convert_to_tensor(np.float32([0.5, 0.5]))
    q = ops.convert_to_tensor(np.float32([1e-39, 1.0]))
    wide = stats.entropy([0.5, 0.5], [1e-39, 1.0])
    assert float(info.kl_divergence(p, q)) == pytest.approx(wide, rel=1e-6)


def test_mutual_information_of_a_rare_dependent_cell_is_finite():
    # Of a variable that tells the other: the entropy of (1 - r, r), near r (1 - log r).
    found = info.mutual_information([[10**17, 0], [0, 1]], form="counts")
    assert found == pytest.approx(1e-17 * (1 + 17 * np.log(10)), rel=1e-12)
    table = ops.convert_to_tensor(np.float32([[1.0, 0.0], [0.0, 1e-25]]))
    # In float32 the product of the two sums, 1e-50, is 0.
    expected = 1e-25 * (1 + 25 * np.log(10))
    assert float(info.mutual_information(table)) == pytest.approx(expected, rel=1e-5)
    _, slope = value_and_gradient(info.mutual_information, [[1.0, 0.0], [0.0, 1e-25]])
    assert np.isfinite(slope).all()


def test_a_tensor_beside_a_list_keeps_its_dtype():
    half = ops.convert_to_tensor(np.float32([0.5, 0.5]))
    for p, q in [(half, [0.5, 0.5]), ([0.5, 0.5], half), (half, np.full(2, 0.5))]:
        found = info.cross_entropy(p, q)
        assert keras.backend.standardize_dtype(found.dtype) == "float32"
        assert float(found) == pytest.approx(np.log(2), rel=1e-6)
