"""The long measurements in their quick form."""
import importlib.util
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


@pytest.fixture
def mutate(monkeypatch):
    """The tool that changes the code on purpose."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which it sets, too
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mutation_finds_its_text_and_its_tests(mutate):
    """Else it would rot unseen: where a line has gone, its successor is mutated."""
    names = [m.name for m in mutate.MUTATIONS]
    assert len(set(names)) == len(names) > 50
    for m in mutate.MUTATIONS:
        (path, text), = mutate.mutated(ROOT, m).items()
        compile(text, path, "exec")
        assert text != path.read_text()
        for test in m.tests.split():
            file, name = test.split("::")
            assert f"def {name.split('[')[0]}(" in (ROOT / "tests" / file).read_text()


TEST = "test_planning.py::test_a_rise_of_the_energy_is_refused_even_where_the_force_falls"


@pytest.mark.parametrize("old, answer, said", [
    ("rise > trust.slack or\n trebled", 1, "noticed"), ("rise>trust.slack or trebled", 0, "SURVIVED"),
    ("rise > trust.slack or trebled", 2, "FAILED"), ("rise > trust.slack or trebled", None, "FAILED"),
    ("rise > trust.slackness", 1, "NOT FOUND"), ("trust.slack", 1, "NOT FOUND")])
def test_a_mutation_that_survives_or_is_not_found_is_an_error(mutate, monkeypatch, capsys, old, answer, said):
    """The answer is the exit code of pytest."""
    def tested(copy, tests):
        assert "return trebled and rise" in (copy / "atomrl_nb" / "trust.py").read_text() and tests == [TEST]
        return answer, ""

    monkeypatch.setattr(mutate, "MUTATIONS", [mutate.Mutation("a change", "t*st.py", old, "trebled", TEST)])
    monkeypatch.setattr(mutate, "passed", lambda mutations: True)
    monkeypatch.setattr(mutate, "tested", tested)
    noticed = said == "noticed"
    assert mutate.main([]) == 1 - noticed
    out = capsys.readouterr().out
    assert f"a change: {said}" in out and f"{int(noticed)} of 1 mutations" in out
    assert ("not: a change" in out) != noticed


def test_one_mutation_is_noticed():
    """Without it the same test passes, also in the copy."""
    command = [sys.executable, str(ROOT / "tools" / "mutate.py"), "refused by the force alone"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "1 of 1 mutations were noticed" in done.stdout, done.stdout + done.stderr


def test_tests_that_fail_without_any_mutation_are_said(mutate, monkeypatch, capsys):
    monkeypatch.setattr(mutate, "tested", lambda copy, tests: (1, "one failed"))
    assert mutate.main(["refused by the force alone"]) == 1
    assert "Without any mutation the tests fail:\none failed" in capsys.readouterr().out


def cell(html, volatile=True):
    return dict(id="a", cell_type="code", source="#| volatile: true" * volatile, outputs=[dict(data={"text/html": html})])


def test_a_saved_view_of_an_older_format_is_outdated_also_in_a_volatile_cell(monkeypatch):
    """A dashboard is volatile and holds a view beside other things: it may show other numbers, but no page draws an older format."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    from notebooks import differences
    page = '<div>{} steps</div><div class="atomrl-view"><p>a view</p><script type="application/json">{{"{}":1,"trajectories":[{{"frames":[{}]}}]}}</script></div>'
    changed = lambda volatile, *now: list(differences(dict(cells=[cell(page.format(3, "scales", 1), volatile)]), dict(cells=[cell(page.format(*now), volatile)])))
    assert changed(True, 4, "scales", 2) == []
    assert len(changed(True, 3, "force_scale", 1)) == len(changed(False, 3, "force_scale", 1)) == 1
    assert changed(False, 3, "scales", 2) == [] and len(changed(False, 4, "scales", 1)) == 1  # the picture is compared elsewhere, words here


def test_every_saved_view_has_the_format_that_pages_draw(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import json

    from ase.build import bulk
    from notebooks import formats

    from atomrl_nb.view import show
    now, seen = formats(cell(show(bulk("Cu")).html())), 0
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        for saved in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            found = formats(saved)
            seen += len(found)
            assert found == now * len(found), (path.name, saved["id"])
    assert seen >= 10
