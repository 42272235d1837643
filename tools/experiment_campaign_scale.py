"""Measure what a campaign costs besides its relaxations: time, memory and bytes a structure, and the planner's share.

The engine of the rows `folder` relaxes nothing: it returns structures as they come, with an energy. What is left is the
campaign's own work. The rows `planner` relax alloys, and part the time between calculator and planner. All times are those
of the processor, so that other work on the machine changes little.
"""
import resource
import time
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from atomrl_nb.campaign import campaign
from atomrl_nb.experiment import Experiment, TimedCalculator
from atomrl_nb.jobs import Ended, JobSettings
from atomrl_nb.ledger import CAMPAIGN, RELAXED, RESULTS, status
from atomrl_nb.comparing import relax
from atomrl_nb.structures import calculator, load, perturb

ATOMS = 8


class Instant(Executor):
    """An engine that has everything done at once."""

    def submit(self, fn, structures, settings):
        """Return the structures as they are."""
        done = Future()
        for atoms in structures:
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.full((len(atoms), 3), 0.01))
        done.set_result([Ended(a.info["source"], "converged", 5, 0.02, -1.0, atoms=a) for a in structures])
        return done


def folder(n, work):
    """Send n structures of eight atoms through a campaign that relaxes nothing."""
    alloys = load("alloys8")
    structures = [perturb(alloys[k % len(alloys)], 0.2, seed=k) for k in range(n)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    campaign(structures, work / "work", JobSettings(policy="none"), executor=Instant())
    spent, waited = time.process_time() - cpu, time.perf_counter() - began
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    cpu = time.process_time()
    campaign(structures, work / "work", JobSettings(policy="none"), executor=Instant())
    again, cpu = time.process_time() - cpu, time.process_time()
    status(work / "work")
    sizes = {name: (work / "work" / name).stat().st_size / n for name in (RESULTS, RELAXED, CAMPAIGN)}
    return dict(ms_each=1000 * spent / n, wall_ms_each=1000 * waited / n, kilobytes_of_memory_each=more / n, bytes_each=sizes,
                files=len(list((work / "work").iterdir())), go_on_seconds=again, status_seconds=time.process_time() - cpu)


def planner(n):
    """Relax alloys with a timed calculator: milliseconds of the planner for each evaluation."""
    alloys = load({4: "alloys4", 8: "alloys8", 32: "cuau32"}[n])
    starts = [perturb(alloys[k % len(alloys)], 0.3, seed=k) for k in range(6)]
    relax(starts[0], calculator("emt"), policy="none", fmax=0.02)  # loads what is loaded once
    timed = TimedCalculator(calculator("emt"))
    cpu = time.process_time()
    evaluations = sum(relax(atoms, timed, policy="none", fmax=0.02).report.force_evaluations for atoms in starts)
    return dict(ms_each=1000 * (time.process_time() - cpu - timed.seconds) / evaluations, evaluations=evaluations)


def cases(seeds: int, quick: bool) -> list:
    """List the sizes."""
    folders = [dict(what="folder", n=n) for n in ((100,) if quick else (100, 1_000, 10_000))]
    return folders + [dict(what="planner", n=n) for n in ((4,) if quick else (4, 8, 32))]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Measure one size."""
    torch.set_num_threads(1)
    place = work / f"folder-{case['n']}"
    if case["what"] == "planner":
        return planner(case["n"])
    place.mkdir(parents=True, exist_ok=True)
    return folder(case["n"], place)


EXPERIMENT = Experiment("campaign_scale", "What does a campaign cost besides its relaxations?", cases, measure,
                        dict(atoms=ATOMS), apart=True)
