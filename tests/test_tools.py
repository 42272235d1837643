"""The long measurements in their quick form."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_training_of_a_shipped_policy_in_its_quick_form():
    before = {p: p.stat().st_mtime_ns for p in (ROOT / "atomrl_nb" / "policies").iterdir()}
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "train_shipped.py"), "lj-clusters", "--quick"], cwd=ROOT, capture_output=True, text=True,
                          check=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert "lj-clusters: works" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (ROOT / "atomrl_nb" / "policies").iterdir()}


def test_the_experiment_on_constraints_in_its_quick_form():
    result = ROOT / "nbs" / "benchmark" / "constraints.json"
    before = result.read_bytes() if result.exists() else None
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "experiment_constraints.py"), "--quick"], cwd=ROOT, capture_output=True, text=True,
                          check=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["start", "dense", "dense", "inside", "inside"]
    assert before == (result.read_bytes() if result.exists() else None)


def test_the_experiment_on_networks_in_its_quick_form():
    files = [ROOT / "nbs" / "benchmark" / f"{name}.json" for name in ("tail", "gate")]
    before = [file.read_bytes() for file in files]
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "experiment_networks.py"), "--quick"], cwd=ROOT, capture_output=True, text=True,
                          check=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.stdout.count("mean |Q|") == 3 and "0 features: Action Scale 1.0 at first, 1.0 at last" in done.stdout
    assert before == [file.read_bytes() for file in files]


@pytest.mark.parametrize("name, options, said, times", [("planning", [], "converged 2/2", 9), ("reinforcement", [], "over 1 seeds", 11),
                                                        ("reinforcement", ["--long"], "steps  one step", 2), ("overhead", [], "ms a step alone", 1), ("pieces", [], "whole", 1),
                                                        ("noise", [], "alloys", 4), ("size", [], "'converged': True", 3)])
def test_an_experiment_in_its_quick_form(name, options, said, times):
    file = ROOT / "nbs" / "benchmark" / f"{name}.json"
    before = file.read_bytes()
    done = subprocess.run([sys.executable, str(ROOT / "tools" / f"experiment_{name}.py"), *options, "--quick"], cwd=ROOT, capture_output=True, text=True,
                          check=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.stdout.count(said) == times and before == file.read_bytes()
