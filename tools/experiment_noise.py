"""Relax with noisy forces, and judge by the true force of what is left: RLOptimizer against classical optimizers that may take as many evaluations.

A line search takes as many steps, so it has more.
"""
import argparse
import json
import os
from functools import partial
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import numpy as np
from ase.build import add_adsorbate, bulk, fcc100, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.optimize import BFGS, FIRE, LBFGS, BFGSLineSearch

from atomrl_nb.checkpoints import write_text
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.structures import calculator
from atomrl_nb.experiment import provenance
from atomrl_nb.walk import largest

FILE = Path(__file__).resolve().parents[1] / "nbs" / "benchmark" / "noise.json"
MOLECULES = ("CH3CH2OH", "CH3CONH2", "C6H6", "C3H7Cl", "CH3COCl", "isobutene", "CH3CHO", "H2CCHF")
RIVALS = {"BFGS": BFGS, "BFGS tuned": partial(BFGS, alpha=20.0, maxstep=0.2), "LBFGS": LBFGS, "FIRE": FIRE, "BFGSLineSearch": BFGSLineSearch}
KINDS = ("gaussian", "other functional", "single precision", "jump")


class Wrong(Calculator):
    """A calculator with one thing wrong; the energies are clean, unless they are what is wrong."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, inner, kind, width, seed):
        super().__init__()
        self.inner, self.kind, self.width, self.rng, self.count = inner, kind, width, np.random.default_rng(seed), 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Ask the true one, and spoil the answer."""
        super().calculate(atoms, properties, system_changes)
        self.count += 1
        bare = self.atoms.copy()
        bare.set_constraint()
        bare.calc = self.inner
        energy, forces = float(bare.get_potential_energy()), np.array(bare.get_forces())
        if self.kind == "gaussian":
            forces = forces + self.rng.normal(0, self.width, forces.shape)
        if self.kind == "other functional":  # its energies favour longer distances
            energy -= 0.05 * np.linalg.norm(self.atoms.positions[:, None] - self.atoms.positions, axis=2).sum() / len(self.atoms)
        if self.kind == "single precision":
            energy, forces = float(np.float32(energy)), forces.astype(np.float32)
        if self.kind == "jump":  # as of a neighbour that enters a cutoff
            energy += 0.02 * float(np.floor(20 * np.linalg.norm(self.atoms.positions[0] - self.atoms.positions[1])) % 2)
        self.results = dict(energy=energy, forces=forces)


def starts(count):
    """Make the starts: family -> list of (atoms, spec)."""
    found = {"molecules": [], "alloys": [], "slab": []}
    for k, name in enumerate(MOLECULES[:count]):
        atoms = molecule(name)
        atoms.positions += np.random.default_rng([20, k]).normal(0, 0.12, atoms.positions.shape)
        found["molecules"].append((atoms, "gfn2"))
    for k in range(count):
        rng, atoms = np.random.default_rng([21, k]), bulk("Cu", cubic=True, a=3.85).repeat((2, 1, 1))
        atoms.symbols = rng.choice(["Cu", "Au"], 8)
        atoms.positions += rng.normal(0, 0.15, atoms.positions.shape)
        found["alloys"].append((atoms, "emt"))
        slab = fcc100("Cu", (2, 2, 3), vacuum=6)
        add_adsorbate(slab, "O", 1.2, "hollow")
        slab.set_constraint(FixAtoms(mask=slab.get_tags() == 3))
        slab.rattle(0.1, seed=k)
        found["slab"].append((slab, "emt"))
    return found


def true_force(atoms, spec):
    """Take the largest force that is really there."""
    atoms = atoms.copy()
    atoms.calc = calculator(spec)
    return largest(atoms.get_forces())


def main():
    """Measure all families, kinds and widths, print, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one alloy, nothing saved")
    quick = parser.parse_args().quick
    rows = []
    cases = [("gaussian", 0.02)] if quick else [("gaussian", 0.005), ("gaussian", 0.02), *((kind, 0.0) for kind in KINDS[1:])]
    for family, members in starts(1 if quick else 8).items():
        if quick and family != "alloys":
            continue
        for (kind, width), fmax, policy in ((c, f, p) for c in cases for f in (0.05, 0.01) for p in ("none", "auto")):
            if policy == "auto" and family == "molecules":
                continue
            for k, (start, spec) in enumerate(members):
                atoms = start.copy()
                atoms.calc = Wrong(calculator(spec), kind, width, k)
                opt = RLOptimizer(atoms, policy, logfile=None)
                converged, count = opt.run(fmax, 150), atoms.calc.count
                left = {}
                for name, make in RIVALS.items():
                    other = start.copy()
                    other.calc = Wrong(calculator(spec), kind, width, k)
                    try:
                        make(other, logfile=None).run(fmax, max(1, count - 1))
                    except Exception:  # whatever a rival raises
                        pass
                    left[name] = round(true_force(other, spec), 4)
                rows.append(dict(family=family, kind=kind, width=width, fmax=fmax, policy=policy, start=k, evaluations=count, converged=bool(converged), stopped=bool(opt.stopped),
                                 handed_over=opt.handed_over, left=round(true_force(atoms, spec), 4), rivals=left))
            mine = rows[-len(members):]
            best = min(RIVALS, key=lambda name: np.median([row["rivals"][name] for row in mine]))
            print(f"{family:9} {kind:16} {width:5} to {fmax:4} {policy:5} evaluations {np.median([r['evaluations'] for r in mine]):5.1f}, most {max(r['evaluations'] for r in mine):3}; "
                  f"left {np.median([r['left'] for r in mine]):.3f}; {best} {np.median([r['rivals'][best] for r in mine]):.3f}", flush=True)
    if not quick:
        write_text(FILE, json.dumps(dict(provenance=provenance("python tools/experiment_noise.py"), rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
