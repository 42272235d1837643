"""Relax molecules with PySCF and crystals and a slab with GPAW, and keep every call: true ones and the surrogate's.

The page and the tests read the file alone and need no engine. The quick form has EMT in place of both.
"""
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from ase.build import add_adsorbate, bulk, fcc100, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.spacegroup import crystal
from dft import PipedGPAW, PySCF

from atomrl_nb.experiment import Experiment
from atomrl_nb.referee import RIVALS, measured, planning, relax_first
from atomrl_nb.structures import calculator

ABOUT = "PBE: molecules with PySCF in def2-SVP, crystals and a slab with GPAW in plane waves of 300 eV"
MOLECULES = ("CH3CHO", "C2H2", "HCOOH", "CH3OH", "H2CCHF", "H3CNH2", "C3H4_C3v", "CH2SCH2")  # none chose the springs
DRAWN = ("CH3CHO", "O on Al(100)")  # the two that the page draws first
RUTILE = dict(spacegroup=136, cellpar=[4.59, 4.59, 2.96, 90, 90, 90])
METHODS = {  # name -> (surrogate -> run)
    "RLOptimizer with surrogate": planning,
    "RLOptimizer": lambda surrogate: planning(policy="none"),
    "relax first, Hessian": partial(relax_first, curvature=True),
    "relax first": partial(relax_first, curvature=False),
    "BFGS": lambda surrogate: RIVALS["BFGS"],
}


class Recorded(Calculator):
    """Keep every call of a calculator."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, []

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Ask, and note the answer."""
        super().calculate(atoms, properties, system_changes)
        bare = self.atoms.copy()
        bare.set_constraint()
        bare.calc = self.inner
        energy, forces = float(bare.get_potential_energy()), np.array(bare.get_forces())
        self.results = dict(energy=energy, forces=forces)
        self.calls.append(dict(positions=self.atoms.positions.tolist(), energy=energy, forces=forces.tolist()))


@lru_cache(maxsize=1)
def starts() -> dict:
    """Make the starts: name -> (atoms, function that makes the truth, surrogate spec, target, cap)."""
    found = {}
    for name in MOLECULES:
        atoms = molecule(name)
        atoms.positions += np.random.default_rng([15, *name.encode()]).normal(0, 0.1, atoms.positions.shape)
        found[name] = atoms, PySCF, "gfn2", 0.01, 40
    solids = {"Si2": (bulk("Si"), (3, 3, 3)), "MgO": (bulk("MgO", "rocksalt", a=4.21, cubic=True), (2, 2, 2)),
              "TiO2": (crystal(["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], **RUTILE), (2, 2, 3)),
              "O on Al(100)": (slab(), (2, 2, 1))}
    for name, (atoms, kpts) in solids.items():
        atoms.info, loose = {}, np.ones(len(atoms), bool)
        for constraint in atoms.constraints:
            loose[constraint.index] = False
        atoms.positions[loose] += np.random.default_rng([16, *name.encode()]).normal(0, 0.1, (loose.sum(), 3))
        found[name] = atoms, partial(PipedGPAW, kpts=kpts), "sevennet", 0.02, 25
    for name, (atoms, *_) in found.items():
        atoms.info["source"] = name
    return dict(sorted(found.items(), key=lambda item: item[0] not in DRAWN))


def slab():
    """Build oxygen on two layers of aluminium, the lower one fixed."""
    atoms = fcc100("Al", (2, 2, 2), a=4.05, vacuum=5.0)
    add_adsorbate(atoms, "O", 1.0, "hollow")
    atoms.pbc = True
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
    return atoms


def cases(seeds: int, quick: bool) -> list:
    """List methods and starts; seeds are in the starts."""
    return [dict(start=name, method=method) for method in METHODS for name in (DRAWN[1:] if quick else starts())]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Relax one start, and keep the calls."""
    start, truth, spec, fmax, cap = starts()[case["start"]]
    if quick:
        truth, spec, cap = partial(calculator, "emt"), "emt", 60
    cheap, true = Recorded(calculator(spec)), Recorded(truth())
    row = asdict(measured(start, case["method"], METHODS[case["method"]](cheap), true, fmax, cap))
    ours = case["method"].startswith("RLOptimizer")
    fixed = [int(k) for constraint in start.constraints for k in constraint.index]
    return row | dict(fmax=fmax, surrogate=spec, numbers=start.numbers, cell=start.cell.array, pbc=start.pbc,
                      fixed=fixed, start_positions=start.positions, calls=true.calls if ours else [],
                      trace=[largest_of(start, call) for call in true.calls],
                      surrogate_answers=cheap.calls if case["method"] == "RLOptimizer with surrogate" else [])


def largest_of(start, call: dict) -> float:
    """Take the largest force on a free atom."""
    forces = np.array(call["forces"])
    for constraint in start.constraints:
        forces[constraint.index] = 0.0
    return float(np.linalg.norm(forces, axis=1).max())


def tell(row: dict) -> str:
    """Say what a relaxation took."""
    return f"{row['start']:16} {row['method']:28} {row['evaluations']:4} {row['lost']}"


EXPERIMENT = Experiment("dft", "How many calls of DFT does a relaxation take?", cases, measure, dict(about=ABOUT),
                        seeds=1, tell=tell)
