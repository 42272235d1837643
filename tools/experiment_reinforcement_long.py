"""Train TD3 alone on alloys with sixty-four times the force calls, and judge it along the way; needs hours.

The run folders stay in the work folder: they can be watched, and are taken up again.
"""
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ase.io import write
from experiment_reinforcement import CAP, CASES, FMAX, TD3, handed_numbers, settings_of

from atomrl_nb.experiment import Experiment
from atomrl_nb.loop import evaluations_of
from atomrl_nb.policies import load_policy, save_policy
from atomrl_nb.structures import calculator
from atomrl_nb.callbacks import BaseCallback
from atomrl_nb.evaluation import card_of
from atomrl_nb.training import resume, train

CASE, CALLS, KEPT = "alloys8", 102_400, (1600, 6400, 25_600, 102_400)


class KeepPolicies(BaseCallback):
    """Save the actor as it is after so many environment steps."""

    def __init__(self, folder: Path, steps: tuple):
        self.folder, self.steps = folder, steps

    def on_step(self, loop):
        """Save, where a number of steps has just been reached."""
        trainer = loop.trainer
        for n in filter(loop.due, self.steps):
            if trainer.t_total < n + trainer.settings.n_envs:
                save_policy(self.folder / f"{n}.safetensors", trainer.agent.actor, card_of(trainer))


def cases(seeds: int, quick: bool) -> list:
    """List the seeds."""
    return [dict(seed=seed) for seed in range(1 if quick else seeds)]


def begin(run: Path, calls: int, seed: int, callbacks: tuple):
    """Begin a long training."""
    case, structures = CASES[CASE], run.with_suffix(".extxyz")
    write(structures, case.training(None))
    settings = settings_of(replace(case, budget=calls), None, calls, seed, **TD3 | dict(actor_lr=3e-3))
    settings = replace(settings, run=str(run), structures=(str(structures),), buffer_capacity=20_000,
                       learning_starts=min(128, calls // 4), checkpoint_interval=min(2000, calls // 2),
                       evaluation_interval=min(8000, calls // 2), evaluation_starts=8)
    train(settings, False, callbacks)


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Train TD3 alone for long in a run folder, or go on with it; then judge what it was like along the way."""
    torch.set_num_threads(1)
    calls, steps, tests = (64, (32, 64), 1) if quick else (CALLS, KEPT, None)
    run, began = work / f"long_{case['seed']}", time.process_time()
    keep = KeepPolicies(work / f"long_{case['seed']}_kept", steps)
    keep.folder.mkdir(exist_ok=True)
    if run.is_dir():
        resume(run, progress=False, callbacks=(keep,))
    else:
        begin(run, calls, case["seed"], (keep,))
    wall = float(pd.read_csv(run / "metrics.csv")["seconds"].iloc[-1])
    cpu, starts = time.process_time() - began, CASES[CASE].starts(None)[:tests]
    return dict(wall=round(wall), cpu=round(cpu), kept=[judged(keep.folder, n, starts) for n in steps])


def judged(folder: Path, steps: int, starts: list) -> dict:
    """Relax the test starts with the policy of some step."""
    policy, counts = load_policy(folder / f"{steps}.safetensors"), {}
    for way, walk in (("one step", 1), ("planned", None)):
        counts[way] = evaluations_of(handed_numbers(policy, walk), starts, lambda: calculator("emt"), FMAX, CAP)
    return dict(steps=steps, calls=policy[1]["force_evaluations"], counts=counts)


def table(rows: list) -> str:
    """Write means over seeds along the way."""
    lines = []
    for kept in zip(*[row["kept"] for row in rows]):
        means = (f"{way} {np.mean([found['counts'][way] for found in kept]):6.2f}" for way in ("one step", "planned"))
        lines.append(f"{kept[0]['steps']:6} steps  " + "  ".join(means))
    return "\n".join(lines)


def tell(row: dict) -> str:
    """Say what a training took."""
    return f"seed {row['seed']}: {row['cpu']} s of CPU time"


EXPERIMENT = Experiment(
    "reinforcement_long", "Does TD3 alone come near imitation, given sixty-four times the force calls?", cases, measure,
    dict(case=CASE, calls=CALLS, kept=KEPT), seeds=3, tell=tell, conclude=table)
