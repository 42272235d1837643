"""Cells under ASE's filters, and constraints: what the filter, the constraint and the calculator say in the end."""
import warnings
from functools import partial

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import (FixAtoms, FixBondLengths, FixCartesian, FixCom, FixConstraint, FixedLine, FixedPlane,
                             FixInternals, FixScaled, FixSymmetry, Hookean)
from ase.filters import ExpCellFilter, Filter, FrechetCellFilter, StrainFilter, UnitCellFilter
from ase.mep import NEB
from ase.optimize import BFGS
from ase.units import GPa

from atomrl_nb.coordinates import LEVER, asked, coordinates_of
from atomrl_nb.learned import find_policy
from atomrl_nb.last_resort import of_filter
from atomrl_nb.optimizer import RelaxMany, RLOptimizer
from atomrl_nb.planner import STRAINED, lowest_curvature
from atomrl_nb.structures import CountedCalculator, InputError, calculator
from atomrl_nb.walk import largest


def strained(seed=0, width=0.04, rattle=0.1):
    """Copper and gold in a strained cell."""
    rng, atoms = np.random.default_rng(seed), bulk("Cu", cubic=True)
    atoms.symbols = ["Cu", "Au", "Cu", "Au"]
    change = rng.normal(0, width, (3, 3))
    atoms.set_cell(1.06 * atoms.cell.array @ (np.eye(3) + (change + change.T) / 2), scale_atoms=True)
    atoms.positions += rng.normal(0, rattle, atoms.positions.shape)
    atoms.calc = CountedCalculator(EMT())
    return atoms


FILTERS = {
    "Frechet": FrechetCellFilter, "UnitCell": UnitCellFilter, "Exp": ExpCellFilter, "Strain": StrainFilter,
    "plane": partial(FrechetCellFilter, mask=[1, 1, 0, 0, 0, 1]),
    "lengths": partial(UnitCellFilter, mask=[1, 1, 1, 0, 0, 0]),
    "hydrostatic": partial(FrechetCellFilter, hydrostatic_strain=True),
    "volume": partial(FrechetCellFilter, constant_volume=True),
    "pressure": partial(FrechetCellFilter, scalar_pressure=20 * GPa),
}


@pytest.mark.parametrize("policy", ["none", "fcc-alloys"])
@pytest.mark.parametrize("kind", FILTERS)
def test_a_filter_is_relaxed_as_it_measures_it(kind, policy):
    """The filter's own forces end below the target, in a fraction of BFGS's evaluations, at no higher enthalpy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target, other = (FILTERS[kind](strained()) for _ in range(2))
    start = target.atoms.copy()
    opt = RLOptimizer(target, policy, logfile=None)
    assert opt.run(0.01, 60) and not opt.handed_over, opt.report()
    assert largest(np.asarray(target.get_forces())) <= 0.01
    BFGS(other, logfile=None).run(0.01, 400)
    assert target.atoms.calc.evaluations < (1.5 if kind == "Strain" else 0.6) * other.atoms.calc.evaluations
    assert target.get_potential_energy() <= other.get_potential_energy() + 2e-3
    stretch = np.linalg.solve(start.cell.array, target.atoms.cell.array).T
    if kind == "plane":
        np.testing.assert_allclose(stretch[2], [0, 0, 1], atol=1e-9)
        np.testing.assert_allclose(stretch[:, 2], [0, 0, 1], atol=1e-9)
    if kind == "lengths": np.testing.assert_allclose(stretch - np.diag(np.diag(stretch)), 0, atol=1e-9)
    if kind == "hydrostatic": np.testing.assert_allclose(stretch, stretch[0, 0] * np.eye(3), atol=1e-9)
    if kind == "volume": np.testing.assert_allclose(np.linalg.det(stretch), 1, atol=1e-9)
    if kind == "pressure": np.testing.assert_allclose(target.atoms.get_stress()[:3], -20 * GPa, atol=0.01)
    if kind == "Strain":
        np.testing.assert_allclose(target.atoms.get_scaled_positions(), start.get_scaled_positions(), atol=1e-9)


def test_the_cell_of_the_report_and_a_stop_on_the_way():
    """Energy, forces and stress that are reported are those of the last atoms, also where the run did not converge."""
    atoms = strained()
    opt = RLOptimizer(FrechetCellFilter(atoms), "none", logfile=None)
    assert not opt.run(1e-4, 2)
    report = opt.report()
    atoms.calc = EMT()
    assert not report.converged and "above its target" in report.why
    assert abs(report.energy - atoms.get_potential_energy()) < 1e-9
    assert abs(abs(report.stress) - np.abs(atoms.get_stress()).max() / GPa) < 1e-9


def test_a_restart_goes_on_with_the_cell(tmp_path):
    """Ten steps are five and five; strains stay those of the cell that the first run began with."""
    whole, parts = strained(), strained()
    RLOptimizer(FrechetCellFilter(whole), "none", logfile=None).run(0.001, 60)
    RLOptimizer(FrechetCellFilter(parts), "none", restart=str(tmp_path / "state.json"), logfile=None).run(0.001, 3)
    opt = RLOptimizer(FrechetCellFilter(parts), "none", restart=str(tmp_path / "state.json"), logfile=None)
    assert opt.run(0.001, 60)
    assert parts.calc.evaluations <= whole.calc.evaluations + 1
    np.testing.assert_allclose(parts.cell.array, whole.cell.array, atol=1e-3)
    with pytest.raises(InputError, match="belongs to"):
        RLOptimizer(parts, "none", restart=str(tmp_path / "state.json"), logfile=None)


def test_many_filters():
    many = RelaxMany([FrechetCellFilter(strained(k)) for k in range(3)], "fcc-alloys")
    assert many.run(0.01, 40) == [True] * 3 and many.failed == [""] * 3


def test_some_atoms_of_a_filter_move():
    atoms = strained()
    before = atoms.positions.copy()
    target = Filter(atoms, indices=[1, 2])
    assert RLOptimizer(target, "none", logfile=None).run(0.01, 40)
    np.testing.assert_array_equal(atoms.positions[[0, 3]], before[[0, 3]])
    assert largest(target.get_forces()) <= 0.01


def slab(seed=0):
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6)
    atoms.rattle(0.1, seed=seed)
    return atoms


def ethanol(constraint=None):
    atoms = Atoms("Cu4", [[0, 0, 0], [2.6, 0, 0], [1.3, 2.2, 0], [1.3, 0.7, 2.0]])
    atoms.rattle(0.1, seed=1)
    return atoms


CONSTRAINED = {
    "FixCartesian": (slab, lambda a: FixCartesian([0, 1, 2, 3], (0, 0, 1))),
    "FixedPlane": (slab, lambda a: FixedPlane([4, 5], (1, 1, 0))),
    "FixedLine": (slab, lambda a: FixedLine([8, 9], (0, 1, 1))),
    "FixScaled": (slab, lambda a: FixScaled([0, 1], (True, False, True))),
    "FixCom": (ethanol, lambda a: FixCom()),
    "FixBondLengths": (ethanol, lambda a: FixBondLengths([(0, 1), (2, 3)])),
    "FixInternals": (ethanol,
                     lambda a: FixInternals(bonds=[[a.get_distance(0, 1), [0, 1]]],
                                            angles_deg=[[a.get_angle(0, 1, 2), [0, 1, 2]]])),
    "FixSymmetry": (lambda: bulk("Cu", a=3.8, cubic=True), FixSymmetry),
    "Hookean": (ethanol, lambda a: Hookean(0, 1, 5.0, 2.2)),
    "two of them": (slab, lambda a: [FixAtoms([0, 1, 2, 3]), FixedLine([8, 9], (0, 0, 1))]),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_a_constraint_is_obeyed_by_planning(name):
    """Not handed over; the constrained atoms have no forces; a step that the constraint corrects stays as it is."""
    make, constrain = CONSTRAINED[name]
    if name == "FixSymmetry": pytest.importorskip("spglib")
    atoms = make()
    atoms.set_constraint(constrain(atoms))
    atoms.calc, start = CountedCalculator(EMT()), atoms.copy()
    opt = RLOptimizer(atoms, "none", logfile=None)
    assert opt.run(0.01, 80) and not opt.handed_over, opt.report()
    assert largest(atoms.get_forces()) <= 0.01
    again = atoms.positions.copy()
    for constraint in atoms.constraints:
        constraint.adjust_positions(start, again)
    np.testing.assert_allclose(again, atoms.positions, atol=1e-6)
    if name == "FixBondLengths":
        for pair in ((0, 1), (2, 3)): assert abs(atoms.get_distance(*pair) - start.get_distance(*pair)) < 1e-6
    if name == "FixInternals":
        assert abs(atoms.get_distance(0, 1) - start.get_distance(0, 1)) < 1e-5
        assert abs(atoms.get_angle(0, 1, 2) - start.get_angle(0, 1, 2)) < 1e-3


def test_a_symmetry_is_kept_with_the_cell():
    spglib = pytest.importorskip("spglib")
    atoms = bulk("Cu", cubic=True)
    atoms.symbols = ["Au", "Cu", "Cu", "Cu"]
    atoms.set_constraint(FixSymmetry(atoms))
    atoms.set_cell(atoms.cell.array * 1.08, scale_atoms=True)
    atoms.calc = EMT()
    opt = RLOptimizer(FrechetCellFilter(atoms), logfile=None)
    assert opt.run(1e-4, 40) and not opt.handed_over
    report = opt.report()
    assert report.space_group_before == report.space_group_after == "Pm-3m (221)"
    group = spglib.get_spacegroup((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), 1e-6)
    assert group == "Pm-3m (221)"


def test_what_is_not_atoms_is_told_what_to_use():
    atoms = bulk("Cu")
    with pytest.raises(InputError, match="band of images"):
        RLOptimizer(NEB([atoms, atoms.copy()], method="improvedtangent"))
    with pytest.raises(InputError, match="ase.optimize"):
        RLOptimizer("Cu")
    with pytest.raises(InputError, match="cell with a volume"):
        RLOptimizer(FrechetCellFilter(molecule("H2O")))


class Saddle(EMT):
    """Copper with a ridge: the energy falls on both sides of y = 0 for the second atom."""
    def calculate(self, atoms=None, *args, **kwargs):
        super().calculate(atoms, *args, **kwargs)
        y = atoms.positions[1, 1]
        self.results["energy"] += -3 * y**2 + 8 * y**4
        self.results["free_energy"] = self.results["energy"]
        self.results["forces"] = self.results["forces"] + np.array([[0, 0, 0], [0, 6 * y - 32 * y**3, 0]])


def test_a_saddle_that_the_surrogate_knows_is_left():
    """The lowest curvature that is known is negative; one kick along it is accepted, because the energy falls."""
    def start():
        atoms = Atoms("Cu2", [[0, 0, 0], [2.2, 0, 0]], constraint=[FixAtoms([0]), FixedPlane(1, (0, 0, 1))])
        atoms.calc = CountedCalculator(Saddle())
        return atoms
    left, stays, together = start(), start(), start()
    opt = RLOptimizer(left, surrogate=Saddle(), surrogate_first=False, logfile=None)
    assert opt.run(0.01, 40)
    assert RLOptimizer(stays, "none", logfile=None).run(0.01, 40)
    assert abs(left.positions[1, 1]) > 0.2 and abs(stays.positions[1, 1]) < 1e-3
    assert left.get_potential_energy() < stays.get_potential_energy() - 0.05
    assert opt.report().end == "minimum" and lowest_curvature(opt.planner)[0] > 0
    many = RelaxMany([together], surrogate=Saddle())
    opt = many.optimizer(0)
    opt.surrogate_first = False
    assert many.run(0.01, 40) == [True]
    np.testing.assert_allclose(together.positions, left.positions, atol=1e-6)
    assert together.calc.evaluations == left.calc.evaluations == len(opt.trust.history)


def test_a_kick_that_gains_nothing_is_undone():
    """The surrogate is wrong about the saddle: the end before the kick stays, and is not evaluated again."""
    atoms = Atoms("Cu2", [[0, 0, 0], [2.2, 0, 0]], constraint=[FixAtoms([0]), FixedPlane(1, (0, 0, 1))])
    atoms.calc = CountedCalculator(EMT())
    opt = RLOptimizer(atoms, surrogate=Saddle(), surrogate_first=False, logfile=None)
    assert opt.run(0.01, 40)
    assert opt.kicked >= 0 and largest(atoms.get_forces()) <= 0.01
    assert atoms.calc.evaluations == len(opt.trust.history) + 1


def test_a_second_run_begins_without_the_verdict_of_the_first():
    atoms = strained()
    opt = RLOptimizer(FrechetCellFilter(atoms), "none", logfile=None)
    opt.stopped = opt.wrong_end = "something of before"
    assert opt.run(0.01, 40) and opt.report().converged and not opt.report().why


def test_a_minimum_costs_no_kick():
    atoms = strained()
    opt = RLOptimizer(FrechetCellFilter(atoms), surrogate=EMT(), logfile=None)
    assert opt.run(0.01, 40) and opt.kicked == -1
    assert coordinates_of(FrechetCellFilter(atoms)).size == 21


class ForcesOnly(EMT):
    implemented_properties = ["forces"]

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results = dict(forces=self.results["forces"])


def test_a_calculator_without_energies_is_logged(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = ForcesOnly()
    assert RLOptimizer(atoms, "none", logfile=str(tmp_path / "log")).run(0.01, 40)
    assert "largest force" in (tmp_path / "log").read_text()


def test_patience_is_that_of_this_run(tmp_path):
    """Not that of the run whose restart file is gone on with."""
    for patience in (15, 3):
        opt = RLOptimizer(strained(), "none", restart=str(tmp_path / "state.json"), patience=patience, logfile=None)
        opt.run(1e-9, 2)
    assert opt.trust.settings.patience == 3


def test_a_distorted_perovskite_keeps_the_symmetry_that_was_asked_for():
    pytest.importorskip("spglib")
    from atomrl_nb.starts import polar_perovskite
    atoms = polar_perovskite(0.02, "SrTiO3")
    atoms.calc = calculator("lj:sigma=1.75,epsilon=0.5,rc=6")
    opt = RLOptimizer(FrechetCellFilter(atoms), "none", logfile=None)
    assert opt.report().space_group_before == "P4mm (99)" and opt.run(0.01, 60) and not opt.handed_over
    report, free = opt.report(), atoms.copy()
    free.set_constraint()
    assert len(FixSymmetry(free).rotations) >= 8 and report.space_group_after != "P1 (1)"


class Grainy(EMT):
    """EMT with noise on the forces across the plane of a flat molecule."""
    noise, across, calls = 0.0, 0, 0

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.calls += 1
        noise = np.random.default_rng(self.calls).normal(0, self.noise, len(self.atoms))
        self.results["forces"][:, self.across] += noise


@pytest.mark.parametrize("noise", [1e-7, 1e-3])
def test_a_flat_molecule_stays_flat_under_small_forces(noise):
    evaluations = {}
    for optimizer in (RLOptimizer, BFGS):
        atoms = molecule("H2CO")
        atoms.calc = calc = Grainy()
        calc.noise, calc.across = noise, int(np.ptp(atoms.positions, axis=0).argmin())
        atoms.positions += np.random.default_rng(0).normal(0, 0.1, (4, 3)) * (np.arange(3) != calc.across)
        assert optimizer(atoms, logfile=None).run(0.01, 60)
        evaluations[optimizer] = calc.calls
        assert np.ptp(atoms.positions[:, calc.across]) < 0.03
    assert evaluations[RLOptimizer] <= evaluations[BFGS]


@pytest.mark.parametrize("options", [{}, dict(scalar_pressure=20 * GPa), dict(mask=[1, 1, 0, 0, 0, 1]),
                                     dict(constant_volume=True)])
def test_the_forces_on_the_coordinates_are_minus_the_gradient_of_the_enthalpy(options):
    """Along random directions that are allowed, at a strain and displacements that are not small."""
    atoms, rng = strained(), np.random.default_rng(0)
    atoms.set_constraint([FixAtoms([0]), FixedPlane(1, (1, 1, 0))])
    c = coordinates_of(FrechetCellFilter(atoms, **options))

    def ask(x):
        there = c.atoms.copy()
        there.set_constraint()
        there.calc = EMT()
        there.set_cell(c.place(x).cell)
        there.positions = c.place(x).positions
        return asked(there, c.place(x))

    def direction():
        moves, strain = rng.normal(size=12), rng.normal(size=(3, 3))
        return np.concatenate([c.moves @ moves, c.strains @ (strain + strain.T).ravel()]).reshape(-1, 3)

    x = c.of(atoms) + 0.1 * direction()
    for d in (direction() for _ in range(4)):
        (above, _), (below, _) = ask(x + 1e-4 * d), ask(x - 1e-4 * d)
        np.testing.assert_allclose(ask(x)[1] @ d.ravel(), -(above - below) / 2e-4, rtol=1e-4, atol=1e-4)


def test_no_step_strains_the_cell_by_more_than_a_few_per_cent():
    """Also where a policy may move atoms by more than an Å."""
    atoms, (actor, card) = bulk("Cu", cubic=True), find_policy("fcc-alloys")
    atoms.set_cell(atoms.cell.array * 1.15, scale_atoms=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = EMT()
    opt = RLOptimizer(FrechetCellFilter(atoms), (actor, card | dict(loop=dict(reach=1.2))), logfile=None)
    assert opt.run(0.01, 40) and opt.trust.settings.first > STRAINED * LEVER
    points = [e.positions for e in opt.trust.history]
    steps = [largest(b[4:] - a[4:]) for a, b in zip(points, points[1:])]
    assert max(steps) == pytest.approx(STRAINED * LEVER)


def test_the_last_resort_gets_curvatures_in_the_units_of_its_filter():
    target = FrechetCellFilter(strained())
    c, matrix = coordinates_of(target), of_filter(target, np.eye(21))
    np.testing.assert_array_equal(matrix[:12, :12], np.eye(12))
    strain = 0.01 * target.exp_cell_factor * np.diag([1.0, 0, 0])  # as the filter counts it
    target.set_positions(target.get_positions() + np.vstack([np.zeros((4, 3)), strain]))
    ours = c.of(target.atoms)[-3:]
    assert strain.ravel() @ matrix[-9:, -9:] @ strain.ravel() == pytest.approx((ours**2).sum(), rel=1e-6) and ours.any()


def test_a_plan_keeps_bond_lengths_that_must_stay():
    atoms = ethanol()
    free, old = coordinates_of(atoms), atoms.positions.copy()
    atoms.set_constraint(FixBondLengths([(0, 1), (2, 3)]))
    c, x = coordinates_of(atoms), old + np.random.default_rng(0).normal(0, 0.1, old.shape)
    length = lambda positions, i, j: np.linalg.norm(positions[i] - positions[j])
    for pair in ((0, 1), (2, 3)):
        assert abs(length(x, *pair) - length(old, *pair)) > 1e-3
        assert abs(length(c.corrected(x, old), *pair) - length(old, *pair)) < 1e-6
    assert free.corrected(x, old) is x


class OfSomebody(FixConstraint):
    """A constraint that planning does not know: the first atom stays."""
    def adjust_positions(self, atoms, new): new[0] = atoms.positions[0]
    def adjust_forces(self, atoms, forces): forces[0] = 0.0
    def get_removed_dof(self, atoms): return 3


def test_a_constraint_that_planning_does_not_know_is_handed_over():
    atoms = ethanol()
    atoms.set_constraint(OfSomebody())
    atoms.calc, start = EMT(), atoms.positions.copy()
    opt = RLOptimizer(atoms, "none", logfile=None)
    assert opt.run(0.01, 200) and opt.handed_over == "planning does not know the constraint OfSomebody"
    np.testing.assert_array_equal(atoms.positions[0], start[0])
