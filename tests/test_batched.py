"""Potentials that evaluate many structures at once give what they give one by one."""
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.lj import LennardJones

from atomrl_nb.batched import Batched, batched
from atomrl_nb.callbacks import BaseCallback
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.optimizer import RelaxMany
from atomrl_nb.settings import Settings
from atomrl_nb.structures import CompiledEMT, CountedCalculator, calculator, load, perturb
from atomrl_nb.training import train
from atomrl_nb.workers import Failed


def compressed(atoms, factor):
    """Scale a cell to so many times its density."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array / factor**(1/3), scale_atoms=True)
    return atoms


def mixed():
    """Slabs, clusters, cells smaller than any cutoff, and one at ten times the density among nine good ones."""
    slab = fcc111("Cu", (1, 1, 3), vacuum=6)
    slab.pbc = [True, True, False]
    good = [bulk("Cu"), bulk("Al", cubic=True), slab, molecule("H2O"), bulk("MgO", "rocksalt", a=4.21), bulk("Si"),
            bulk("Fe", cubic=True), bulk("NaCl", "rocksalt", a=5.6), Atoms("O2", [[0, 0, 0], [0, 0, 1.2]])]
    return [perturb(atoms, 0.05, seed=k) for k, atoms in enumerate(good)] + [compressed(bulk("Cu", cubic=True), 10)]


def compare(potential, single, structures, tolerance):
    """Hold each result of a batch against that of the structure alone, and against the calculator's."""
    together = potential.results(structures)
    for atoms, found in zip(structures, together):
        alone, = potential.results([atoms])
        if isinstance(alone, Failed):
            assert found == alone
            continue
        scale = max(1.0, np.abs(alone["forces"]).max())
        asked = atoms.copy()
        asked.calc = single
        for name, value in found.items():
            np.testing.assert_allclose(value, alone[name], atol=tolerance * scale * len(atoms))
        np.testing.assert_allclose(found["forces"], asked.get_forces(), atol=tolerance * scale)
        assert found["energy"] == pytest.approx(asked.get_potential_energy(), abs=tolerance * scale * len(atoms))
        if "stress" in found and atoms.pbc.all():
            np.testing.assert_allclose(found["stress"], asked.get_stress(), atol=tolerance * scale)
    return together


def lj_of_all(structures):
    """Evaluate with Lennard-Jones; what is too dense breaks the whole call."""
    energies, forces, stresses = [], [], []
    for atoms in structures:
        atoms = atoms.copy()
        if atoms.pbc.all() and len(atoms) / atoms.get_volume() > 0.5:
            raise ValueError("too dense")
        atoms.calc = LennardJones(sigma=2.2)
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        stresses.append(atoms.get_stress(voigt=False) if atoms.cell.rank == 3 else np.zeros((3, 3)))
    return energies, np.concatenate(forces), stresses


def test_a_plain_function_in_batches_is_the_calculator():
    """Bit for bit; the dense structure alone fails, in its batch as by itself."""
    found = compare(Batched(lj_of_all), LennardJones(sigma=2.2), mixed(), 0)
    assert [isinstance(one, Failed) for one in found] == [False] * 9 + [True] and "too dense" in found[9].said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["chgnet", "sevennet"])
def test_learned_potentials_in_batches_are_the_calculators(name):
    pytest.importorskip({"chgnet": "chgnet", "sevennet": "sevenn"}[name])
    compare(batched(name), calculator(name), mixed(), 2e-5)


def test_a_model_of_torch_sim_in_batches_is_itself_one_by_one():
    pytest.importorskip("torch_sim")
    from torch_sim.models.lennard_jones import LennardJonesModel
    model = LennardJonesModel(sigma=2.2, epsilon=0.1, cutoff=5.0, device=torch.device("cpu"), dtype=torch.float64,
                              compute_forces=True, compute_stress=True, use_neighbor_list=True)
    potential = batched(model)
    structures = [atoms for atoms in mixed() if atoms.pbc.all()]
    for atoms, found in zip(structures, potential.results(structures)):
        alone, = potential.results([atoms])
        for value, other in zip(found.values(), alone.values()):
            np.testing.assert_allclose(value, other, rtol=1e-9, atol=1e-12)


class OutOfMemoryError(RuntimeError):
    """Called as CUDA's is."""


@pytest.mark.parametrize("error", [MemoryError, OutOfMemoryError])
def test_out_of_memory_halves_the_batch_and_goes_on(error):
    asked = []

    def tight(structures):
        asked.append(sum(map(len, structures)))
        if asked[-1] > 20:
            raise error("CUDA out of memory")
        return emt_of_all(structures)
    structures = [perturb(atoms, 0.2, seed=0) for atoms in load("alloys4")]
    potential = Batched(tight)
    for _ in range(2):
        for atoms, found in zip(structures, potential.results(structures)):
            atoms.calc = CompiledEMT()
            np.testing.assert_array_equal(found["forces"], atoms.get_forces())
    assert max(asked[:1]) == 72 and max(asked[-4:]) <= 20 and potential.most_atoms <= 20
    large = load("cuau32")[0]
    assert "CUDA out of memory" in potential.results([large])[0].said


def emt_of_all(structures):
    """Evaluate with EMT."""
    for atoms in structures:
        atoms.calc = CompiledEMT()
    return ([atoms.get_potential_energy() for atoms in structures], [atoms.get_forces() for atoms in structures],
            [atoms.get_stress() for atoms in structures])


def starts():
    return [perturb(atoms, 0.3, seed=k) for k, atoms in enumerate(load("alloys4")[:6])]


def test_many_structures_relax_in_a_batched_potential_as_in_its_calculator():
    """The same ends, in a call for all instead of one for each."""
    together, alone = starts(), starts()
    potential = Batched(emt_of_all, name="CompiledEMT")
    outcomes = list(RelaxMany(together, calculator=potential).irun(0.02, 60))
    assert all(RelaxMany(alone, calculator="emt").run(0.02, 60))
    for a, b in zip(together, alone):
        np.testing.assert_array_equal(a.positions, b.positions)
    assert potential.calls == max(outcome.evaluations for outcome in outcomes)


def test_a_batched_surrogate_plans_as_its_calculator_does():
    """The same evaluations and ends; the surrogate's answers come in batches."""
    together, alone = starts(), starts()
    potential, counted = Batched(emt_of_all), CountedCalculator(calculator("emt"))
    first = sorted(RelaxMany(together, surrogate=potential, calculator=Weaker).irun(0.02, 60))
    second = sorted(RelaxMany(alone, surrogate=counted, calculator=Weaker).irun(0.02, 60))
    for one, other in zip(first, second):
        assert one.state == other.state == "converged" and one.evaluations == other.evaluations
        np.testing.assert_array_equal(one.atoms.positions, other.atoms.positions)
    assert all("the surrogate" in one.planned_in for one in first)
    assert potential.calls < 0.5 * counted.evaluations


class Weaker(CompiledEMT):
    """EMT, ten per cent weaker."""
    def calculate(self, atoms=None, *args, **kwargs):
        super().calculate(atoms, *args, **kwargs)
        self.results = {name: 0.9 * value for name, value in self.results.items()}


no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


@no_cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["chgnet", "sevennet"])
def test_learned_potentials_on_cuda_are_those_on_the_cpu(name):
    pytest.importorskip({"chgnet": "chgnet", "sevennet": "sevenn"}[name])
    compare(batched(name), calculator(f"{name}:device=cpu"), mixed(), 1e-4)


@no_cuda
def test_a_training_takes_cuda_by_itself(tmp_path):
    devices = set()

    class Look(BaseCallback):
        def on_step(self, loop):
            devices.add(next(loop.trainer.agent.actor.parameters()).device.type)
    network = NetworkSettings(channels=4, layers=1)
    run = train(Settings(structures=("alloys4",), run=str(tmp_path / "run"), steps=32, n_envs=4, learning_starts=8,
                         batch_size=8, evaluation_starts=2, network=network), progress=False, callbacks=(Look(),))
    assert devices == {"cuda"} and (run / "policy.safetensors").exists()
