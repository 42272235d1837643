"""Train a planner on small fcc alloys, relax pairs of metals it has never seen, and compare with ASE's optimizers."""
import sys
import time
from pathlib import Path

from ase.io import write

from atomrl_nb.cli import relax_main, train_main
from atomrl_nb.structures import load, perturb

STEPS, PERTURB, STARTS = 1600, 0.5, 8  # environment steps; amplitude [Å]; starts for each held-out structure


def new_folder(parent: Path) -> Path:
    """Name a run folder that is not there yet: a run is never overwritten."""
    return next(path for k in range(1, 10_000) if not (path := parent / f"demo-{k}").exists())


def main() -> int:
    began, run = time.perf_counter(), new_folder(Path("runs"))
    print(f"Training for {STEPS} force evaluations on 18 pairs of fcc metals (EMT), starts displaced by up to {PERTURB} Å:")
    code = train_main(["alloys4", "--run", str(run), "--steps", str(STEPS), "--perturb", str(PERTURB),
                       "--planner"])
    if code: return code
    starts = [perturb(atoms, PERTURB, seed=[7, k]) for k in range(STARTS) for atoms in load("alloys4-heldout")]
    write(run / "starts.extxyz", starts)
    print(f"\nRelaxing {len(starts)} starts of the three pairs kept out of training (Ni-Pt, Al-Ag, Pd-Au) to 0.01 eV/Å:")
    code = relax_main([str(run / "starts.extxyz"), "--policy", str(run), "--fmax", "0.01",
                       "--compare", "BFGS,BFGSLineSearch",
                       "--trajectory", str(run / "trajectories" / "relaxed.traj"), "--json", str(run / "relaxed.json")])
    print(f"\nLearning curve: {run / 'plots' / 'results.png'}\nTrajectory: {run / 'trajectories' / 'relaxed.traj'} (ase gui opens it)"
          f"\n{time.perf_counter() - began:.0f} s in all")
    return code


if __name__ == "__main__":
    sys.exit(main())
