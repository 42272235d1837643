"""Choose alpha and maxstep of BFGS for molecules (g2's even places, GFN2-xTB) and crystals (7net-0) that no result is quoted on."""
import json
import os
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import numpy as np
from ase.build import bulk, molecule
from ase.optimize import BFGS
from ase.spacegroup import crystal

from atomrl_nb.checkpoints import write_text
from atomrl_nb.structures import calculator
from atomrl_nb.experiment import provenance
from atomrl_nb.referee import measured
from atomrl_nb.starts import g2_names

FILE = Path(__file__).resolve().parents[1] / "nbs" / "benchmark" / "tuned_bfgs.json"
ALPHA, MAXSTEP = (10.0, 20.0, 30.0, 40.0, 55.0, 70.0, 100.0), (0.1, 0.2, 0.3, 0.5)
CRYSTALS = {"SnO2": lambda: crystal(["Sn", "O"], [(0, 0, 0), (0.306, 0.306, 0)], spacegroup=136, cellpar=[4.74, 4.74, 3.19, 90, 90, 90]),
            "GaP": lambda: bulk("GaP", "zincblende", a=5.45, cubic=True), "ZnO": lambda: bulk("ZnO", "wurtzite", a=3.25, c=5.2),
            "NiAl": lambda: bulk("NiAl", "cesiumchloride", a=2.88, cubic=True).repeat((2, 1, 1))}


def starts():
    """Displace what is tuned on: kind -> (spec, structures)."""
    molecules = [molecule(name) for name in g2_names()[::2] if len(molecule(name)) >= 7]
    crystals = [make() for make in CRYSTALS.values()]
    for k, atoms in enumerate([*molecules, *crystals]):
        atoms.positions += np.random.default_rng([17, k]).normal(0, 0.1, atoms.positions.shape)
        atoms.info = dict(source=str(k))
    return {"molecules": ("gfn2", molecules), "crystals": ("sevennet", crystals)}


def main():
    """Try the grid, and save the geometric mean of the evaluations at each point."""
    result = dict(provenance=provenance("python tools/tune_bfgs.py"), rows=[])
    for kind, (spec, structures) in starts().items():
        truth = calculator(spec)
        for alpha in ALPHA:
            for maxstep in MAXSTEP if kind == "molecules" else (0.2, 0.3):
                def run(atoms, fmax, made):
                    """Run BFGS until the calculator ends it."""
                    BFGS(atoms, logfile=None, alpha=alpha, maxstep=maxstep).run(fmax=0.0, steps=10_000)
                counts = [measured(atoms, "BFGS", run, truth, cap=150).evaluations for atoms in structures]
                result["rows"].append(dict(kind=kind, alpha=alpha, maxstep=maxstep, mean=float(np.exp(np.log(counts).mean()))))
                print(kind, alpha, maxstep, round(result["rows"][-1]["mean"], 2), flush=True)
    write_text(FILE, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
