"""Small settings that train in seconds, and where the shared real data lie."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atomrl_nb.networks import NetworkSettings
from atomrl_nb.settings import Settings

torch.set_num_threads(1)

ALFE = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "alfe"


@pytest.fixture
def small(tmp_path):
    """Settings of a run that takes a second or two."""
    return Settings(structures=("alloys4",), run=str(tmp_path / "run"), n_envs=4, learning_starts=8, batch_size=8,
                    steps=48, seed=1, evaluation_interval=0, evaluation_starts=2, checkpoint_interval=16,
                    network=NetworkSettings(channels=4, layers=1))


@pytest.fixture
def alfe():
    """Folder of the Al-Fe crystals with their potentials."""
    if not ALFE.exists(): pytest.skip("the Al-Fe data are not beside this checkout")
    return ALFE


@pytest.fixture
def reference():
    """Folder of the numbers computed with the original model."""
    folder = ALFE.parent.parent / "fixtures" / "reference"
    if not folder.exists(): pytest.skip("the original's numbers are not beside this checkout")
    return folder


@pytest.fixture
def trainer(small):
    """A trainer that has played a few rounds."""
    from atomrl_nb.structures import load
    from atomrl_nb.learner import Trainer
    made = Trainer(replace(small), load(*small.structures))
    made.begin()
    for _ in range(6): made.round()
    return made
