"""The package from outside: every module imports alone, and is used as a script would use it."""
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list

import atomrl_nb
from atomrl_nb.graphs import AtomGraph, neighbours
from atomrl_nb.networks import Actor, NetworkSettings, TwinCritics
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.structures import calculator, load, perturb

ROOT = Path(__file__).resolve().parents[1]
MODULES = [m.name for m in pkgutil.iter_modules(atomrl_nb.__path__) if not m.name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_every_exported_name_is_there(name):
    module = importlib.import_module(f"atomrl_nb.{name}")
    assert module.__all__ and all(hasattr(module, exported) for exported in module.__all__)


def test_commands_need_neither_notebooks_nor_nbdev():
    code = ("import sys, atomrl_nb.cli; "
            "sys.exit(any(m in sys.modules for m in ('nbdev', 'nglview', 'jupyterlab', 'IPython')))")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (True, False, False), (False, False, False)])
@pytest.mark.parametrize("cutoff", [2.0, 5.0, 9.0])
def test_neighbours_agree_with_ase(pbc, cutoff):
    rng = np.random.default_rng(0)
    for _ in range(5):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(np.asarray(atoms.cell) + rng.normal(0, 0.8, (3, 3)), scale_atoms=True)
        atoms.positions += rng.normal(0, 3, (4, 3))  # also outside the cell
        atoms.pbc = pbc
        (i, j), vec = neighbours(atoms.positions, atoms.cell, atoms.pbc, cutoff)
        expected = np.column_stack([*neighbor_list("ij", atoms, cutoff), neighbor_list("D", atoms, cutoff)])
        order = lambda rows: rows[np.lexsort(np.round(rows, 6).T)]
        np.testing.assert_allclose(order(np.column_stack([i, j, vec])), order(expected), atol=1e-9)


@pytest.mark.parametrize("name", ["alloys4", "alloys8", "cu-vacancy", "cu-slab"])
@pytest.mark.parametrize("lmax", [1, 2])
def test_actor_is_equivariant_and_critics_are_invariant(name, lmax):
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        actor, critics = Actor(NetworkSettings(lmax=lmax)), TwinCritics(NetworkSettings(lmax=lmax))
        matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
        for sign in (1, -1):
            graphs = []
            for turn in (np.eye(3), sign * matrix):
                atoms = perturb(load(name)[0], 0.3, seed=0)
                atoms.set_cell(np.asarray(atoms.cell) @ turn.T)
                atoms.positions = atoms.positions @ turn.T
                atoms.calc = calculator("emt")
                atoms.get_forces()
                graphs.append(AtomGraph.from_atoms(atoms))
            moves = [actor(g) for g in graphs]
            torch.testing.assert_close(moves[0] @ torch.as_tensor(sign * matrix).T, moves[1], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(critics(graphs[0], moves[0]), critics(graphs[1], moves[1]), rtol=1e-9, atol=1e-9)
    finally: torch.set_default_dtype(torch.float32)


def test_molecules_and_mixed_batches():
    atoms = molecule("CH3CH2OH")
    atoms.calc = calculator("emt")
    atoms.get_forces()
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.1, seed=0)
    crystal.calc = calculator("emt")
    crystal.get_forces()
    single, actor = [AtomGraph.from_atoms(a) for a in (atoms, crystal)], Actor()
    both = actor(AtomGraph.collate(single))
    torch.testing.assert_close(both, torch.cat([actor(g) for g in single]), rtol=1e-4, atol=1e-6)


def test_environment_is_a_gymnasium_environment():
    """Gymnasium's own checker, and one of its wrappers around ours."""
    from gymnasium.utils.env_checker import check_env
    from gymnasium.wrappers import TimeLimit

    from atomrl_nb.environment import Environment

    env = Environment(load("cuau4"), calculator("emt"), seed=0)
    with pytest.warns(UserWarning, match="infinity"): check_env(env, skip_render_check=True)
    limited = TimeLimit(env, 2)
    limited.reset(seed=1)
    assert [limited.step(np.zeros((4, 3)))[2:4] for _ in range(2)] == [(False, False), (False, True)]


def test_no_unsigned_index_is_counted(monkeypatch):
    """numpy below 2.2 refuses unsigned integers in `bincount`, and vesin gives them: newer versions must notice too."""
    counted = np.bincount

    def bincount(x, *args, **kwargs):
        assert np.can_cast(np.asarray(x).dtype, np.int64), "an unsigned index was counted"
        return counted(x, *args, **kwargs)

    monkeypatch.setattr(np, "bincount", bincount)
    for atoms in (bulk("Cu", cubic=True), load("cu-slab")[0], molecule("CH3CH2OH"), load("alloys4-heldout")[2]):
        atoms = perturb(atoms, 0.1, seed=0)
        atoms.calc = calculator("emt")
        assert RLOptimizer(atoms, logfile=None).run(fmax=0.05, steps=60)


@pytest.mark.parametrize("folder, variables, threads",
                         [("nbs", {"IN_TEST": "1"}, 1), ("nbs/guide", {"IN_TEST": "1"}, 1),
                          ("nbs", {}, 2), ("tests", {"IN_TEST": "1"}, 2)])
def test_only_nbdev_test_in_the_own_notebooks_is_held_to_one_thread(folder, variables, threads):
    """`nbdev_test` sets IN_TEST and works in the folder of the notebook; nobody else's threads are touched."""
    code = "import torch; torch.set_num_threads(2); import atomrl_nb.structures; print(torch.get_num_threads())"
    environment = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "OMP_NUM_THREADS")} | variables
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / folder, check=True, timeout=120,
                          capture_output=True, text=True,
                          env=environment | {"PYTHONPATH": str(ROOT)})
    assert done.stdout.split() == [str(threads)]


def test_a_system_without_posix_locks_relaxes_and_is_told_where_to_train():
    code = ("import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
            "import atomrl_nb.optimizer, atomrl_nb.report\n"
            "try: import atomrl_nb.cli\nexcept ImportError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert "need Linux or macOS" in done.stdout and "WSL" in done.stdout


def settings():
    """Return settings.ini as setup.py reads it."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def test_the_page_on_installing_names_every_extra_once():
    page = json.loads((ROOT / "nbs" / "install.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in page["cells"] for output in cell.get("outputs", [])]
    texts = ["".join(output.get("data", {}).get("text/markdown", "")) for output in outputs]
    table = next(text for text in texts if text.startswith("| extra |"))
    named = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(key.removesuffix("_requirements") for key in settings()
                                   if key.endswith("_requirements"))


def test_every_requirement_has_a_lower_bound_that_test_oldest_installs():
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "oldest.py")], check=True, capture_output=True,
                          text=True, timeout=60)
    assert len(done.stdout.split()) >= len(settings()["requirements"].split())


def test_what_is_cited_is_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == settings()["version"] == atomrl_nb.__version__


def test_a_library_leaves_the_user_s_global_state_alone(tmp_path):
    """Random generators, torch's default dtype and threads, numpy's error state, warnings, the import path, the folder, signals."""
    import os
    import random
    import signal
    import sys
    import warnings

    from atomrl_nb.learned import find_policy
    from atomrl_nb.networks import NetworkSettings
    from atomrl_nb.settings import Settings
    from atomrl_nb.training import resume, train

    def state():
        return (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_default_dtype(),
                torch.get_num_threads(), torch.is_grad_enabled(), np.geterr(), warnings.filters[:], sys.path[:], os.getcwd(),
                {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)})

    torch.set_default_dtype(torch.float64)
    try:
        before = state()
        run = train(Settings(network=NetworkSettings(channels=4, layers=1), n_envs=4, learning_starts=8, batch_size=8, steps=16,
                             evaluation_starts=2), progress=False, structures=load("alloys4")[:2], run=str(tmp_path / "run"))
        atoms = perturb(load("cuau4")[0], 0.2, seed=0)
        atoms.calc = calculator("emt")
        RLOptimizer(atoms, policy=find_policy("fcc-alloys"), logfile=None).run(0.05, 20)
        assert state() == before
    finally: torch.set_default_dtype(torch.float32)
    resume(run, steps=24, progress=False)  # made under another default
    assert torch.get_default_dtype() == torch.float32
