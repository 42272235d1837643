"""The guide's experiments: each runs, goes on where it stopped, and its file says what was measured."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atomrl_nb.diagnostics import METRIC_GUIDE
from atomrl_nb.experiment import plain, read_result, run_experiment
from atomrl_nb.experiments import (REFERENCES, STUDIES, SYSTEMS, Study, compared, crystals, difference, experiment_of, held_out,
                                   measured, paired, quickly, settings_of, trained)
from atomrl_nb.illnesses import (ARMS, DIAGNOSTICS, FIRST_SEED, ILLNESSES, alarms, concluded, cures, healthy_spread,
                                 judged)

SAVED = Path(__file__).resolve().parents[1] / "nbs" / "benchmark"
MEASURED = [name for name in STUDIES if (SAVED / f"{name}.json").exists()]


@pytest.mark.parametrize("name", [name if name == "guide" else pytest.param(name, marks=pytest.mark.slow)
                                  for name in STUDIES])
def test_an_experiment_of_the_guide_in_its_quick_form(name):
    result = run_experiment(experiment_of(STUDIES[name]), quick=True)
    assert [row["arm"] for row in result["rows"]] == [*STUDIES[name].arms, *REFERENCES]
    assert all(1 <= n <= 9 for row in result["rows"] for n in row["counts"])  # eight moves at most
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


def test_environments_have_their_aims_in_turn_and_each_start_is_tested_with_each(tmp_path):
    study, aims = quickly(STUDIES["guide-gate"]), SYSTEMS["aims4"].aims
    trainer, _ = trained(settings_of(study, "aims4", "all"), crystals("aims4", 3, 0), 0, aims)
    wanted = [(aim["fmax"], aim.get("max_steps", 8)) for aim in aims]
    assert [(env.settings.fmax, env.settings.max_steps) for env in trainer.environments] == wanted * 2
    assert trainer.environments[0].observe().env[0, 1] != trainer.environments[1].observe().env[0, 1]  # each is told its own
    row = measured(STUDIES["guide-gate"], dict(system="aims4", arm="BFGS", seed=0), False, tmp_path)
    easy, usual, hard, short = np.reshape(row["counts"], (4, 32))
    assert (easy <= usual).all() and (usual <= hard).all() and easy.sum() < usual.sum() < hard.sum()
    assert short.max() == 11 and row["failed"] == (short == 11).sum() + (hard == 41).sum() + (usual == 41).sum()


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


def test_the_diagnostics_of_the_guide_in_their_quick_form():
    result = run_experiment(DIAGNOSTICS, quick=True)
    assert [row["arm"] for row in result["rows"]] == ["healthy", "healthy again", *(f"{name}, strong" for name in ILLNESSES)]
    assert {row["seed"] for row in result["rows"]} == {FIRST_SEED} and all(row["calls"] >= 64 for row in result["rows"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def made_row(arm, seed, evaluations, **indicators):
    """A row of the diagnostics' experiment, with what rules look at."""
    healthy = dict.fromkeys(METRIC_GUIDE) | dict(fmax_ratio=10.0, a_back=0.0, actual_move=0.02, action_scale=1.0)
    return dict(system="alloys4", arm=arm, seed=seed, evaluations=evaluations, indicators=healthy | indicators,
                q=[1.0] * 4, fmax=[1.0] * 4, error="")


def test_sick_is_what_does_worse_and_an_alarm_is_true_where_it_is():
    stuck, rows = dict(a_back=0.5, fmax_ratio=500.0), []
    for seed in range(100, 108):
        rows += [made_row("healthy", seed, 10.0), made_row("healthy again", seed, 10.0 + (-1) ** seed),
                 made_row("hitting the wall, mild", seed, 11.9, **(stuck if seed == 100 else {})),
                 made_row("hitting the wall, strong", seed, 30.0, **(stuck if seed < 106 else {})),
                 made_row("hitting the wall, cured", seed, 12.1)]
    assert healthy_spread(rows) == 2.0
    assert {run.row["arm"] for run in judged(rows) if run.sick} == {"hitting the wall, strong", "hitting the wall, cured"}
    found = {one["rule"]: one for one in alarms(rows)}
    wall = found["hitting the wall"]
    assert [(wall[key]["count"], wall[key]["of"]) for key in ("own", "any", "false")] == [(6, 8), (6, 16), (1, 24)]
    assert wall["better"] and found["critic overestimates"]["better"] is None
    assert found["Actual Move near 0"]["any"]["count"] == 0  # atoms move by 0.02 Å
    assert found["any severe finding"]["any"]["count"] == 6
    cured, = cures(rows)
    assert cured["gained"]["difference"] == -17.9 and cured["left"]["difference"] == 2.1 and cured["sick"] == [8, 8]


def test_the_saved_diagnostics_follow_from_their_rows():
    saved = read_result(SAVED / "guide-diagnostics.json")
    declared = plain(DIAGNOSTICS.settings)
    assert {key: saved[key] for key in declared} == declared
    for block in (saved["provenance"], *saved["provenance"].get("earlier", [])):
        assert block["commit"] and "+" not in block["commit"] and {"torch", "ase"} <= set(block["versions"])
    for key, value in plain(concluded(saved["rows"])).items(): assert saved[key] == value, key
    assert min(row["seed"] for row in saved["rows"]) >= FIRST_SEED  # none has set a range
    for row in saved["rows"]:
        assert row["error"] or ARMS[row["arm"]].budget <= row["calls"] <= 1.2 * ARMS[row["arm"]].budget
        assert len(row["policy"]) == 16 and set(row["indicators"]) <= set(METRIC_GUIDE)
    assert {one["illness"] for one in saved["responses"]} >= set(ILLNESSES)
