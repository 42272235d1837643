"""Settings and files: any value or file works, or gets one sentence that names it, and exit code 2."""
import json
import math
import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from atomrl_nb.cli import diagnose_main, relax_main, train_main
from atomrl_nb.learned import LoopSettings, loop_of
from atomrl_nb.learner import METRICS
from atomrl_nb.loop import LoopSearch, _Generations
from atomrl_nb.networks import Actor, NetworkSettings
from atomrl_nb.policies import Policy, load_policy, save_policy
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.planner import Planner, PlannerSettings
from atomrl_nb.schema import LIST, LOOP, NETWORK, PLANNER, SCHEMA, TEXT
from atomrl_nb.settings import Settings, check_settings, describe, settings_from
from atomrl_nb.structures import InputError, load
from atomrl_nb.training import train

BAD = [math.nan, math.inf, -math.inf, "x", [], {}, 10**400, -1, None]
TINY = dict(n_envs=4, learning_starts=8, batch_size=8, evaluation_interval=0, checkpoint_interval=16,
            network=dict(channels=4, layers=1))


def legal(rule, value):
    """Tell the few values of `BAD` that a setting may have."""
    empty = value is None and "Optional" in str(rule.type)
    return empty or rule.type == TEXT and value == "x" or rule.type == LIST and value == []


@pytest.mark.parametrize("one", describe(), ids=lambda one: one.name)
def test_a_bad_value_is_refused_by_name(one):
    group, _, name = one.name.rpartition(".")
    for value in BAD:
        if legal(one.rule, value): continue
        with pytest.raises(InputError, match=f"'{one.name}'"):
            settings_from({group: {name: value}} if group else {name: value})
        changes = {group: replace(getattr(Settings(), group), **{name: value})} if group else {name: value}
        with pytest.raises(InputError, match=f"'{one.name}'"): check_settings(replace(Settings(), **changes))


@pytest.mark.parametrize("one", describe(), ids=lambda one: one.name)
def test_the_default_is_in_its_own_range_and_described(one):
    assert one.meaning and one.why
    group, _, name = one.name.rpartition(".")
    made = settings_from({group: {name: one.default}} if group else {name: one.default})
    assert getattr(getattr(made, group) if group else made, name) == one.default


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a structure and quick settings, to work in."""
    monkeypatch.chdir(tmp_path)
    write("in.extxyz", bulk("Cu", cubic=True))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 32 steps."""
    settings = replace(settings_from(TINY), structures=("cuau4",), run=str(tmp_path_factory.mktemp("trained") / "run"),
                       steps=32)
    return train(settings, progress=False)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run."""
    return shutil.copytree(trained, tmp_path / "run")


def refused(capsys, main, *argv):
    """Run a command that must end with one sentence and exit code 2; return the sentence."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said, said
    return said


@pytest.mark.parametrize("text, said", [
    ('{"steps": ' + "9" * 400 + "}", "'steps'"), ('{"steps": ' + "9" * 5000 + "}", "no valid JSON"),
    ('{"validation": 3}', "'validation'"), ('{"seed": 1' + "0" * 40 + "}", "'seed'"),
    ('{"expert": {"alpha": NaN}}', "'expert.alpha'"), ('{"environment": {"r0": 1e300}}', "'environment.r0'"),
    ('{"expert": {"maxstep": -0.1}}', "'expert.maxstep'"), ('{"network": {"cutoff": 1e6}}', "'network.cutoff'"),
    ('{"network": {"layers": 1000000000}}', "'network.layers'"), ('{"network": 3}', "network"),
    ("[1]", "names with values"),
    ("[" * 100_000, "nested too deeply"), ('{"steps": 48,\n "seed" 3}', "line 2"), ("\udcff", "line 1")])
def test_a_bad_settings_file_is_named(place, capsys, text, said):
    (place / "bad.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    sentence = refused(capsys, train_main, "in.extxyz", "--calculator", "emt", "--run", "new", "--settings", "bad.json")
    assert said in sentence and "'bad.json'" in sentence and not (place / "new").exists()


def test_history_of_the_network_alone_works(place):
    (place / "history.json").write_text(json.dumps(TINY | dict(network=dict(channels=4, layers=1, history=True))))
    assert train_main(["in.extxyz", "--calculator", "emt", "--run", "new", "--steps", "24",
                       "--settings", "history.json"]) == 0


def test_no_code_from_a_settings_file_unasked(place, capsys, monkeypatch):
    lab = "from ase.calculators.emt import EMT\nopen('imported', 'w').close()\nmake = EMT\n"
    (place / "lab_potential.py").write_text(lab)
    (place / "code.json").write_text(json.dumps(TINY | dict(calculator="lab_potential:make")))
    argv = ["in.extxyz", "--run", "new", "--steps", "16", "--settings", "code.json"]
    monkeypatch.syspath_prepend(str(place))
    assert "--calculator lab_potential:make" in refused(capsys, train_main, *argv)
    assert not (place / "imported").exists() and "lab_potential" not in sys.modules
    assert train_main([*argv, "--calculator", "lab_potential:make"]) == 0 and (place / "imported").exists()
    assert "executes code" in refused(capsys, train_main, "--resume", "new", "--steps", "32")


@pytest.mark.parametrize("name", ["x\x0bvt", "u\u2028sep", "cr\rline", "nl\nline", "a@b", "quote\"s, and comma"])
def test_any_file_name_trains_and_resumes(place, capsys, name):
    os.rename("in.extxyz", f"{name}.extxyz")
    quick = json.dumps(TINY | dict(environment=dict(max_steps=3)))
    (place / "tiny.json").write_text(quick)
    assert train_main([f"{name}.extxyz", "--calculator", "emt", "--run", "new", "--steps", "24",
                       "--settings", "tiny.json"]) == 0
    assert train_main(["--resume", "new", "--steps", "40"]) == 0
    assert diagnose_main(["new"]) in (0, 1)
    assert not any(c in load(f"{name}.extxyz")[0].info["source"] for c in "\r\n\x0b\u2028")


def config_with(run, **changes):
    """Change a run's config.json."""
    config = json.loads((run / "config.json").read_text()) | changes
    (run / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not Ellipsis}))


@pytest.mark.parametrize("main, argv", [(train_main, ["--resume"]), (diagnose_main, [])])
@pytest.mark.parametrize("changes, said", [
    (dict(td3=...), "'td3' is missing"), (dict(steps=...), "'steps' is missing"), (dict(network={}), "missing"),
    (dict(network=[]), "network"), (dict(steps="many"), "'steps'"), (dict(seed=10**400), "'seed'"),
    (dict(environment=None), "environment"), (dict(mood="good"), "'mood'")])
def test_a_config_without_its_parts(run, capsys, main, argv, changes, said):
    config_with(run, **changes)
    sentence = refused(capsys, main, *argv, run)
    assert said in sentence and "config.json" in sentence


@pytest.mark.parametrize("data", [b"", b"[1]", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_a_config_that_is_none(run, capsys, data):
    (run / "config.json").write_bytes(data)
    for main, argv in ((train_main, ["--resume", run, "--steps", 48]), (diagnose_main, [run])):
        assert "config.json" in refused(capsys, main, *argv)


@pytest.mark.parametrize("table", ["metrics", "episodes", "evaluations"])
def test_a_run_whose_table_is_gone_does_not_go_on(run, capsys, table):
    (run / f"{table}.csv").unlink()
    assert f"{table}.csv' is gone" in refused(capsys, train_main, "--resume", run, "--steps", 48)


def test_a_run_whose_rows_are_gone_does_not_go_on(run, capsys):
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(lines[:9] + lines[12:]))
    assert "does not hold the rows of t_total 1 to 32" in refused(capsys, train_main, "--resume", run, "--steps", 48)


COMMAS = b"," * (len(METRICS) - 1)


@pytest.mark.parametrize("junk, said", [
    (b"junk\n", "line 34"), (b"9" * 5000 + COMMAS + b"\n", "line 34"), (b"x" + COMMAS + b"\n", "t_total is 'x'"),
    (b"\xff\xfe\n", "line 34"), (b"\0\n", "line 34")])
def test_junk_in_a_table_is_named_with_its_line(run, capsys, junk, said):
    with open(run / "metrics.csv", "ab") as file: file.write(junk)
    for main, argv in ((train_main, ["--resume", run, "--steps", 48]), (diagnose_main, [run])):
        sentence = refused(capsys, main, *argv)
        assert said in sentence and "metrics.csv" in sentence


@pytest.mark.parametrize("header", [b"", b"t_total,reward\n"])
def test_a_table_of_another_kind(run, capsys, header):
    (run / "metrics.csv").write_bytes(header)
    for main, argv in ((train_main, ["--resume", run, "--steps", 48]), (diagnose_main, [run])):
        assert "metrics.csv" in refused(capsys, main, *argv)


@pytest.mark.parametrize("make", [lambda path: path.write_text("[" * 100_000), os.mkfifo, lambda path: path.mkdir()],
                         ids=["nested", "pipe", "folder"])
def test_a_control_file_cannot_stop_a_run(run, capsys, make):
    make(run / "control.json")
    assert train_main(["--resume", str(run), "--steps", "48"]) == 0
    said = capsys.readouterr().err
    assert said.count("control.json") == 1 and "It is not followed" in said


@pytest.mark.parametrize("card", [
    ["Cu"], dict(elements="Cu"), dict(success=math.nan), dict(coordination=[1, 2]), dict(loop=[1]),
    dict(loop=dict(steps="many")),
    dict(max_steps=10**400), dict(r0=-1)], ids=lambda card: str(card)[:30])
def test_a_card_that_makes_no_sense(place, capsys, card):
    save_policy(place / "odd.safetensors", Actor(NetworkSettings(channels=4, layers=1)), card)
    assert "card" in refused(capsys, relax_main, "in.extxyz", "--calculator", "emt", "--policy", "odd.safetensors")


@pytest.mark.parametrize("name, value", [
    ("cutoff", 1e6), ("cutoff", 10**400), ("layers", 10**9), ("channels", 10**9), ("mood", 1), ("lmax", "one")],
    ids=lambda value: str(value)[:12])
def test_a_policy_with_an_absurd_network_does_not_hang(place, name, value):
    from safetensors import safe_open
    from safetensors.torch import save_file
    save_policy(place / "p.safetensors", Actor(NetworkSettings(channels=4, layers=1)), {})
    with safe_open(place / "p.safetensors", framework="pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
    metadata["network"] = json.dumps(json.loads(metadata["network"]) | {name: value})
    save_file(tensors, place / "p.safetensors", metadata)
    with pytest.raises(InputError, match=f"network.{name}"): load_policy(place / "p.safetensors")


def test_an_atomic_number_that_is_none(place, capsys):
    write("odd.traj", Atoms(numbers=[150, 29], positions=[[0, 0, 0], [0, 0, 2]]))
    assert "150" in refused(capsys, relax_main, "odd.traj", "--calculator", "emt")
    assert "150" in refused(capsys, train_main, "odd.traj", "--calculator", "emt", "--run", "new")


@pytest.mark.parametrize("spec", ["lj:sigma=inf", "lj:sigma=nan", "lj:epsilon=-1", "lj:rc=1e400"])
def test_options_of_a_calculator_are_finite(place, capsys, spec):
    assert "positive numbers" in refused(capsys, train_main, "in.extxyz", "--calculator", spec, "--run", "new")


def test_the_schema_holds_the_words_that_the_rooms_know():
    from atomrl_nb.constraints import CORRECTION_FORMS, CORRECTION_MODES
    from atomrl_nb.expert import MODES, SCHEDULES
    from atomrl_nb.memory import SAMPLING
    from atomrl_nb.structures import PERTURBATIONS
    words = lambda group, name: set(SCHEMA[group][name].type.__args__)
    assert words("environment", "correction_mode") == set(CORRECTION_MODES)
    assert words("environment", "correction_form") == set(CORRECTION_FORMS)
    assert words("environment", "perturb_kind") == set(PERTURBATIONS) and words("memory", "sampling") == set(SAMPLING)
    assert words("expert", "mode") == set(MODES) and words("expert", "schedule") == set(SCHEDULES)
    assert set(Actor.HEADS) == set(NETWORK["head"].type.__args__)


PLANNED = describe(PlannerSettings(), PLANNER, "planner.") + describe(LoopSettings(), LOOP, "card.loop.")


@pytest.mark.parametrize("one", PLANNED, ids=lambda one: one.name)
def test_numbers_of_a_relaxation_are_held_to_their_rules(one):
    """A script's settings and a card's loop get a sentence that names the number; the usual ones pass."""
    *groups, name = one.name.split(".")
    actor = Actor(NetworkSettings(channels=4, layers=1))
    def use(value):
        if groups[0] == "card": return loop_of(actor, dict(loop={name: value}))
        if len(groups) == 1: return Planner(bulk("Cu"), settings=replace(PlannerSettings(), **{name: value}))
        part = replace(getattr(PlannerSettings(), groups[1]), **{name: value})
        return Planner(bulk("Cu"), settings=replace(PlannerSettings(), **{groups[1]: part}))

    assert one.meaning and one.why
    use(one.default)
    for value in BAD:
        with pytest.raises(InputError, match=f"{one.name}' is .* but it must be"): use(value)


def test_trust_that_makes_no_sense_is_refused_wherever_it_comes_from(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = EMT()
    with pytest.raises(InputError, match="'planner.trust.patience' is -3"): RLOptimizer(atoms, "none", patience=-3)
    file = tmp_path / "restart.json"
    RLOptimizer(atoms, "none", restart=str(file), logfile=None).run(0.01, 1)
    file.write_text(file.read_text().replace('"first": 0.33', '"first": -0.33'))
    with pytest.raises(InputError, match="'planner.trust.first' is -0.33"):
        RLOptimizer(atoms, "none", restart=str(file), logfile=None)


def test_a_search_over_the_loop_draws_what_a_card_may_hold():
    """Fewer steps than one are no walk: such a policy could be saved, but not read again."""
    policy = Policy(Actor(NetworkSettings(channels=4, layers=1)), dict(loop=dict(steps=1)))
    draws = _Generations(policy, LoopSearch(), np.random.default_rng(0))
    numbers = draws.numbers(draws.centre - 0.4)
    assert numbers["steps"] == 1.0 and numbers["past"] < 10.0
    assert loop_of(policy.actor, dict(loop=numbers)).steps == 1.0
