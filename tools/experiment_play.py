"""Train planners by play, with more and more force evaluations, and count what relaxations take on structures kept out."""
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from train_shipped import POTENTIALS

from atomrl_nb.comparing import relax
from atomrl_nb.experiment import Experiment
from atomrl_nb.fit import FitSettings, fit
from atomrl_nb.frames import read_frames
from atomrl_nb.planner_run import PlaySettings, planner_run
from atomrl_nb.structures import calculator, load, perturb

ALFE = Path(__file__).resolve().parents[2] / "shared" / "data" / "alfe"
FMAX, CAP, PERTURB, STARTS = 0.01, 60, 0.5, 12
FIT = FitSettings(updates=400, checks=4)
PLAYED = (100, 400)
RIVALS = ("BFGSTuned", "BFGSLineSearch")


def alfe(table: str) -> list:
    """Read crystals of a table of the Al-Fe data, but for those of one atom, which have nothing to relax."""
    return [atoms for atoms in load(str(ALFE / table)) if len(atoms) > 1]


def eam() -> str:
    """Name the potential of the Al-Fe data."""
    return "eam:" + ",".join(str(ALFE / name) for name in POTENTIALS)


def held_out() -> list:
    """Double the cells of the pairs that are kept out."""
    return [atoms.repeat((2, 1, 1)) for atoms in load("alloys4-heldout")]


SYSTEMS = {  # what is played on, what is tested on, the calculator
    "alloys8": (lambda: load("alloys8"), held_out, lambda: "emt"),
    "alfe": (lambda: alfe("Al-Fe_N=2-3.extxyz"), lambda: alfe("Al-Fe_N=4.extxyz"), eam),
}


def cases(seeds: int, quick: bool) -> list:
    """List systems, seeds and arms; the Al-Fe data lie beside the checkout, or are left out."""
    systems = ["alloys8", *(["alfe"] if ALFE.exists() else [])]
    arms = ["none", *RIVALS, *(f"played {n}" for n in PLAYED), f"fitted to the record of {PLAYED[-1]}"]
    if quick: systems, arms, seeds = systems[:1], ["none", "played 100"], 1
    return [dict(system=system, seed=seed, arm=arm) for seed in range(seeds) for system in systems for arm in arms]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Train where the arm asks for it, and relax the same starts."""
    torch.set_num_threads(1)
    system, seed, arm = case["system"], case["seed"], case["arm"]
    structures, kept_out, spec = (make() for make in SYSTEMS[system])
    calc, rng = calculator(spec), np.random.default_rng([seed, 5])
    starts = [perturb(kept_out[k], PERTURB, rng) for k in rng.permutation(len(kept_out))[:STARTS]]
    starts += [perturb(kept_out[k % len(kept_out)], PERTURB, rng) for k in range(STARTS - len(starts))]
    how, spent = {}, 0
    if arm == "none": how = dict(policy="none")
    elif arm in RIVALS: how = dict(optimizer=arm)
    else:
        folder = work / f"play-{system}-{seed}-{arm.split()[-1]}"
        how = dict(policy=trained(folder, arm, structures, spec, seed, quick))
        spent = how["policy"].card.get("played", 0)  # the record is free
    reports = [relax(start, calc, fmax=FMAX, steps=CAP, **how).report for start in starts[:2 if quick else STARTS]]
    counts = [r.force_evaluations if r.converged else CAP for r in reports]
    return dict(spent=spent, evaluations=counts, mean=float(np.mean(counts)), failed=sum(not r.converged for r in reports))


def trained(folder: Path, arm: str, structures: list, spec: str, seed: int, quick: bool):
    """Play, or take the record of a run that has played, and fit to that alone."""
    settings = PlaySettings(structures=("given",), calculator=spec, run=str(folder), steps=int(arm.split()[-1]), seed=seed,
                            perturb=PERTURB, fit=replace(FIT, seed=seed))
    if quick: settings = replace(settings, steps=12, fit=FitSettings(updates=6, checks=1))
    quiet = dict(price=False, progress=False, say=lambda line: None)
    if "fitted" in arm:
        if not (folder / "frames.traj").exists(): planner_run(settings, structures, **quiet)
        return fit(read_frames([folder / "frames.traj"]).frames, settings.fit).policy
    shutil.rmtree(folder, ignore_errors=True)
    return planner_run(settings, structures, **quiet).fitted.policy


EXPERIMENT = Experiment("play", "What does a planner that plays and fits need, and what has it cost?", cases, measure,
                        dict(fmax=FMAX, cap=CAP, perturb=PERTURB, starts=STARTS, updates=FIT.updates), seeds=5)
