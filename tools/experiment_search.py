"""Look for the lowest minima of Lennard-Jones clusters and small alloys: the search, basin hopping and multi-start, seed by seed."""
import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.optimize import BFGS

from atomrl_nb.checkpoints import write_text
from atomrl_nb.learned import find_policy
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.search import basin_hopping, multistart, search
from atomrl_nb.structures import InputError, calculator, random_alloy

FILE = Path(__file__).resolve().parent.parent / "nbs" / "benchmark" / "search.json"
KNOWN = {"LJ7": -16.505384, "LJ13": -44.326801, "LJ19": -72.659782, "LJ38": -173.928427}
BUDGET = {"LJ7": 2000, "LJ13": 6000, "LJ19": 12_000, "alloy8": 600, "LJ38": 20_000}
SMALL = ("LJ7", "LJ13", "alloy8")  # cases of the side arms
SEEDS = {"LJ7": 20, "LJ13": 20, "LJ19": 20, "alloy8": 20, "LJ38": 3}
METHODS = {"search": BUDGET, "basin hopping": BUDGET, "multi-start": BUDGET, "multi-start, policy": (*SMALL, "LJ19"), "basin hopping, policy": ("LJ7", "LJ13"),
           "basin hopping, ASE's numbers": SMALL}
SAME = 0.01  # eV a cell: a loosely relaxed alloy this close to the end is where it will stay
POLICIES = {name: find_policy(name) for name in ("lj-clusters", "fcc-alloys")}
TUNED = {"lj": dict(alpha=100.0, maxstep=0.1), "emt": dict(alpha=10.0, maxstep=0.3)}


def alloy(seed: int) -> Atoms:
    """Draw an 8-atom alloy."""
    rng = np.random.default_rng([12, seed])
    while len(atoms := random_alloy("bulk", rng)) != 8:
        pass
    return atoms


def policy_or_bfgs(atoms, policy: str, **how):
    """Relax with a policy; atoms that a hop has put on top of one another, which it refuses, with BFGS."""
    try:
        return RLOptimizer(atoms, POLICIES[policy], **how)
    except InputError:
        return BFGS(atoms, **how, **TUNED["lj" if policy == "lj-clusters" else "emt"])


def tightened(atoms: Atoms, spec: str) -> float:
    """Relax the end of a search closely, the same for all methods and not counted: its energy."""
    atoms = atoms.copy()
    atoms.calc = calculator(spec)
    BFGS(atoms, logfile=None, **TUNED[spec]).run(fmax=0.002, steps=300)
    return atoms.get_potential_energy()


def run(case: str, method: str, seed: int, budget: int) -> dict:
    """Search once."""
    spec = "emt" if case == "alloy8" else "lj"
    like = alloy(seed) if case == "alloy8" else Atoms(f"Ar{case[2:]}", np.zeros((int(case[2:]), 3)))
    target, policy = KNOWN[case] + 1e-3 if case in KNOWN else None, "lj-clusters" if spec == "lj" else "fcc-alloys"
    name, _, by = method.partition(", ")
    how = dict(optimizer=partial(policy_or_bfgs, policy=policy)) if by == "policy" else TUNED[spec]
    if name == "search":
        result = search(like, spec, POLICIES[policy], budget, seed, target=target)
    elif name == "basin hopping":
        hops = dict(temperature=100 * units.kB, width=0.1) if by == "ASE's numbers" else dict(temperature=0.2, width=0.5) if spec == "emt" else {}
        result = basin_hopping(like, spec, budget, seed, target, fmax=0.05, **hops, **how)
    else:
        result = multistart(like, spec, budget, seed, target, fmax=0.05, **how)
    lowest = result.minima[0].energy if target is not None else tightened(result.minima[0].atoms, spec)
    found = target is not None and lowest <= target
    return dict(case=case, method=method, seed=seed, energy=round(float(lowest), 6), evaluations=result.evaluations if found or target is None else budget, found=bool(found),
                best=[[n, round(float(e), 5)] for n, e in result.best] if target is None else [])


def with_gaps(rows: list) -> list:
    """Say how far each search stayed above the known minimum, or above the lowest that any found for the same alloy, and when it got there."""
    lowest = {}
    for r in rows:
        key = r["case"], r["seed"]
        lowest[key] = KNOWN.get(r["case"], min(lowest.get(key, np.inf), r["energy"]))
    for r in rows:
        r["gap"] = round(max(0.0, r["energy"] - lowest[r["case"], r["seed"]]), 6)
        if r["case"] not in KNOWN:
            r["found"] = r["gap"] < 1e-3
            r["evaluations"] = next(n for n, e in r["best"] if e < r["best"][-1][1] + SAME) if r["found"] else BUDGET[r["case"]]
    return rows


def main():
    """Run what is missing, seed by seed, and save after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed of LJ7, nothing saved")
    parser.add_argument("--cases", nargs="*", default=list(BUDGET), choices=list(BUDGET))
    parser.add_argument("--seeds", type=int, help="at most so many of each case")
    args = parser.parse_args()
    rows = json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.exists() and not args.quick else []
    for case in ["LJ7"] if args.quick else args.cases:
        for seed in range(1 if args.quick else min(SEEDS[case], args.seeds or SEEDS[case])):
            for method, where in METHODS.items():
                if case not in where or any((r["case"], r["method"], r["seed"]) == (case, method, seed) for r in rows):
                    continue
                rows.append(row := run(case, method, seed, BUDGET[case]))
                print(f"{case:8} {method:14} seed {seed:2}: {row['energy']:.4f} after {row['evaluations']}", flush=True)
                if not args.quick:
                    lines = ",\n".join(map(json.dumps, with_gaps(rows)))
                    write_text(FILE, f'{{"budgets": {json.dumps(BUDGET)}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
