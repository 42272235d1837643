"""Reports: what is physically absurd is said, and what happened on the way."""
from io import StringIO

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from atomrl_nb.comparing import summary
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.planner import STIFF
from atomrl_nb.report import Report, close_pairs, warnings_of


def pair(distance):
    """Two copper atoms; their covalent radii add up to 2.64 Å."""
    return Atoms("Cu2", [[0, 0, 0], [distance, 0, 0]])


@pytest.mark.parametrize("distance, said", [(0.9, "are fused: 0.90"), (1.4, "are too close: 1.40"), (2.2, ""),
                                            (4.4, ""), (4.6, "came apart: 2 fragments")])
def test_pairs_that_are_fused_too_close_or_apart_are_named(distance, said):
    warnings = warnings_of(pair(2.2), pair(distance))
    assert len(warnings) == bool(said) and said in "".join(warnings)


def test_an_atom_and_its_own_image_are_too_close():
    squeezed = Atoms("Cu", cell=[1.0, 6, 6], pbc=True)
    assert close_pairs(squeezed)[0][:2] == (0, 0) and "are fused" in warnings_of(squeezed, squeezed)[0]


def test_a_rise_of_the_energy_and_a_stress_that_is_left_are_named():
    crystal = bulk("Cu")
    assert warnings_of(crystal, crystal, 0.009, 4.9) == []
    assert warnings_of(crystal, crystal, 0.02) == ["the energy rose by 0.02 eV"]
    for stress in (6.0, -6.0):
        said, = warnings_of(crystal, crystal, stress=stress)
        assert said == f"the stress is {stress:.3g} GPa, and the cell was not relaxed"
    assert warnings_of(crystal, crystal, stress=6.0, cell_relaxed=True) == []


def test_an_end_that_is_fused_is_not_converged():
    atoms = pair(2.2)
    atoms.calc = EMT()
    opt = RLOptimizer(atoms, policy="none", logfile=None)
    opt.fmax = np.inf
    atoms.positions[1, 0] = 0.9
    assert not opt.end(True) and opt.wrong_end == "atoms 0 and 1 are fused, at 0.90 Å"
    report = opt.report()
    assert not report.converged and report.absurd and "NOT CONVERGED: atoms 0 and 1 are fused" in str(report)


def test_what_is_fused_is_no_lowest_energy():
    found = dict(force_evaluations=5, converged=True, fmax=0.0, seconds=0.0)
    good = Report("Cu2", "ours", energy=0.0, **found)
    fused = Report("Cu2", "theirs", energy=-9.0, warnings=["atoms 0 and 1 are fused"], **found)
    lines = summary([good, fused]).splitlines()
    assert lines[1].endswith("1/1") and lines[2].endswith("0/1, 1 lower, but fused or apart")


def climb(planner, fmax):
    """Propose a short move uphill."""
    here = planner.trust.history[planner.trust.anchor]
    return here.positions - 0.004 * len(planner.trust.history) * here.forces / here.fmax


def test_a_hand_over_is_named_in_log_and_report(monkeypatch):
    monkeypatch.setattr("atomrl_nb.optimizer.propose", climb)
    atoms, log = bulk("Cu", cubic=True), StringIO()
    atoms.rattle(0.1, seed=0)
    atoms.calc = EMT()
    opt = RLOptimizer(atoms, policy="none", logfile=log)
    assert opt.run(0.01, 60)
    reason = "5 moves in a row were refused"
    assert f"handing over to a classical optimizer, because {reason}" in log.getvalue()
    report = opt.report()
    assert report.handed_over == reason and report.refused == 5
    assert f"handed over to a classical optimizer, because {reason}" in str(report)
    assert report.converged and report.force_evaluations == len(opt.trust.history)


def test_the_lowest_curvature_is_of_atoms_not_of_moves_of_the_whole():
    """EMT's own is 7.4 eV/Å² (from differences of its forces); 50 eV/Å² would be that of a shift of all atoms."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = EMT()
    opt = RLOptimizer(atoms, policy="none", logfile=None)
    assert opt.run(0.01, 60)
    assert 4 < opt.report().lowest_curvature < 20 < STIFF
    shift = opt.curvature().direction.sum(0)
    assert np.abs(shift).max() < 0.1
