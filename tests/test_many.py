"""Many structures at once, on workers: order, failures, deaths."""
import random
from types import SimpleNamespace
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.io import read
from calculators import Fragile, Picky, Sleepy, evaluated_with_torch

from atomrl_nb.optimizer import RelaxMany, RLOptimizer, _parted
from atomrl_nb.structures import CountedCalculator, InputError, calculator, load, perturb
from atomrl_nb.workers import ExecutorBroken, Workers


def starts(n=6):
    return [perturb(atoms, 0.4, seed=k) for k, atoms in enumerate(load("alloys4")[:n])]


def relaxed(**options):
    """Relax on workers and return all that can be seen of it."""
    structures = starts()
    many = RelaxMany(structures, "none", **options)
    assert all(many.run(0.02, 60)) and not any(many.failed)
    return np.concatenate([atoms.positions for atoms in structures])


def test_the_order_of_arrival_changes_no_result():
    """Bit for bit: alone, in one process, in threads that take their time, in a window of three, with stragglers."""
    alone = starts()
    for atoms in alone:
        atoms.calc = Sleepy()
        assert RLOptimizer(atoms, "none", logfile=None).run(0.02, 60)
    alone = np.concatenate([atoms.positions for atoms in alone])
    np.testing.assert_array_equal(relaxed(calculator=Sleepy), alone)
    for seed, window in ((0, 64), (1, 3)):
        random.seed(seed)
        with ThreadPoolExecutor(4) as pool:
            np.testing.assert_array_equal(relaxed(calculator=Sleepy, executor=pool, window=window), alone)


def test_on_worker_processes_a_kill_changes_nothing_and_bad_apples_are_left():
    """One worker is killed from outside; gold kills those that evaluate it; platinum never converges."""
    here, good = relaxed(calculator=(Sleepy, (), {})), starts()
    bad = [perturb(bulk("Au", cubic=True), 0.1), perturb(bulk("Pt", cubic=True), 0.1),
           Atoms("Cu2", [[0, 0, 0], [0.05, 0, 0]])]
    with Workers(2) as workers:
        assert not workers.submit(evaluated_with_torch).result()
        outcomes = []
        for outcome in RelaxMany([*good, *bad], "none", calculator=Picky, executor=workers).irun(0.02, 60):
            outcomes.append(outcome)
            if len(outcomes) == 2:
                workers.processes[0].kill()
    outcomes.sort()
    assert [outcome.state for outcome in outcomes] == ["converged"] * len(good) + ["failed"] * 3
    assert all(outcome.evaluations > 1 for outcome in outcomes[:len(good)]) and workers.replaced >= 3
    for outcome, said in zip(outcomes[len(good):], ("3 worker processes died", "SCF not converged", "closer than")):
        assert said in outcome.reason
    np.testing.assert_array_equal(np.concatenate([atoms.positions for atoms in good]), here)
    assert good[0].get_potential_energy() == pytest.approx(EMT().get_potential_energy(good[0]), abs=1e-6)


def test_a_failure_after_a_move_is_a_refused_move_on_workers_too():
    counts = []
    for options in (dict(), dict(executor=ThreadPoolExecutor(1))):
        atoms = perturb(load("alloys4-heldout")[2], 0.5, seed=1)
        if not options:
            atoms.calc = Fragile()
        outcome, = RelaxMany([atoms], calculator=Fragile if options else None, **options).irun(0.01, 60)
        assert outcome.state == "converged"
        counts.append((outcome.evaluations, atoms.positions.tolist()))
    assert counts[0] == counts[1]


def test_own_calculators_come_back_with_the_results_of_the_end():
    structures = [FrechetCellFilter(atoms) for atoms in starts(4)]
    own = [CountedCalculator(calculator("emt")) for _ in structures]
    for target, calc in zip(structures, own):
        target.atoms.calc = calc
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(RelaxMany(structures, executor=pool).irun(0.02, 60))
    for outcome in outcomes:
        atoms, calc = outcome.atoms.atoms, own[outcome.number]
        assert outcome.state == "converged" and atoms.calc is calc and calc.evaluations == outcome.evaluations
        assert np.abs(atoms.get_stress()).max() < 0.01 and calc.evaluations == outcome.evaluations
        assert np.linalg.norm(outcome.atoms.get_forces(), axis=1).max() <= 0.02


def test_a_shared_calculator_is_refused_on_an_executor():
    structures, shared = starts(2), EMT()
    for atoms in structures:
        atoms.calc = shared
    with pytest.raises(InputError, match="share a calculator"):
        RelaxMany(structures, executor=ThreadPoolExecutor(1))
    with pytest.raises(InputError, match="not EMT itself"):
        RelaxMany(structures, calculator=shared, executor=ThreadPoolExecutor(1))


def test_a_broken_pool_of_others_is_named_and_what_is_done_is_kept():
    structures = [*starts(3), perturb(bulk("Au", cubic=True), 0.1)]
    done = []
    with ProcessPoolExecutor(1) as pool, pytest.raises(ExecutorBroken, match="Workers"):
        for outcome in RelaxMany(structures, calculator=Picky, executor=pool, window=1).irun(0.05, 40):
            done.append(outcome.number)
    assert done == [0, 1, 2]


def test_only_a_window_is_in_work():
    """Ten thousand structures need no ten thousand optimizers: structures come one by one, and go when done."""
    made = []

    def coming():
        for atoms in starts():
            made.append(atoms)
            yield atoms
    many = RelaxMany(coming(), calculator="emt", window=2)
    for told, outcome in enumerate(many.irun(0.05, 40), 1):
        assert len(made) <= told + 3 and len(many.many.optimizers) <= 2
    assert told == 6 and not many.many.spent and not many.many.own


def test_each_structure_has_its_trajectory(tmp_path):
    structures = starts(2)
    many = RelaxMany(structures, calculator="emt", trajectory=str(tmp_path / "way-{}.traj"))
    outcomes = list(many.irun(0.02, 60))
    for k, outcome in enumerate(sorted(outcomes)):
        frames = read(tmp_path / f"way-{k}.traj", ":")
        assert len(frames) == outcome.evaluations
        assert frames[-1].get_potential_energy() == pytest.approx(outcome.energy, abs=1e-9)


def test_no_call_of_a_network_outgrows_the_cache():
    """Cells of 108 atoms are asked one by one, which is no slower than that; 64 of eight atoms in halves."""
    for sizes, parts in (([108] * 4, [1] * 4), ([8] * 64, [32, 32]), ([8, 500, 8], [1, 1, 1])):
        optimizers = {k: SimpleNamespace(atoms=range(size)) for k, size in enumerate(sizes)}
        found = _parted(list(optimizers), optimizers)
        assert [len(part) for part in found] == parts and sum(found, []) == list(optimizers)


class Told(EMT):
    """As asap3's EMT: computes only for atoms that it was told of when it was attached."""
    told = None

    def set_atoms(self, atoms):
        self.told = atoms

    def get_forces(self, atoms=None):
        assert self.told is not None, "no atoms"
        return super().get_forces(atoms)


def test_a_calculator_that_is_told_its_atoms_is_told_through_a_counter():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = counted = CountedCalculator(Told())
    assert RelaxMany([atoms], "none").run(0.05, 20) == [True] and counted.evaluations > 1
