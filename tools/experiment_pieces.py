"""Leave out one piece of planning with nothing known at a time, and count force evaluations: springs, couplings, fragments, whole, evidence, trust."""
import argparse
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from cases import run_all  # sets the number of threads before numpy is loaded

import numpy as np

from atomrl_nb import force_field, planner, trust
from atomrl_nb.checkpoints import write_text
from atomrl_nb.error_model import ErrorSettings
from atomrl_nb.planner import PlannerSettings
from atomrl_nb.structures import calculator
from atomrl_nb.experiment import provenance
from atomrl_nb.referee import measured
from atomrl_nb.suites import SUITES, with_options
from atomrl_nb.trust import evaluated

FILE = Path(__file__).resolve().parents[1] / "nbs" / "benchmark" / "pieces.json"
SETS = ("g2", "baker")
ARMS = ("all of it", "no springs", "no couplings", "no fragments", "no whole", "no sharing between alike fragments", "range and curvature fixed",
        "linear process", "no refusals", "trust radius fixed")


@contextmanager
def without(arm):
    """Take a piece out; yield the settings of the planner."""
    settings, patches = PlannerSettings(), []
    if arm == "no springs":
        patches.append(patch.object(force_field.ForceField, "energy_forces", lambda self, at: (0.0, np.zeros(at.positions.size))))
    if arm == "no couplings":
        patches.append(patch.dict(force_field.COUPLED, {name: 0.0 for name in force_field.COUPLED}))
    if arm == "no fragments":
        patches.append(patch("atomrl_nb.error_model.fragments_of", lambda *args: []))
    if arm == "no whole":
        patches.append(patch("atomrl_nb.error_model.WHOLE", 0.0))
    if arm == "no sharing between alike fragments":
        settings = replace(settings, errors=ErrorSettings(alike=0.0))
    if arm == "range and curvature fixed":
        settings = replace(settings, errors=ErrorSettings(ranges=(0.9,), curvatures=(4.0,)))
    if arm == "linear process":
        settings = replace(settings, large=0)
    if arm == "no refusals":
        patches.append(patch.object(trust, "refuses", lambda *args: False))
    if arm == "trust radius fixed":
        settings = replace(settings, trust=replace(settings.trust, good=0.0, bad=np.inf))
    for p in patches:
        p.start()
    try:
        yield settings
    finally:
        for p in patches:
            p.stop()


def count(name, arm, number):
    """Relax one start of a suite without one piece."""
    suite = SUITES[name]
    start = suite.starts()[number]

    def run(atoms, fmax, made):
        """Plan until the calculator ends it."""
        plan = planner.Planner(atoms, settings=settings)
        while not plan.note(evaluated(atoms)):
            atoms.positions = planner.propose(plan, fmax)

    with without(arm) as settings:
        row = measured(start, arm, run, calculator(with_options(suite.truth, start)), suite.fmax, 100)
    return dict(set=name, arm=arm, start=row.start, evaluations=row.evaluations, lost=row.lost)


def main():
    """Measure all arms on all sets, print, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default=".pieces", help="folder for what is finished, to go on with")
    parser.add_argument("--quick", action="store_true", help="one start of copper, nothing saved")
    args = parser.parse_args()
    if args.quick:
        for arm in ARMS:
            print(f"{arm:38} {count('quick', arm, 0)['evaluations']:4}")
        return
    cases = {f"{name}-{arm}-{k}".replace(" ", "_"): (name, arm, k) for name in SETS for arm in ARMS for k in range(len(SUITES[name].starts()))}
    rows = list(run_all(count, cases, Path(args.work), 2).values())
    result = dict(provenance=provenance("python tools/experiment_pieces.py"), cap=100, rows=rows)
    write_text(FILE, json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1)[:-2] + ',\n "rows": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]\n}\n")


if __name__ == "__main__":
    main()
