"""Relax Lennard-Jones clusters with torch-sim's batched optimizers: JSON from standard input, JSON to standard output.

`atomrl-experiment throughput` runs this in an interpreter that has torch-sim, which needs Python 3.12.
"""
import json
import sys
import time
from importlib.metadata import version

import torch
import torch_sim as ts
from ase import Atoms
from torch_sim.models.lennard_jones import LennardJonesModel


class Counted(LennardJonesModel):
    """Lennard-Jones energies and forces, which count the structures that they were asked for."""
    asked = 0

    def forward(self, state, **options):
        """Compute."""
        self.asked += state.n_systems
        return super().forward(state, **options)


def relaxed(clusters: list, task: dict) -> tuple:
    """Relax clusters in one batch: the last state, evaluations, CPU seconds."""
    model = Counted(sigma=1.0, epsilon=1.0, cutoff=task["cutoff"], dtype=torch.float64)
    small = ts.generate_force_convergence_fn(force_tol=task["fmax"], include_cell_forces=False)
    began = time.process_time()
    state = ts.optimize(clusters, model, optimizer=ts.Optimizer[task["optimizer"]], convergence_fn=small,
                        max_steps=task["cap"])
    return state, model.asked, time.process_time() - began


def main():
    """Do a task."""
    task = json.load(sys.stdin)
    torch.set_num_threads(1)
    clusters = [Atoms("Ar" * len(x), x, cell=[100.0] * 3, pbc=False) for x in task["positions"]]
    relaxed(clusters[:2], task)  # the first call is slow
    state, asked, seconds = relaxed(clusters, task)
    forces = ts.system_wise_max_force(state)
    json.dump(dict(seconds=seconds, asked=asked, energies=state.energy.tolist(), largest=forces.tolist(),
                   torch_sim=version("torch-sim-atomistic")), sys.stdout)


if __name__ == "__main__":
    main()
