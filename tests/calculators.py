"""Calculators and functions that tests send to workers: a module of its own, so that workers import no more than it."""
import os
import random
import sys
import time

import numpy as np
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT

from atomrl_nb.workers import as_recipe, evaluate
from atomrl_nb.structures import CompiledEMT


class Sleepy(CompiledEMT):
    """EMT after a pause of random length."""
    def calculate(self, atoms=None, *args, **kwargs):
        time.sleep(random.random() * 0.01)
        super().calculate(atoms, *args, **kwargs)


class Picky(Sleepy):
    """Fail after moves that lead far from the start; kill the process where there is gold alone."""
    def calculate(self, atoms=None, *args, **kwargs):
        if set(atoms.get_chemical_symbols()) == {"Au"}:
            os._exit(9)
        if set(atoms.get_chemical_symbols()) == {"Pt"}:
            raise CalculationFailed("SCF not converged")
        super().calculate(atoms, *args, **kwargs)


class Fragile(EMT):
    """Fail where an atom lies far from where the last success was."""
    before, failures = None, 0

    def reset(self):
        """Keep what happened."""

    def calculate(self, atoms=None, *args, **kwargs):
        if self.before is not None and np.linalg.norm(atoms.positions - self.before, axis=1).max() > 0.4:
            Fragile.failures += 1
            raise CalculationFailed("SCF not converged")
        self.nl = None
        super().calculate(atoms, ["energy"], ["positions", "numbers", "cell", "pbc"])
        self.before = atoms.positions.copy()


def evaluated_with_torch():
    """Evaluate, and tell whether torch was needed for it."""
    assert "forces" in evaluate(as_recipe("emt"), bulk("Cu"))
    return "torch" in sys.modules
