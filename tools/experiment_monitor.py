"""Measure what a dashboard costs the training it looks at; write `nbs/benchmark/monitor.json`.

Pairs of the same training, alone and with a dashboard in a Jupyter kernel, in turn and on the same processor core. Where
others use the machine, wall-clock times of pairs scatter; processor times say what the training and the dashboard took.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[_name] = "1"  # before torch is loaded

import numpy as np
import pandas as pd
from jupyter_client.manager import start_new_kernel

from atomrl_nb.checkpoints import Table, write_text
from atomrl_nb.monitor import Dashboard
from atomrl_nb.learner import METRICS
from atomrl_nb.callbacks import ControlCallback, Loop

ROOT = Path(__file__).resolve().parent.parent
TRAIN = "import sys; sys.argv[0] = 'atomrl-train'; from atomrl_nb.cli import train_main; raise SystemExit(train_main())"
LIMIT = 0.03  # of the training's speed, at most


def asked(client, code: str) -> str:
    """Run code in a kernel and return what it printed."""
    said = []
    hook = lambda message: said.append(message["content"].get("text", "")) if message["msg_type"] == "stream" else None
    reply = client.execute_interactive(code, output_hook=hook, timeout=300)
    if reply["content"]["status"] != "ok": raise RuntimeError("\n".join(reply["content"]["traceback"]))
    return "".join(said).strip()


def train(run: Path, steps: int, seed: int, settings: Path, watched: bool, core: int) -> dict:
    """Train once; return processor seconds of the training, and of the dashboard to begin and then as a share of the core."""
    manager, client = start_new_kernel(cwd=str(ROOT)) if watched else (None, None)
    try:
        if watched:
            os.sched_setaffinity(manager.provisioner.process.pid, {core})
            asked(client, "import time; from atomrl_nb.monitor import monitor; import ipywidgets")
        process = subprocess.Popen([sys.executable, "-c", TRAIN, "alloys4", "--run", str(run), "--steps", str(steps), "--seed", str(seed), "--settings", str(settings)],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
        while not (run / "config.json").exists() and process.poll() is None: time.sleep(0.01)
        before, began, cost = spent(process.pid), time.monotonic(), {}
        if watched:
            cost["begin_cpu_seconds"] = float(asked(client, f"began = time.process_time(); board = monitor({str(run)!r}); board\nprint(time.process_time() - began)"))
            asked(client, "began, since = time.process_time(), time.monotonic()")
        while process.poll() is None and not (run / "checkpoints" / f"step_{steps:08d}").exists(): time.sleep(0.01)
        cpu, wall = spent(process.pid) - before, time.monotonic() - began
        if watched: cost["share"] = float(asked(client, "print((time.process_time() - began) / (time.monotonic() - since))"))
        if process.wait(): raise RuntimeError(f"The training ended with status {process.returncode}.")
        return dict(cpu_seconds=round(cpu, 2), seconds=round(wall, 1)) | {name: round(value, 4) for name, value in cost.items()}
    finally:
        if watched: client.stop_channels(), manager.shutdown_kernel(now=True)


def spent(pid: int) -> float:
    """Read the processor seconds of a process that goes on."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def looks(run: Path, sizes: list) -> dict:
    """Measure the processor time of one whole look at a run of many steps [ms], made long by repeating a short one."""
    metrics, episodes, found = pd.read_csv(run / "metrics.csv"), pd.read_csv(run / "episodes.csv"), {}
    for size in sizes:
        times = -(-size // len(metrics))
        for table, name in ((metrics, "metrics"), (episodes, "episodes")):
            many = pd.concat([table.assign(t_total=table.t_total + k * len(metrics), episode=table.episode + k * len(episodes)) for k in range(times)])
            many[many.t_total <= size].to_csv(run / f"{name}.csv", index=False)
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
    for _ in range(calls): looking.on_step(loop)
    spent = time.process_time() - began
    looking.on_training_end(loop)
    return round(1e6 * spent / calls, 1)


def measure(pairs: int, steps: int, sizes: list, settings: dict) -> dict:
    """Train the pairs, and sum up."""
    found, core = [], sorted(os.sched_getaffinity(0))[-1]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "settings.json")
        file.write_text(json.dumps(settings), encoding="utf-8")
        for seed in range(pairs):
            pair = {}
            for watched in ((False, True), (True, False))[seed % 2]:
                pair["watched" if watched else "alone"] = train(Path(scratch, f"{seed}-{watched}"), steps, seed, file, watched, core)
            assert same(Path(scratch, f"{seed}-False"), Path(scratch, f"{seed}-True"))
            found.append(pair)
            print(json.dumps(pair), flush=True)
        run = Path(scratch, "0-True")
        per_call, per_look = callback(run), looks(run, sizes)
    median = lambda values: round(float(np.median(list(values))), 4)
    share = median(pair["watched"]["share"] for pair in found)
    longer = median(pair["watched"]["cpu_seconds"] / pair["alone"]["cpu_seconds"] - 1 for pair in found)
    return dict(what=f"{pairs} pairs of {steps} steps on alloys4, training and dashboard on one core", pairs=found, limit=LIMIT,
                begin_cpu_seconds=median(pair["watched"]["begin_cpu_seconds"] for pair in found), dashboard_share=share, training_longer_by_cpu_time=longer,
                slower_by_cpu_time=round(max(longer, 0.0) + share, 4), look_for_wishes_microseconds=per_call, look_milliseconds=per_look, machine=platform.machine())


def same(one: Path, other: Path) -> bool:
    """Tell whether two runs have the same rows but for the clock."""
    rows = lambda run: [{name: row[name] for name in METRICS if name != "seconds"} for row in Table.rows(run / "metrics.csv")]
    return rows(one) == rows(other)


def main():
    """Measure, print, and save unless in the quick form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short pair, to see that the command works; writes no result")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of trainings (4)")
    parser.add_argument("--steps", type=int, default=480, help="environment steps of a training (480)")
    args = parser.parse_args()
    small = dict(n_envs=4, learning_starts=8, batch_size=8, evaluation_interval=0, checkpoint_interval=1000, network=dict(channels=4, layers=1))
    result = measure(1, 200, [200], small) if args.quick else measure(args.pairs, args.steps, [1_000, 10_000, 100_000], {})
    print(json.dumps(result, indent=1))
    if not args.quick: write_text(ROOT / "nbs" / "benchmark" / "monitor.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
