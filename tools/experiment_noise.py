"""Relax with noisy forces, and judge by the true force of what is left.

The classical optimizers may take as many evaluations as RLOptimizer has taken. A line search takes as many steps, so it
has more.
"""
import itertools
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from ase.build import add_adsorbate, bulk, fcc100, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.optimize import BFGS, FIRE, LBFGS, BFGSLineSearch

from atomrl_nb.experiment import Experiment
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.structures import calculator
from atomrl_nb.walk import largest

MOLECULES = ("CH3CH2OH", "CH3CONH2", "C6H6", "C3H7Cl", "CH3COCl", "isobutene", "CH3CHO", "H2CCHF")
RIVALS = {"BFGS": BFGS, "BFGS tuned": partial(BFGS, alpha=20.0, maxstep=0.2), "LBFGS": LBFGS, "FIRE": FIRE,
          "BFGSLineSearch": BFGSLineSearch}
WRONG = (("gaussian", 0.005), ("gaussian", 0.02), ("other functional", 0.0), ("single precision", 0.0), ("jump", 0.0))


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
            distances = np.linalg.norm(self.atoms.positions[:, None] - self.atoms.positions, axis=2)
            energy -= 0.05 * distances.sum() / len(self.atoms)
        if self.kind == "single precision":
            energy, forces = float(np.float32(energy)), forces.astype(np.float32)
        if self.kind == "jump":  # as of a neighbour that enters a cutoff
            distance = np.linalg.norm(self.atoms.positions[0] - self.atoms.positions[1])
            energy += 0.02 * float(np.floor(20 * distance) % 2)
        self.results = dict(energy=energy, forces=forces)


@lru_cache(maxsize=1)
def starts():
    """Make the starts: family -> list of (atoms, spec)."""
    found = {"molecules": [], "alloys": [], "slab": []}
    for k, name in enumerate(MOLECULES):
        atoms = molecule(name)
        atoms.positions += np.random.default_rng([20, k]).normal(0, 0.12, atoms.positions.shape)
        found["molecules"].append((atoms, "gfn2"))
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


def cases(seeds: int, quick: bool) -> list:
    """List families, what is wrong, targets, policies and starts; molecules have no policy."""
    families, wrong = (("alloys",), WRONG[1:2]) if quick else (starts(), WRONG)
    every = itertools.product(families, wrong, (0.05, 0.01), ("none", "auto"), range(1 if quick else min(seeds, 8)))
    return [dict(family=family, kind=kind, width=width, fmax=fmax, policy=policy, start=start)
            for family, (kind, width), fmax, policy, start in every if family != "molecules" or policy == "none"]


def true_force(atoms, spec):
    """Take the largest force that is really there."""
    atoms = atoms.copy()
    atoms.calc = calculator(spec)
    return largest(atoms.get_forces())


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Relax one start, and let the rivals spend as much."""
    start, spec = starts()[case["family"]][case["start"]]

    def noisy():
        """Copy the start, with a calculator that is wrong in the same way."""
        atoms = start.copy()
        atoms.calc = Wrong(calculator(spec), case["kind"], case["width"], case["start"])
        return atoms

    atoms = noisy()
    opt = RLOptimizer(atoms, case["policy"], logfile=None)
    converged, count, rivals = opt.run(case["fmax"], 150), atoms.calc.count, {}
    for name, make in RIVALS.items():
        other = noisy()
        try:
            make(other, logfile=None).run(case["fmax"], max(1, count - 1))
        except Exception:  # whatever a rival raises
            pass
        rivals[name] = round(true_force(other, spec), 4)
    return dict(evaluations=count, converged=bool(converged), stopped=bool(opt.stopped), handed_over=opt.handed_over,
                left=round(true_force(atoms, spec), 4), rivals=rivals)


def table(rows: list) -> str:
    """Write medians over starts."""
    names, lines = ("family", "kind", "width", "fmax", "policy"), []
    for key in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        mine = [row for row in rows if tuple(row[name] for name in names) == key]
        medians = {name: np.median([row["rivals"][name] for row in mine]) for name in RIVALS}
        best, counts = min(medians, key=medians.get), [row["evaluations"] for row in mine]
        family, kind, width, fmax, policy = key
        lines.append(f"{family:9} {kind:16} {width:5} to {fmax:4} {policy:5} evaluations {np.median(counts):5.1f}, "
                     f"most {max(counts):3}; left {np.median([row['left'] for row in mine]):.3f}; "
                     f"{best} {medians[best]:.3f}")
    return "\n".join(lines)


EXPERIMENT = Experiment("noise", "What is left of the true force where the forces are noisy?", cases, measure,
                        policies=("fcc-alloys",), conclude=table)
