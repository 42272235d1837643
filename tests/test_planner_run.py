"""Play and fit: nothing is asked twice, a killed run ends as one that was not, and each round leaves its policy."""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.io import read

from atomrl_nb import planner_run as rooms
from atomrl_nb.cli import diagnose_main, relax_main, train_main
from atomrl_nb.embedded import EmbeddedSettings
from atomrl_nb.fit import FitSettings
from atomrl_nb.fit_run import fit_run
from atomrl_nb.planner_run import PlaySettings, planner_run, planner_settings, resume_planner, rounds
from atomrl_nb.policies import load_policy
from atomrl_nb.structures import CountedCalculator, InputError, calculator

TINY = FitSettings(updates=4, checks=1, network=EmbeddedSettings(channels=4, elements=4, width=8, rounds=1))
SMALL = PlaySettings(structures=("cuau4",), steps=24, fit=TINY)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Let rounds be short."""
    monkeypatch.setattr(rooms, "FIRST", 10)


def quiet(do, *args, **kwargs):
    """Run without a bar and without lines."""
    return do(*args, price=False, progress=False, say=lambda line: None, **kwargs)


def policy_of(run):
    """Read the policy's bytes without its card, which says when it was made."""
    return [p.numpy().tobytes() for p in load_policy(run / "policy.safetensors").actor.state_dict().values()]


class Slow(CountedCalculator):
    """Take some time, so that a kill comes in between."""

    def calculate(self, *args, **kwargs):
        """Wait, and answer."""
        time.sleep(0.05)
        super().calculate(*args, **kwargs)


def test_rounds_double():
    assert rounds(40) == [10, 20, 40] and rounds(35) == [10, 20, 35] and rounds(3) == [3]


def test_a_longer_run_plays_on_where_it_was(tmp_path):
    """Ten evaluations more cost ten evaluations, and the run is the one that was asked for at once."""
    quiet(planner_run, replace(SMALL, run=str(tmp_path / "short"), steps=14), calculator=CountedCalculator(calculator("emt")))
    counted = CountedCalculator(calculator("emt"))
    quiet(resume_planner, tmp_path / "short", steps=24, calculator=counted)
    played = read(tmp_path / "short/frames.traj", ":")
    assert len(played) - counted.evaluations >= 14 and planner_settings(tmp_path / "short").steps == 24
    quiet(planner_run, replace(SMALL, run=str(tmp_path / "whole"), steps=24))
    assert policy_of(tmp_path / "short") == policy_of(tmp_path / "whole")
    assert len(read(tmp_path / "whole/frames.traj", ":")) == len(played)


CODE = """
import sys
from atomrl_nb import planner_run as rooms
from atomrl_nb.structures import calculator
rooms.FIRST = 10
sys.path.insert(0, {tests!r})
from test_planner_run import SMALL, Slow, quiet
from dataclasses import replace
quiet(rooms.planner_run, replace(SMALL, run={run!r}), calculator=Slow(calculator('emt')))
"""


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path):
    run = tmp_path / "killed"
    code = CODE.format(tests=str(Path(__file__).parent), run=str(run))
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
    until = time.monotonic() + 60
    while time.monotonic() < until and not (run / "round-10.safetensors").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(read(run / "frames.traj", ":"))
    counted = Slow(calculator("emt"))
    quiet(resume_planner, run, calculator=counted)
    frames = read(run / "frames.traj", ":")
    assert kept >= 10 and len(frames) == kept + counted.evaluations
    assert len({(a.info["relaxation"], a.positions.tobytes()) for a in frames}) == len(frames)
    quiet(planner_run, replace(SMALL, run=str(tmp_path / "whole")))
    assert policy_of(run) == policy_of(tmp_path / "whole")


def test_the_record_makes_a_policy_without_a_call(tmp_path):
    """`fit` on the frames of a run learns what the run has learnt from."""
    found = quiet(planner_run, replace(SMALL, run=str(tmp_path / "run")))
    again = fit_run([tmp_path / "run/frames.traj"], tmp_path / "fitted", TINY, say=lambda line: None)
    assert again.fitted.policy.card["frames"] == found.fitted.policy.card["frames"]
    assert again.fitted.policy.card["formulas"] == 1
    report = json.loads((tmp_path / "run/fit.json").read_text())
    assert report["evaluations"] == found.fitted.policy.card["played"] >= 24


def test_a_failed_calculation_ends_its_relaxation_only(tmp_path, caplog):
    class Sometimes(EMT):
        """Fail at each seventh place."""
        asked = 0

        def calculate(self, *args, **kwargs):
            Sometimes.asked += 1
            if Sometimes.asked % 7 == 1: raise RuntimeError("no convergence")
            super().calculate(*args, **kwargs)

    found = quiet(planner_run, replace(SMALL, run=str(tmp_path / "run")), calculator=Sometimes())
    assert found.fitted.policy.card["played"] >= 24
    assert all(np.isfinite(a.get_forces()).all() for a in read(tmp_path / "run/frames.traj", ":"))


def test_a_broken_calculator_ends_the_run_with_a_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "unlicensed.py").write_text("from ase.calculators.emt import EMT\nclass Broken(EMT):\n"
                                     "    def calculate(self, *a, **k): raise RuntimeError('no licence')\n")
    monkeypatch.chdir(tmp_path)
    asked = ["cuau4", "--planner", "--run", "run", "--calculator", "unlicensed:Broken", "--quiet"]
    assert train_main(asked) == 1
    assert "10 relaxations in a row failed" in capsys.readouterr().err
    assert train_main(["--resume", "run"]) == 2
    assert "executes code" in capsys.readouterr().err


def test_a_start_that_no_planner_takes_ends_the_run(tmp_path, monkeypatch):
    """Not only the calculator can fail: a run that goes nowhere ends."""
    def fails(*args, **kwargs): raise RuntimeError("no plan")
    monkeypatch.setattr(rooms, "RLOptimizer", fails)
    with pytest.raises(FloatingPointError, match="10 relaxations in a row failed, the last one with RuntimeError: no plan"):
        quiet(planner_run, replace(SMALL, run=str(tmp_path / "run")))


def test_the_policy_is_there_before_it_is_priced(tmp_path, monkeypatch):
    """Pricing costs evaluations and time: what was learnt does not wait for it."""
    def interrupted(*args): raise KeyboardInterrupt
    monkeypatch.setattr(rooms, "prices", interrupted)
    with pytest.raises(KeyboardInterrupt):
        planner_run(replace(SMALL, run=str(tmp_path / "run")), progress=False, say=lambda line: None)
    assert policy_of(tmp_path / "run") and not (tmp_path / "run/unfinished.safetensors").exists()


def test_another_calculator_is_refused(tmp_path):
    """A run that was played with an object names it, and goes on with nothing else."""
    quiet(planner_run, replace(SMALL, run=str(tmp_path / "run")), calculator=CountedCalculator(calculator("emt")))
    assert planner_settings(tmp_path / "run").calculator == "python:CountedCalculator"
    with pytest.raises(InputError, match="was made in Python with CountedCalculator"): quiet(resume_planner, tmp_path / "run")


def test_commands_know_what_such_a_folder_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quiet(planner_run, replace(SMALL, run="run"))
    for asked, said in ((["cuau4", "--planner", "--run", "run"], "holds a run already"),
                        (["--resume", "run", "--seed", "3"], "takes the rest from the run folder"),
                        (["--resume", "run", "--calculator", "lj"], "a run keeps its calculator"),
                        (["cuau4", "--planner", "--run", "new", "--init-from", "fcc-alloys"], "was not"),
                        (["cuau4", "--planner", "--run", "new", "--steps", "0"], "--steps")):
        assert train_main(asked) == 2
        assert said in capsys.readouterr().err
    assert not Path("new").exists()
    assert diagnose_main(["run"]) == 2
    assert "made by a fit" in capsys.readouterr().err
    assert relax_main(["cuau4", "--policy", "run", "--quiet", "--out", "done.extxyz"]) == 0


@pytest.mark.slow
def test_a_run_begins_with_a_policy(tmp_path):
    quiet(planner_run, replace(SMALL, run=str(tmp_path / "first")))
    found = quiet(planner_run, replace(SMALL, run=str(tmp_path / "second"), init_from=str(tmp_path / "first"), seed=1))
    assert found.fitted.policy.card["begun_with"] > 0
    with pytest.raises(InputError, match="needs a new folder"):
        (tmp_path / "odd").mkdir()
        (tmp_path / "odd/notes.txt").write_text("mine")
        quiet(planner_run, replace(SMALL, run=str(tmp_path / "odd")))
