"""Does a training with suggested settings relax better than one with the defaults?"""
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from atomrl_nb.benchmark import interval
from atomrl_nb.evaluation import evaluate
from atomrl_nb.experiment import Experiment, experiment_main
from atomrl_nb.learner import Trainer
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.settings import Settings
from atomrl_nb.structures import load, perturb
from atomrl_nb.suggest import suggest_settings

RESULTS = Path(__file__).resolve().parents[1] / "nbs" / "benchmark"
BUDGET, STARTS = 1500, 24  # force evaluations of a training, held-out starts
SYSTEMS = {"lj13": "lj13", "clusters": "lj-clusters"}  # in units in which sigma is 1 Å
HELD_OUT = {"lj13": "lj13", "clusters": "lj-clusters-validation"}
AMPLITUDE = 0.15  # Å, of the held-out starts
COMMON = Settings(calculator="lj", device="cpu", n_envs=8, updates_per_step=0.25, evaluation_interval=0,
                  network=NetworkSettings(channels=8, layers=1))


def cases(seeds: int, quick: bool) -> list:
    """List both arms on both systems for each seed."""
    return [dict(system=system, arm=arm, seed=seed) for seed in range(1 if quick else seeds) for system in SYSTEMS
            for arm in ("defaults", "suggested")]


def held_out(system: str) -> list:
    """Draw the starts that both arms are tested on."""
    structures = load(HELD_OUT[system])
    return [perturb(structures[k % len(structures)], AMPLITUDE, [42, k]) for k in range(STARTS)]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Train one arm, and relax the held-out starts with its actor alone."""
    torch.set_num_threads(1)
    began, budget = time.process_time(), 48 if quick else BUDGET
    structures = load(SYSTEMS[case["system"]])
    settings = replace(COMMON, seed=case["seed"], steps=budget, structures=(SYSTEMS[case["system"]],))
    found = suggest_settings(structures, settings.calculator, settings)
    if case["arm"] == "suggested":
        settings = found.settings
        budget -= found.measured.calls
    settings = replace(settings, expert=replace(settings.expert, schedule_steps=budget // 2))
    trainer = Trainer(settings, structures)
    trainer.begin()
    while (calls := sum(env.force_evaluations for env in trainer.environments)) < budget:
        trainer.round()
    tested = evaluate(trainer, held_out(case["system"])).rows
    return dict(evaluations=round(float(np.mean([row["steps"] + 1 for row in tested])), 3),
                failed=sum(not row["terminated"] for row in tested), calls=calls,
                changed={reason.name: reason.value for reason in found.reasons} if case["arm"] == "suggested" else {},
                cpu_seconds=round(time.process_time() - began, 1))


def summary(rows: list) -> dict:
    """Compare the arms, paired by seed."""
    out = []
    for system in SYSTEMS:
        arm = {name: {row["seed"]: row for row in rows if (row["system"], row["arm"]) == (system, name)}
               for name in ("defaults", "suggested")}
        seeds = sorted(arm["defaults"].keys() & arm["suggested"].keys())
        if not seeds:
            continue
        change = [arm["suggested"][k]["evaluations"] - arm["defaults"][k]["evaluations"] for k in seeds]
        low, high = interval(change, 4000, np.mean)
        means = {f"{name}_{value}": round(float(np.mean([arm[name][k][value] for k in seeds])), 2)
                 for name in arm for value in ("evaluations", "failed")}
        out.append(dict(system=system, seeds=len(seeds)) | means | dict(
            difference=round(float(np.mean(change)), 2), interval=[round(low, 2), round(high, 2)],
            better=sum(x < 0 for x in change)))
    return dict(summary=out)


def tell(row: dict) -> str:
    """Say how a run went."""
    return f"{row['system']}, {row['arm']}, seed {row['seed']}: {row['evaluations']} evaluations, {row['failed']} failed {row['changed']}"


EXPERIMENT = Experiment("suggest", "Does a training with suggested settings relax better than one with the defaults?",
                        cases, measure, dict(budget=BUDGET, starts=STARTS, amplitude=AMPLITUDE, systems=SYSTEMS),
                        tell=tell, summary=summary)

if __name__ == "__main__":
    sys.exit(experiment_main(EXPERIMENT, RESULTS))
