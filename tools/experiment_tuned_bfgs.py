"""Choose alpha and maxstep of BFGS for molecules (g2's even places, GFN2-xTB) and crystals (7net-0).

No result is quoted on these structures.
"""
import itertools
from functools import lru_cache
from pathlib import Path

import numpy as np
from ase.build import bulk, molecule
from ase.optimize import BFGS
from ase.spacegroup import crystal

from atomrl_nb.experiment import Experiment
from atomrl_nb.referee import measured, of_ase
from atomrl_nb.starts import g2_names
from atomrl_nb.structures import calculator

ALPHA, MAXSTEP = (10.0, 20.0, 30.0, 40.0, 55.0, 70.0, 100.0), (0.1, 0.2, 0.3, 0.5)
TRUTH = {"molecules": "gfn2", "crystals": "sevennet", "quick": "emt"}
GRID = {"molecules": MAXSTEP, "crystals": (0.2, 0.3)}
RUTILE = dict(spacegroup=136, cellpar=[4.74, 4.74, 3.19, 90, 90, 90])
CRYSTALS = {
    "SnO2": lambda: crystal(["Sn", "O"], [(0, 0, 0), (0.306, 0.306, 0)], **RUTILE),
    "GaP": lambda: bulk("GaP", "zincblende", a=5.45, cubic=True),
    "ZnO": lambda: bulk("ZnO", "wurtzite", a=3.25, c=5.2),
    "NiAl": lambda: bulk("NiAl", "cesiumchloride", a=2.88, cubic=True).repeat((2, 1, 1)),
}


def cases(seeds: int, quick: bool) -> list:
    """List the points of the grid."""
    if quick:
        return [dict(kind="quick", alpha=alpha, maxstep=0.2) for alpha in (10.0, 70.0)]
    return [dict(kind=kind, alpha=alpha, maxstep=maxstep)
            for kind in GRID for alpha, maxstep in itertools.product(ALPHA, GRID[kind])]


@lru_cache(maxsize=1)
def starts() -> dict:
    """Displace what is tuned on: kind -> structures."""
    molecules = [molecule(name) for name in g2_names()[::2] if len(molecule(name)) >= 7]
    crystals = [make() for make in CRYSTALS.values()]
    for k, atoms in enumerate([*molecules, *crystals]):
        atoms.positions += np.random.default_rng([17, k]).normal(0, 0.1, atoms.positions.shape)
        atoms.info = dict(source=str(k))
    return {"molecules": molecules, "crystals": crystals, "quick": crystals[-1:]}


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Take the geometric mean of the evaluations at one point."""
    truth, run = calculator(TRUTH[case["kind"]]), of_ase(BFGS, alpha=case["alpha"], maxstep=case["maxstep"])
    counts = [measured(atoms, "BFGS", run, truth, cap=150).evaluations for atoms in starts()[case["kind"]]]
    return dict(mean=float(np.exp(np.log(counts).mean())))


EXPERIMENT = Experiment("tuned_bfgs", "Which alpha and maxstep suit BFGS?", cases, measure, seeds=1)
