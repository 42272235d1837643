"""Kill training runs with SIGKILL, resume them, and hold them against a run that went through.

Kills come at random moments, before a random call that changes files, and in the middle of a file of tensors. Children
are forked off this process, which has loaded everything, so that a kill costs about a second.
"""
import mmap
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from atomrl_nb import checkpoints
from atomrl_nb.checkpoints import Table, latest_t_total
from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.experiment import Experiment
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.policies import load_policy
from atomrl_nb.settings import Settings
from atomrl_nb.callbacks import BaseCallback
from atomrl_nb.training import resume, train

SETTINGS = Settings(structures=("alloys4",), n_envs=4, learning_starts=8, batch_size=8, steps=64, seed=1,
                    checkpoint_interval=12, evaluation_interval=20, evaluation_starts=2, buffer_capacity=60,
                    environment=EnvironmentSettings(max_steps=8), network=NetworkSettings(channels=4, layers=1))
KINDS = ("moment", "call", "half a file")
SHARED = mmap.mmap(-1, 8)  # the child's `t_total`, which the parent reads after the kill


def die(*_args, **_kwargs):
    """End this process as a kill from outside does: nothing is flushed, nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


class Progress(BaseCallback):
    """Tell the parent how far the run is, before anything of this round is saved."""

    def on_step(self, loop):
        SHARED[:] = loop.trainer.t_total.to_bytes(8, "little")


def die_before_call(n):
    """Make the `n`-th call that changes files the last thing this process comes to."""
    left = [n]

    def counted(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                die()
            return function(*args, **kwargs)
        return call

    for name in ("replace", "fsync", "mkdir", "rmdir", "unlink", "rename"):
        setattr(os, name, counted(getattr(os, name)))


def die_in_a_file(n):
    """Write half of the `n`-th file of tensors, then die."""
    left, whole = [n], checkpoints.save_file

    def half(tensors, path, *args):
        whole(tensors, path, *args)
        left[0] -= 1
        if left[0] < 0:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    checkpoints.save_file = half


def start(run, settings, before=lambda: None):
    """Fork a child that makes the run, or goes on with it; return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        before()
        if (run / "config.json").exists():
            resume(run, progress=False, callbacks=[Progress()])
        else:
            train(replace(settings, run=str(run)), progress=False, callbacks=[Progress()])
        os._exit(0)
    finally:
        os._exit(1)


def wait(child):
    """Return how a child ended: 0 well, -9 killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def same(run, whole):
    """Say whether two runs hold the same checkpoint, byte for byte, the same policy and the same rows."""
    folder = f"checkpoints/step_{SETTINGS.steps:08d}"
    files = [f"{folder}/{name}" for name in ("agent.safetensors", "memory.safetensors", "state.json")]
    rows = lambda path: [{k: v for k, v in row.items() if k != "seconds"} for row in Table.rows(path)]
    (a, card), (b, other) = (load_policy(path / "policy.safetensors") for path in (run, whole))
    tables = [f"{name}.csv" for name in ("metrics", "episodes", "evaluations")]
    return (all((run / f).read_bytes() == (whole / f).read_bytes() for f in files) and card == other
            and all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
            and all(rows(run / table) == rows(whole / table) for table in tables))


def trial(folder, whole, seconds, kind, rng):
    """Kill one run once, resume it, and report."""
    run, SHARED[:] = folder / "run", bytes(8)
    shutil.rmtree(run, ignore_errors=True)
    n = {"moment": 0, "call": rng.randrange(300), "half a file": rng.randrange(16)}[kind]
    before = {"moment": lambda: None, "call": lambda: die_before_call(n), "half a file": lambda: die_in_a_file(n)}[kind]
    child = start(run, SETTINGS, before)
    if kind == "moment":
        time.sleep(rng.uniform(0.05, 0.95) * seconds)
        os.kill(child, signal.SIGKILL)
    killed, made = wait(child) == -signal.SIGKILL, (run / "config.json").exists()
    reached, saved = int.from_bytes(SHARED[:], "little"), latest_t_total(run) if made else 0
    resumed = wait(start(run, SETTINGS)) == 0
    return dict(killed=killed, t_total=reached, checkpoint=saved if made else None, lost=reached - saved,
                resumed=resumed, exact=resumed and same(run, whole))


@lru_cache(maxsize=1)
def whole_run(folder):
    """Train through once in this process, which it warms up, too: the run, and its seconds."""
    began = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    return train(replace(SETTINGS, run=str(folder)), progress=False), time.perf_counter() - began


def cases(seeds: int, quick: bool) -> list:
    """List the kills, which take turns in their kinds."""
    return [dict(trial=k, kind=KINDS[k % 3]) for k in range(3 if quick else seeds)]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Kill once; where the run was over before its end came, again."""
    torch.set_num_threads(1)
    folder = work / str(os.getpid())
    folder.mkdir(exist_ok=True)
    whole, seconds = whole_run(folder / "whole")
    rng = random.Random(case["trial"])
    while not (found := trial(folder, whole, seconds, case["kind"], rng))["killed"]:
        pass
    return found


def summary(rows: list) -> dict:
    """Count the kills, and what came of them."""
    return dict(kills=len(rows), resumed=sum(row["resumed"] for row in rows), exact=sum(row["exact"] for row in rows),
                most_lost=max(row["lost"] for row in rows))


def conclude(rows: list) -> str:
    """Say it in a line."""
    found = summary(rows)
    return (f"{found['kills']} kills: {found['resumed']} resumed, {found['exact']} exact, "
            f"at most {found['most_lost']} steps lost")


EXPERIMENT = Experiment(
    "kills", "Is a run that was killed resumed exactly?", cases, measure,
    dict(checkpoint_interval=SETTINGS.checkpoint_interval, n_envs=SETTINGS.n_envs, steps=SETTINGS.steps),
    seeds=30, summary=summary, conclude=conclude, rows="trials")
