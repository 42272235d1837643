"""Fit energies to 24 old relaxations and relax structures that were not among them: pairs and densities, angles, embedded atoms."""
import hashlib
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.optimize import BFGS

from atomrl_nb.experiment import Experiment
from atomrl_nb.fit import FitSettings, fit
from atomrl_nb.frames import Sampler, trajectories_of
from atomrl_nb.graphs import AtomGraph
from atomrl_nb.learned import find_policy, shipped_policies
from atomrl_nb.networks import Actor, NetworkSettings
from atomrl_nb.comparing import relax
from atomrl_nb.policies import Policy
from atomrl_nb.potential import Moved
from atomrl_nb.starts import CRYSTALS, g2_names
from atomrl_nb.structures import calculator
from atomrl_nb.td3 import relative_error

OLD, NEW, FMAX, CAP = 24, 6, 0.05, 100  # relaxations to learn from, starts to test on
SPECS = {"molecules": "gfn2", "SrTiO3": "chgnet", "silicon": "sevennet", "alloys": "emt"}
LEARNT = {"pairs and densities": 0, "and angles": 4}  # arm -> directed densities of a local energy
RIVALS = ("none", "BFGSTuned", "BFGSLineSearch")
UNTAUGHT = ("SrTiO3",)  # systems whose elements `universal` was not taught together
ARMS = (*LEARNT, "embedded atoms", "universal", "universal, fitted on", *RIVALS)
UPDATES = {"local": 400, "embedded atoms": 1000, "universal, fitted on": 300}


def cases(seeds: int, quick: bool) -> list:
    """List systems, arms and seeds; `universal` only where it has not seen such structures."""

    def fair(system, arm):
        return not arm.startswith("universal") or system in UNTAUGHT and "universal" in shipped_policies()

    return [dict(system=system, arm=arm, seed=seed) for system in (["alloys"] if quick else SPECS)
            for seed in range(1 if quick else seeds)
            for arm in (["embedded atoms", "and angles", "none"] if quick else ARMS) if fair(system, arm)]


def start(system: str, seed: int, k: int):
    """Make a start; those of one seed differ in composition, defects and displacements."""
    rng = np.random.default_rng([31, seed, k, *system.encode()])
    if system == "molecules":
        names = [n for n in g2_names() if set(molecule(n).symbols) <= set("HCNO") and len(molecule(n)) > 3]
        names = np.random.default_rng([32, seed]).permutation(names)  # none twice
        atoms, width = molecule(names[k]), 0.12
        atoms.set_initial_magnetic_moments(None)
    elif system == "SrTiO3":
        atoms, width = CRYSTALS["SrTiO3, saddle"](), 0.1
        atoms.set_cell(atoms.cell.array * (1 + rng.normal(0, 0.01, 3)), scale_atoms=True)
        if rng.random() < 0.5: del atoms[rng.choice(np.flatnonzero(atoms.symbols == "O"))]
    elif system == "silicon":
        atoms, width = bulk("Si", cubic=True).repeat([(1, 1, 1), (2, 1, 1)][rng.integers(2)]), 0.12
        if rng.random() < 0.5: del atoms[rng.integers(len(atoms))]
    else:
        atoms, width = bulk("Cu", cubic=True).repeat([(1, 1, 1), (2, 1, 1)][rng.integers(2)]), 0.15
        atoms.symbols = rng.choice(["Cu", "Au", "Pd", "Ni"], len(atoms))
        atoms.set_cell(atoms.cell.array * 1.04, scale_atoms=True)
    atoms.positions += rng.normal(0, width, atoms.positions.shape)
    atoms.info = dict(source=f"{system} {seed} {k}")
    return atoms


def old_relaxations(system: str, seed: int, work: Path, quick: bool) -> list:
    """Relax with BFGS, as somebody has done before, or take what is kept; the last ones are to test the forces on."""
    count = 8 if quick else OLD
    name = hashlib.sha256(f"{system} {seed} {count}".encode()).hexdigest()[:12]
    file = work / f"old-{name}.extxyz"
    if file.exists(): return read(file, ":")
    frames, calc = [], calculator(SPECS[system])
    for k in range(count + (2 if quick else NEW)):
        atoms = start(system, seed, k)
        atoms.calc = calc

        def keep(atoms=atoms):
            results = dict(energy=float(atoms.get_potential_energy()), forces=np.array(atoms.get_forces(), float))
            frames.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
            frames[-1].info = dict(source=atoms.info["source"], number=k)
            frames[-1].calc = SinglePointCalculator(frames[-1], **results)

        opt = BFGS(atoms, logfile=None)
        opt.attach(keep)
        opt.run(FMAX, 15)
    write(file, frames)
    return read(file, ":")


def local_lesson(sampler: Sampler, rng, count=8, frames=4):
    """Draw anchors with forces, and displacements and force changes from them to other frames."""
    graphs, shifts, changes = [], [], []
    for n in rng.choice(len(sampler.trajectories), count):
        t, (a, *others) = sampler.trajectories[n], rng.permutation(sampler.legal[n])[:frames]
        for b in others:
            shift = t.positions[b] - t.positions[a]
            graphs.append(sampler.graph(n, a))
            shifts.append(shift - shift.mean(0)), changes.append(t.forces[b] - t.forces[a])
    stacked = [torch.tensor(np.concatenate(x), dtype=torch.float32) for x in (shifts, changes)]
    return AtomGraph.collate(graphs), *stacked


def local_errors(actor, lesson):
    """Compare force changes of a local energy with the true ones."""
    graph, shift, change = lesson
    local = actor.local_energy(graph)
    return relative_error(graph, Moved(local, shift).forces() - Moved(local).forces(), change, floor=0.1)


def fit_local(trajectories, angles, seed, updates) -> Policy:
    """Fit the local energy of an actor to force changes."""
    torch.manual_seed(seed)
    actor, rng = Actor(NetworkSettings(head="potential", max_displacement=0.8, angles=angles)), np.random.default_rng(seed)
    sampler = Sampler(trajectories, actor.settings.reach)
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates, 2e-4)
    for _ in range(updates):
        loss = local_errors(actor, local_lesson(sampler, rng)).clamp(max=10).mean()
        optimizer.zero_grad(), loss.backward()
        torch.nn.utils.clip_grad_norm_(actor.parameters(), 10.0)
        optimizer.step(), schedule.step()
    symbols = sorted({symbol for t in trajectories for symbol in Atoms(t.numbers).symbols})
    return Policy(actor.eval().requires_grad_(False), dict(elements=symbols))


def fitted(arm, learn, kept_back, seed, quick):
    """Make the policy of an arm, and measure its force changes on structures that were not learnt from."""
    if arm in LEARNT:
        policy = fit_local(trajectories_of(learn), LEARNT[arm], seed, 20 if quick else UPDATES["local"])
        sampler = Sampler(trajectories_of(kept_back), policy.actor.settings.reach)
        rng = np.random.default_rng(0)
        with torch.no_grad():
            errors = torch.cat([local_errors(policy.actor, local_lesson(sampler, rng)) for _ in range(4)])
        return policy, float(errors.median())
    begin_with = find_policy("universal") if arm.startswith("universal") else None
    updates = 1 if arm == "universal" else 20 if quick else UPDATES[arm]
    settings = FitSettings(updates=updates, checks=1, seed=seed, rate=1e-3 if begin_with else 3e-3)
    found = fit(learn, settings, begin_with, kept_back=kept_back)
    if arm == "universal": return begin_with, found.curve[0]["force_change"]
    return found.policy, found.curve[-1]["force_change"]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Fit where the arm asks for it, and relax new starts."""
    torch.set_num_threads(1)
    system, arm, seed = case["system"], case["arm"], case["seed"]
    frames, count, policy, error = old_relaxations(system, seed, work, quick), 8 if quick else OLD, None, None
    learn = [atoms for atoms in frames if atoms.info["number"] < count]
    if arm not in RIVALS:
        kept_back = [atoms for atoms in frames if atoms.info["number"] >= count]
        policy, error = fitted(arm, learn, kept_back, seed, quick)
    how = dict(optimizer=arm) if arm.startswith("BFGS") else dict(policy="none" if arm == "none" else policy)
    calc, counts, lost = calculator(SPECS[system]), [], 0
    for k in range(count, count + (2 if quick else NEW)):
        report = relax(start(system, seed, k), calc, fmax=FMAX, steps=CAP, **how).report
        counts.append(report.force_evaluations if report.converged else CAP)
        lost += not report.converged
    return dict(frames=len(learn), force_change=error, evaluations=counts, mean=float(np.mean(counts)), lost=lost)


EXPERIMENT = Experiment("fit", "What do 24 old relaxations teach, and to which kind of energy?", cases, measure,
                        dict(old=OLD, new=NEW, fmax=FMAX, cap=CAP, specs=SPECS, updates=UPDATES), ("universal",), seeds=5)
