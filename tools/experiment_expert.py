"""How should the expert step in, and how should it fade? Train with each way."""
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.experiment import Experiment, experiment_main
from atomrl_nb.expert import ExpertSettings
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import load
from atomrl_nb.td3 import TD3Settings
from atomrl_nb.settings import Settings
from atomrl_nb.learner import Trainer
from atomrl_nb.evaluation import evaluate

RESULTS = Path(__file__).resolve().parents[1] / "nbs" / "benchmark"
SETTINGS = Settings(structures=("alloys4",), steps=3200, n_envs=16, updates_per_step=0.15, evaluation_starts=32,
                    network=NetworkSettings(channels=8, layers=1), environment=EnvironmentSettings(perturb=0.5))
ARMS = {  # name -> settings that differ
    "none": dict(expert=ExpertSettings(nfake=0.0)),
    "step, linear": {},
    "rollout, linear": dict(expert=ExpertSettings(mode="rollout")),
    "jump, linear": dict(expert=ExpertSettings(mode="jump")),
    "step, constant": dict(expert=ExpertSettings(schedule="constant")),
    "step, success": dict(expert=ExpertSettings(schedule="success")),
    "step, linear, imitated": dict(expert=ExpertSettings(imitate_steps=True), td3=TD3Settings(q_filter=True)),
}


def cases(seeds: int, quick: bool) -> list:
    """List the arms for each seed."""
    arms = ("none", "jump, linear") if quick else ARMS
    return [dict(arm=arm, seed=seed) for seed in range(1 if quick else seeds) for arm in arms]


def probed(trainer: Trainer, nfake: float) -> dict:
    """Evaluate a policy on the way."""
    results, _ = evaluate(trainer)
    return dict(t_total=trainer.t_total, nfake=nfake, evaluations=float(np.mean([r["steps"] + 1 for r in results])),
                relaxed=sum(r["terminated"] for r in results),
                force_evaluations=sum(env.force_evaluations for env in trainer.environments))


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Train one arm, and evaluate the policy on the way."""
    torch.set_num_threads(1)
    steps, n_probes = (320, 1) if quick else (SETTINGS.steps, 4)
    trainer = Trainer(replace(SETTINGS, seed=case["seed"], **ARMS[case["arm"]]), load(*SETTINGS.structures))
    began, probes, expert_steps = time.process_time(), [], 0
    trainer.begin()
    while trainer.t_total < steps:
        rows, _ = trainer.round()
        expert_steps += sum(row["expert"] for row in rows)
        if trainer.t_total >= (len(probes) + 1) * steps / n_probes:
            probes.append(probed(trainer, rows[-1]["nfake"]))
    return dict(force_evaluations=probes[-1]["force_evaluations"], expert_evaluations=trainer.expert_evaluations,
                expert_steps=expert_steps, episodes=trainer.episode_count, success=trainer.success, probes=probes,
                cpu_seconds=round(time.process_time() - began, 1))


def tell(row: dict) -> str:
    """Say how a run went."""
    last = row["probes"][-1]
    return (f"{row['arm']:24} seed {row['seed']}: {row['force_evaluations']} force evaluations, "
            f"{row['expert_evaluations']} of them the expert's; then {last['evaluations']:.2f} a start, "
            f"{last['relaxed']} of {SETTINGS.evaluation_starts} relaxed, {row['cpu_seconds']:.0f} s")


EXPERIMENT = Experiment(
    "expert", "How should the expert step in, and how should it fade?", cases, measure,
    dict(settings=asdict(SETTINGS),
         arms={arm: {part: asdict(values) for part, values in change.items()} for arm, change in ARMS.items()}),
    seeds=3, tell=tell, rows="runs")

if __name__ == "__main__":
    sys.exit(experiment_main(EXPERIMENT, RESULTS))
