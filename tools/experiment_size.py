"""Relax alloys of up to 10,976 atoms with EMT: force evaluations, own time a step, memory; LBFGS beside it."""
import resource
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from ase.cluster import Icosahedron
from ase.optimize import LBFGS

from atomrl_nb.experiment import Experiment, TimedCalculator
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.structures import calculator, perturb

FMAX, CAP = 0.05, 60
CRYSTALS = {4 * n**3: n for n in (2, 3, 5, 8, 14)}  # sites -> repeats of the cubic cell
KINDS = ("CuAu", "CuAuPd", "Cu with vacancies")
LARGE = 1000  # atoms from which one seed is enough


def sites_of(kind: str, atoms: int) -> int:
    """Count the sites of a crystal; one in fifty is empty where there are vacancies."""
    return next(sites for sites in CRYSTALS if atoms == (sites - sites // 50 if kind == "Cu with vacancies" else sites))


def cases(seeds: int, quick: bool) -> list:
    """List structures, methods and seeds; LBFGS is left out where it takes too long."""
    found = [(kind, n - n // 50 if kind == "Cu with vacancies" else n) for n in list(CRYSTALS)[1:] for kind in KINDS]
    found = [("CuAu", 32)] if quick else [*found, ("cluster in vacuum", 55)]
    return [dict(kind=kind, atoms=atoms, seed=seed, method=method) for kind, atoms in found
            for method in ("policy", "nothing known", "LBFGS") if method != "LBFGS" or atoms < 10_000
            for seed in range(1 if quick or atoms > LARGE else seeds)]


def start(kind: str, atoms: int, seed: int):
    """Make a start: expanded by 6 % where it is an alloy, displaced by up to 0.2 Å."""
    if kind == "cluster in vacuum":
        made = Icosahedron("Cu", 3)
        made.center(vacuum=6)
        made.pbc = False
        return perturb(made, 0.2, seed=seed + 1)
    n = CRYSTALS[sites_of(kind, atoms)]
    rng, made = np.random.default_rng([23, seed, n]), bulk("Cu", cubic=True).repeat(n)
    if kind == "Cu with vacancies":
        del made[rng.choice(len(made), len(made) // 50, replace=False)]
        return perturb(made, 0.2, seed=seed + 1)
    elements = dict(a=["Cu", "Au", "Pd"], p=[0.4, 0.3, 0.3]) if kind == "CuAuPd" else dict(a=["Cu", "Au"])
    made.symbols = rng.choice(size=len(made), **elements)
    made.set_cell(made.cell.array * 1.06, scale_atoms=True)
    return perturb(made, 0.2, seed=seed + 1)


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Relax one start, in a process of its own, whose largest memory is that of the relaxation."""
    torch.set_num_threads(1)
    atoms = start(case["kind"], case["atoms"], case["seed"])
    atoms.calc = TimedCalculator(calculator("emt"))
    began = time.process_time()
    policy = {"policy": "fcc-alloys", "nothing known": "none"}.get(case["method"])
    opt = RLOptimizer(atoms, policy, logfile=None) if policy else LBFGS(atoms, logfile=None)
    converged = opt.run(FMAX, CAP)
    own, steps = time.process_time() - began - atoms.calc.seconds, max(1, atoms.calc.evaluations - 1)
    return dict(evaluations=atoms.calc.evaluations, converged=bool(converged), ms_a_step=round(1e3 * own / steps, 1),
                gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2))


EXPERIMENT = Experiment("size", "What does a relaxation take as the cell grows?", cases, measure,
                        dict(fmax=FMAX, cap=CAP), ("fcc-alloys",), seeds=3, apart=True)
