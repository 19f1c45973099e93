"""Averages whose length is chosen after training, from snapshots of two."""

import json
import shutil

import keras
import numpy as np
import pytest
from bits import array, bits
from resuming import StopAt, StopError, X, Y, broken_and_resumed, build, fit

from fmkit import callbacks
from fmkit._commits import DamagedCommitError
from fmkit.evaluation import Synthesis, sweep_widths, synthesize
from fmkit.evaluation._synthesize import fit_shares, shares
from fmkit.optimizers import PowerRule, WeightAverages, averaged
from fmkit.optimizers._rules import gamma_of

WIDTHS = (0.05, 0.1)


def averaging(*widths, **options):
    rules = [PowerRule(width, **options) for width in widths]
    return WeightAverages(keras.optimizers.Adam(0.01), rules)


def train(directory, *others, widths=WIDTHS, epochs=40, **options):
    model = build(optimizer=averaging(*widths))
    fit(directory, *others, model=model, epochs=epochs, every=5, **options)
    return model


def snapshots(directory):
    return {path.name: path.read_bytes() for path in directory.glob("averages-*.npz")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 200 steps that tracks two more widths, to compare with."""
    directory = tmp_path_factory.mktemp("run")
    return directory, train(directory, widths=(*WIDTHS, 0.15, 0.07))


def without(directory, folder, names):
    """Copy a run, and leave some averages out of its snapshots."""
    from fmkit._commits import Meta, read_commit, write_commit

    shutil.copytree(directory, folder)
    for path in folder.glob("averages-*.npz"):
        commit = read_commit(path)
        told = [a for a in commit.meta.program["averages"] if a["name"] not in names]
        arrays = {
            name: array
            for name, array in commit.arrays.items()
            if name.rpartition("/")[0] not in names
        }
        write_commit(path, Meta(program={"averages": told}), arrays)
    return folder


# The shares


@pytest.mark.parametrize("width", [0.03, 0.1, 0.28])
def test_the_shares_are_what_the_rule_unrolls_to(width):
    rule, length = PowerRule(width), 57
    unrolled = np.zeros(length)
    for n in range(1, length + 1):
        unrolled *= rule.decay_of(n)
        unrolled[n - 1] += 1 - rule.decay_of(n)
    found = shares(gamma_of(width), length, np.arange(1.0, length + 1))
    np.testing.assert_allclose(found, unrolled, rtol=1e-12, atol=1e-16)
    assert found.sum() == pytest.approx(1, abs=1e-14)


def test_a_kept_average_is_found_as_itself():
    kept = [(gamma_of(w), t) for t in (83, 100, 120) for w in WIDTHS]
    coefficients, error = fit_shares(kept, kept[4])
    np.testing.assert_allclose(coefficients, [0, 0, 0, 0, 1, 0], atol=1e-6)
    assert error < 1e-6


def test_coefficients_sum_to_one_and_more_snapshots_fit_better():
    errors = []
    for growth in (2.0, 1.3, 1.1):
        lengths = [1000]
        while lengths[-1] / growth > 20:
            lengths.append(int(lengths[-1] / growth))
        kept = [(gamma_of(w), t) for t in lengths for w in WIDTHS]
        coefficients, error = fit_shares(kept, (gamma_of(0.15), 1000))
        assert coefficients.sum() == pytest.approx(1, abs=1e-12)
        whole = sum(
            c * shares(*each, np.arange(1.0, 1001))
            for c, each in zip(coefficients, kept, strict=True)
        )
        wanted = shares(gamma_of(0.15), 1000, np.arange(1.0, 1001))
        direct = np.linalg.norm(whole - wanted) / np.linalg.norm(wanted)
        assert error == pytest.approx(direct, rel=1e-6)
        errors.append(error)
    assert errors[0] > 0.15
    assert errors[2] < 0.02
    assert errors == sorted(errors, reverse=True)


def test_a_long_training_is_fitted_in_blocks(monkeypatch):
    kept = [(gamma_of(w), t) for t in (300, 700, 1000) for w in WIDTHS]
    wanted = (gamma_of(0.12), 900)
    whole = fit_shares(kept, wanted)
    monkeypatch.setattr("fmkit.evaluation._synthesize._BLOCK", 64)
    pieces = fit_shares(kept, wanted)
    np.testing.assert_allclose(pieces[0], whole[0], rtol=1e-6)
    assert pieces[1] == pytest.approx(whole[1], rel=1e-9)


# The snapshots


def test_snapshots_are_few_and_at_growing_distances(run):
    lengths = sorted(int(name[9:-4]) for name in snapshots(run[0]))
    assert lengths[0] == 5
    assert lengths[-1] == 200
    ratios = np.divide(lengths[1:-1], lengths[:-2])
    assert (ratios >= 1.15).all()
    assert len(lengths) < 22 < 200 / 5


def test_a_killed_run_leaves_the_snapshots_of_one_that_was_not(tmp_path):
    def broken(directory, *others):
        train(directory, *others, epochs=8)
        return {  # but for the names of layers, which Keras counts through a process
            (name, key): value.tobytes()
            for name in snapshots(directory)
            for key, value in np.load(directory / name).items()
            if key != "meta.json"
        }

    straight = broken(tmp_path / "straight")
    for at in ((1, 3), (5, 2)):
        again = broken_and_resumed(tmp_path / f"at{at[0]}", broken, at=at)
        assert again == straight
    assert len({name for name, _ in straight}) > 5


def test_a_snapshot_without_its_commit_is_made_again(tmp_path, capsys):
    with pytest.raises(StopError):
        train(tmp_path / "run", StopAt(4, 2), epochs=8)
    kept = snapshots(tmp_path / "run")
    (tmp_path / "run" / "averages-00000021.npz").write_bytes(b"of a killed write")
    capsys.readouterr()
    train(tmp_path / "run", epochs=8, verbose=1)
    told = "removed averages-00000021.npz: no sound commit covers such snapshots"
    assert told in capsys.readouterr().out
    assert "averages-00000021.npz" not in snapshots(tmp_path / "run")
    assert kept.items() <= snapshots(tmp_path / "run").items()


def test_a_run_killed_before_its_first_commit_starts_again(tmp_path, capsys):
    train(tmp_path, epochs=2)
    kept = snapshots(tmp_path)
    _, *later = sorted(kept)
    for path in [*tmp_path.glob("commit-*.npz"), *(tmp_path / name for name in later)]:
        path.unlink()
    capsys.readouterr()
    train(tmp_path, epochs=2, verbose=1)
    assert capsys.readouterr().out.count("removed averages-") == 1
    assert snapshots(tmp_path).keys() == kept.keys()
    # Negative control: where nothing is removed, nothing is said.
    train(tmp_path, epochs=3, verbose=1)
    assert "removed" not in capsys.readouterr().out


def test_no_snapshots_where_none_are_wanted_or_none_can_be(tmp_path):
    train(tmp_path / "off", epochs=2, snapshot_growth=None)
    fit(tmp_path / "plain", model=build())
    assert not snapshots(tmp_path / "off")
    assert not snapshots(tmp_path / "plain")
    with pytest.raises(ValueError, match="`snapshot_growth` must be"):
        callbacks.ExactResume(tmp_path, snapshot_growth=0.5)


def test_a_new_run_does_not_take_the_snapshots_of_another(tmp_path):
    train(tmp_path, epochs=2)
    for path in tmp_path.glob("commit-*.npz"):
        path.unlink()
    kept = snapshots(tmp_path)
    with pytest.raises(ValueError, match=r"snapshots of averages of another run"):
        train(tmp_path, epochs=2)
    assert snapshots(tmp_path) == kept


# The average


def test_a_tracked_width_is_found_to_the_last_digits(run):
    directory, model = run
    for width in (0.05, 0.1, 0.15):
        found = synthesize(directory, width)
        assert isinstance(found, Synthesis)
        assert found.error < 1e-6
        assert found.end == 200
        with averaged(model, f"power_{width}"):
            for own, expected in zip(found.model.weights, model.weights, strict=True):
                np.testing.assert_allclose(array(own), array(expected), 1e-5, 1e-7)


@pytest.mark.parametrize(("width", "bound"), [(0.07, 0.03), (0.15, 0.1)])
def test_another_width_is_as_close_to_a_tracked_one_as_it_says(
    run, tmp_path, width, bound
):
    directory, model = run
    two = without(directory, tmp_path / "two", ("power_0.15", "power_0.07"))
    found = synthesize(two, width, model=build())
    assert 1e-3 < found.error < bound
    raw = np.concatenate([array(v).ravel() for v in model.weights])
    with averaged(model, f"power_{width}"):
        tracked = np.concatenate([array(v).ravel() for v in model.weights])
    own = np.concatenate([array(v).ravel() for v in found.model.weights])
    # How far off the weights are, as a part of how far the average is from them.
    off = np.linalg.norm(own - tracked) / np.linalg.norm(raw - tracked)
    assert off < found.error
    with averaged(model, "power_0.1"):  # negative control: a width beside it
        beside = np.concatenate([array(v).ravel() for v in model.weights])
    assert np.linalg.norm(beside - tracked) > 10 * np.linalg.norm(own - tracked)


def test_an_earlier_end_is_the_average_at_that_time(run, tmp_path):
    directory, _ = run
    end = sorted(int(name[9:-4]) for name in snapshots(directory))[-4]
    early = train(tmp_path, epochs=end // 5, widths=(*WIDTHS, 0.15, 0.07))
    assert early.optimizer.updates == end < 200
    found = synthesize(directory, 0.1, end=end)
    assert found.error < 1e-6
    with averaged(early, "power_0.1"):
        for own, expected in zip(found.model.weights, early.weights, strict=True):
            np.testing.assert_allclose(array(own), array(expected), 1e-5, 1e-7)
    # Between two snapshots the last updates are in none, and the error says so.
    assert synthesize(directory, 0.1, end=end - 1).error > 0.1
    with pytest.raises(ValueError, match=r"`end` must be at most 200"):
        synthesize(directory, 0.1, end=201)
    with pytest.raises(ValueError, match=r"No snapshot .* is as early as end=3"):
        synthesize(directory, 0.1, end=3)


def test_a_sweep_evaluates_each_width(run):
    directory, model = run
    rows = sweep_widths(directory, (X, Y), widths=(0.05, 0.1))
    assert [row["width"] for row in rows] == [0.05, 0.1]
    for row in rows:
        with averaged(model, f"power_{row['width']}"):
            expected = model.evaluate(X, Y, verbose=0)
        assert row["loss"] == pytest.approx(expected, rel=1e-4)
    assert rows[0]["loss"] != rows[1]["loss"]


def test_a_sweep_measures_batch_norm_statistics_for_each_width(tmp_path):
    model = build(optimizer="sgd")
    norm = keras.layers.BatchNormalization()
    whole = keras.Sequential([keras.Input((3,)), *model.layers, norm])
    whole.compile(averaging(*WIDTHS), model.loss)
    fit(tmp_path, model=whole, epochs=3)
    seen = []
    for data in (None, X):
        rows = sweep_widths(tmp_path, (X, Y), [0.1], model=whole, batch_norm_data=data)
        seen.append((rows[0]["loss"], array(norm.moving_mean)))
    expected = array(model(X)).mean(axis=0)
    np.testing.assert_allclose(seen[1][1], expected, rtol=1e-4, atol=1e-6)
    assert abs(seen[0][1] - expected).max() > 1e-3
    assert seen[0][0] != seen[1][0]


def test_excluded_weights_and_other_layers_keep_their_places(tmp_path):
    model = build(optimizer=None)
    optimizer = WeightAverages("adam", [PowerRule(w) for w in WIDTHS], exclude="bias")
    model.compile(optimizer, model.loss)
    fit(tmp_path, model=model, epochs=3)
    found = synthesize(tmp_path, 0.1).model
    with averaged(model, "power_0.1"):
        for own, expected in zip(found.weights, model.weights, strict=True):
            np.testing.assert_allclose(array(own), array(expected), 1e-5, 1e-6)


# What goes wrong


def test_what_is_missing_or_of_another_model_is_said(run, tmp_path):
    directory, _ = run
    with pytest.raises(ValueError, match=r"has no snapshots of averages.*PowerRule"):
        synthesize(tmp_path, 0.1)
    with pytest.raises(ValueError, match=r"`width` must be"):
        synthesize(directory, 0.5)
    for path in directory.glob("averages-*.npz"):
        shutil.copy(path, tmp_path)
    with pytest.raises(ValueError, match=r"no model\.json to make the model from"):
        synthesize(tmp_path, 0.1)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="other")])
    with pytest.raises(ValueError, match=r"of a different model"):
        synthesize(tmp_path, 0.1, model=other)


@pytest.mark.parametrize("option", ["start_step", "update_interval"])
def test_averages_of_different_updates_are_not_mixed(tmp_path, option):
    rules = [PowerRule(0.05), PowerRule(0.1, **{option: 5})]
    model = build(optimizer=WeightAverages("adam", rules))
    fit(tmp_path / "run", model=model, epochs=4, every=5)
    with pytest.raises(ValueError, match=rf"'power_0\.1' .*{option}=5.*Train with"):
        synthesize(tmp_path / "run", 0.1)


def test_snapshots_that_do_not_say_their_timing_are_read_too(run, tmp_path):
    from fmkit._commits import Meta, read_commit, write_commit

    shutil.copytree(run[0], tmp_path / "old")
    newest, *older = sorted((tmp_path / "old").glob("averages-*.npz"), reverse=True)
    for path in older:  # the newest is of a run that was continued by this version
        commit = read_commit(path)
        told = [
            {key: each[key] for key in ("name", "gamma", "length", "weights")}
            for each in commit.meta.program["averages"]
        ]
        write_commit(path, Meta(program={"averages": told}), commit.arrays)
    assert read_commit(newest).meta.program["averages"][0]["update_interval"] == 1
    assert synthesize(tmp_path / "old", 0.1).error < 1e-6


def test_a_damaged_snapshot_is_named(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    path = folder / "averages-00000200.npz"
    whole = path.read_bytes()
    for bad in (whole[: len(whole) // 2], b"", json.dumps({}).encode()):
        path.write_bytes(bad)
        with pytest.raises(DamagedCommitError, match=r"averages-00000200\.npz"):
            synthesize(folder, 0.1)
    path.write_bytes(whole)
    assert bits(synthesize(folder, 0.1).model.weights)
