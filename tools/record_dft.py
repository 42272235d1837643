"""Relax molecules with PySCF and crystals and a slab with GPAW, and keep every call: true ones and the surrogate's.

    record_dft.py [--record NAME ...]

Without names, what is missing is recorded. The page and the tests read the file alone and need no engine.
"""
import argparse
import itertools
import json
import os
from dataclasses import asdict
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import numpy as np
from ase.build import add_adsorbate, bulk, fcc100, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.spacegroup import crystal

from atomrl_nb.checkpoints import write_text
from atomrl_nb.structures import calculator
from atomrl_nb.experiment import provenance, rows_as_json
from atomrl_nb.referee import RIVALS, measured, planning, relax_first
from dft import PipedGPAW, PySCF

FILE = Path(__file__).resolve().parents[1] / "nbs" / "benchmark" / "dft.json"
MOLECULES = ("CH3CHO", "C2H2", "HCOOH", "CH3OH", "H2CCHF", "H3CNH2", "C3H4_C3v", "CH2SCH2")  # none chose the spring constants
CAPS = {"molecules": 40, "solids": 25}


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
        self.results = dict(energy=float(bare.get_potential_energy()), forces=np.array(bare.get_forces()))
        self.calls.append(dict(positions=self.atoms.positions.tolist(), energy=self.results["energy"], forces=self.results["forces"].tolist()))


def starts():
    """Make the starts: name -> (atoms, truth, surrogate spec, target, cap)."""
    found = {}
    for name in MOLECULES:
        atoms = molecule(name)
        atoms.positions += np.random.default_rng([15, *name.encode()]).normal(0, 0.1, atoms.positions.shape)
        found[name] = atoms, PySCF, "gfn2", 0.01, CAPS["molecules"]
    solids = {"Si2": (bulk("Si"), (3, 3, 3)), "MgO": (bulk("MgO", "rocksalt", a=4.21, cubic=True), (2, 2, 2)),
              "TiO2": (crystal(["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.59, 4.59, 2.96, 90, 90, 90]), (2, 2, 3)),
              "O on Al(100)": (_slab(), (2, 2, 1))}
    for name, (atoms, kpts) in solids.items():
        atoms.info = {}
        loose = np.ones(len(atoms), bool)
        for constraint in atoms.constraints:
            loose[constraint.index] = False
        atoms.positions[loose] += np.random.default_rng([16, *name.encode()]).normal(0, 0.1, (loose.sum(), 3))
        found[name] = atoms, lambda kpts=kpts: PipedGPAW(kpts=kpts), "sevennet", 0.02, CAPS["solids"]
    return dict(sorted(found.items(), key=lambda item: item[0] not in ("CH3CHO", "O on Al(100)")))  # the two that the page draws first


def _slab():
    """Build oxygen on two layers of aluminium, the lower one fixed."""
    atoms = fcc100("Al", (2, 2, 2), a=4.05, vacuum=5.0)
    add_adsorbate(atoms, "O", 1.0, "hollow")
    atoms.pbc = True
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
    return atoms


def methods(surrogate):
    """List the methods: name -> run."""
    return {"RLOptimizer with surrogate": planning(surrogate), "RLOptimizer": planning(policy="none"), "relax first, Hessian": relax_first(surrogate, True),
            "relax first": relax_first(surrogate, False), "BFGS": RIVALS["BFGS"]}


def main():
    """Record what is missing, and what was asked for anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", nargs="*", default=[], help="starts to record anew")
    again = parser.parse_args().record
    result = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else dict(rows=[])
    result["rows"] = [row for row in result["rows"] if row["start"] not in again]
    result |= dict(about="PBE: molecules with PySCF in def2-SVP, crystals and a slab with GPAW in plane waves of 300 eV", provenance=provenance("python tools/record_dft.py"))
    known = {(row["start"], row["method"]) for row in result["rows"]}
    for method, (name, (start, truth, spec, fmax, cap)) in itertools.product(methods(None), starts().items()):
        if (name, method) in known:
            continue
        start.info["source"] = name
        cheap, true = Recorded(calculator(spec)), Recorded(truth())
        row = asdict(measured(start, method, methods(cheap)[method], true, fmax, cap))
        ours = method.startswith("RLOptimizer")
        row |= dict(fmax=fmax, surrogate=spec, numbers=start.numbers.tolist(), cell=np.asarray(start.cell).tolist(), pbc=start.pbc.tolist(),
                    fixed=[int(k) for c in start.constraints for k in c.index], start_positions=start.positions.tolist(), trace=[largest_of(start, c) for c in true.calls],
                    calls=true.calls if ours else [], surrogate_answers=cheap.calls if method == "RLOptimizer with surrogate" else [])
        result["rows"].append(row)
        print(f"{name:16} {method:28} {row['evaluations']:4} {row['lost']}", flush=True)
        write_text(FILE, rows_as_json(result))


def largest_of(start, call):
    """Take the largest force on a free atom."""
    forces = np.array(call["forces"])
    for constraint in start.constraints:
        forces[constraint.index] = 0.0
    return float(np.linalg.norm(forces, axis=1).max())


if __name__ == "__main__":
    main()
