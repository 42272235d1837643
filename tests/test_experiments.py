"""The guide's experiments: each runs, goes on where it stopped, and its file says what was measured."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atomrl_nb.experiment import plain, read_result, run_experiment
from atomrl_nb.experiments import (REFERENCES, STUDIES, Study, compared, crystals, difference, experiment_of, held_out, paired,
                                   quickly, settings_of, trained)

SAVED = Path(__file__).resolve().parents[1] / "nbs" / "benchmark"
MEASURED = [name for name in STUDIES if (SAVED / f"{name}.json").exists()]


@pytest.mark.parametrize("name", [name if name == "guide" else pytest.param(name, marks=pytest.mark.slow)
                                  for name in STUDIES])
def test_an_experiment_of_the_guide_in_its_quick_form(name):
    result = run_experiment(experiment_of(STUDIES[name]), quick=True)
    assert [row["arm"] for row in result["rows"]] == [*STUDIES[name].arms, *REFERENCES]
    assert all(1 <= n <= 41 for row in result["rows"] for n in row["counts"])
    assert all(row["calls"] >= 64 and row["updates"] > 0 for row in result["rows"] if row["arm"] in STUDIES[name].arms)
    assert [row["arm"] for row in result["summary"]] == [row["arm"] for row in result["rows"]]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_an_experiment_that_was_killed_goes_on_with_what_is_missing(tmp_path):
    study = replace(quickly(STUDIES["guide"]), systems=("alloys4",))
    whole, met = experiment_of(study), []

    def killed(case, quick, work):
        met.append((case["arm"], case["seed"]))
        if len(met) == 4: raise KeyboardInterrupt
        return whole.measure(case, quick, work)

    few = dict(seeds=2, only=lambda case: case["arm"] in ("all on", "untrained", "BFGS"))
    with pytest.raises(KeyboardInterrupt): run_experiment(replace(whole, measure=killed), tmp_path / "guide.json", **few)
    kept = read_result(tmp_path / "guide.json")["rows"]
    result = run_experiment(whole, tmp_path / "guide.json", **few)
    found = [(row["arm"], row["seed"]) for row in result["rows"]]
    assert len(kept) == 3 and all(row in result["rows"] for row in kept)
    assert found == [("all on", 0), ("untrained", 0), ("BFGS", 0), ("all on", 1), ("untrained", 1)]


def test_a_training_spends_the_budget_and_counts_what_the_expert_hides():
    study = quickly(STUDIES["guide"])
    for arm in ("all on", "without III, expert that fades"):
        trainer, rows = trained(settings_of(study, "alloys4", arm), crystals("alloys4", 3, 0), 100)
        calls = sum(env.force_evaluations for env in trainer.environments)
        hidden = sum(row["expert_evaluations"] - row["expert"] for row in rows)
        assert calls >= 100 and (hidden > 0) == (arm != "all on")
        assert 8 <= calls - len(rows) - hidden <= 8 + len(rows)  # the rest are starts of episodes


def test_what_is_tested_on_is_not_trained_on():
    cells = [np.asarray(atoms.cell) for atoms in crystals("walls8", 50, 0)]  # each strained by a draw of its own
    assert not any(np.allclose(atoms.cell, cell) for atoms in held_out("walls8", 8) for cell in cells)


def test_differences_are_paired_by_seed():
    rows = [dict(system="s", arm=arm, seed=seed, evaluations=10.0 * seed + n, failed=0, counts=[1])
            for arm, n in (("a", 0), ("b", -1)) for seed in range(4)]
    assert difference(paired(rows, "s", "b", "a")) == dict(seeds=4, difference=-1.0, interval=[-1.0, -1.0], better=4)
    assert difference(paired(rows[:-2], "s", "b", "a"))["seeds"] == 2
    by_arm = {row["arm"]: row for row in compared(Study("x", "?", {"a": {}, "b": {}}, ("s",)), rows)}
    assert "difference" not in by_arm["a"] and by_arm["b"]["better"] == 4


@pytest.mark.parametrize("name", MEASURED)
def test_a_saved_file_answers_the_question_as_it_is_declared(name):
    study, saved = STUDIES[name], read_result(SAVED / f"{name}.json")
    declared = plain(experiment_of(study).settings)
    assert {key: saved[key] for key in declared} == declared
    for block in (saved["provenance"], *saved["provenance"].get("earlier", [])):
        assert block["commit"] and "+" not in block["commit"] and {"torch", "ase"} <= set(block["versions"])
    keys = [(row["system"], row["arm"], row["seed"]) for row in saved["rows"]]
    assert len(set(keys)) == len(keys)
    assert all(len(row["policy"]) == 16 for row in saved["rows"] if row["arm"] != "BFGS")
    assert saved["summary"] == plain(compared(study, saved["rows"]))
    assert all(study.budget <= row["calls"] <= 1.2 * study.budget for row in saved["rows"] if row["arm"] in study.arms)
