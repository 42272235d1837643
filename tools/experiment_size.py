"""Relax alloys of up to 10,976 atoms with EMT: force evaluations, own time a step, memory; LBFGS beside it where it is not too long."""
import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import numpy as np
from ase.build import bulk
from ase.cluster import Icosahedron
from ase.optimize import LBFGS

from atomrl_nb.checkpoints import write_text
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.structures import CountedCalculator, calculator, perturb
from atomrl_nb.experiment import provenance

FILE, FMAX, CAP = Path(__file__).resolve().parents[1] / "nbs" / "benchmark" / "size.json", 0.05, 60
CASES = [(kind, n) for n in (3, 5, 8, 14) for kind in ("CuAu", "CuAuPd", "Cu with vacancies")] + [("cluster in vacuum", 3)]


class Timed(CountedCalculator):
    """Count the evaluations, and time them."""
    seconds = 0.0

    def calculate(self, *args, **kwargs):
        """Ask, and take the time."""
        began = time.process_time()
        super().calculate(*args, **kwargs)
        self.seconds += time.process_time() - began


def start(kind, n, seed):
    """Make a start: expanded by 6 % where it is an alloy, displaced by up to 0.2 Å."""
    rng, atoms = np.random.default_rng([23, seed, n]), bulk("Cu", cubic=True).repeat(n)
    if kind == "cluster in vacuum":
        atoms = Icosahedron("Cu", n)
        atoms.center(vacuum=6)
        atoms.pbc = False
    elif kind == "Cu with vacancies":
        del atoms[rng.choice(len(atoms), len(atoms) // 50, replace=False)]
    else:
        atoms.symbols = rng.choice(["Cu", "Au", "Pd"], len(atoms), p=[0.4, 0.3, 0.3]) if kind == "CuAuPd" else rng.choice(["Cu", "Au"], len(atoms))
        atoms.set_cell(atoms.cell.array * 1.06, scale_atoms=True)
    return perturb(atoms, 0.2, seed=seed + 1)


def measure(kind, n, seed, method):
    """Relax one start: a row."""
    import torch
    torch.set_num_threads(1)
    atoms = start(kind, n, seed)
    atoms.calc = Timed(calculator("emt"))
    began = time.process_time()
    opt = LBFGS(atoms, logfile=None) if method == "LBFGS" else RLOptimizer(atoms, "none" if method == "nothing known" else "fcc-alloys", logfile=None)
    converged = opt.run(FMAX, CAP)
    own, steps = time.process_time() - began - atoms.calc.seconds, max(1, atoms.calc.evaluations - 1)
    return dict(kind=kind, atoms=len(atoms), seed=seed, method=method, evaluations=atoms.calc.evaluations, converged=bool(converged), ms_a_step=round(1e3 * own / steps, 1),
                gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2))


def main():
    """Measure each case in a process of its own, print, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest case, nothing saved")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, n, seed, method = args.one
        print(json.dumps(measure(kind, int(n), int(seed), method)))
        return
    rows = []
    for kind, n in [("CuAu", 2)] if args.quick else CASES:
        for method in ("policy", "nothing known", "LBFGS"):
            for seed in range(1 if args.quick or n >= 8 else 3):
                if method == "LBFGS" and n == 14:
                    continue
                done = subprocess.run([sys.executable, __file__, "--one", kind, str(n), str(seed), method], capture_output=True, text=True, check=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(rows[-1], flush=True)
    if not args.quick:
        write_text(FILE, json.dumps(dict(fmax=FMAX, cap=CAP, provenance=provenance("python tools/experiment_size.py"), rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
