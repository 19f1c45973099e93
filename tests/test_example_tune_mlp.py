"""The tuning example at a small setting."""

import csv
from pathlib import Path

import pytest

# A search compiles nothing there, and the example's claims don't depend on it.
pytestmark = [
    pytest.mark.backend("torch"),
    pytest.mark.long,
    pytest.mark.needs("keras_tuner", "matplotlib"),
]

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "tune_mlp.py"


def test_the_questions_are_answered_and_the_chosen_model_is_judged_once(
    tmp_path, capsys, program
):
    example = program("examples/tune_mlp.py")
    questions = {"units": [8, 64], "batch_size": [128, 600]}
    accuracy = example.main(trials=2, epochs=1, folder=tmp_path, questions=questions)
    printed = capsys.readouterr().out
    assert 0.6 < accuracy < 0.9
    assert printed.count("test accuracy") == 1
    assert f"test accuracy {accuracy:.4f}" in printed
    with open(tmp_path / "tune_mlp.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    asked = [row["question"] for row in rows]
    assert asked == ["units"] * 2 + ["batch_size"] * 2 + ["together"] * 2
    assert {row["status"] for row in rows} == {"COMPLETED"}
    # The sample's 4,800 images: 8 units know less after an epoch than 64, and 8
    # steps of 600 teach less than 38 of 128.
    score = {(r["question"], r[r["question"]]): float(r["score"]) for r in rows[:4]}
    assert score["units", "8"] < score["units", "64"]
    assert score["batch_size", "600"] < score["batch_size", "128"]
    assert (tmp_path / "tune_mlp.png").read_bytes().startswith(b"\x89PNG")
