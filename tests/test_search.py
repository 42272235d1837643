"""The search: minima are recognised, the budget is kept, the small cluster is found."""

from functools import partial

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from atomrl_nb.search import Minimum, basin_hopping, enter, fingerprint, kicked, multistart, random_start, search
from atomrl_nb.neighbours import closest_pair
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.structures import load, perturb

LJ7 = Atoms("Ar7", np.zeros((7, 3)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_smallest_cluster_is_found(seed):
    found = search(LJ7, "lj", "lj-clusters", 2000, seed, target=-16.505384 + 1e-3)
    assert abs(found.minima[0].energy + 16.505384) < 1e-3 and found.evaluations <= 2000
    assert found.best[-1][1] == found.minima[0].energy
    assert [e for _, e in found.best] == sorted((e for _, e in found.best), reverse=True)


def test_the_same_seed_finds_the_same():
    a, b = (search(LJ7, "lj", "lj-clusters", 200, 3) for _ in range(2))
    assert [m.energy for m in a.minima] == [m.energy for m in b.minima]


@pytest.mark.parametrize("budget", [1, 37, 150])
def test_the_budget_is_kept(budget):
    assert search(LJ7, "lj", "lj-clusters", budget).evaluations <= budget
    for other in (basin_hopping, multistart):
        assert other(LJ7, "lj", budget).evaluations <= budget


def test_multi_start_with_a_policy_ends_where_it_reaches_the_target():
    found = multistart(LJ7, "lj", 200, 3, target=-16.505384 + 1e-3, optimizer=partial(RLOptimizer, policy="lj-clusters"))
    assert found.evaluations == found.best[-1][0] < 60 and found.best[-1][1] <= -16.505384 + 1e-3


def test_basin_hopping_leaves_numpys_generator_alone():
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    basin_hopping(LJ7, "lj", 30, seed=1)
    assert np.random.rand() == expected


def test_copies_are_one_minimum_and_others_are_not():
    cluster, crystal = load("lj13")[0], bulk("Cu", cubic=True)
    turned = cluster[np.random.default_rng(0).permutation(13)]
    turned.rotate(33, (1, -2, 3))
    turned.positions *= -1
    np.testing.assert_allclose(fingerprint(turned), fingerprint(cluster), atol=1e-9)
    shifted = crystal.copy()
    shifted.positions += 1.3
    shifted.wrap()
    np.testing.assert_allclose(fingerprint(shifted), fingerprint(crystal), atol=1e-9)
    minima = []
    assert [enter(minima, Minimum(a, e, 0))
            for a, e in ((cluster, -44.3), (turned, -44.3), (turned, -44.2),
                         (perturb(cluster, 0.3), -44.3))] == [True, False, True, True]
    assert [m.energy for m in minima] == [-44.3, -44.3, -44.2] and minima[0].hits == 2


@pytest.mark.parametrize("like", [Atoms("Ar9", np.zeros((9, 3))), load("alloys8")[0]])
def test_starts_and_kicks_are_not_clashes(like):
    rng = np.random.default_rng(0)
    for _ in range(10):
        start = random_start(like, rng)
        assert sorted(start.numbers) == sorted(like.numbers) and closest_pair(start, 10.0)[0] > 0.5
    before = start.positions.copy()
    kicked(start, rng)
    assert (start.positions == before).all()


def test_a_crystal_is_known_wherever_its_cell_begins():
    """Distances are those to the nearest image."""
    crystal = perturb(load("alloys8")[0], 0.3, seed=0)
    shifted = crystal.copy()
    shifted.positions += 0.6 * crystal.cell[0] + 0.3 * crystal.cell[2]
    shifted.wrap()
    moves = shifted.positions - crystal.positions
    assert np.abs(moves - moves[0]).max() > 1  # some atoms are wrapped, others are not
    np.testing.assert_allclose(fingerprint(shifted), fingerprint(crystal), atol=1e-9)
