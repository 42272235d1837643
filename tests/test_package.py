"""The package from outside: every module imports alone, and is used as a script would use it."""
import importlib
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list

import atomrl_nb
from atomrl_nb.graphs import AtomGraph, neighbours
from atomrl_nb.networks import Actor, NetworkSettings, TwinCritics
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.structures import calculator, load, perturb

MODULES = [m.name for m in pkgutil.iter_modules(atomrl_nb.__path__) if not m.name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_every_exported_name_is_there(name):
    module = importlib.import_module(f"atomrl_nb.{name}")
    assert module.__all__ and all(hasattr(module, exported) for exported in module.__all__)


def test_commands_need_neither_notebooks_nor_nbdev():
    code = "import sys, atomrl_nb.cli; sys.exit(any(m in sys.modules for m in ('nbdev', 'nglview', 'jupyterlab', 'IPython')))"
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
