"""Train a planner on small fcc alloys, relax pairs of metals it has never seen, and compare with ASE's optimizers."""
import sys
import time
from pathlib import Path

from ase.io import write

from atomrl_nb.cli import relax_main
from atomrl_nb.fit import FitSettings
from atomrl_nb.planner_run import PlaySettings, planner_run
from atomrl_nb.structures import load, perturb

STEPS, UPDATES, PERTURB, STARTS = 200, 240, 0.5, 8  # force evaluations; of the fit; amplitude [Å]; starts a structure


def new_folder(parent: Path) -> Path:
    """Name a run folder that is not there yet: a run is never overwritten."""
    return next(path for k in range(1, 10_000) if not (path := parent / f"demo-{k}").exists())


def main() -> int:
    began, run = time.perf_counter(), new_folder(Path("runs"))
    print(f"Playing {STEPS} force evaluations on 18 pairs of fcc metals (EMT), starts displaced by up to {PERTURB} Å, "
          "and fitting:")
    settings = PlaySettings(structures=("alloys8",), run=str(run), steps=STEPS, perturb=PERTURB,
                            fit=FitSettings(updates=UPDATES, checks=3))
    print(*planner_run(settings).outcome, sep="\n")
    starts = [perturb(atoms.repeat((2, 1, 1)), PERTURB, seed=[7, k])
              for k in range(STARTS) for atoms in load("alloys4-heldout")]
    write(run / "starts.extxyz", starts)
    print(f"\nRelaxing {len(starts)} starts of the three pairs kept out of training (Ni-Pt, Al-Ag, Pd-Au) to 0.01 eV/Å:")
    code = relax_main([str(run / "starts.extxyz"), "--policy", str(run), "--fmax", "0.01",
                       "--compare", "BFGS,BFGSLineSearch",
                       "--trajectory", str(run / "relaxed.traj"), "--json", str(run / "relaxed.json")])
    print(f"\nCurve of the fit: {run / 'fit.png'}\nTrajectory: {run / 'relaxed.traj'} (ase gui opens it)"
          f"\n{time.perf_counter() - began:.0f} s in all")
    return code


if __name__ == "__main__":
    sys.exit(main())
