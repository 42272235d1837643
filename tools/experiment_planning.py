"""Leave out one piece of the relaxer at a time, and count force evaluations: planning, correction, trust region, hand-over."""
import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from atomrl_nb.benchmark import FAMILIES, TEST_SETS, starts_of
from atomrl_nb.checkpoints import write_text
from atomrl_nb.learned import find_policy, loop_of
from atomrl_nb.optimizer import RelaxMany
from atomrl_nb.structures import CountedCalculator, calculator

FILE, FMAX, CAP = Path(__file__).resolve().parent.parent / "nbs" / "benchmark" / "planning.json", 0.01, 200
SETS = {"alloys8": 40, "pairs8": 42, "cuau32": 10, "clash": 40, "lj": 39}
ARMS = ("all of it", "loop set by hand", "one sub-step", "four sub-steps", "no correction", "correction from afar", "no trust region", "no hand-over")


def counts_of(name: str, arm: str, count: int) -> dict:
    """Relax the starts of a test set without one piece."""
    family = TEST_SETS[name].family
    actor, card = find_policy(FAMILIES[family].policies[0])
    planning, _ = loop_of(actor, card)
    change = {"one sub-step": dict(sub_steps=1, sub_step=planning.reach), "four sub-steps": dict(sub_steps=4, sub_step=planning.reach / 4, refresh=1),
              "no correction": dict(near=0.0), "correction from afar": dict(near=1.5 * actor.settings.max_displacement)}.get(arm, {})
    plain = {k: v for k, v in card.items() if k != "loop"}
    policy = (actor, plain) if arm == "loop set by hand" else (actor, card | {"loop": card.get("loop", {}) | change})
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
