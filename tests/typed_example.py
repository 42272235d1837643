"""A user's script, for the type checker alone: `make check` reads it, and nobody runs it.

A line with `type: ignore` is a wrong use that an editor must mark; where it is not marked, mypy says "unused ignore".
"""
from pathlib import Path

from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter

from atomrl_nb.comparing import relax
from atomrl_nb.diagnostics import diagnose
from atomrl_nb.learned import find_policy
from atomrl_nb.embedded import EmbeddedEnergy
from atomrl_nb.networks import Actor
from atomrl_nb.policies import Policy, save_policy
from atomrl_nb.optimizer import RelaxMany, RLOptimizer
from atomrl_nb.report import Report
from atomrl_nb.search import search
from atomrl_nb.settings import Settings, check_settings
from atomrl_nb.td3 import TD3Settings
from atomrl_nb.training import resume, train
from atomrl_nb.view import View, show


def relax_atoms() -> float:
    """Relax atoms, and read the report."""
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    opt = RLOptimizer(atoms, policy="fcc-alloys", surrogate="lj:sigma=2.3", logfile=None, trajectory="cu.traj", maxstep=0.3, patience=5)
    converged: bool = opt.run(fmax=0.01, steps=100)
    for small in opt.irun(0.01):
        converged = small
    report: Report = opt.report()
    stress: float | None = report.stress
    counts: int = report.force_evaluations + report.refused
    words: str = report.why + report.planned_in + report.handed_over + report.end
    report.stress + 1.0  # type: ignore[operator]
    report.forces  # type: ignore[attr-defined]
    opt.trust.radius + 1.0
    opt.reports()  # type: ignore[attr-defined]
    opt.run(fmax="0.01")  # type: ignore[arg-type]
    opt.run(fmax=0.01, steps=100, cell=True)  # type: ignore[call-arg]
    RLOptimizer("cu.xyz")  # type: ignore[arg-type]
    RLOptimizer(atoms, policy=3)  # type: ignore[arg-type]
    RLOptimizer(atoms, surrogate=EMT(), maxstep="0.3")  # type: ignore[arg-type]
    print(converged, counts, words, stress)
    return report.energy + report.fmax


def relax_a_cell() -> str:
    """Relax atoms and cell, as ASE does."""
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    opt = RLOptimizer(FrechetCellFilter(atoms, scalar_pressure=0.01), "none")
    opt.run(0.01)
    return opt.report().space_group_after


def relax_many() -> list[str]:
    """Relax structures together, and one with a classical optimizer."""
    atoms = bulk("Cu", cubic=True)
    many = RelaxMany([atoms], policy="auto", logfile="-", trajectory="relaxed-{}.traj", patience=5)
    converged: list = many.run(fmax=0.05, steps=200)
    many.run(fmax=None)  # type: ignore[arg-type]
    RelaxMany(atoms, trajectory=1)  # type: ignore[arg-type]
    relaxed = relax(atoms, "emt", "BFGS", fmax=0.02, cell={})
    energy: float = relaxed.atoms.get_potential_energy() + relaxed.report.energy
    relaxed.energy  # type: ignore[attr-defined]
    relax(atoms)  # type: ignore[call-arg]
    print(converged, energy)
    return many.failed


def look_for_the_lowest_minimum() -> float:
    """Search, with a policy that is found by its name."""
    policy: Policy = find_policy("lj-clusters")
    actor: Actor | EmbeddedEnergy = policy.actor
    loop: dict = policy.loop
    save_policy("mine.safetensors", actor, policy.card | {"loop": loop})
    policy.network  # type: ignore[attr-defined]
    save_policy("mine.safetensors", policy)  # type: ignore[call-arg, arg-type]
    found = search(bulk("Cu", cubic=True), "emt", policy, budget=1000, target=-3.0)
    found.lowest  # type: ignore[attr-defined]
    search(bulk("Cu"), "emt", policy, budget="1000")  # type: ignore[arg-type]
    return found.minima[0].energy / found.evaluations


def train_and_go_on() -> None:
    """Train, go on, diagnose, and look at what was relaxed."""
    settings = Settings(structures=("alloys4",), calculator="emt", run="run", steps=1000, td3=TD3Settings(gamma=0.5))
    settings.steps = 2000  # type: ignore[misc]
    Settings(step=1000)  # type: ignore[call-arg]
    Settings(td3={"gamma": 0.5})  # type: ignore[arg-type]
    run: Path = train(check_settings(settings), progress=False)
    resume(run, steps=2000, calculator="emt")
    resume(run, step=2000)  # type: ignore[call-arg]
    train(settings, "run")  # type: ignore[arg-type]
    for finding in diagnose(run):
        print(finding.severity, finding.evidence, finding.change)
    view: View = show(bulk("Cu"), arrows=("force",), color="force", height=200)
    show(bulk("Cu"), colour="force")  # type: ignore[call-arg]
    Path("cu.html").write_text(view.html())
