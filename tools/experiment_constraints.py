"""Train agents among walls: dense starts and starts inside the wall, two rules, penalty and shaping off and on."""
import itertools
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from atomrl_nb.environment import Environment, EnvironmentSettings
from atomrl_nb.experiment import Experiment
from atomrl_nb.expert import ExpertSettings
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.neighbours import closest_pair
from atomrl_nb.structures import calculator, load, perturb
from atomrl_nb.td3 import TD3Settings
from atomrl_nb.settings import Settings
from atomrl_nb.learner import Trainer

SYSTEM, R0 = "cuau4", 2.0  # Å: neighbours in this crystal at rest are 2.7 Å apart; compressed, they come near the wall
RULES = {"original": "reference", "ours": "structure"}
LAMBDA = 10.0  # 1/Å², where the penalty is on
STEPS, TEST_STARTS = 1000, 32
STALLED = 1e-3  # Å: a start that fails with a mean last move shorter than this stands at a wall
MEASURES = ("evaluations", "failed", "stalled", "fmax", "move", "corrected", "a_back",
            "training_move", "training_corrected")
STARTS = {"dense": (0.1, 1.0, 1.2), "inside": (0.3, 0.9, 0.9)}  # amplitude [Å], closest pair over R0: from, to


def cases(seeds: int, quick: bool) -> list:
    """List all combinations of start, rule, penalty and shaping for each seed."""
    arms = list(itertools.product(RULES, (0.0, LAMBDA), (False, True)))[::7 if quick else 1]
    return [dict(start=start, rule=rule, deviation_weight=weight, shaping=shaping, seed=seed)
            for seed in range(1 if quick else seeds) for start in STARTS for rule, weight, shaping in arms]


def compressed(atoms: Atoms, amplitude: float, low: float, high: float, rng) -> Atoms:
    """Displace the atoms and scale the cell until the closest pair is `low` to `high` times R0 apart.

    Drawn anew until the crystal at rest in that cell keeps clear of the wall, so that every start can be relaxed.
    """
    while True:
        start = perturb(atoms, amplitude, rng)
        factor = rng.uniform(low, high) * R0 / closest_pair(start, 6.0)[0]
        start.set_cell(factor * np.asarray(start.cell), scale_atoms=True)
        if factor * closest_pair(atoms, 6.0)[0] > 1.05 * R0:
            return start


def starts(kind: str, n: int, seed: list) -> list:
    """Make `n` starts of one kind, each in a cell of its own."""
    rng, (crystal,) = np.random.default_rng(seed), load(SYSTEM)
    return [compressed(crystal, *STARTS[kind], rng) for _ in range(n)]


def settings_of(rule: str, weight: float, shaping: bool, seed: int, steps: int) -> Settings:
    """Set up one run; nothing but the arm and the seed differs."""
    environment = EnvironmentSettings(perturb=0.0, r0=R0, correction_mode=RULES[rule], fmax=0.05,
                                      correction_weight=0.5 if shaping else 0.0)
    return Settings(steps=steps, seed=seed, device="cpu", n_envs=8, batch_size=32, learning_starts=128,
                    buffer_capacity=2000, network=NetworkSettings(channels=8, layers=1), environment=environment,
                    expert=ExpertSettings(schedule_steps=500), td3=TD3Settings(deviation_weight=weight))


@torch.no_grad()
def test(trainer: Trainer, atoms: list) -> list:
    """Relax starts never trained on with the actor alone: a row of what happened for each."""
    environments = [Environment(trainer.structures, calculator("emt"), trainer.settings.environment) for _ in atoms]
    for env, start in zip(environments, atoms):
        env.reset(options={"atoms": start})
    active, rows = list(range(len(atoms))), [dict(moves=[], a_back=[], failed=True) for _ in atoms]
    while active:
        graph = trainer.observe([environments[k] for k in active])
        moves = trainer.agent.actor(graph).double().numpy()
        for place, k in list(enumerate(active)):
            _, _, terminated, truncated, info = environments[k].step(moves[graph.batch.numpy() == place])
            rows[k]["moves"].append(float(np.linalg.norm(info["displacement"], axis=1).mean()))
            rows[k]["a_back"].append(info["a_back"])
            rows[k] |= dict(failed=not terminated, fmax=info["fmax"], evaluations=info["force_evaluations"])
            if terminated or truncated:
                active.remove(k)
    return rows


def averages(rows: list, training: list) -> dict:
    """Average a run's test and the second half of its training."""
    flat = {name: np.concatenate([row[name] for row in rows]) for name in ("moves", "a_back")}
    late = training[len(training) // 2:]
    return dict(evaluations=np.mean([row["evaluations"] for row in rows]),
                failed=np.mean([row["failed"] for row in rows]),
                stalled=np.mean([row["failed"] and np.mean(row["moves"][-5:]) < STALLED for row in rows]),
                fmax=np.median([row["fmax"] for row in rows]), move=flat["moves"].mean(),
                corrected=(flat["a_back"] > 0).mean(), a_back=flat["a_back"].mean(),
                training_move=np.mean([row["actual_move"] for row in late]),
                training_corrected=np.mean([row["a_back"] > 0 for row in late]))


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Train and test one arm with one seed."""
    torch.set_num_threads(1)
    steps, tests = (48, 4) if quick else (STEPS, TEST_STARTS)
    began, rows = time.process_time(), []
    settings = settings_of(case["rule"], case["deviation_weight"], case["shaping"], case["seed"], steps)
    trainer = Trainer(settings, starts(case["start"], 64, [case["seed"], 0]))
    trainer.begin()
    while trainer.t_total < steps:
        rows += trainer.round()[0]
    found = averages(test(trainer, starts(case["start"], tests, [case["seed"], 1])), rows)
    return {k: round(float(v), 5) for k, v in found.items()} | dict(cpu_seconds=round(time.process_time() - began, 1))


def table(rows: list) -> str:
    """Write the means over seeds."""
    names = ("start", "rule", "deviation_weight", "shaping")
    key = lambda row: tuple(row[name] for name in names)
    measures = "".join(f"{name:>19}" for name in MEASURES)
    lines = [f"{'start':6} {'rule':14} {'lambda':>6} {'shaping':>8} {'seeds':>5}{measures}"]
    for (start, rule, weight, shaping), group in itertools.groupby(sorted(rows, key=key), key):
        group = list(group)
        means = "".join(f"{np.mean([row[m] for row in group]):19.3f}" for m in MEASURES)
        lines.append(f"{start:6} {rule:14} {weight:6g} {str(shaping):>8} {len(group):5}" + means)
    return "\n".join(lines)


EXPERIMENT = Experiment(
    "constraints", "Do penalty and shaping help among walls, and is there an illness without them?", cases, measure,
    dict(system=SYSTEM, r0=R0, steps=STEPS, test_starts=TEST_STARTS, max_steps=EnvironmentSettings().max_steps,
         stalled=STALLED, settings=asdict(settings_of("ours", LAMBDA, True, 0, STEPS))),
    seeds=5, conclude=table, rows="runs")
