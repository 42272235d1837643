"""Look for the lowest minima of Lennard-Jones clusters and small alloys: the search, basin hopping and multi-start BFGS, seed by seed."""
import argparse
import json
from pathlib import Path

import numpy as np
from ase import Atoms

from atomrl_nb.checkpoints import write_text
from atomrl_nb.search import basin_hopping, multistart, search
from atomrl_nb.structures import random_alloy

FILE = Path(__file__).resolve().parent.parent / "nbs" / "benchmark" / "search.json"
KNOWN = {"LJ7": -16.505384, "LJ13": -44.326801, "LJ19": -72.659782, "LJ38": -173.928427}
BUDGET = {"LJ7": 2000, "LJ13": 6000, "LJ19": 12_000, "alloy8": 600, "LJ38": 20_000}
SEEDS = {"LJ7": 20, "LJ13": 20, "LJ19": 20, "alloy8": 20, "LJ38": 3}
TUNED = {"lj": dict(alpha=100.0, maxstep=0.1), "emt": dict(alpha=10.0, maxstep=0.3)}


def alloy(seed: int) -> Atoms:
    """Draw an 8-atom alloy."""
    rng = np.random.default_rng([12, seed])
    while len(atoms := random_alloy("bulk", rng)) != 8:
        pass
    return atoms


def run(case: str, method: str, seed: int, budget: int) -> dict:
    """Search once."""
    spec = "emt" if case == "alloy8" else "lj"
    like = alloy(seed) if case == "alloy8" else Atoms(f"Ar{case[2:]}", np.zeros((int(case[2:]), 3)))
    target = KNOWN[case] + 1e-3 if case in KNOWN else None
    if method == "search":
        result = search(like, spec, "lj-clusters" if spec == "lj" else "fcc-alloys", budget, seed, target=target)
        lowest, spent = result.minima[0].energy, result.evaluations
    elif method == "basin hopping":
        hops = dict(temperature=0.2, width=0.5) if spec == "emt" else {}
        lowest, spent = basin_hopping(like, spec, budget, seed, target, fmax=0.05, **hops, **TUNED[spec])
    else:
        lowest, spent = multistart(like, spec, budget, seed, target, fmax=0.05, **TUNED[spec])
    found = target is not None and lowest <= target
    return dict(case=case, method=method, seed=seed, energy=round(float(lowest), 6), evaluations=spent if found or target is None else budget, found=bool(found))


def with_gaps(rows: list) -> list:
    """Say how far each search stayed above the known minimum, or above the lowest that any found for the same alloy."""
    lowest = {}
    for r in rows:
        key = r["case"], r["seed"]
        lowest[key] = KNOWN.get(r["case"], min(lowest.get(key, np.inf), r["energy"]))
    for r in rows:
        r["gap"] = round(max(0.0, r["energy"] - lowest[r["case"], r["seed"]]), 6)
        if r["case"] not in KNOWN:
            r["found"] = r["gap"] < 1e-3
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
            for method in ("search", "basin hopping", "multi-start"):
                if any((r["case"], r["method"], r["seed"]) == (case, method, seed) for r in rows):
                    continue
                rows.append(row := run(case, method, seed, BUDGET[case]))
                print(f"{case:8} {method:14} seed {seed:2}: {row['energy']:.4f} after {row['evaluations']}", flush=True)
                if not args.quick:
                    write_text(FILE, json.dumps(dict(budgets=BUDGET, rows=with_gaps(rows)), indent=1) + "\n")


if __name__ == "__main__":
    main()
