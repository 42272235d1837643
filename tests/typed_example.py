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
from atomrl_nb.networks import Actor, Policy, save_policy
from atomrl_nb.optimizer import RelaxMany, RLOptimizer
from atomrl_nb.report import Report
from atomrl_nb.search import search
from atomrl_nb.settings import Settings, check_settings
from atomrl_nb.td3 import TD3Settings
from atomrl_nb.training import resume, train
from atomrl_nb.view import View, show
