"""Leave out one piece of the relaxer at a time, and count force evaluations: planning, correction, trust, hand-over."""
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from atomrl_nb.experiment import Experiment
from atomrl_nb.learned import find_policy
from atomrl_nb.optimizer import RelaxMany
from atomrl_nb.structures import CountedCalculator, calculator
from atomrl_nb.test_sets import FAMILIES, TEST_SETS, starts_of

FMAX, CAP = 0.01, 60
SETS = {"alloys8": 12, "pairs8": 12, "cuau32": 6, "clash": 8, "lj": 8}  # test set -> starts
CHANGES = {"one step": dict(steps=1), "four steps": dict(steps=4),  # of the loop's numbers
           "nothing learnt": dict(error=1e-6), "learnt from afar": dict(past=1e9)}
ARMS = ("all of it", "loop as usual", *CHANGES, "nothing known", "no trust region", "no hand-over")


def cases(seeds: int, quick: bool) -> list:
    """List test sets and arms; a set is relaxed in one batch."""
    return [dict(set=name, arm=arm) for name in (("alloys8",) if quick else SETS) for arm in ARMS]


def policy_for(family: str, arm: str):
    """Change the loop's numbers of a policy."""
    if arm == "nothing known":
        return "none"
    actor, card = find_policy(FAMILIES[family].policies[0])
    loop = {} if arm == "loop as usual" else card.get("loop", {})
    return actor, card | dict(loop=loop | CHANGES.get(arm, {}))


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Relax the starts of a test set without one piece."""
    name, arm = case["set"], case["arm"]
    family = TEST_SETS[name].family
    starts = starts_of(name, count=2 if quick else SETS[name])
    for atoms in starts:
        atoms.calc = CountedCalculator(calculator(FAMILIES[family].calculator(None)))
    many = RelaxMany(starts, policy_for(family, arm))
    for k in range(len(starts)):
        trust = many.optimizer(k).trust
        if arm == "no trust region":
            trust.deviations.append(math.inf)  # any rise of the energy is accepted
        if arm == "no hand-over":
            trust.settings = replace(trust.settings, patience=CAP)
    converged = many.run(FMAX, CAP)
    return dict(evaluations=[atoms.calc.evaluations if ok else CAP for atoms, ok in zip(starts, converged)],
                converged=sum(converged), handed_over=sum(map(bool, many.handed_over)))


def tell(row: dict) -> str:
    """Say what an arm took."""
    n = row["evaluations"]
    return (f"{row['set']:8} {row['arm']:22} mean {np.mean(n):6.2f}  median {np.median(n):5.1f}  most {max(n):4}  "
            f"converged {row['converged']}/{len(n)}  handed over {row['handed_over']}")


EXPERIMENT = Experiment("planning", "What does each piece of the relaxer give, with a policy?", cases, measure,
                        dict(fmax=FMAX, cap=CAP), ("fcc-alloys", "lj-clusters"), seeds=1, tell=tell)
