"""How should the expert step in, and how should it fade? Train with each way; write `nbs/benchmark/expert.json`."""
import argparse
import json
import platform
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import cases
import numpy as np
import torch

from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.expert import ExpertSettings
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import load
from atomrl_nb.td3 import TD3Settings
from atomrl_nb.settings import Settings
from atomrl_nb.learner import Trainer
from atomrl_nb.evaluation import evaluate

ROOT = Path(__file__).resolve().parent.parent
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


def one_run(arm: str, seed: int, steps: int, n_probes: int) -> dict:
    """Train for `steps` environment steps, evaluate the policy on the way, and return a summary."""
    torch.set_num_threads(1)
    trainer, began, probes, expert_steps = Trainer(replace(SETTINGS, seed=seed, **ARMS[arm]), load(*SETTINGS.structures)), time.process_time(), [], 0
    trainer.begin()
    while trainer.t_total < steps:
        rows, _ = trainer.round()
        expert_steps += sum(row["expert"] for row in rows)
        if trainer.t_total < (len(probes) + 1) * steps / n_probes: continue
        results, _ = evaluate(trainer)
        probes.append(dict(t_total=trainer.t_total, nfake=rows[-1]["nfake"], evaluations=float(np.mean([r["steps"] + 1 for r in results])),
                           relaxed=sum(r["terminated"] for r in results), force_evaluations=sum(e.force_evaluations for e in trainer.environments)))
    return dict(arm=arm, seed=seed, force_evaluations=probes[-1]["force_evaluations"], expert_evaluations=trainer.expert_evaluations, expert_steps=expert_steps,
                episodes=trainer.episode_count, success=trainer.success, probes=probes, cpu_seconds=round(time.process_time() - began, 1))


def main():
    """Run all arms and seeds, and save the summaries unless in the quick form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form that writes nothing into the repository")
    parser.add_argument("--work", type=Path, help="folder that keeps finished runs (default: a temporary one)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    args = parser.parse_args()
    steps, seeds, arms, probes = (320, 1, ["none", "jump, linear"], 1) if args.quick else (SETTINGS.steps, args.seeds, list(ARMS), 4)
    with tempfile.TemporaryDirectory() as folder:
        chosen = {f"{arm.replace(', ', '_')}_{seed}": (arm, seed, steps, probes) for seed in range(seeds) for arm in arms}
        runs = list(cases.run_all(one_run, chosen, args.work or Path(folder), args.jobs).values())
    for run in runs: print(f"{run['arm']:24} seed {run['seed']}: {run['force_evaluations']} force evaluations, {run['expert_evaluations']} of them the expert's; then "
                           f"{run['probes'][-1]['evaluations']:.2f} a start, {run['probes'][-1]['relaxed']} of {SETTINGS.evaluation_starts} relaxed, {run['cpu_seconds']:.0f} s")
    if args.quick: return
    facts = dict(settings=asdict(SETTINGS), arms={arm: {k: asdict(v) for k, v in changes.items()} for arm, changes in ARMS.items()},
                 machine=platform.machine(), runs=runs)
    (ROOT / "nbs" / "benchmark" / "expert.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
