"""What an extra layer behind the critic does to Q early in training, and what the environment gate does in a short run.

    experiment_networks.py [--quick] [--jobs N]

Writes nbs/benchmark/tail.json and nbs/benchmark/gate.json (not in the quick form): about 10 minutes on one core.
"""
import argparse
import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one run, one core; before torch is loaded

import numpy as np
import torch

from atomrl_nb.checkpoints import write_text
from atomrl_nb.diagnostics import read_table
from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.graphs import ENV_FEATURES
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import load
from atomrl_nb.settings import Settings
from atomrl_nb.learner import Trainer
from atomrl_nb.training import train

BENCHMARK = Path(__file__).resolve().parent.parent / "nbs" / "benchmark"
EPISODES = EnvironmentSettings(perturb=0.5)
ARMS = {  # how the critic ends: (network, environment information)
    "no tail": (NetworkSettings(), ()),
    "identity-started tail": (NetworkSettings(), tuple(ENV_FEATURES)),
    "ordinary tail": (NetworkSettings(tail_mlp="always"), ()),
}
FILLING, UPDATES = 512, 200  # environment steps before the first update; updates that are watched


def tail(task):
    """Watch the size of Q on one fixed batch through the first updates of one run."""
    arm, critic, seed, quick = task
    network, features = ARMS[arm]
    filling, updates = (32, 4) if quick else (FILLING, UPDATES)
    settings = Settings(structures=("alloys4",), seed=seed, learning_starts=filling, network=replace(network, critic=critic),
                        environment=replace(EPISODES, env_features=features))
    trainer = Trainer(settings, load("alloys4"))
    trainer.begin()
    while trainer.t_total < filling: trainer.round()
    probe, sizes, errors = trainer.memory.sample(64, torch.Generator().manual_seed(0)), [], []
    for _ in range(updates + 1):
        with torch.no_grad(): sizes.append(float(trainer.agent.critics(probe.graph, probe.displacement).abs().mean()))
        errors.append(trainer.agent.update(trainer.memory.sample(64, trainer.sampler))["td_error"])
    return dict(arm=arm, critic=critic, seed=seed, reward=float(probe.reward.abs().mean()), size=[round(x, 4) for x in sizes],
                td_error=[round(float(np.mean(errors[k:k + 10])), 4) for k in range(0, updates, 10)])


def gate(task):
    """Train one short run, with or without environment information, and read Action Scale off its table."""
    features, quick = task
    with tempfile.TemporaryDirectory() as folder:
        run = train(Settings(structures=("alloys4",), run=f"{folder}/run", steps=320 if quick else 3200, evaluation_interval=160 if quick else 800,
                             environment=replace(EPISODES, env_features=features)), progress=False)
        metrics, tests = read_table(run), read_table(run, "evaluations")
    every = metrics[metrics.t_total % 80 == 0]
    relaxed = tests.groupby("t_total").steps.mean()
    return dict(env_features=list(features), t_total=every.t_total.tolist(), action_scale=every.action_scale.round(4).tolist(),
                output_scale=every.output_scale.round(4).tolist(), fmax=every.fmax.round(4).tolist(),
                evaluations=dict(zip(relaxed.index.tolist(), relaxed.round(2).tolist())))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form that writes nothing, to see that the command works")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    seeds, critics = (range(1), ("structured",)) if args.quick else (range(5), ("structured", "pooled"))
    tails = [(arm, critic, seed, args.quick) for critic in critics for arm in ARMS for seed in seeds]
    gates = [(features, args.quick) for features in (tuple(ENV_FEATURES), ())]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        runs, gated = list(pool.map(tail, tails)), list(pool.map(gate, gates))
    for critic in critics:
        for arm in ARMS:
            sizes = np.array([r["size"] for r in runs if (r["arm"], r["critic"]) == (arm, critic)])
            print(f"{critic:10} {arm:22} mean |Q| after 0, {sizes.shape[1] // 2}, {sizes.shape[1] - 1} updates: "
                  + ", ".join(f"{sizes[:, k].mean():.2f} ± {sizes[:, k].std():.2f}" for k in (0, sizes.shape[1] // 2, -1)))
    for run in gated: print(f"{len(run['env_features'])} features: Action Scale {run['action_scale'][0]} at first, {run['action_scale'][-1]} at last; evaluations {run['evaluations']}")
    if args.quick: return
    write_text(BENCHMARK / "tail.json", json.dumps(runs) + "\n")
    write_text(BENCHMARK / "gate.json", json.dumps(gated) + "\n")


if __name__ == "__main__":
    main()
