"""Does a training of stiff clusters gain by a stiffness, an amplitude or a penalty of its own?"""
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from atomrl_nb.benchmark import interval
from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.evaluation import evaluate
from atomrl_nb.experiment import Experiment, experiment_main
from atomrl_nb.learner import Trainer
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.settings import Settings
from atomrl_nb.structures import as_calculator, load, perturb
from atomrl_nb.suggest import measure as look
from atomrl_nb.suggest import with_value

RESULTS = Path(__file__).resolve().parents[1] / "nbs" / "benchmark"
BUDGET, STARTS = 1500, 24  # force evaluations of a training, held-out starts
SYSTEMS = {"lj13": "lj13", "clusters": "lj-clusters"}  # in units in which sigma is 1 Å
HELD_OUT = {"lj13": "lj13", "clusters": "lj-clusters-validation"}
AMPLITUDE = 0.1  # Å, of the held-out starts
ARMS = {"defaults": (), "amplitude": ("environment.perturb",), "stiffness": ("network.stiffness",),
        "penalty": ("td3.deviation_weight",)}
SMALLER = 0.2  # Å: with it, no start of lj13 begins inside the wall; with the default of 0.3 Å every third does
COMMON = Settings(calculator="lj", device="cpu", n_envs=8, updates_per_step=0.25, evaluation_interval=0,
                  environment=EnvironmentSettings(fmax=0.05), network=NetworkSettings(channels=8, layers=1))


def cases(seeds: int, quick: bool) -> list:
    """List the arms for each seed; the amplitude matters for one system only."""
    return [dict(system=system, arm=arm, seed=seed) for seed in range(1 if quick else seeds) for system in SYSTEMS
            for arm in (ARMS if system == "lj13" else ("defaults", "stiffness"))]


def held_out(system: str) -> list:
    """Draw the starts that both arms are tested on."""
    structures = load(HELD_OUT[system])
    return [perturb(structures[k % len(structures)], AMPLITUDE, [42, k]) for k in range(STARTS)]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Train one arm, and relax the held-out starts with its actor alone."""
    torch.set_num_threads(1)
    began, budget = time.process_time(), 48 if quick else BUDGET
    structures = load(SYSTEMS[case["system"]])
    settings = replace(COMMON, seed=case["seed"], steps=budget, structures=(SYSTEMS[case["system"]],),
                       expert=replace(COMMON.expert, schedule_steps=budget // 2))
    values = {"environment.perturb": SMALLER, "td3.deviation_weight": 10.0,
              "network.stiffness": round(look(structures, as_calculator("lj")).stiffness)}
    for name in ARMS[case["arm"]]:
        settings = with_value(settings, name, values[name])
    trainer = Trainer(settings, structures)
    trainer.begin()
    while (calls := sum(env.force_evaluations for env in trainer.environments)) < budget:
        trainer.round()
    tested = evaluate(trainer, held_out(case["system"])).rows
    return dict(evaluations=round(float(np.mean([row["steps"] + 1 for row in tested])), 3),
                left=round(float(np.exp(np.mean(np.log([row["fmax"] for row in tested])))), 4),  # [eV/Å], geometric mean
                failed=sum(not row["terminated"] for row in tested), calls=calls,
                changed={name: values[name] for name in ARMS[case["arm"]]}, cpu_seconds=round(time.process_time() - began, 1))


def summary(rows: list) -> dict:
    """Compare each arm with the defaults, paired by seed: the ratio of the forces that are left."""
    out = []
    for system in SYSTEMS:
        arms = {name: {row["seed"]: row for row in rows if (row["system"], row["arm"]) == (system, name)} for name in ARMS}
        for name, mine in arms.items():
            seeds = sorted(mine.keys() & arms["defaults"].keys())
            if not seeds:
                continue
            ratio = np.log([mine[k]["left"] / arms["defaults"][k]["left"] for k in seeds])
            low, high = interval(ratio, 4000, np.mean)
            out.append(dict(
                system=system, arm=name, seeds=len(seeds), evaluations=round(float(np.mean([mine[k]["evaluations"] for k in seeds])), 2),
                left=round(float(np.exp(np.mean(np.log([mine[k]["left"] for k in seeds])))), 4),
                failed=round(float(np.mean([mine[k]["failed"] for k in seeds])), 2), ratio=round(float(np.exp(ratio.mean())), 3),
                interval=[round(float(np.exp(low)), 3), round(float(np.exp(high)), 3)], less=int((ratio < 0).sum())))
    return dict(summary=out)


def tell(row: dict) -> str:
    """Say how a run went."""
    return f"{row['system']}, {row['arm']}, seed {row['seed']}: {row['evaluations']} evaluations, {row['failed']} failed, {row['left']} eV/Å left {row['changed']}"


EXPERIMENT = Experiment("suggest", "Does a training of stiff clusters gain by a stiffness, an amplitude or a penalty of its own?",
                        cases, measure, dict(budget=BUDGET, starts=STARTS, amplitude=AMPLITUDE, systems=SYSTEMS), seeds=4,
                        tell=tell, summary=summary)

if __name__ == "__main__":
    sys.exit(experiment_main(EXPERIMENT, RESULTS))
