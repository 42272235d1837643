"""Leave out one piece of the relaxer at a time, and count force evaluations: planning, correction, trust region, hand-over."""
import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from atomrl_nb.test_sets import FAMILIES, TEST_SETS, starts_of
from atomrl_nb.checkpoints import write_text
from atomrl_nb.learned import find_policy
from atomrl_nb.optimizer import RelaxMany
from atomrl_nb.structures import CountedCalculator, calculator

FILE, FMAX, CAP = Path(__file__).resolve().parent.parent / "nbs" / "benchmark" / "planning.json", 0.01, 60
SETS = {"alloys8": 12, "pairs8": 12, "cuau32": 6, "clash": 8, "lj": 8}
ARMS = ("all of it", "loop as usual", "one step", "four steps", "nothing learnt", "learnt from afar", "nothing known", "no trust region", "no hand-over")


def counts_of(name: str, arm: str, count: int) -> dict:
    """Relax the starts of a test set without one piece."""
    family = TEST_SETS[name].family
    actor, card = find_policy(FAMILIES[family].policies[0])
    change = {"one step": dict(steps=1), "four steps": dict(steps=4), "nothing learnt": dict(error=1e-6), "learnt from afar": dict(past=1e9)}.get(arm, {})
    policy = (actor, card | {"loop": (card.get("loop", {}) if arm != "loop as usual" else {}) | change}) if arm != "nothing known" else "none"
    starts = starts_of(name, count=count)
    for atoms in starts:
        atoms.calc = CountedCalculator(calculator(FAMILIES[family].calculator(None)))
    many = RelaxMany(starts, policy)
    for optimizer in many.optimizers:
        trust = optimizer.trust
        if arm == "no trust region":
            trust.deviations.append(math.inf)  # any rise of the energy is accepted
        if arm == "no hand-over":
            trust.settings = replace(trust.settings, patience=CAP)
    converged = many.run(FMAX, CAP)
    return dict(set=name, arm=arm, evaluations=[a.calc.evaluations if ok else CAP for a, ok in zip(starts, converged)],
                converged=sum(converged), handed_over=sum(map(bool, many.handed_over)))


def main():
    """Measure all arms on all sets, print, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two starts of one set, nothing saved")
    quick = parser.parse_args().quick
    rows = []
    for name, count in ({"alloys8": 2} if quick else SETS).items():
        for arm in ARMS:
            rows.append(row := counts_of(name, arm, count))
            n = row["evaluations"]
            print(f"{name:8} {arm:22} mean {np.mean(n):6.2f}  median {np.median(n):5.1f}  most {max(n):4}  converged {row['converged']}/{count}  handed over {row['handed_over']}", flush=True)
    if not quick:
        write_text(FILE, json.dumps(dict(fmax=FMAX, cap=CAP, rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
