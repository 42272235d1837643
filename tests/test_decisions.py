"""What evolution learns: the strategy itself, decisions that change nothing at zero, moves, and the saved files."""
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from atomrl_nb.decisions import (ARMS, DECISIONS, GENES, NUMBERS, TASKS, TEST, TRAIN, Effort, Evolution, advance, against, contrasts,
                                 decided, evolve, relaxed)
from atomrl_nb.experiment import key_of, plain, read_result, run_experiment
from atomrl_nb.minima import MINIMA, MULTISTART, Moves, blank, by_policy, judged, reward, sought
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.planner import PlannerSettings
from atomrl_nb.search import multistart

SAVED = Path(__file__).resolve().parents[1] / "nbs" / "benchmark"
MEASURED = [each for each in (DECISIONS, MINIMA) if (SAVED / f"{each.name}.json").exists()]


def test_evolution_finds_a_minimum_whose_axes_differ():
    axes, rng, e = np.logspace(0, 1, 10), np.random.default_rng(1), Evolution(np.ones(10))
    for _ in range(250):
        draws = e.draws(rng, 10)
        advance(e, draws, ((axes * (e.at(draws) - 0.3))**2).sum(axis=1))
    assert np.abs(e.centre - 0.3).max() < 1e-3 and e.scales[-1] < e.scales[0]


def test_an_evolution_that_was_killed_goes_on_where_it_was(tmp_path):
    met = []

    def loss(genome, key, last=None):
        met.append(tuple(key))
        if len(met) == last: raise KeyboardInterrupt
        return float((genome**2).sum())

    effort = Effort(3, 4, 2)
    with pytest.raises(KeyboardInterrupt): evolve(partial(loss, last=20), 5, [1, 0], effort, tmp_path / "state.json")
    assert json.loads((tmp_path / "state.json").read_text())["generation"] == 2
    resumed = evolve(loss, 5, [1, 0], effort, tmp_path / "state.json")
    assert np.array_equal(resumed, evolve(loss, 5, [1, 0], effort, tmp_path / "whole.json"))
    assert met[0] == (1, 0, 0, 0) and len(set(met)) == 3 * 2  # every draw of a generation meets the same episodes


@pytest.mark.parametrize("name", ["alloys", "surrogates"])
def test_a_genome_of_zeros_is_the_planner_as_it_is(name):
    usual, same = (relaxed(TASKS[name], [TEST, 7, 1], genome) for genome in (None, np.zeros(len(GENES))))
    assert usual == same
    timid = np.zeros(len(GENES))
    timid[:2] = -3.0
    assert relaxed(TASKS[name], [TEST, 7, 1], timid).evaluations > usual.evaluations
    rule = np.zeros(len(GENES))
    rule[len(NUMBERS):] = -3.0
    assert relaxed(TASKS["thrown"], [TEST, 7, 1], rule).evaluations > relaxed(TASKS["thrown"], [TEST, 7, 1]).evaluations


def test_every_gene_changes_its_number_and_stays_in_range():
    usual = PlannerSettings()
    for k, name in enumerate(NUMBERS):
        for log in (-9.0, -0.5, 0.5, 9.0):
            genome = np.zeros(len(GENES))
            genome[k] = log
            group, _, own = name.rpartition(".")
            before, after = (getattr(getattr(s, group) if group else s, own) for s in (usual, decided(usual, genome)))
            assert before != after and (before < after) == (log > 0) and type(before) is type(after), name


def test_what_is_tested_on_is_not_learnt_on():
    for task in TASKS.values():
        a, b = (task.draw(np.random.default_rng([first, 0, 0])) for first in (TRAIN, TEST))
        assert len(a) != len(b) or not np.allclose(a.positions, b.positions)


def test_pairs_are_the_same_starts():
    rows = [dict(system="s", arm=arm, seed=seed, counts=[10 * seed + k + n for k in range(4)], evaluations=0.0, failed=0)
            for arm, n in (("a", 20), ("b", 18)) for seed in range(3)]
    assert against(rows, "s", "b", "a")["interval"] == [-2.0, -2.0]
    wide = against([dict(row, counts=row["counts"][::-1] if row["arm"] == "b" else row["counts"]) for row in rows], "s", "b", "a")
    assert wide["difference"] == -2.0 and wide["interval"][0] < -2.5 < -1.5 < wide["interval"][1]
    assert against(rows[:3], "s", "b", "a") == {} and contrasts(rows, "a")[1]["seeds"] == 3


def test_moves_that_begin_anywhere_are_multi_start():
    genome = np.zeros(11)
    genome[0] = 99.0
    target, relaxer = -16.505384 + 1e-3, partial(by_policy, "lj")
    mine = sought(blank(7), "lj", relaxer, Moves(genome, 0.8), 80, 3, target)
    theirs = multistart(blank(7), "lj", 80, 3, target, optimizer=partial(RLOptimizer, policy="lj-clusters"))
    assert mine[-1][0] == theirs.evaluations and mine[-1][1] <= target


def test_an_early_lowering_is_worth_more():
    assert reward([(10, 0.0), (20, -1.0)], 100) > reward([(10, 0.0), (80, -1.0)], 100) > reward([(10, 0.0)], 100) == 0


def test_the_lowest_of_all_arms_is_what_an_alloy_is_judged_by():
    rows = [dict(system=system, arm="a", seed=0, budget=40, runs=[run])
            for system, run in (("alloys8, policy", [[3, 1.0], [9, 0.4]]), ("alloys8, other", [[5, 0.2]]))]
    judged(rows)
    assert [row["counts"] for row in rows] == [[40], [5]] and [row["failed"] for row in rows] == [1, 0]


@pytest.mark.parametrize("experiment", [pytest.param(each, id=each.name, marks=pytest.mark.slow) for each in (DECISIONS, MINIMA)])
def test_an_experiment_in_its_quick_form(experiment):
    result = run_experiment(experiment, quick=True)
    assert {row["arm"] for row in result["rows"]} >= ({*ARMS} if experiment is DECISIONS else {MULTISTART})
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize("experiment", MEASURED, ids=lambda each: each.name)
def test_a_saved_file_answers_the_question_as_it_is_declared(experiment):
    saved, declared = read_result(SAVED / f"{experiment.name}.json"), plain(experiment.settings)
    assert {key: saved[key] for key in declared} == declared
    for block in (saved["provenance"], *saved["provenance"].get("earlier", [])):
        assert block["commit"] and "+" not in block["commit"] and {"torch", "ase"} <= set(block["versions"])
    names = ("system", "arm", "seed")
    keys = [key_of(row, names) for row in saved["rows"]]
    assert len(set(keys)) == len(keys) and set(keys) <= {key_of(case, names) for case in experiment.cases(8, False)}
    rows = saved["rows"]
    assert saved["summary"] == experiment.summary(rows)["summary"]
