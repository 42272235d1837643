"""Relax a thousand random alloys with EMT in one process: structures a second, evaluations, own time; ASE beside it.

With asap3 installed, the same with its EMT. Lennard-Jones clusters are relaxed besides, with torch-sim's batched
optimizers where the variable TORCH_SIM_PYTHON names an interpreter that has torch-sim.
"""
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from ase.optimize import BFGS, FIRE, LBFGS, BFGSLineSearch

from atomrl_nb.experiment import Experiment, TimedCalculator
from atomrl_nb.learned import actor_planner, propose_moves
from atomrl_nb.networks import Actor
from atomrl_nb.optimizer import RelaxMany, team_moves
from atomrl_nb.structures import KINDS, calculator, fcc_alloy, perturb, random_alloy, random_cluster
from atomrl_nb.trust import evaluated

FMAX, CAP, PART = 0.05, 500, 100  # structures of a part: ten of them are a thousand
OURS = {"RelaxMany": "auto", "RelaxMany, nothing known": "none"}
ASE = {"BFGS": BFGS, "LBFGS": LBFGS, "BFGSLineSearch": BFGSLineSearch, "FIRE": FIRE}
TORCH_SIM = {"torch-sim FIRE": "fire", "torch-sim LBFGS": "lbfgs"}
REACH = 25.0  # sigma: cutoff of the Lennard-Jones energy, beyond every pair of a cluster
POTENTIALS = {"relax": "emt", "lj": f"lj:rc={REACH}"}  # what is relaxed -> its calculator
FEWER = {"asap": 2, "lj": 1, "RelaxMany, nothing known": 2}  # parts of what needs no thousand structures
BATCHES = {"64 x 8 atoms": (64, (2, 1, 1)), "4 x 108 atoms": (4, (3, 3, 3))}


def torch_sim_python() -> str:
    """Name an interpreter that has torch-sim; empty where there is none."""
    return os.environ.get("TORCH_SIM_PYTHON", sys.executable if importlib.util.find_spec("torch_sim") else "")


def potentials() -> dict:
    """List what is relaxed, and by which methods; say what is left out, and why."""
    found = {"relax": (*OURS, *ASE), "asap": ("RelaxMany", *ASE), "lj": ("RelaxMany", *ASE, *TORCH_SIM)}
    if importlib.util.find_spec("asap3") is None:
        del found["asap"]
        print("asap3 is not installed, so its EMT is left out: pip install asap3", file=sys.stderr)
    if not torch_sim_python():
        found["lj"] = ("RelaxMany", *ASE)
        print("torch-sim is left out: name an interpreter that has it with TORCH_SIM_PYTHON", file=sys.stderr)
    return found


def cases(seeds: int, quick: bool) -> list:
    """List methods and parts, and the batches that a network is asked for."""
    if quick: methods = {"relax": ("RelaxMany, nothing known", "BFGS"), "lj": ("RelaxMany", "BFGS")}
    else: methods = potentials()
    if quick: seeds = 1
    parts = {name: min(seeds, most) for name, most in FEWER.items()}
    found = [dict(what=what, method=method, seed=seed) for what in methods for seed in range(seeds)
             for method in methods[what] if seed < min(parts.get(what, seeds), parts.get(method, seeds))]
    return found + [dict(what="propose", method=name, seed=seed) for seed in range(min(seeds, 2))
                    for name in (() if quick else BATCHES)]


def starts(seed: int, count: int) -> list:
    """Make random alloys of 4 to 16 atoms, displaced by up to 0.2 Å."""
    rng = np.random.default_rng([61, seed])
    return [perturb(random_alloy(KINDS[k % len(KINDS)], rng), 0.2, rng) for k in range(count)]


def clusters(seed: int, count: int) -> list:
    """Make compact clusters of 8 to 20 atoms at random places."""
    rng = np.random.default_rng([64, seed])
    return [random_cluster(int(rng.integers(8, 21)), rng) for _ in range(count)]


def by_torch_sim(optimizer: str, structures: list) -> dict:
    """Relax clusters with one of torch-sim's optimizers, in one batch, in the interpreter that has it."""
    task = dict(optimizer=optimizer, fmax=FMAX, cap=CAP, cutoff=REACH,
                positions=[atoms.positions.tolist() for atoms in structures])
    script = Path(__file__).with_name("torch_sim_lj.py")
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([torch_sim_python(), str(script)], input=json.dumps(task), env=plain, text=True,
                          check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    return dict(structures=len(structures), converged=sum(force < FMAX for force in found["largest"]),
                seconds=round(found["seconds"], 2), evaluations=found["asked"], torch_sim=found["torch_sim"],
                energies=[round(energy, 4) for energy in found["energies"]])


def relaxed(method: str, structures: list) -> list:
    """Relax structures in place: whether each has converged."""
    if method in OURS:
        return RelaxMany(structures, OURS[method]).run(FMAX, CAP)
    return [bool(ASE[method](atoms, logfile=None).run(FMAX, CAP)) for atoms in structures]


def proposed(name: str, seed: int) -> dict:
    """Ask an actor for moves, in parts as `RelaxMany` does and one by one: CPU time a structure [ms]."""
    count, repeat = BATCHES[name]
    rng, actor, team = np.random.default_rng([62, seed]), Actor(), {}
    for k in range(count):
        atoms = perturb(fcc_alloy(("Cu", "Au"), repeat, rng), 0.2, rng)
        atoms.calc = calculator("emt")
        planner = actor_planner(atoms, actor, {})
        planner.note(evaluated(atoms))
        team[k] = SimpleNamespace(planner=planner, fmax=FMAX, atoms=atoms)

    def alone():
        for planned in team.values():
            propose_moves([planned.planner], FMAX)

    def together():
        found = team_moves(team)
        for k, planned in team.items():
            if k not in found:
                propose_moves([planned.planner], FMAX)

    sides, times = dict(together=together, alone=alone), {}
    for _ in range(6):
        for side, do in sides.items():
            began = time.process_time()
            do()
            times.setdefault(side, []).append(1000 * (time.process_time() - began) / count)
    return {side: round(float(np.median(spent[1:])), 3) for side, spent in times.items()}


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Take one part with one method; times are of the process, so that others on the machine count little."""
    torch.set_num_threads(1)
    if case["what"] == "propose":
        return proposed(case["method"], case["seed"])
    make, count = clusters if case["what"] == "lj" else starts, 4 if quick else PART
    if case["method"] in TORCH_SIM: return by_torch_sim(TORCH_SIM[case["method"]], make(case["seed"], count))
    relaxed(case["method"], prepared(make(99, 2), case["what"]))  # the first call is slow
    structures = prepared(make(case["seed"], count), case["what"])
    began = time.process_time()
    converged = relaxed(case["method"], structures)
    spent, evaluating = time.process_time() - began, sum(atoms.calc.seconds for atoms in structures)
    return dict(structures=len(structures), converged=sum(converged), seconds=round(spent, 2),
                own=round(spent - evaluating, 2), evaluations=[atoms.calc.evaluations for atoms in structures],
                energies=[round(atoms.calc.results.get("energy", np.nan), 4) for atoms in structures])


def prepared(structures: list, what: str) -> list:
    """Give each structure a calculator that measures its time."""
    for atoms in structures:
        atoms.calc = TimedCalculator(asap() if what == "asap" else calculator(POTENTIALS[what]))
    return structures


def asap():
    """Make asap3's EMT."""
    from asap3 import EMT
    return EMT()


def tell(row: dict) -> str:
    """Say what a part took."""
    if row["what"] == "propose":
        return f"{row['method']}: {row['together']:.2f} ms a structure together, {row['alone']:.2f} one by one"
    each, n = np.sum(row["evaluations"]) / row["structures"], row["structures"]
    speed = f"{row['what']:5} {row['method']:25} {n / row['seconds']:6.1f} structures/s, {each:5.1f} evaluations"
    if "own" not in row: return f"{speed}, {row['converged']}/{n} converged"
    slow = 1000 * row["own"] / n + 5 * each
    own = f"own {1000 * row['own'] / n:6.1f} ms, {slow:6.1f} ms with a call of 5 ms"
    return f"{speed}, {own}, {row['converged']}/{n} converged"


EXPERIMENT = Experiment("throughput", "How many small structures are relaxed in a second of one core?", cases, measure,
                        dict(fmax=FMAX, cap=CAP, part=PART), ("fcc-alloys", "lj-clusters", "universal"), seeds=10,
                        tell=tell, apart=True)
