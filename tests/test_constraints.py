"""The smallest distance under heavy matrices of cases, against brute force along the path."""
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from atomrl_nb.constraints import LARGE, allowed_share, correct_action, covalent_r0, deviation
from atomrl_nb.environment import REWARDS, Ends, Environment, EnvironmentSettings
from atomrl_nb.graphs import AtomGraph
from atomrl_nb.structures import InputError, calculator, load, perturb

MODES = ("structure", "atom")
PBC = list(itertools.product((True, False), repeat=3))
FIXTURES = Path(__file__).resolve().parent.parent.parent / "shared" / "fixtures" / "reference"


def random_graph(rng, n_atoms=3, pbc=(True, True, True), skew=1.5):
    """A random cell, often short and skewed, with atoms in and out of it."""
    cell = np.diag(rng.uniform(1.5, 4.5, 3)) + np.tril(rng.normal(0, skew, (3, 3)),
                                                       -1) + np.triu(rng.normal(0, 0.3, (3, 3)), 1)
    inside = rng.uniform(0, 1, (n_atoms, 3))
    positions = (inside + np.array(pbc) * rng.integers(-1, 2, (n_atoms, 3))) @ cell
    tensor = lambda x: torch.as_tensor(x, dtype=torch.float64)
    return AtomGraph(positions=tensor(positions), numbers=torch.as_tensor(rng.choice([1, 13, 79], n_atoms)),
                     cell=tensor(cell)[None],
                     pbc=torch.tensor([pbc]), batch=torch.zeros(n_atoms, dtype=torch.int64))


def lattice(graph, most=14):
    """Every lattice vector within `most` cells."""
    cell, pbc = graph.cell[0].numpy(), graph.pbc[0].numpy()
    return np.array(list(itertools.product(*(range(-most, most + 1) if p else (0,) for p in pbc)))) @ cell


def closest(graph, moved, images, r0):
    """Smallest distance over `r0` of each pair of different atoms, brute force over images: (n_pairs,)."""
    table = torch.as_tensor(r0)
    found = []
    for i, j in itertools.combinations(range(graph.n_atoms), 2):
        limit = float(table[graph.numbers[i], graph.numbers[j]]) if table.dim() else float(r0)
        found.append(np.linalg.norm(moved[j] - moved[i] + images, axis=1).min() / limit)
    return np.array(found)


@pytest.mark.parametrize("pbc", PBC)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", [1.2, "covalent"])
def test_no_pair_comes_closer_along_the_whole_path(pbc, mode, rule):
    rng, r0 = np.random.default_rng(sum(pbc)), covalent_r0(0.5) if rule == "covalent" else rule
    held = violating = 0
    while held < 4:
        graph = random_graph(rng, pbc=pbc)
        push = torch.as_tensor(rng.normal(0, rng.choice([0.3, 1.0, 3.0]), (3, 3)))
        correction, images = correct_action(graph, push, r0, mode), lattice(graph)
        start, steps = graph.positions.numpy(), correction.displacement.numpy()
        before = closest(graph, start, images, r0)
        for t in np.linspace(0, 1, 31)[1:]:
            now = closest(graph, start + t * steps, images, r0)
            assert (now >= np.minimum(before, 1) - 1e-9).all()  # no closer than r0, or than at the start
        held, violating = held + int((correction.a_back > 0).any()), violating + int((before < 1).any())
    assert violating


@pytest.mark.parametrize("pbc", PBC)
def test_the_share_is_the_largest_that_is_allowed(pbc):
    """A brute-force walk along the proposed path, in small steps, finds the same share."""
    rng = np.random.default_rng(10 + sum(pbc))
    walk, held = np.linspace(0, 1, 201), 0
    while held < 4:
        graph = random_graph(rng, pbc=pbc)
        push, images = rng.normal(0, 0.8, (3, 3)), lattice(graph)
        if closest(graph, graph.positions.numpy(), images, 1.2).min() < 1: continue
        fine = [closest(graph, graph.positions.numpy() + t * push, images, 1.2).min() >= 1 - 1e-9 for t in walk]
        share = walk[-1] if all(fine) else walk[fine.index(False)]
        kept = 1 - correct_action(graph, torch.as_tensor(push), 1.2).a_back.item()
        assert kept <= share + 1e-9
        if not all(fine): assert kept >= share - walk[1] - 1e-9
        elif kept < 1: assert_grazes(graph, push, images, kept)
        held += kept < 1


def assert_grazes(graph, push, images, kept):
    """A short dip below the limit, between two points of the walk."""
    near = [closest(graph, graph.positions.numpy() + t * push, images, 1.2).min()
            for t in np.linspace(kept, min(1, kept + 5e-3), 200)]
    assert min(near) < 1


@pytest.mark.parametrize("mode", (*MODES, "reference"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_equals_its_structures_one_by_one(mode, dtype):
    """Small and large structures, periodic or not, with more atoms than all pairs are tried for among them."""
    rng = np.random.default_rng(0)
    big = AtomGraph.from_atoms(perturb(load("cuau32")[0].repeat((3, 1, 1)), 0.4, seed=0))
    assert big.n_atoms > LARGE
    plain = lambda g: AtomGraph(**{k: v for k, v in g.tensors().items()
                                   if k in ("positions", "numbers", "cell", "pbc", "batch")})
    graphs = [random_graph(rng, n_atoms=n, pbc=pbc) for n, pbc in zip((1, 2, 3, 5, 4, 3, 2, 6), PBC)]
    graphs = [plain(g).to(dtype=dtype) for g in (*graphs[:4], big, *graphs[4:], big)]
    pushes = [torch.as_tensor(rng.normal(0, 0.5, g.positions.shape), dtype=dtype) for g in graphs]
    both = correct_action(AtomGraph.collate(graphs), torch.cat(pushes), 1.9, mode)
    single = [correct_action(g, p, 1.9, mode) for g, p in zip(graphs, pushes)]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(both.displacement, torch.cat([c.displacement for c in single]), atol=tolerance, rtol=0)
    torch.testing.assert_close(both.a_back, torch.cat([c.a_back for c in single]), atol=tolerance, rtol=0)
    first = np.cumsum([0] + [g.n_atoms for g in graphs])
    assert both.pairs.tolist() == torch.cat([c.pairs + int(n) for c, n in zip(single, first)], 1).tolist()
    assert (both.a_back > 0).any() and (both.a_back == 0).any()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_tunnels_through_a_crystal(mode):
    """An atom fired across several cells stops at the first atom in its way."""
    atoms = bulk("Cu", cubic=True)
    graph = AtomGraph.from_atoms(atoms).to(dtype=torch.float64)
    for far in (3.0, 10.0, 40.0):
        push = torch.zeros(4, 3, dtype=torch.float64)
        push[0] = far * torch.tensor([1.0, 1, 0]) / 2**0.5  # along the row of nearest neighbours
        moved = correct_action(graph, push, 1.5, mode).displacement[0].norm().item()
        assert moved == pytest.approx(3.61 / 2**0.5 - 1.5, abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode):
    """Through the correction and through the penalty, where pairs collide; zero and finite elsewhere."""
    rng, checked = np.random.default_rng(4), 0
    while checked < 5:
        graph = random_graph(rng, pbc=PBC[int(rng.integers(8))])
        push = torch.as_tensor(rng.normal(0, 0.7, (3, 3))).requires_grad_()
        correction = correct_action(graph, push, 1.2, mode)
        if not 0 < correction.a_back.max() < 0.99: continue
        assert torch.autograd.gradcheck(lambda x: correct_action(graph, x, 1.2, mode).displacement, push, atol=1e-4)
        assert torch.autograd.gradcheck(lambda x: deviation(graph, x, 1.2, mode), push, atol=1e-4)
        checked += 1


def test_gradients_stay_finite_where_atoms_touch_graze_or_overlap():
    apart = torch.tensor([[0, 0, 1.5], [0, 0, 2.0], [0, 0, 1.0], [0, 0, 2.0], [0, 0, 0]])
    grazing = 2 * torch.tensor([np.sin(np.arcsin(0.75)), 0, -np.cos(np.arcsin(0.75))], dtype=torch.float32)
    move = torch.stack([torch.tensor([0, 0, -1.0]), grazing, torch.tensor([0, 0, -1.0]), torch.zeros(3),
                        torch.tensor([1.0, 0, 0])]).requires_grad_()
    share = allowed_share(apart, move, 1.5)
    slope, = torch.autograd.grad(share.sum(), move)
    assert slope.isfinite().all() and slope.norm(dim=1).max() < 20
    assert share[[0, 2]].tolist() == [0, 0] and share[[3, 4]].tolist() == [1, 1]


def test_arguments_are_not_changed():
    graph = AtomGraph.collate([AtomGraph.from_atoms(a) for a in load("alloys4")[:3]])
    push = torch.randn(graph.n_atoms, 3, generator=torch.Generator().manual_seed(0))
    copies = {k: v.clone() for k, v in graph.tensors().items()} | {"push": push.clone()}
    for mode in (*MODES, "reference"):
        correction = correct_action(graph, push, 2.0, mode)
        correction.displacement.zero_()  # the result is no view of the argument
    idle = correct_action(graph, 1e-3 * push, 0.1).displacement
    idle.zero_()
    assert all(torch.equal(v, copies[k]) for k, v in (graph.tensors() | {"push": push}).items())


@pytest.mark.parametrize("mode", MODES)
def test_the_correction_turns_with_the_structure(mode):
    rng = np.random.default_rng(9)
    graph, turn = random_graph(rng), torch.as_tensor(np.linalg.qr(rng.normal(size=(3, 3)))[0])
    push = torch.as_tensor(rng.normal(0, 1, (3, 3)))
    turned = AtomGraph(positions=graph.positions @ turn.T, cell=graph.cell @ turn.T, numbers=graph.numbers,
                       pbc=graph.pbc, batch=graph.batch)
    a, b = correct_action(graph, push, 1.2, mode), correct_action(turned, push @ turn.T, 1.2, mode)
    assert 0 < a.a_back.max() < 1
    torch.testing.assert_close(a.displacement @ turn.T, b.displacement, atol=1e-9, rtol=0)


def test_an_image_of_itself_is_no_obstacle():
    """In a cell shorter than r0 an atom's own images move with it, but images of the other atom do not."""
    cell = torch.tensor([[[1.0, 0, 0], [0, 9, 0], [0, 0, 9]]], dtype=torch.float64)
    both = AtomGraph(positions=torch.tensor([[0, 0, 0], [0.5, 3, 0]], dtype=torch.float64),
                     numbers=torch.tensor([29, 29]), cell=cell,
                     pbc=torch.tensor([[True] * 3]), batch=torch.tensor([0, 0]))
    along, across = (torch.tensor([[0, 0, 0], v], dtype=torch.float64) for v in ([5.0, 0, 0], [0.0, -3, 0]))
    assert correct_action(both, along, 1.5).a_back.item() == 0
    assert correct_action(both, across, 1.5).a_back.item() == pytest.approx(1 - (3 - (1.5**2 - 0.5**2)**0.5) / 3)


@pytest.mark.skipif(not FIXTURES.exists(), reason="the reference fixtures are not beside this checkout")
def test_reference_mode_is_the_originals():
    cases = np.load(FIXTURES / "correct_action.npz")
    for n in range(int(cases["n_cases"])):
        case = {k.split("/")[1]: cases[k] for k in cases if k.startswith(f"case{n:02d}/")}
        tensor = lambda x: torch.as_tensor(x, dtype=torch.float64)
        graph = AtomGraph(positions=tensor(case["positions_initial"]), numbers=torch.as_tensor(case["numbers"]),
                          cell=tensor(case["cell"])[None],
                          pbc=torch.tensor([[True] * 3]), batch=torch.zeros(len(case["numbers"]), dtype=torch.int64))
        correction = correct_action(graph, tensor(case["action"]), float(case["r0"]), "reference")
        assert correction.a_back.item() == pytest.approx(float(case["a_back"]), abs=1e-3)
        moved = graph.positions + correction.displacement - tensor(case["positions_out"])
        whole = moved @ torch.linalg.inv(graph.cell[0])
        torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=0)  # the original wraps the atoms


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match="did you mean 'structure'"):
        correct_action(AtomGraph.from_atoms(bulk("Cu", cubic=True)), torch.zeros(4, 3), 1.5, "structur")


@pytest.mark.skipif(not FIXTURES.exists(), reason="the reference fixtures are not beside this checkout")
def test_steps_of_the_original_environment(alfe):
    """The stored steps: same move, forces and reward.

    In four of them the original wrapped an atom into the cell before it rejected part of the move, and so put the atom
    a part of a lattice vector away: its known fault, which ours must not repeat.
    """
    calc = calculator("eam:" + ",".join(str(alfe / name) for name in ("AlFe.fs", "Al.eam.alloy", "Fe.eam.fs")))
    cases, faults = np.load(FIXTURES / "env_step.npz"), 0
    for n in range(int(cases["n_cases"])):
        case = {k.split("/")[1]: cases[k] for k in cases if k.startswith(f"case{n:02d}/")}
        settings = EnvironmentSettings(fmax=float(case["eps"]), r0=float(case["r0"]), reward=str(case["reward_func"]),
                                       correction_mode="reference",
                                       hybrid_weights=tuple(case["r_weights"]), correction_weight=0.0)
        atoms = Atoms(case["numbers"], case["positions_before"], cell=case["cell"], pbc=True)
        env = Environment([atoms], calc, settings)
        env.reset(options={"atoms": atoms})
        assert env.fmax == pytest.approx(float(case["max_force_before"]), rel=1e-6, abs=1e-6)
        _, reward, terminated, _, info = env.step(case["action_in"])
        np.testing.assert_allclose(info["displacement"], (1 - info["a_back"]) * case["action_in"], atol=1e-12)
        ends = Ends(None, case["forces_after"], 0.0, 0.0)
        assert REWARDS[settings.reward].pay(ends, settings) == pytest.approx(float(case["reward"]), rel=1e-9)
        moved = case["positions_after"] - case["positions_before"]
        jump = (moved - (1 - case["a_back"]) * case["action_in"]) @ np.linalg.inv(case["cell"])
        if np.abs(jump - np.round(jump)).max() > 1e-6:
            faults += 1
            continue
        assert info["a_back"] == pytest.approx(float(case["a_back"]), abs=1e-3)
        np.testing.assert_allclose(env.forces, case["forces_after"], rtol=1e-5, atol=1e-6)
        assert reward == pytest.approx(float(case["reward"]), rel=1e-3) and terminated == bool(case["done"])
    assert faults == 4
