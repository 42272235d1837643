"""Findings on runs that were really trained sick (kept in nbs/benchmark/sick), on tables made by hand, and by the command."""
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atomrl_nb.cli import diagnose_main
from atomrl_nb.diagnostics import METRIC_GUIDE, RULES, diagnose, examine, indicators, live, plot_metrics, read_table, save_results
from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import InputError
from atomrl_nb.settings import Settings
from atomrl_nb.training import train

ROOT = Path(__file__).resolve().parent.parent
BENCHMARK = ROOT / "nbs" / "benchmark"
SICK = {path.name.removesuffix(".csv.gz"): path for path in sorted((BENCHMARK / "sick").glob("*.csv.gz"))}
ILLNESSES = ("hitting the wall", "critic overestimates", "hides by not moving", "stale memory", "expert leaned on too long", "penalty dominates",
             "collapsed exploration", "exploding gradients")
SMALL = Settings(structures=("cuau4",), n_envs=4, learning_starts=8, batch_size=8, steps=96, seed=1, evaluation_interval=48, evaluation_starts=2,
                 checkpoint_interval=100, network=NetworkSettings(channels=4, layers=1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(replace(SMALL, run=str(tmp_path_factory.mktemp("run") / "run")), progress=False)


@pytest.mark.parametrize("illness", ILLNESSES)
def test_a_run_that_was_trained_sick_is_found_out(illness):
    findings = [f for f in examine(pd.read_csv(SICK[illness.replace(" ", "-")])) if f.name == illness]
    assert len(findings) == 1
    (first, last), said = findings[0].when, str(findings[0])
    assert 0 < first < last and f"t_total {first} to {last}" in said
    assert all(METRIC_GUIDE[sign].name in said for rule in RULES if rule.name == illness for sign in rule.signs)
    assert findings[0].meaning in said and findings[0].change in said


@pytest.mark.parametrize("name", [name for name in SICK if name.startswith("healthy")])
def test_a_healthy_run_gives_no_finding(name): assert examine(pd.read_csv(SICK[name])) == []


def test_the_saved_alarms_follow_from_the_saved_runs_and_the_present_ranges():
    sys.path.insert(0, str(ROOT / "tools"))
    try: from experiment_diagnostics import CONDITIONS, alarms
    finally: sys.path.pop(0)
    result = json.loads((BENCHMARK / "diagnostics.json").read_text())
    assert set(ILLNESSES) == {name for name in CONDITIONS if not name.startswith("healthy")} <= {rule.name for rule in RULES}
    assert result["alarms"] == alarms([r for r in result["runs"] if r["seed"] in result["counted"]])
    for a in result["alarms"]: assert a["found"] > 0.5 * a["of_sick"] and a["false"] < 0.25 * a["of_healthy"]
    assert sum(path.stat().st_size for path in SICK.values()) < 400_000


def test_every_metric_is_documented_and_computed(run):
    table = live(run)
    assert list(table) == ["t_total", *METRIC_GUIDE] and table.t_total.tolist() == list(range(1, 97))
    for name, metric in METRIC_GUIDE.items():
        assert metric.name and metric.formula and metric.turn and metric.how in ("mean", "median")
        assert np.isfinite(indicators(run)[name]), name
    wanted = {"actual_move", "q_bias", "action_scale", "a_back", "td_error", "q_gap", "angle", "memory_age", "expert", "grad_norm_q", "grad_norm_pi"}
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


def test_when_an_illness_began():
    """A wall from the second half on: found from there, though the last quarter alone decides whether."""
    table = pd.DataFrame({"t_total": np.arange(1, 801)} | dict.fromkeys(METRIC_GUIDE, 1.0)).assign(relaxed=1.0, expert=0.0, penalty=0.0, a_back=0.0, fmax_ratio=500.0)
    assert examine(table.assign(q_bias=0.0)) == []
    ill = table.assign(q_bias=0.0, a_back=np.where(table.t_total > 400, 0.6, 0.0))
    assert [(f.name, f.when) for f in examine(ill)] == [("hitting the wall", (401, 800))]
    cured = ill.assign(a_back=np.where(table.t_total > 500, 0.0, 0.6))
    assert examine(cured) == []
    unknown = table.assign(**dict.fromkeys(METRIC_GUIDE, math.nan))
    assert examine(unknown) == []


def test_the_command_says_it_by_its_exit_code(run, tmp_path, capsys):
    code, said = diagnose_main([str(run)]), capsys.readouterr().out
    assert code == int(any(f.severity == "severe" for f in diagnose(run)))
    assert all((run / "plots" / name).stat().st_size > 10_000 for name in ("results.png", "metrics.png"))
    wall = train(replace(SMALL, run=str(tmp_path / "wall"), evaluation_interval=0, environment=EnvironmentSettings(r0=2.68)), progress=False)
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


def test_the_experiment_in_its_quick_form(tmp_path):
    before = {p: p.stat().st_mtime_ns for p in BENCHMARK.rglob("*")}
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "experiment_diagnostics.py"), "--quick", "--jobs", "1", "--work", str(tmp_path)],
                          capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.csv.gz"))) == 3 and not [p for p in tmp_path.iterdir() if p.is_dir()]
    assert "found where it is" in done.stdout and before == {p: p.stat().st_mtime_ns for p in BENCHMARK.rglob("*")}
