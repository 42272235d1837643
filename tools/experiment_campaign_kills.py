"""Kill campaigns and their workers with SIGKILL, go on, and hold the folder against one that was never killed.

A kill comes a random moment after a random number of results. After each one the folder is read: every line that was there
before must still be there, no structure may have two, and every number must be that of the campaign that was not killed. At
the end the same campaign finishes the work, and relaxes again what killed workers have cost. The first chain of kills meets
the command `atomrl-relax --work DIR --workers 2`; in the others the campaign is forked off this process, which has loaded
everything.
"""
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from ase.io import read, write

from atomrl_nb.campaign import campaign, read_starts
from atomrl_nb.experiment import Experiment
from atomrl_nb.jobs import JobSettings
from atomrl_nb.ledger import RELAXED, RESULTS, read_lines
from atomrl_nb.structures import load, perturb
from atomrl_nb.workers import Workers

KILLS, STRUCTURES, BAD, WORKERS = 5, 24, 2, 2  # kills in a chain; structures, the bad ones in them, processes
OPTIONS = dict(fmax=0.01, policy="none")
COMMAND = "import sys; from atomrl_nb.cli import relax_main; sys.exit(relax_main())"


def make_structures(folder, n=STRUCTURES):
    """Write alloys, one a file, the first two of them bad: a file that holds no atoms, and two atoms in one place."""
    folder.mkdir(parents=True)
    for k, atoms in enumerate(load("fcc-alloys")[:n]):
        write(folder / f"{k:04}.extxyz", perturb(atoms, 0.3, seed=k))
    (folder / "0000.extxyz").write_text("no atoms\n")
    torn = read(folder / "0001.extxyz")
    torn.positions[1] = torn.positions[0]
    write(folder / "0001.extxyz", torn)


def start_command(structures, work):
    """Start the command in a process of its own; return its process id."""
    options = ["--policy", OPTIONS["policy"], "--fmax", str(OPTIONS["fmax"]), "--workers", str(WORKERS), "--quiet"]
    command = [sys.executable, "-c", COMMAND, str(structures), "--work", str(work), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid


def start_fork(structures, work):
    """Fork a child that relaxes in two threads; return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            now = campaign(read_starts([structures]), work, JobSettings(**OPTIONS), executor=pool)
        os._exit(int(now.counts["failed"] > 0))
    finally:
        os._exit(3)


def ended(pid):
    """Wait for the end of a child; return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def children(pid):
    """List the processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            pass  # it has just ended
    return found


def alive(pid):
    """Tell whether a process goes on; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(work, n, goes_on):
    """Wait until a campaign has so many results, or is over."""
    while len(read_lines(work).rows) < n and goes_on():
        time.sleep(0.01)


def fate(row):
    """Take from a line what does not depend on clocks and kills."""
    return row.id, row.state, row.evaluations, row.fmax, row.energy, row.reason


def look(work, before, whole, pardoned=()):
    """Count what a kill has lost, doubled or changed; `pardoned` members were relaxed twice on request."""
    lines = read_lines(work)
    rows, torn = lines.rows, (work / RESULTS).stat().st_size - lines.whole if (work / RESULTS).exists() else 0
    ids = [row.id for row in rows if row.id not in pardoned]
    wrong = [row for row in rows if fate(row) != whole[row.id] and "SIGKILL" not in row.reason]
    return dict(lost=sum(row not in rows for row in before), doubled=len(ids) - len(set(ids)), wrong=len(wrong),
                torn=int(torn > 0)), rows


def ends_agree(work, other):
    """Say whether two folders hold the same structures at their ends, each once."""
    mine, theirs = ({atoms.info["id"]: atoms for atoms in read(folder / RELAXED, ":")} for folder in (work, other))
    once = len(mine) == len(read(work / RELAXED, ":"))
    return once and mine.keys() == theirs.keys() and all(np.array_equal(mine[k].positions, theirs[k].positions) for k in mine)


@lru_cache(maxsize=1)
def whole_campaign(folder):
    """Relax everything in this process, without a kill: structures, folder, and what became of each."""
    shutil.rmtree(folder, ignore_errors=True)
    make_structures(folder / "structures")
    with ThreadPoolExecutor(1) as pool:
        campaign(read_starts([folder / "structures"]), folder / "work", JobSettings(**OPTIONS), executor=pool)
    return folder / "structures", folder / "work", {row.id: fate(row) for row in read_lines(folder / "work").rows}


def kill_campaigns(structures, work, whole, kills, rng, start):
    """Kill a campaign again and again, each time after it has gone on; return what each kill has cost."""
    found, rows = [], []
    for _ in range(kills):
        pid = start(structures, work)
        wait_for(work, len(rows) + rng.randint(1, 4), lambda: alive(pid))
        time.sleep(rng.uniform(0, 0.2))
        workers = children(pid)
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        time.sleep(1 if workers else 0)
        cost, rows = look(work, rows, whole)
        found.append(cost | dict(orphans=sum(map(alive, workers))))
    return found, ended(start(structures, work))


def kill_workers(structures, work, whole, kills, rng):
    """Kill workers of one campaign, then relax again what that has cost: members that were cut short, and how often."""
    starts, settings, killed = read_starts([structures]), JobSettings(**OPTIONS), [0]
    with Workers(WORKERS, deaths=1) as workers:
        over, rows = threading.Event(), []
        def kill():
            while killed[0] < kills and not over.is_set():
                wait_for(work, len(read_lines(work).rows) + rng.randint(1, 3), lambda: not over.is_set())
                time.sleep(rng.uniform(0, 0.2))
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(workers.processes).pid, signal.SIGKILL)
                    killed[0] += not over.is_set()
        killer = threading.Thread(target=kill)
        killer.start()
        campaign(starts, work, settings, executor=workers)
        over.set()
        killer.join()
        cost, rows = look(work, [], whole)
        again = {row.id for row in rows if row.state == "failed"}
        now = campaign(starts, work, settings, executor=workers, retry=True)
    cost |= dict(orphans=0, failed_by_kill=sum("SIGKILL" in row.reason for row in rows))
    return [cost], int(now.counts["failed"] > 0), again, killed[0]


def cases(seeds: int, quick: bool) -> list:
    """List the chains of kills."""
    return [dict(what=what, chain=k) for what in ("campaign", "worker") for k in range(1 if quick else seeds)]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Kill again and again, and hold the end against that of a campaign that was not killed."""
    folder = work / str(os.getpid())
    structures, other, whole = whole_campaign(folder / "whole")
    mine, rng = folder / f"{case['what']}-{case['chain']}", random.Random(case["chain"])
    shutil.rmtree(mine, ignore_errors=True)
    kills, again = 1 if quick else KILLS, ()
    if case["what"] == "campaign":
        begin = start_command if case["chain"] == 0 and not quick else start_fork
        found, code = kill_campaigns(structures, mine, whole, kills, rng, begin)
    else:
        found, code, again, kills = kill_workers(structures, mine, whole, kills, rng)
    last, rows = look(mine, [], whole, again)
    newest = {row.id: fate(row) for row in rows}
    total = {name: sum(cost[name] for cost in [*found, last | dict(orphans=0)])
             for name in ("lost", "doubled", "wrong", "torn", "orphans")}
    more = {name: found[0][name] for name in ("failed_by_kill",) if name in found[0]}
    return dict(kills=kills, **total, **more, exit_code=code, finished=newest == whole, same_ends=ends_agree(mine, other))


def summary(rows: list) -> dict:
    """Add up the kills, and what came of them."""
    names = ("kills", "lost", "doubled", "wrong", "torn", "orphans")
    each = {what: {name: sum(row[name] for row in rows if row["what"] == what) for name in names}
            for what in ("campaign", "worker")}
    return each | dict(failed_by_kill=sum(row.get("failed_by_kill", 0) for row in rows),
                       finished=sum(row["finished"] and row["same_ends"] for row in rows))


def conclude(rows: list) -> str:
    """Say it in a line."""
    found = summary(rows)
    said = [f"{found[what]['kills']} kills of {what}s: {found[what]['lost']} results lost, {found[what]['doubled']} doubled, "
            f"{found[what]['wrong']} wrong" for what in ("campaign", "worker")]
    return "\n".join([*said, f"{found['finished']} of {len(rows)} campaigns ended as the one that was not killed"])


EXPERIMENT = Experiment(
    "campaign_kills", "Does a campaign lose, double or tear a result where it or a worker is killed?", cases, measure,
    dict(structures=STRUCTURES, bad=BAD, workers=WORKERS, **OPTIONS), seeds=4, summary=summary, conclude=conclude,
    rows="chains")
