"""Relax 40 structures of a project one after the other, with a folder to learn in and without."""
import shutil
from pathlib import Path

import numpy as np
import torch
from experiment_fit import CAP, FMAX, SPECS, UNTAUGHT, start

from atomrl_nb import project
from atomrl_nb.experiment import Experiment
from atomrl_nb.fit import FitSettings
from atomrl_nb.learned import shipped_policies
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.structures import CountedCalculator, calculator

COUNT = 40


def cases(seeds: int, quick: bool) -> list:
    """List systems, arms and seeds; a project begins with `universal`, so these are structures that it has not seen."""
    arms = ["none", "learn", *(["universal"] if "universal" in shipped_policies() and not quick else [])]
    return [dict(system=system, arm=arm, seed=seed) for system in (["alloys"] if quick else UNTAUGHT)
            for seed in range(1 if quick else seeds) for arm in arms]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Relax, and count."""
    torch.set_num_threads(1)
    if quick: project.ANEW = FitSettings(updates=10, checks=1)
    system, arm, seed = case["system"], case["arm"], case["seed"]
    calc, counts, converged = calculator(SPECS[system]), [], []
    folder = work / f"learning-{system}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    for k in range(5 if quick else COUNT):
        atoms = start(system, 100 + seed, k)
        atoms.calc = CountedCalculator(calc)
        how = dict(learn=folder) if arm == "learn" else dict(policy=arm)
        if arm == "learn" and not (folder / "policy.safetensors").exists(): how["policy"] = "none"
        converged.append(bool(RLOptimizer(atoms, logfile=None, **how).run(FMAX, CAP)))
        counts.append(atoms.calc.evaluations)
    return dict(evaluations=counts, converged=sum(converged), first=float(np.mean(counts[:10])),
                last=float(np.mean(counts[-10:])))


EXPERIMENT = Experiment("learning", "Does a project's tenth relaxation cost less than its first?", cases, measure,
                        dict(count=COUNT, fmax=FMAX, cap=CAP, specs=SPECS), ("universal",), seeds=5)
