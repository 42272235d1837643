"""Relax a thousand random alloys with EMT in one process: structures a second, evaluations, own time; ASE beside it."""
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from ase.optimize import BFGS, FIRE, LBFGS, BFGSLineSearch

from atomrl_nb.experiment import Experiment, TimedCalculator, experiment_main
from atomrl_nb.learned import actor_planner, propose_moves
from atomrl_nb.networks import Actor
from atomrl_nb.optimizer import RelaxMany, team_moves
from atomrl_nb.structures import KINDS, calculator, fcc_alloy, perturb, random_alloy
from atomrl_nb.trust import evaluated

RESULTS = Path(__file__).resolve().parents[1] / "nbs" / "benchmark"
FMAX, CAP, PART = 0.05, 500, 100  # structures of a part: ten of them are a thousand
OURS = {"RelaxMany": "auto", "RelaxMany, nothing known": "none"}
ASE = {"BFGS": BFGS, "LBFGS": LBFGS, "BFGSLineSearch": BFGSLineSearch, "FIRE": FIRE}
BATCHES = {"64 x 8 atoms": (64, (2, 1, 1)), "4 x 108 atoms": (4, (3, 3, 3))}


def cases(seeds: int, quick: bool) -> list:
    """List methods and parts, and the batches that a network is asked for."""
    methods = ("RelaxMany, nothing known", "BFGS") if quick else (*OURS, *ASE)
    found = [dict(what="relax", method=method, seed=seed) for seed in range(seeds) for method in methods]
    return found + [dict(what="propose", method=name, seed=seed) for seed in range(seeds)
                    for name in (() if quick else BATCHES)]


def starts(seed: int, count: int) -> list:
    """Make random alloys of 4 to 16 atoms, displaced by up to 0.2 Å."""
    rng = np.random.default_rng([61, seed])
    return [perturb(random_alloy(KINDS[k % len(KINDS)], rng), 0.2, rng) for k in range(count)]


def relaxed(method: str, structures: list) -> list:
    """Relax structures in place: whether each has converged."""
    if method in OURS:
        return RelaxMany(structures, OURS[method]).run(FMAX, CAP)
    return [bool(ASE[method](atoms, logfile=None).run(FMAX, CAP)) for atoms in structures]


def proposed(name: str, seed: int) -> dict:
    """Ask an actor for moves, in parts as `RelaxMany` does and one by one: CPU time a structure [ms]."""
    count, repeat = BATCHES[name]
    rng, actor, team = np.random.default_rng([62, seed]), Actor(), {}
    for k in range(count):
        atoms = perturb(fcc_alloy(("Cu", "Au"), repeat, rng), 0.2, rng)
        atoms.calc = calculator("emt")
        planner = actor_planner(atoms, actor, {})
        planner.note(evaluated(atoms))
        team[k] = SimpleNamespace(planner=planner, fmax=FMAX, atoms=atoms)

    def alone():
        for planned in team.values():
            propose_moves([planned.planner], FMAX)

    def together():
        found = team_moves(team)
        for k, planned in team.items():
            if k not in found:
                propose_moves([planned.planner], FMAX)

    sides, times = dict(together=together, alone=alone), {}
    for _ in range(6):
        for side, do in sides.items():
            began = time.process_time()
            do()
            times.setdefault(side, []).append(1000 * (time.process_time() - began) / count)
    return {side: round(float(np.median(spent[1:])), 3) for side, spent in times.items()}


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Take one part with one method; times are of the process, so that others on the machine count little."""
    torch.set_num_threads(1)
    if case["what"] == "propose":
        return proposed(case["method"], case["seed"])
    relaxed(case["method"], prepared(starts(99, 2)))  # the first call is slow
    structures = prepared(starts(case["seed"], 4 if quick else PART))
    began = time.process_time()
    converged = relaxed(case["method"], structures)
    spent, evaluating = time.process_time() - began, sum(atoms.calc.seconds for atoms in structures)
    return dict(structures=len(structures), converged=sum(converged), seconds=round(spent, 2),
                own=round(spent - evaluating, 2), evaluations=[atoms.calc.evaluations for atoms in structures],
                energies=[round(atoms.calc.results.get("energy", np.nan), 4) for atoms in structures])


def prepared(structures: list) -> list:
    """Give each structure a calculator that measures its time."""
    for atoms in structures:
        atoms.calc = TimedCalculator(calculator("emt"))
    return structures


def tell(row: dict) -> str:
    """Say what a part took."""
    if row["what"] == "propose":
        return f"{row['method']}: {row['together']:.2f} ms a structure together, {row['alone']:.2f} one by one"
    each, n = np.mean(row["evaluations"]), row["structures"]
    slow = 1000 * row["own"] / n + 5 * each
    return (f"{row['method']:25} {n / row['seconds']:6.1f} structures/s with EMT, {each:5.1f} evaluations, own "
            f"{1000 * row['own'] / n:6.1f} ms, {slow:6.1f} ms with a call of 5 ms, {row['converged']}/{n} converged")


EXPERIMENT = Experiment("throughput", "How many small structures are relaxed in a second of one core?", cases, measure,
                        dict(fmax=FMAX, cap=CAP, part=PART), ("fcc-alloys", "universal"), seeds=10, tell=tell, apart=True)

if __name__ == "__main__":
    sys.exit(experiment_main(EXPERIMENT, RESULTS))
