"""What does an extra layer behind the critic do to the size of Q early in training?"""
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.experiment import Experiment
from atomrl_nb.graphs import ENV_FEATURES
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import load
from atomrl_nb.learner import Trainer
from atomrl_nb.settings import Settings

ARMS = {  # how the critic ends: (network, environment information)
    "no tail": (NetworkSettings(), ()),
    "identity-started tail": (NetworkSettings(), tuple(ENV_FEATURES)),
    "ordinary tail": (NetworkSettings(tail_mlp="always"), ()),
}
FILLING, UPDATES = 512, 200  # environment steps before the first update; updates that are watched


def cases(seeds: int, quick: bool) -> list:
    """List the endings of both critics for each seed."""
    critics = ("structured",) if quick else ("structured", "pooled")
    return [dict(arm=arm, critic=critic, seed=seed)
            for critic in critics for arm in ARMS for seed in range(1 if quick else seeds)]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Watch the size of Q on one fixed batch through the first updates of one run."""
    torch.set_num_threads(1)
    network, features = ARMS[case["arm"]]
    filling, updates = (32, 4) if quick else (FILLING, UPDATES)
    settings = Settings(structures=("alloys4",), seed=case["seed"], learning_starts=filling,
                        network=replace(network, critic=case["critic"]),
                        environment=EnvironmentSettings(perturb=0.5, env_features=features))
    trainer = Trainer(settings, load("alloys4"))
    trainer.begin()
    while trainer.t_total < filling:
        trainer.round()
    probe, sizes, errors = trainer.memory.sample(64, torch.Generator().manual_seed(0)), [], []
    for _ in range(updates + 1):
        with torch.no_grad():
            sizes.append(float(trainer.agent.critics(probe.graph, probe.displacement).abs().mean()))
        errors.append(trainer.agent.update(trainer.memory.sample(64, trainer.sampler))["td_error"])
    return dict(reward=float(probe.reward.abs().mean()), size=[round(x, 4) for x in sizes],
                td_error=[round(float(np.mean(errors[k:k + 10])), 4) for k in range(0, updates, 10)])


def tell(row: dict) -> str:
    """Say how the size of Q went."""
    first, last = row["size"][0], row["size"][-1]
    return f"{row['critic']:10} {row['arm']:22} seed {row['seed']}: mean |Q| {first:.2f} to {last:.2f}"


def table(rows: list) -> str:
    """Write means over seeds."""
    lines = []
    for critic, arm in dict.fromkeys((row["critic"], row["arm"]) for row in rows):
        sizes = np.array([row["size"] for row in rows if (row["arm"], row["critic"]) == (arm, critic)])
        last = sizes.shape[1] - 1
        shown = ", ".join(f"{sizes[:, k].mean():.2f} ± {sizes[:, k].std():.2f}" for k in (0, last // 2, last))
        lines.append(f"{critic:10} {arm:22} after 0, {last // 2}, {last} updates: {shown}")
    return "\n".join(lines)


EXPERIMENT = Experiment("tail", "What does an extra layer behind the critic do to the size of Q early in training?",
                        cases, measure, dict(filling=FILLING, updates=UPDATES), seeds=5, tell=tell, conclude=table)
