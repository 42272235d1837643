"""What does a step of the planner cost, beside the calculator, and what does the import of the package add?"""
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk, molecule

from atomrl_nb.experiment import Experiment
from atomrl_nb.learned import find_policy
from atomrl_nb.measuring import FixedCellCalculator
from atomrl_nb.optimizer import RelaxMany, RLOptimizer
from atomrl_nb.structures import calculator
from atomrl_nb.test_sets import starts_of

SETS = {"alloys8": 40, "cuau32": 8, "cuau108": 4}  # test set -> starts
PLANNED = {"benzene": None, **{f"copper, {4 * n**3} atoms": n for n in (2, 3, 5, 8)}}  # name -> repeats of the cell
IMPORT = """
import time
import numpy, torch, e3nn.o3, ase.optimize, ase.io, safetensors.torch, vesin
began = time.perf_counter()
import atomrl_nb.optimizer
print(time.perf_counter() - began)
"""


def cases(seeds: int, quick: bool) -> list:
    """List what is measured in each turn."""
    if quick:
        small = ("with a policy", "alloys8"), ("nothing known", "benzene")
        return [dict(what=what, system=system, seed=0) for what, system in small]
    return [dict(what=what, system=system, seed=seed) for seed in range(seeds)
            for what, systems in (("with a policy", SETS), ("nothing known", PLANNED), ("import", ("atomrl_nb",)))
            for system in systems if seed < 2 or (PLANNED.get(system) or 0) < 5]


def milliseconds(name: str, count: int, batched: bool) -> float:
    """Relax starts one by one or together: CPU time a structure and step, without the calculator's [ms]."""
    policy, structures = find_policy("fcc-alloys"), starts_of(name, count=count)
    for atoms in structures:
        atoms.calc = FixedCellCalculator(calculator("emt"))
    began = time.process_time()
    if batched:
        RelaxMany(structures, policy).run(0.01)
    else:
        for atoms in structures:
            RLOptimizer(atoms, policy, logfile=None).run(0.01)
    spent = time.process_time() - began - sum(atoms.calc.seconds for atoms in structures)
    return 1000 * spent / sum(atoms.calc.evaluations - 1 for atoms in structures)


def planned(repeats: int | None) -> dict:
    """Relax benzene or a crystal of copper with nothing known: CPU time a step without the calculator's [ms]."""
    atoms = bulk("Cu", cubic=True).repeat(repeats) if repeats else molecule("C6H6")
    atoms.positions += np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    atoms.calc = FixedCellCalculator(calculator("emt"))
    began = time.process_time()
    RLOptimizer(atoms, policy="none", logfile=None).run(0.01, 12)
    spent = time.process_time() - began - atoms.calc.seconds
    return dict(atoms=len(atoms), alone=round(1000 * spent / (atoms.calc.evaluations - 1), 2))


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Take one time, in a process that has done it once before: the first call is slow."""
    torch.set_num_threads(1)
    if case["what"] == "import":
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        return dict(seconds=round(float(done.stdout), 3))
    milliseconds("alloys8", 2, True)
    if case["what"] == "nothing known":
        return planned(PLANNED[case["system"]])
    name, count = case["system"], 2 if quick else SETS[case["system"]]
    return dict(atoms=len(starts_of(name, count=1)[0]), batch=count,
                alone=round(milliseconds(name, count, False), 2), together=round(milliseconds(name, count, True), 2))


def tell(row: dict) -> str:
    """Say what a step took."""
    if row["what"] == "import":
        return f"importing the package adds {row['seconds']:.2f} s to importing its libraries"
    said = f"{row['atoms']:4} atoms, {row['what']}: {row['alone']:6.1f} ms a step alone"
    return said + (f", {row['together']:6.1f} in a batch of {row['batch']}" if "together" in row else "")


EXPERIMENT = Experiment("overhead", "What does a step of the planner cost, beside the calculator?", cases, measure,
                        policies=("fcc-alloys",), seeds=3, tell=tell)
