"""What does a dashboard cost the training that it looks at?

Pairs of the same training, alone and with a dashboard in a Jupyter kernel, in turn and on the same processor core.
Where others use the machine, wall-clock times of pairs scatter; processor times say what training and dashboard took.
"""
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from jupyter_client.manager import start_new_kernel

from atomrl_nb.checkpoints import Table
from atomrl_nb.experiment import Experiment, one_thread
from atomrl_nb.monitor import Dashboard
from atomrl_nb.learner import METRICS
from atomrl_nb.callbacks import ControlCallback, Loop

ROOT = Path(__file__).resolve().parents[1]
TRAIN = """
import sys
sys.argv[0] = "atomrl-train"
from atomrl_nb.cli import train_main
raise SystemExit(train_main())
"""
BEGIN = """
began = time.process_time()
board = monitor({run!r})
board
print(time.process_time() - began)
"""
STEPS = 480  # environment steps of a training
SIZES = (1_000, 10_000, 100_000)  # steps of runs that are looked at
SMALL = dict(n_envs=4, learning_starts=8, batch_size=8, evaluation_interval=0, checkpoint_interval=1000,
             network=dict(channels=4, layers=1))
LIMIT = 0.03  # of the training's speed, at most


def asked(client, code: str) -> str:
    """Run code in a kernel and return what it printed."""
    said = []

    def hook(message):
        """Keep what is printed."""
        if message["msg_type"] == "stream":
            said.append(message["content"].get("text", ""))

    reply = client.execute_interactive(code, output_hook=hook, timeout=300)
    if reply["content"]["status"] != "ok":
        raise RuntimeError("\n".join(reply["content"]["traceback"]))
    return "".join(said).strip()


def train(run: Path, steps: int, seed: int, settings: Path, watched: bool, core: int) -> dict:
    """Train once: processor seconds of the training, and of the dashboard to begin and then as a share of the core."""
    manager, client = start_new_kernel(cwd=str(ROOT)) if watched else (None, None)
    try:
        if watched:
            os.sched_setaffinity(manager.provisioner.process.pid, {core})
            asked(client, "import time; from atomrl_nb.monitor import monitor; import ipywidgets")
        words = ["alloys4", "--run", run, "--steps", steps, "--seed", seed, "--settings", settings]
        process = subprocess.Popen([sys.executable, "-c", TRAIN, *map(str, words)], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
        while not (run / "config.json").exists() and process.poll() is None:
            time.sleep(0.01)
        before, began, cost = spent(process.pid), time.monotonic(), {}
        if watched:
            cost["begin_cpu_seconds"] = float(asked(client, BEGIN.format(run=str(run))))
            asked(client, "began, since = time.process_time(), time.monotonic()")
        while process.poll() is None and not (run / "checkpoints" / f"step_{steps:08d}").exists():
            time.sleep(0.01)
        cpu, wall = spent(process.pid) - before, time.monotonic() - began
        if watched:
            share = "print((time.process_time() - began) / (time.monotonic() - since))"
            cost["share"] = float(asked(client, share))
        if process.wait():
            raise RuntimeError(f"The training ended with status {process.returncode}.")
        return dict(cpu_seconds=round(cpu, 2), seconds=round(wall, 1)) | {k: round(v, 4) for k, v in cost.items()}
    finally:
        if watched:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


def spent(pid: int) -> float:
    """Read the processor seconds of a process that goes on."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def lengthened(run: Path, size: int, metrics: pd.DataFrame, episodes: pd.DataFrame):
    """Write the tables of a run of many steps, made long by repeating a short one."""
    times = -(-size // len(metrics))
    for table, name in ((metrics, "metrics"), (episodes, "episodes")):
        copies = [table.assign(t_total=table.t_total + k * len(metrics), episode=table.episode + k * len(episodes))
                  for k in range(times)]
        many = pd.concat(copies)
        many[many.t_total <= size].to_csv(run / f"{name}.csv", index=False)


def looks(run: Path, sizes: tuple) -> dict:
    """Measure the processor time of one whole look, and of a glance, at a run of many steps [ms]."""
    metrics, episodes, found = pd.read_csv(run / "metrics.csv"), pd.read_csv(run / "episodes.csv"), {}
    for size in sizes:
        lengthened(run, size, metrics, episodes)
        board = Dashboard(run)
        spent = []
        for everything in (True, False) * 3:
            began = time.process_time()
            board.rest_until = float("inf")  # a glance only
            board.look(everything=everything)
            spent.append(1000 * (time.process_time() - began))
        found[str(size)] = dict(panels=round(min(spent[::2]), 1), glance=round(min(spent[1::2]), 2))
    return found


def callback(run: Path, calls: int = 2000) -> float:
    """Measure the processor time that the trainer takes after each round to look for wishes [µs]."""
    from types import SimpleNamespace
    trainer = SimpleNamespace(t_total=1, held={}, hold=lambda held: setattr(trainer, "held", held))
    looking, loop = ControlCallback(), Loop(trainer, run, {})
    looking.on_training_start(loop)
    began = time.process_time()
    for _ in range(calls):
        looking.on_step(loop)
    spent = time.process_time() - began
    looking.on_training_end(loop)
    return round(1e6 * spent / calls, 1)


def same(one: Path, other: Path) -> bool:
    """Tell whether two runs have the same rows but for the clock."""
    rows = lambda run: [{name: row[name] for name in METRICS if name != "seconds"}
                        for row in Table.rows(run / "metrics.csv")]
    return rows(one) == rows(other)


def cases(seeds: int, quick: bool) -> list:
    """List the pairs."""
    return [dict(seed=seed) for seed in range(1 if quick else seeds)]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Train a pair, in turn alone or watched first; the first pair is looked at, too."""
    seed, core = case["seed"], sorted(os.sched_getaffinity(0))[-1]
    steps, sizes = (200, (200,)) if quick else (STEPS, SIZES)
    file = work / "settings.json"
    file.write_text(json.dumps(SMALL if quick else {}), encoding="utf-8")
    runs, row = {watched: work / f"{seed}-{watched}" for watched in (False, True)}, {}
    for watched in ((False, True), (True, False))[seed % 2]:
        shutil.rmtree(runs[watched], ignore_errors=True)  # of a training that was killed
        with one_thread():
            row["watched" if watched else "alone"] = train(runs[watched], steps, seed, file, watched, core)
    assert same(*runs.values())
    if seed == 0:
        row |= dict(look_for_wishes_microseconds=callback(runs[True]), look_milliseconds=looks(runs[True], sizes))
    return row


def summary(rows: list) -> dict:
    """Take medians over pairs."""
    median = lambda values: round(float(np.median(list(values))), 4)
    share = median(row["watched"]["share"] for row in rows)
    longer = median(row["watched"]["cpu_seconds"] / row["alone"]["cpu_seconds"] - 1 for row in rows)
    looked = [row for row in rows if "look_milliseconds" in row][:1]
    once = {name: row[name] for row in looked for name in ("look_for_wishes_microseconds", "look_milliseconds")}
    return dict(what=f"{len(rows)} pairs of {STEPS} steps on alloys4, training and dashboard on one core",
                begin_cpu_seconds=median(row["watched"]["begin_cpu_seconds"] for row in rows), dashboard_share=share,
                training_longer_by_cpu_time=longer, slower_by_cpu_time=round(max(longer, 0.0) + share, 4), **once)


EXPERIMENT = Experiment(
    "monitor", "What does a dashboard cost the training that it looks at?", cases, measure, dict(limit=LIMIT),
    seeds=4, summary=summary, conclude=lambda rows: json.dumps(summary(rows), indent=1), rows="pairs")
