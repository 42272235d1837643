"""Plan in the policy `universal` and without a policy: molecules and crystals that it was not taught with, and other teachers."""
from functools import lru_cache
from pathlib import Path

import torch
from ase.build import bulk
from ase.filters import FrechetCellFilter
from dft import PySCF
from experiment_dft import MOLECULES
from experiment_dft import starts as dft_starts

from atomrl_nb.experiment import Experiment
from atomrl_nb.learned import shipped_policies
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.starts import cell_starts, crystal_starts, g2_starts, published, special_cells
from atomrl_nb.structures import CountedCalculator, calculator
from atomrl_nb.suites import compared, with_options

FMAX, CAP = 0.01, 150
SEEN = {"ammonia", "furan", "acetone", "benzaldehyde", "hydroxybicyclopentane_2", "mesityl_oxide", "neopentane"}


def _tiny():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.info = dict(source="copper")
    return [atoms]


def _pbe(): return [atoms for name, (atoms, *_) in dft_starts().items() if name in MOLECULES]


SYSTEMS = {  # name -> (starts, calculator)
    "g2, GFN2": (g2_starts, "gfn2"), "Baker, GFN2": (lambda: published("baker_shajan_2023"), "gfn2"),
    "Birkholz-Schlegel, GFN2": (lambda: published("birkholz_schlegel", 11), "gfn2"),
    "molecules, PBE": (_pbe, "PBE"),
    "crystals, 7net-0": (crystal_starts, "sevennet"), "crystals, CHGNet": (crystal_starts, "chgnet"),
    "cells, 7net-0": (lambda: cell_starts((0.03,), 1), "sevennet"),
    "special cells, 7net-0": (special_cells, "sevennet"), "copper, EMT": (_tiny, "emt")}


@lru_cache(maxsize=None)
def starts(system: str) -> dict: return {atoms.info["source"]: atoms for atoms in SYSTEMS[system][0]()}


@lru_cache(maxsize=None)
def made(spec: str): return calculator(spec)


def cases(seeds: int, quick: bool) -> list:
    """List systems, starts and methods."""
    arms = ["none", *(["auto"] if "universal" in shipped_policies() else [])]
    return [dict(system=system, start=name, arm=arm) for system in (["copper, EMT"] if quick else list(SYSTEMS)[:-1])
            for name in starts(system) for arm in arms]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Relax one start, and count."""
    torch.set_num_threads(1)
    atoms, spec = starts(case["system"])[case["start"]].copy(), SYSTEMS[case["system"]][1]
    options, elements = atoms.info.get("cell"), sorted(set(atoms.symbols))
    atoms.calc = CountedCalculator(PySCF() if spec == "PBE" else made(with_options(spec, atoms)))
    opt = RLOptimizer(atoms if options is None else FrechetCellFilter(atoms, **options), case["arm"], logfile=None)
    converged, error = False, ""
    try: converged = bool(opt.run(FMAX, CAP))
    except Exception as failure: error = f"{type(failure).__name__}: {failure}"
    return dict(elements=elements, atoms=len(atoms), evaluations=atoms.calc.evaluations if converged else CAP,
                converged=converged, energy=float(opt.here().energy) if converged else None,
                planned_in=opt.planned_in, handed_over=opt.handed_over, error=error,
                seen=case["system"].startswith("Baker") and case["start"] in SEEN, seconds=round(opt.seconds, 1))


EXPERIMENT = Experiment("universal", "Does one policy for many elements save evaluations?", cases, measure,
                        dict(fmax=FMAX, cap=CAP), ("universal",) if "universal" in shipped_policies() else (),
                        conclude=compared)
