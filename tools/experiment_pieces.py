"""Leave out one piece of planning with nothing known at a time, and count force evaluations.

The pieces are springs, couplings, fragments, the whole, evidence and trust.
"""
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import numpy as np

from atomrl_nb import force_field, planner, trust
from atomrl_nb.coordinates import EnergyForces
from atomrl_nb.error_model import ErrorSettings
from atomrl_nb.experiment import Experiment
from atomrl_nb.planner import PlannerSettings
from atomrl_nb.structures import calculator
from atomrl_nb.referee import measured
from atomrl_nb.suites import SUITES, with_options
from atomrl_nb.trust import evaluated

SETS = ("g2", "baker")
ARMS = ("all of it", "no springs", "no couplings", "no fragments", "no whole", "no sharing between alike fragments",
        "range and curvature fixed", "linear process", "no refusals", "trust radius fixed")
CAP = 100  # force evaluations


@lru_cache(maxsize=2)
def starts(name: str) -> dict:
    """Make the starts of a suite: name -> atoms."""
    return {start.info["source"]: start for start in SUITES[name].starts()}


def cases(seeds: int, quick: bool) -> list:
    """List sets, arms and starts; seeds are in the starts."""
    if quick:
        return [dict(set="quick", arm=arm, start="copper 0") for arm in ARMS]
    return [dict(set=name, arm=arm, start=start) for name in SETS for arm in ARMS for start in starts(name)]


@contextmanager
def without(arm):
    """Take a piece out; yield the settings of the planner."""
    settings, patches = PlannerSettings(), []
    if arm == "no springs":
        nothing = lambda self, at: EnergyForces(0.0, np.zeros(at.x.size))
        patches.append(patch.object(force_field.ForceField, "energy_forces", nothing))
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
        settings = replace(settings, trust=replace(settings.trust, good=0.0, bad=1e6))
    for p in patches:
        p.start()
    try:
        yield settings
    finally:
        for p in patches:
            p.stop()


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Relax one start of a suite without one piece."""
    suite, start = SUITES[case["set"]], starts(case["set"])[case["start"]]

    def run(atoms, fmax, made):
        """Plan until the calculator ends it."""
        plan = planner.Planner(atoms, settings=settings)
        while not plan.note(evaluated(atoms)):
            atoms.positions = planner.propose(plan, fmax)

    with without(case["arm"]) as settings:
        truth = calculator(with_options(suite.truth, start))
        row = measured(start, case["arm"], run, truth, suite.fmax, CAP)
    return dict(evaluations=row.evaluations, lost=row.lost)


def tell(row: dict) -> str:
    """Say what a relaxation took."""
    return f"{row['arm']:38} {row['set']:6} {row['start']:20} {row['evaluations']:4} {row['lost']}"


EXPERIMENT = Experiment("pieces", "What does each piece of planning with nothing known give?", cases, measure,
                        dict(cap=CAP), seeds=1, tell=tell)
