"""The relaxation benchmark: honest starts, honest counts, and a result file that is gone on with."""
import json
from pathlib import Path

import numpy as np
import pytest

from atomrl_nb import benchmark, measuring, test_sets
from atomrl_nb.benchmark import bench_relax
from atomrl_nb.measuring import column, measure, starts_id
from atomrl_nb.comparing import relax
from atomrl_nb.structures import HELD_OUT_PAIRS, calculator, load
from atomrl_nb.test_sets import CAP, FAMILIES, FMAX, OPTIMIZERS, TEST_SETS, assert_disjoint, starts_of

SAVED = Path(__file__).resolve().parents[1] / "nbs" / "benchmark" / "relax.json"
AT_HAND = [name for name, test in TEST_SETS.items() if test.family != "alfe"]


@pytest.mark.parametrize("name", AT_HAND)
def test_starts_come_from_no_training_structure(name):
    starts, training = starts_of(name), FAMILIES[TEST_SETS[name].family].training(None)
    assert len(starts) == TEST_SETS[name].count
    assert_disjoint(starts, training)
    held_out = [set(pair) for pair in HELD_OUT_PAIRS]
    assert not any(pair <= set(a.symbols) for pair in held_out for a in training)
    assert all(any(pair <= set(a.symbols) for pair in held_out) for a in starts) == (name == "pairs8")
    if name in ("cuau32", "cuau108"): assert min(map(len, starts)) > max(map(len, training))


@pytest.mark.parametrize("method", ["BFGS", "BFGSLineSearch", "FIRE"])
def test_counts_are_those_of_a_relaxation_to_each_target(method):
    starts = starts_of("alloys4", count=2)
    counts = column(starts, "emt", method, {})["evaluations"]
    for fmax in FMAX:
        assert counts[str(fmax)] == [relax(a, calculator("emt"), method, fmax=fmax)[0].force_evaluations
                                     for a in starts]


def test_a_lost_start_counts_as_the_cap(monkeypatch):
    monkeypatch.setattr(measuring, "budget_of", lambda method, n_atoms: 3)
    found = column(starts_of("alloys4", count=1), "emt", "BFGS", {})
    assert found["evaluations"] == {"0.05": [CAP], "0.01": [CAP]} and found["energy"] == [None]
    assert found["spent"] == [3]


def test_current_columns_are_kept(monkeypatch):
    made = []
    def fake(starts, *how):
        made.append(how[1] if len(how) == 3 else "RLOptimizer")
        return dict(evaluations={"0.05": [1] * len(starts), "0.01": [1] * len(starts)}, energy=[0.0] * len(starts))
    monkeypatch.setattr(measuring, "column", fake)
    monkeypatch.setattr(measuring, "policy_column", fake)
    result = dict(tuned={}, sets={})
    measure(result, "alloys4", count=2)
    assert made == [*OPTIMIZERS, "RLOptimizer"]
    made.clear()
    measure(result, "alloys4", count=2)
    assert made == []
    monkeypatch.setattr(measuring, "policy_id", lambda policy: "another file")
    measure(result, "alloys4", count=2)
    assert made == ["RLOptimizer"]
    made.clear()
    result["tuned"]["alloys"] = {"BFGS": dict(options=dict(alpha=10.0))}
    measure(result, "alloys4", count=2)
    assert made == ["BFGS"] and "BFGS tuned" in result["sets"]["alloys4"]["columns"]
    made.clear()
    measure(result, "alloys4", count=3, only=("BFGS",))
    # other starts: all anew
    assert made == ["BFGS", "BFGS"] and list(result["sets"]["alloys4"]["columns"]) == ["BFGS", "BFGS tuned"]


def test_a_result_file_is_gone_on_with(tmp_path, monkeypatch, capsys):
    two = test_sets.TestSet("two", "alloys", TEST_SETS["alloys4"].draw, 2, goals=(3, 3))
    optimizers = {"BFGS": (OPTIMIZERS["BFGS"][0], [dict(alpha=10.0), dict(alpha=70.0)])}
    for module in (test_sets, measuring, benchmark):
        monkeypatch.setattr(module, "TEST_SETS", {"alloys4": two})
        monkeypatch.setattr(module, "FAMILIES", {"alloys": FAMILIES["alloys"]})
        monkeypatch.setattr(module, "OPTIMIZERS", optimizers)
    monkeypatch.setattr(benchmark, "tuning_starts", lambda family, folder: starts_of("alloys4", count=4))
    file = tmp_path / "result.json"
    first = bench_relax(str(file))
    assert json.loads(file.read_text()) == first
    assert list(first["sets"]["alloys4"]["columns"]) == ["BFGS", "BFGS tuned", "RLOptimizer"]
    assert first["tuned"]["alloys"]["BFGS"]["options"] == dict(alpha=10.0)
    monkeypatch.setattr(measuring, "relaxed", None)  # nothing is relaxed again
    assert bench_relax(str(file)) == first
    assert "alloys4" in capsys.readouterr().out


def test_the_saved_result_is_of_these_starts():
    saved = json.loads(SAVED.read_text(encoding="utf-8"))
    for name in AT_HAND:
        assert saved["sets"][name]["starts"] == starts_id(starts_of(name)), f"{name}: run atomrl-bench relax again"
    for name, test in saved["sets"].items():
        for key, c in test["columns"].items():
            counts = np.array([c["evaluations"][str(f)] for f in FMAX])
            assert counts.shape == (2, len(test["atoms"])) and counts.max() <= CAP, (name, key)
            assert (counts[0] <= counts[1]).all() or key == "RLOptimizer", (name, key)
            assert [e is None for e in c["energy"]] == (counts[1] >= CAP).tolist(), (name, key)


def test_training_structures_are_there_for_tuning():
    assert max(map(len, load("fcc-alloys"))) <= 16 and max(map(len, load("lj-clusters"))) <= 20
