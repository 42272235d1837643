"""Kill training runs with SIGKILL, resume them, and hold them against a run that went through.

Kills come at random moments, before a random call that changes files, and in the middle of a file of tensors. Children
are forked off this process, which has loaded everything, so that a kill costs about a second.
"""
import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from atomrl_nb import checkpoints
from atomrl_nb.checkpoints import Table, latest_t_total
from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.networks import NetworkSettings, load_policy
from atomrl_nb.settings import Settings
from atomrl_nb.callbacks import BaseCallback
from atomrl_nb.training import resume, train

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = Settings(structures=("alloys4",), n_envs=4, learning_starts=8, batch_size=8, steps=64, seed=1, checkpoint_interval=12,
                    evaluation_interval=20, evaluation_starts=2, buffer_capacity=60, environment=EnvironmentSettings(max_steps=8),
                    network=NetworkSettings(channels=4, layers=1))
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
            if left[0] < 0: die()
            return function(*args, **kwargs)
        return call

    for name in ("replace", "fsync", "mkdir", "rmdir", "unlink", "rename"): setattr(os, name, counted(getattr(os, name)))


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


def work(run, settings, before=lambda: None):
    """Fork a child that makes the run, or goes on with it; return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child: return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        before()
        if (run / "config.json").exists(): resume(run, progress=False, callbacks=[Progress()])
        else: train(replace(settings, run=str(run)), progress=False, callbacks=[Progress()])
        os._exit(0)
    finally: os._exit(1)


def wait(child):
    """Return how a child ended: 0 well, -9 killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def same(run, whole):
    """Say whether two runs hold the same checkpoint, byte for byte, the same policy and the same rows."""
    folder = f"checkpoints/step_{SETTINGS.steps:08d}"
    files = [f"{folder}/{name}" for name in ("agent.safetensors", "memory.safetensors", "state.json")]
    rows = lambda path: [{k: v for k, v in row.items() if k != "seconds"} for row in Table.rows(path)]
    (a, card), (b, other) = (load_policy(path / "policy.safetensors") for path in (run, whole))
    return (all((run / f).read_bytes() == (whole / f).read_bytes() for f in files)
            and card == other and all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
            and all(rows(run / f"{t}.csv") == rows(whole / f"{t}.csv") for t in ("metrics", "episodes", "evaluations")))


def trial(folder, whole, seconds, kind, rng):
    """Kill one run once, resume it, and report."""
    run, SHARED[:] = folder / "run", bytes(8)
    shutil.rmtree(run, ignore_errors=True)
    n = {"moment": 0, "call": rng.randrange(300), "half a file": rng.randrange(16)}[kind]
    child = work(run, SETTINGS, {"moment": lambda: None, "call": lambda: die_before_call(n), "half a file": lambda: die_in_a_file(n)}[kind])
    if kind == "moment":
        time.sleep(rng.uniform(0.05, 0.95) * seconds)
        os.kill(child, signal.SIGKILL)
    killed, reached, made = wait(child) == -signal.SIGKILL, int.from_bytes(SHARED[:], "little"), (run / "config.json").exists()
    saved = latest_t_total(run) if made else 0
    resumed = wait(work(run, SETTINGS)) == 0
    return dict(kind=kind, killed=killed, t_total=reached, checkpoint=saved if made else None, lost=reached - saved,
                resumed=resumed, exact=resumed and same(run, whole))


def experiment(folder, kills, seed):
    """Do all the trials; return the result as plain JSON values."""
    rng, trials, began = random.Random(seed), [], time.perf_counter()
    whole = train(replace(SETTINGS, run=str(folder / "whole")), progress=False)  # warms this process up, too
    seconds = time.perf_counter() - began
    while len(trials) < kills:
        found = trial(folder, whole, seconds, KINDS[len(trials) % 3], rng)
        if found["killed"]:  # else the run was over before its end came
            trials.append(found)
            print(json.dumps(found), flush=True)
    return dict(checkpoint_interval=SETTINGS.checkpoint_interval, n_envs=SETTINGS.n_envs, steps=SETTINGS.steps, kills=kills,
                resumed=sum(t["resumed"] for t in trials), exact=sum(t["exact"] for t in trials),
                most_lost=max(t["lost"] for t in trials), trials=trials)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 kills, one of each kind, and write no result")
    parser.add_argument("--kills", type=int, default=60, help="how many kills (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=ROOT / "nbs" / "benchmark" / "kills.json", help="result file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch: result = experiment(Path(scratch), 3 if args.quick else args.kills, args.seed)
    if not args.quick: args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['kills']} kills: {result['resumed']} resumed, {result['exact']} exact, at most {result['most_lost']} steps lost")
    sys.exit(result["exact"] < result["kills"])
