"""Findings on runs that were trained sick (kept in nbs/benchmark/sick), on tables made by hand, and by the command."""
import importlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atomrl_nb.cli import diagnose_main
from atomrl_nb.diagnostics import (METRIC_GUIDE, RULES, diagnose, examine, indicators, live, plot_metrics, read_table,
                                   save_results)
from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import InputError
from atomrl_nb.settings import Settings
from atomrl_nb.training import train

ROOT = Path(__file__).resolve().parent.parent
BENCHMARK = ROOT / "nbs" / "benchmark"
SICK = {path.name.removesuffix(".csv.gz"): path for path in sorted((BENCHMARK / "sick").glob("*.csv.gz"))}
ILLNESSES = ("hitting the wall", "critic overestimates", "hides by not moving", "stale memory",
             "expert leaned on too long", "penalty dominates",
             "collapsed exploration", "exploding gradients")
SMALL = Settings(structures=("cuau4",), n_envs=4, learning_starts=8, batch_size=8, steps=96, seed=1,
                 evaluation_interval=48, evaluation_starts=2,
                 checkpoint_interval=100, network=NetworkSettings(channels=4, layers=1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(replace(SMALL, run=str(tmp_path_factory.mktemp("run") / "run")), progress=False)


@pytest.mark.parametrize("illness", ILLNESSES)
def test_a_run_that_was_trained_sick_is_found_out(illness):
    table = pd.read_csv(SICK[illness.replace(" ", "-")])  # without the metrics that came after it was saved
    findings = [f for f in examine(table) if f.name == illness]
    assert len(findings) == 1
    (first, last), said = findings[0].when, str(findings[0])
    assert 0 < first < last and f"t_total {first} to {last}" in said
    assert all(METRIC_GUIDE[sign].name in said for rule in RULES if rule.name == illness for sign in rule.signs
               if sign in table)
    assert findings[0].meaning in said and findings[0].change in said


@pytest.mark.parametrize("name", [name for name in SICK if name.startswith("healthy")])
def test_a_healthy_run_gives_no_finding(name): assert examine(pd.read_csv(SICK[name])) == []


@pytest.mark.parametrize("name", ["diagnostics", "findings"])
def test_the_saved_alarms_follow_from_the_saved_runs_and_the_present_ranges(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from experiment_diagnostics import illness
    tool = importlib.import_module(f"experiment_{name}")
    result = json.loads((BENCHMARK / f"{name}.json").read_text())
    conditions, illnesses = set(result["settings"]), {a["illness"] for a in result["alarms"]}
    assert conditions == {run["condition"] for run in result["runs"]} == set(tool.EXPERIMENT.settings["settings"])
    assert illnesses == set(map(illness, conditions)) - {"healthy"} <= {rule.name for rule in RULES}
    assert name != "diagnostics" or illnesses == set(ILLNESSES)
    for key, value in tool.EXPERIMENT.summary(result["runs"]).items():
        if key == "ranges": assert result[key].items() <= value.items()  # of the metrics that there were
        else: assert result[key] == value, key
    assert not result["found_in_healthy"]
    for a in result["alarms"]: assert a["found"] > 0.5 * a["of_sick"] and a["false"] < 0.25 * a["of_healthy"]


def test_the_saved_curves_are_small(): assert sum(path.stat().st_size for path in SICK.values()) < 400_000


def test_every_metric_is_documented_and_computed(run):
    table = live(run)
    assert list(table) == ["t_total", *METRIC_GUIDE] and table.t_total.tolist() == list(range(1, 97))
    for name, metric in METRIC_GUIDE.items():
        assert metric.name and metric.formula and metric.turn and metric.how in ("mean", "median", "max", "last")
        assert np.isfinite(indicators(run)[name]), name
    wanted = {"actual_move", "q_bias", "action_scale", "a_back", "td_error", "q_gap", "angle", "memory_age", "expert",
              "grad_norm_q", "grad_norm_pi"}
    assert wanted <= METRIC_GUIDE.keys()


def test_metrics_are_what_their_formulas_say(run, tmp_path):
    """On the run's own tables, with numbers put in by hand."""
    import shutil
    shutil.copytree(run, tmp_path / "run")
    metrics = read_table(run).assign(q=5.0, reward=1.0, deviation=3.0, imitation_error=0.5, fmax=0.2, memory_age=7.0)
    metrics.to_csv(tmp_path / "run" / "metrics.csv", index=False)
    row = live(tmp_path / "run").iloc[-1]
    np.testing.assert_allclose(row.penalty, 0.1 * 3.0 / (0.1 * 3.0 + 1.0 * 0.5 + 0.1))
    np.testing.assert_allclose([row.fmax_ratio, row.memory_age], [20, 7.0 / 0.5])
    ended = metrics[metrics.groupby("episode").terminated.transform("max") == 1]
    left = ended.groupby("episode").cumcount(ascending=False)  # steps that follow in the episode
    np.testing.assert_allclose(row.q_bias, 5.0 - (2 - 0.5**left.astype(float)).mean())  # 1 + 1/2 + 1/4 ...


HEALTHY = pd.DataFrame({"t_total": np.arange(1, 801)} | dict.fromkeys(METRIC_GUIDE, 0.0)).assign(
    stiffness=1.0, action_scale=1.0, exploration=0.3, updates=400.0, relaxed=1.0)


def named(table):
    """Return the names of what is found in a table."""
    return [finding.name for finding in examine(table)]


def test_when_an_illness_began():
    """A wall from the second half on: found from there, though the last quarter alone decides whether."""
    table = HEALTHY.assign(fmax_ratio=500.0)
    assert examine(table) == []
    ill = table.assign(a_back=np.where(table.t_total > 400, 0.6, 0.0))
    assert [(f.name, f.when) for f in examine(ill)] == [("hitting the wall", (401, 800))]
    cured = ill.assign(a_back=np.where(table.t_total > 500, 0.0, 0.6))
    assert examine(cured) == []
    unknown = table.assign(**dict.fromkeys(METRIC_GUIDE, math.nan))
    assert examine(unknown) == []


def test_the_command_says_it_by_its_exit_code(run, tmp_path, capsys):
    code, said = diagnose_main([str(run)]), capsys.readouterr().out
    assert code == int(any(f.severity == "severe" for f in diagnose(run)))
    assert all((run / "plots" / name).stat().st_size > 10_000 for name in ("results.png", "metrics.png"))
    wall = train(replace(SMALL, run=str(tmp_path / "wall"), evaluation_interval=0,
                         environment=EnvironmentSettings(r0=2.68)), progress=False)
    assert diagnose_main([str(wall)]) == 1
    said = capsys.readouterr().out
    assert "severe: hitting the wall (t_total" in said and "environment.r0" in said
    assert diagnose_main([str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_a_run_that_goes_on_can_be_looked_at(run, tmp_path):
    """A torn last row is left out; tables that are not there yet are a sentence."""
    import shutil
    shutil.copytree(run, tmp_path / "run")
    with open(tmp_path / "run" / "metrics.csv", "a") as file: file.write("97,3,0.")
    assert len(read_table(tmp_path / "run")) == 96
    (tmp_path / "run" / "metrics.csv").unlink()
    with pytest.raises(InputError, match="no metrics.csv yet"): diagnose(tmp_path / "run")


def test_pictures_of_the_shortest_runs(tmp_path):
    short = train(replace(SMALL, run=str(tmp_path / "run"), steps=4, evaluation_interval=0), progress=False)
    assert [f.name for f in diagnose(short)] == ["never learnt"]
    assert save_results(short).exists() and len(plot_metrics(short).axes) == len(METRIC_GUIDE)


def test_a_healthy_run_has_no_severe_finding_at_any_age(run, tmp_path, capsys):
    """What cannot be known yet is not judged: before its first update a run is young, also for the command."""
    import shutil
    metrics = read_table(run)
    shutil.copytree(run, tmp_path / "run")
    for age in range(4, 96, 4):
        metrics.iloc[:age].to_csv(tmp_path / "run" / "metrics.csv", index=False)
        tests = read_table(run, "evaluations")
        tests[tests.t_total <= age].to_csv(tmp_path / "run" / "evaluations.csv", index=False)
        findings = diagnose(tmp_path / "run")
        assert not [f for f in findings if f.severity == "severe"], (age, findings)
        assert [f.name for f in findings].count("too young to judge") == (age <= 8), age
    metrics.iloc[:8].to_csv(tmp_path / "run" / "metrics.csv", index=False)
    assert diagnose_main([str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("note: too young to judge") and "no findings in 8 steps" in said  # a note is no finding
    metrics.iloc[:0].to_csv(tmp_path / "run" / "metrics.csv", index=False)
    assert [(f.name, f.severity) for f in diagnose(tmp_path / "run")] == [("too young to judge", "note")]


def test_a_policy_that_still_gains_is_not_said_to_relax_nothing():
    some = HEALTHY.assign(relaxed=0.25)
    # few evaluations, and some that gained
    assert named(some.assign(relaxed_gain=math.nan)) == named(some.assign(relaxed_gain=0.2)) == []
    assert named(some.assign(relaxed_gain=0.0)) == ["does not relax"]


def test_the_last_evaluation_counts_and_what_was_lost_is_named(tmp_path):
    """On one row at the end alone: the evaluation that is done with the last step."""
    last = HEALTHY.t_total == 800
    assert named(HEALTHY.assign(relaxed=np.where(last, 0.0, 1.0), relaxed_lost=last * 1.0)) == ["unlearnt"]
    assert named(HEALTHY.assign(relaxed=np.where(last, 0.0, 0.5), relaxed_lost=last * 0.5)) == ["does not relax"]


def test_a_cause_leaves_out_what_follows_from_it():
    """Whoever is held by the bound, or has forces in other units, is not told to train longer."""
    fails = HEALTHY.assign(relaxed=0.0, action_scale=0.1, fmax_ratio=500.0)
    assert named(fails) == ["does not relax", "hides by not moving"]
    assert named(fails.assign(at_bound=0.74)) == ["held by the bound"]
    for signs in (dict(stiffness=1000.0, at_bound=0.74), dict(stiffness=0.001)):
        assert named(fails.assign(**signs)) == ["forces in other units"]
    diverged = HEALTHY.assign(q_size=1e9, q_bias=-1e10, q_excess=-1e9, grad_norm_q=1e6)
    assert named(diverged)[0] == "critic diverges" and "td3.critic_lr" in str(examine(diverged)[0])


def test_every_ratio_says_of_what():
    said = [finding for finding in examine(HEALTHY.assign(a_back=0.9, fmax_ratio=440.0))]
    assert "Largest force is 440 times the target (healthy: at most 100)" in str(said[0])
    for name, metric in METRIC_GUIDE.items():
        if name.endswith("_ratio") or name in ("stiffness", "q_size", "q_excess"):
            assert metric.unit.startswith("times "), name


@pytest.mark.parametrize("wrong, name",
                         [(dict(network=replace(SMALL.network, max_displacement=0.01)), "held by the bound"),
                          (dict(calculator="kilo:emt"), "forces in other units"),
                          (dict(calculator="milli:emt"), "forces in other units"), ({}, None)])
def test_the_bound_and_the_units_are_named_from_the_first_steps_on(wrong, name, tmp_path, monkeypatch):
    factor = {"kilo:emt": 1e3, "milli:emt": 1e-3}.get(wrong.get("calculator"))
    if factor:
        module = wrong["calculator"].partition(":")[0]
        (tmp_path / f"{module}.py").write_text(
            "from ase.calculators.emt import EMT\nclass emt(EMT):\n"
            "    def calculate(self, *args):\n        super().calculate(*args)\n"
            f"        self.results = {{name: {factor} * value for name, value in self.results.items()}}\n")
        monkeypatch.syspath_prepend(tmp_path)
    for seed in (0, 1):
        made = train(replace(SMALL, run=str(tmp_path / f"run{seed}"), steps=48, evaluation_interval=24, seed=seed,
                             **wrong), progress=False)
        findings = [f.name for f in diagnose(made) if f.name != "collapsed exploration"]
        others = {"held by the bound", "forces in other units"} & set(findings)
        assert findings == [name] if name else not others, findings


def test_the_critics_are_judged_on_the_scale_of_what_is_paid(tmp_path, run):
    """With gamma 0.99 a good policy is worth more than the mean return of its past, at most its best stretch."""
    import shutil
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | dict(td3=config["td3"] | dict(gamma=0.99))))
    episode = (np.arange(96) // 8).astype(int)
    metrics = read_table(run).assign(episode=episode, reward=np.where(episode < 8, -1.0, 1.0), truncated=0, a_back=0.0)
    metrics["terminated"] = (np.arange(96) % 8 == 7).astype(int)
    judged = lambda **columns: (metrics.assign(**columns).to_csv(tmp_path / "run" / "metrics.csv", index=False),
                                named(live(tmp_path / "run")))[1]
    assert not {"critic overestimates", "critic diverges"} & set(judged(q=7.5))  # eight rewards of 1 are nearly 8
    assert "critic overestimates" in judged(q=60.0) and "critic diverges" not in judged(q=60.0)
    assert "critic diverges" in judged(q=-1e10)
    cut = dict(terminated=0, truncated=metrics.terminated)
    # no return is known at all
    assert "critic overestimates" in judged(q=60.0, **cut) and "critic overestimates" not in judged(q=7.5, **cut)
