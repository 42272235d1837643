"""What does a step of the policy cost? CPU time beside the calculator's, alone and in batches, and the time to import the package."""
import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk, molecule

from atomrl_nb.measuring import BudgetedCalculator
from atomrl_nb.test_sets import starts_of
from atomrl_nb.checkpoints import write_text
from atomrl_nb.learned import find_policy
from atomrl_nb.optimizer import RelaxMany, RLOptimizer
from atomrl_nb.structures import calculator

FILE = Path(__file__).resolve().parent.parent / "nbs" / "benchmark" / "overhead.json"
SETS = {"alloys8": 40, "cuau32": 8, "cuau108": 4}  # test set -> starts
PLANNED = (None, (2, 2, 2), (3, 3, 3), (5, 5, 5), (8, 8, 8))  # benzene, and crystals of copper
IMPORT = """
import time
import numpy, torch, e3nn.o3, ase.optimize, ase.io, safetensors.torch, vesin
began = time.perf_counter()
import atomrl_nb.optimizer
print(time.perf_counter() - began)
"""


def milliseconds(name: str, count: int, batched: bool) -> float:
    """Relax starts one by one or together: CPU time a structure and step, without the calculator's [ms]."""
    policy, structures = find_policy("fcc-alloys"), starts_of(name, count=count)
    for atoms in structures:
        atoms.calc = BudgetedCalculator(calculator("emt"))
    began = time.process_time()
    if batched:
        RelaxMany(structures, policy).run(0.01)
    else:
        for atoms in structures:
            RLOptimizer(atoms, policy, logfile=None).run(0.01)
    spent = time.process_time() - began - sum(atoms.calc.seconds for atoms in structures)
    return 1000 * spent / sum(atoms.calc.evaluations - 1 for atoms in structures)


def planned(repeat: tuple | None) -> tuple[int, float]:
    """Relax benzene or a crystal of copper with nothing known: atoms, CPU time a step without the calculator's [ms]."""
    atoms = bulk("Cu", cubic=True).repeat(repeat) if repeat else molecule("C6H6")
    atoms.positions += np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    atoms.calc = BudgetedCalculator(calculator("emt"))
    began = time.process_time()
    RLOptimizer(atoms, policy="none", logfile=None).run(0.01, 12)
    return len(atoms), 1000 * (time.process_time() - began - atoms.calc.seconds) / (atoms.calc.evaluations - 1)


def main():
    """Measure in turns, print medians, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one turn of the smallest set, nothing saved")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    turns, sets = (1, {"alloys8": 2}) if quick else (3, SETS)
    milliseconds("alloys8", 2, True)  # the first call is slow
    rows = [dict(set=name, atoms=len(starts_of(name, count=1)[0]), batch=count, alone=[], together=[]) for name, count in sets.items()]
    for _ in range(turns):
        for row in rows:
            row["alone"].append(round(milliseconds(row["set"], row["batch"], False), 2))
            row["together"].append(round(milliseconds(row["set"], row["batch"], True), 2))
    nothing = []
    for repeat in PLANNED[:1] if quick else PLANNED:
        found = [planned(repeat) for _ in range(turns if not repeat or np.prod(repeat) < 200 else 2)]
        nothing.append(dict(atoms=found[0][0], alone=[round(ms, 2) for _, ms in found]))
    imports = [round(float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout), 3) for _ in range(turns)]
    for row in rows:
        print(f"{row['atoms']:4} atoms: {np.median(row['alone']):6.1f} ms a step alone, {np.median(row['together']):6.1f} in a batch of {row['batch']}")
    for row in nothing:
        print(f"{row['atoms']:4} atoms, nothing known: {np.median(row['alone']):6.1f} ms a step")
    print(f"importing the package adds {np.median(imports):.2f} s to importing its libraries")
    if not quick:
        write_text(FILE, json.dumps(dict(machine=f"{platform.machine()}, one thread", turns=turns, rows=rows, nothing=nothing, imports=imports), indent=1) + "\n")


if __name__ == "__main__":
    main()
