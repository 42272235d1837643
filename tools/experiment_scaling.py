"""Relax 200 structures on 1 to 16 workers with a calculator that sleeps: time against linear scaling, planner's share."""
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes

from atomrl_nb.experiment import Experiment
from atomrl_nb.optimizer import RelaxMany
from atomrl_nb.workers import Evaluator, Workers, as_recipe, evaluate

FMAX, CAP, ROUNDS = 0.05, 60, 3
WORKERS = (1, 2, 4, 8, 16)
SLEEPS = {"100 ms": (0.1, 0.0, 200), "1 s, uneven": (1.0, 0.8, 48)}  # mean [s], spread as a share of it, structures


class Sleeping(Calculator):
    """Springs to where `info` says each atom belongs, after a sleep that depends on the positions alone."""
    implemented_properties = ["energy", "forces"]

    def __init__(self, mean: float, spread: float):
        super().__init__()
        self.mean, self.spread = mean, spread

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Sleep, and compute."""
        super().calculate(atoms, properties, system_changes)
        draw = np.random.default_rng(zlib.crc32(atoms.positions.tobytes())).uniform(-1, 1)
        time.sleep(self.mean * (1 + self.spread * draw))
        away = atoms.positions - atoms.info["sites"]
        away -= away.mean(axis=0)
        self.results = dict(energy=float(4 * (away**2).sum()), forces=-8.0 * away)


def cases(seeds: int, quick: bool) -> list:
    """List sleeps and workers: evaluations alone, and relaxations planned in between."""
    sleeps, workers = (("100 ms",), (2,)) if quick else (tuple(SLEEPS), WORKERS)
    return [dict(what=what, sleep=sleep, workers=n, seed=seed) for seed in range(seeds) for sleep in sleeps
            for what in ("evaluations", "relaxations") for n in workers]


def starts(seed: int, count: int) -> list:
    """Displace cells of copper by up to 0.1 Å."""
    rng, found = np.random.default_rng([63, seed]), []
    for _ in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.info["sites"] = atoms.positions.copy()
        atoms.positions += rng.uniform(-0.1, 0.1, (4, 3))
        found.append(atoms)
    return found


def evaluated(structures: list, workers: Workers, recipe) -> int:
    """Evaluate each structure in turn so many times, without planning: evaluations."""
    evaluator, left = Evaluator(recipe, workers), [ROUNDS] * len(structures)
    for k, atoms in enumerate(structures):
        evaluator.ask(k, atoms)
    while answers := evaluator.answers():
        for answer in answers:
            left[answer.structure] -= 1
            if left[answer.structure]:
                structures[answer.structure].positions += 0.01
                evaluator.ask(answer.structure, structures[answer.structure])
    return ROUNDS * len(structures)


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Take the time of one number of workers, which are started and warm."""
    torch.set_num_threads(1)
    mean, spread, count = SLEEPS[case["sleep"]]
    structures, recipe = starts(case["seed"], 6 if quick else count), as_recipe((Sleeping, (mean, spread)))
    with Workers(case["workers"]) as workers:
        warm = as_recipe((Sleeping, (0.3, 0.0)))
        for done in [workers.submit(evaluate, warm, structures[0]) for _ in range(2 * case["workers"])]:
            done.result()
        began, planned = time.perf_counter(), time.process_time()
        if case["what"] == "evaluations":
            spent = evaluated(structures, workers, recipe)
        else:
            outcomes = list(RelaxMany(structures, "none", calculator=recipe, executor=workers).irun(FMAX, CAP))
            if failed := [outcome for outcome in outcomes if outcome.state != "converged"]:
                raise RuntimeError(f"not converged: {failed[0]}")
            spent = sum(outcome.evaluations for outcome in outcomes)
        seconds, planner = time.perf_counter() - began, time.process_time() - planned
    return dict(structures=len(structures), evaluations=spent, seconds=round(seconds, 2), planner=round(planner, 2),
                of_linear=round(spent * mean / case["workers"] / seconds, 3))


def tell(row: dict) -> str:
    """Say how far from linear a row is."""
    return (f"{row['sleep']:12} {row['what']:12} {row['workers']:2} workers: {row['evaluations']} evaluations in "
            f"{row['seconds']:6.1f} s, {row['of_linear']:.2f} of linear, {row['planner']:.1f} s in this process")


EXPERIMENT = Experiment("scaling", "How much of their time do workers compute?", cases, measure,
                        dict(fmax=FMAX, cap=CAP, rounds=ROUNDS), seeds=1, tell=tell)
