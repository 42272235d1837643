"""The long measurements in their quick form, and the files that they have written."""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atomrl_nb.experiment import from_file, of_checkout, run_experiment

ROOT = Path(__file__).resolve().parent.parent
TOOLS, SAVED = ROOT / "tools", ROOT / "nbs" / "benchmark"
NAMES = list(of_checkout())
MINUTES = {"monitor", "reinforcement", "search"}  # slow even in their quick form
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def experiment(name):
    """Import a tool, and return its experiment."""
    return from_file(of_checkout()[name])


def times(folder):
    """Note when each file was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_named_like_its_file_and_lists_plain_distinct_cases(name):
    if name in ("pieces", "universal"): pytest.importorskip("berny")  # which brings Baker's molecules
    made = experiment(name)
    saved = json.loads((SAVED / f"{name}.json").read_text(encoding="utf-8"))
    assert made.name == name and saved[made.rows]
    cases = made.cases(2, False)
    assert json.loads(json.dumps(cases)) == cases
    assert len({json.dumps(case, sort_keys=True) for case in cases}) == len(cases)
    assert len({tuple(case) for case in cases}) == 1 and not set(cases[0]) & set(made.settings)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in MINUTES)) for name in NAMES])
def test_an_experiment_in_its_quick_form(name, capsys):
    before, made = times(SAVED), experiment(name)
    result = run_experiment(made, quick=True, seeds=1)
    rows, cases = result[made.rows], made.cases(1, True)
    assert [{key: row[key] for key in case} for row, case in zip(rows, cases, strict=True)] == cases
    assert all(len(row) > len(cases[0]) for row in rows) and json.loads(json.dumps(result)) == result
    assert not any(isinstance(lost := row.get("lost"), str) and lost for row in rows), rows  # why a start was lost
    said = capsys.readouterr().out
    assert all(made.tell(row) in said for row in rows) and isinstance(made.conclude(rows), str)
    assert all(row["exact"] for row in rows if "exact" in row), rows  # a run that was killed
    assert before == times(SAVED)


def test_an_experiment_as_a_command_in_its_quick_form():
    before = times(SAVED)
    code = "import sys; from atomrl_nb.measuring_cli import experiment_main; sys.exit(experiment_main())"
    done = subprocess.run([sys.executable, "-c", code, "tuned_bfgs", "--quick"], cwd=ROOT, text=True,
                          capture_output=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0 and done.stdout.count('"mean"') == 2, done.stderr
    assert before == times(SAVED)


@pytest.mark.slow
def test_training_of_a_shipped_policy_in_its_quick_form():
    before = times(ROOT / "atomrl_nb" / "policies")
    done = subprocess.run([sys.executable, str(TOOLS / "train_shipped.py"), "lj-clusters", "--quick"], cwd=ROOT,
                          text=True, capture_output=True, check=True, timeout=300, env=ENVIRONMENT)
    assert "lj-clusters: works" in done.stdout
    assert before == times(ROOT / "atomrl_nb" / "policies")


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
    return dict(id="a", cell_type="code", source="#| volatile: true" * volatile,
                outputs=[dict(data={"text/html": html})])


def test_a_saved_view_of_an_older_format_is_outdated_also_in_a_volatile_cell(monkeypatch):
    """A dashboard is volatile and holds a view: it may show other numbers, but no page draws an older format."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    from notebooks import differences
    page = ('<div>{} steps</div><div class="atomrl-view"><p>a view</p><script type="application/json">'
            '{{"{}":1,"trajectories":[{{"frames":[{}]}}]}}</script></div>')
    changed = lambda volatile, *now: list(differences(dict(cells=[cell(page.format(3, "scales", 1), volatile)]),
                                                      dict(cells=[cell(page.format(*now), volatile)])))
    assert changed(True, 4, "scales", 2) == []
    assert len(changed(True, 3, "force_scale", 1)) == len(changed(False, 3, "force_scale", 1)) == 1
    # the picture is compared elsewhere, words here
    assert changed(False, 3, "scales", 2) == [] and len(changed(False, 4, "scales", 1)) == 1


def test_every_saved_view_has_the_format_that_pages_draw(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
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


def test_signatures_on_the_site_name_fields_with_their_comments_and_write_out_no_long_default(monkeypatch):
    from fastcore import docments

    from atomrl_nb.comparing import Relaxed
    from atomrl_nb.settings import Settings, describe

    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.setattr(docments._DocmentBase, "__init__", docments._DocmentBase.__init__)  # undone at the end
    monkeypatch.setattr(docments, "_fmt_default", docments._fmt_default)
    import docs
    docs.show_fields()

    def takes_all(*names, mark=object(), **options): "Take any number of names and options."

    assert str(docments.DocmentText(takes_all)).splitlines()[1].strip() == "*names, mark:object=…, **options"
    written = {kind: str(docments.DocmentText(kind)) for kind in (Relaxed, Settings, describe)}
    assert "VAR_POSITIONAL" not in written[Relaxed] and "relaxed, with energy and forces" in written[Relaxed]
    assert "n_envs:int=16, # environments played in lockstep" in written[Settings]
    assert "rules:dict=dict(…)" in written[describe] and max(map(len, written.values())) < 3000


def test_a_name_that_is_the_text_of_a_link_is_not_linked_again(monkeypatch):
    import nbdev.doclinks

    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.setattr(nbdev.doclinks.NbdevLookup, "link_line", nbdev.doclinks.NbdevLookup.link_line)  # undone at the end
    monkeypatch.setattr(nbdev.doclinks, "entry_points", nbdev.doclinks.entry_points)
    import readme
    readme.link_own_names()
    linked = nbdev.doclinks.NbdevLookup("atomrl_nb").linkify("[`monitor`](11a_monitor.ipynb) or `monitor`")
    assert linked.startswith("[`monitor`](11a_monitor.ipynb) or [`monitor`](https://") and linked.count("](") == 2
