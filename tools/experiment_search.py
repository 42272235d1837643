"""Look for the lowest minima of Lennard-Jones clusters and small alloys: the search, basin hopping and multi-start."""
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.optimize import BFGS

from atomrl_nb.experiment import Experiment
from atomrl_nb.learned import find_policy
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.search import basin_hopping, multistart, search
from atomrl_nb.structures import InputError, calculator, random_alloy

KNOWN = {"LJ7": -16.505384, "LJ13": -44.326801, "LJ19": -72.659782, "LJ38": -173.928427}
BUDGET = {"LJ7": 2000, "LJ13": 6000, "LJ19": 12_000, "alloy8": 600, "LJ38": 20_000}
SMALL = ("LJ7", "LJ13", "alloy8")  # cases of the side arms
METHODS = {  # name -> cases
    "search": BUDGET, "basin hopping": BUDGET, "multi-start": BUDGET, "multi-start, policy": (*SMALL, "LJ19"),
    "basin hopping, policy": ("LJ7", "LJ13"), "basin hopping, ASE's numbers": SMALL,
}
FEW = {"LJ38": 3}  # case -> most seeds
SAME = 0.01  # eV a cell: a loosely relaxed alloy this close to the end is where it will stay
TUNED = {"lj": dict(alpha=100.0, maxstep=0.1), "emt": dict(alpha=10.0, maxstep=0.3)}
POLICY = {"lj": "lj-clusters", "emt": "fcc-alloys"}


def cases(seeds: int, quick: bool) -> list:
    """List cases, seeds and methods."""
    if quick:
        return [dict(case="LJ7", method=method, seed=0) for method, where in METHODS.items() if "LJ7" in where]
    found = [(case, seed) for case in BUDGET for seed in range(min(seeds, FEW.get(case, seeds)))]
    return [dict(case=case, method=method, seed=seed)
            for case, seed in found for method, where in METHODS.items() if case in where]


@lru_cache(maxsize=2)
def policy(name: str):
    """Load a policy once."""
    return find_policy(name)


def alloy(seed: int) -> Atoms:
    """Draw an 8-atom alloy."""
    rng = np.random.default_rng([12, seed])
    while len(atoms := random_alloy("bulk", rng)) != 8:
        pass
    return atoms


def policy_or_bfgs(atoms, spec: str, **how):
    """Relax with a policy; atoms that a hop has put on top of one another, which it refuses, with BFGS."""
    try:
        return RLOptimizer(atoms, policy(POLICY[spec]), **how)
    except InputError:
        return BFGS(atoms, **how, **TUNED[spec])


def tightened(atoms: Atoms, spec: str) -> float:
    """Relax the end of a search closely, the same for all methods and not counted: its energy."""
    atoms = atoms.copy()
    atoms.calc = calculator(spec)
    BFGS(atoms, logfile=None, **TUNED[spec]).run(fmax=0.002, steps=300)
    return atoms.get_potential_energy()


def searched(case: str, method: str, seed: int, target: float | None, spec: str):
    """Search once."""
    budget = BUDGET[case]
    like = alloy(seed) if case == "alloy8" else Atoms(f"Ar{case[2:]}", np.zeros((int(case[2:]), 3)))
    name, _, by = method.partition(", ")
    if name == "search":
        return search(like, spec, policy(POLICY[spec]), budget, seed, target=target)
    how = dict(optimizer=partial(policy_or_bfgs, spec=spec)) if by == "policy" else TUNED[spec]
    if name == "multi-start":
        return multistart(like, spec, budget, seed, target, fmax=0.05, **how)
    hops = dict(temperature=0.2, width=0.5) if spec == "emt" else {}
    if by == "ASE's numbers":
        hops = dict(temperature=100 * units.kB, width=0.1)
    return basin_hopping(like, spec, budget, seed, target, fmax=0.05, **hops, **how)


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Search once, and say how low it came and when."""
    name = case["case"]
    spec, target = ("lj", KNOWN[name] + 1e-3) if name in KNOWN else ("emt", None)
    result = searched(name, case["method"], case["seed"], target, spec)
    lowest = result.minima[0]
    energy = tightened(lowest.atoms, spec) if target is None else lowest.energy
    found = target is not None and energy <= target
    evaluations = result.evaluations if found or target is None else BUDGET[name]
    best = [[n, round(float(e), 5)] for n, e in result.best] if target is None else []
    return dict(energy=round(float(energy), 6), evaluations=evaluations, found=bool(found), best=best)


def with_gaps(rows: list) -> dict:
    """Say how far each search stayed above the known minimum, or above the lowest that any found for the same alloy."""
    lowest = {}
    for row in rows:
        key = row["case"], row["seed"]
        lowest[key] = KNOWN.get(row["case"], min(lowest.get(key, np.inf), row["energy"]))
    for row in rows:
        row["gap"] = round(max(0.0, row["energy"] - lowest[row["case"], row["seed"]]), 6)
        if row["case"] in KNOWN:
            continue
        row["found"] = row["gap"] < 1e-3
        there = (n for n, energy in row["best"] if energy < row["best"][-1][1] + SAME)
        row["evaluations"] = next(there) if row["found"] else BUDGET[row["case"]]
    return {}


def tell(row: dict) -> str:
    """Say what a search found."""
    return f"{row['case']:8} {row['method']:14} seed {row['seed']:2}: {row['energy']:.4f} after {row['evaluations']}"


EXPERIMENT = Experiment("search", "How many evaluations does the lowest minimum take?", cases, measure,
                        dict(budgets=BUDGET), ("fcc-alloys", "lj-clusters"), seeds=20, tell=tell, summary=with_gaps)
