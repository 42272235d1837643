"""The replay memory against a plain list: ragged sizes, every field, reserves, n-step returns, speed."""
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule
from safetensors.torch import load_file, save_file

from atomrl_nb.graphs import AtomGraph, rows_of
from atomrl_nb.memory import Batch, MemorySettings, ReplayMemory, edge_shifts, edge_vectors, suggest_capacity
from atomrl_nb.structures import InputError, load, perturb
from atomrl_nb.learner import Trainer, to_device
from atomrl_nb.training import resume, train

TOOLS = Path(__file__).resolve().parent.parent / "tools"
UNCHANGED = ("numbers", "cell", "pbc", "fixed")
ALWAYS = ("positions", "numbers", "cell", "pbc", "batch", "forces", "pair_index", "pair_features", "edge_index",
          "edge_vec")
EXTRA = [f.name for f in fields(AtomGraph) if f.name not in ALWAYS]  # a field that is new to `AtomGraph` is tested too


def tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_graph(rng, n_atoms, extra=(), edges=False, like=None):
    """A graph of one structure with random numbers in every field, and a random number of pairs, perhaps none.

    The vectors of edges are differences of positions plus whole lattice vectors, as they are in any graph.
    """
    n = dict(graphs=1, atoms=n_atoms, pairs=int(torch.randint(0, n_atoms**2 + 1, (1,), generator=rng)),
             edges=int(torch.randint(1, 30, (1,), generator=rng)))
    real = lambda *s: torch.randn(*s, generator=rng)
    index = lambda m: torch.randint(n_atoms, (2, m), generator=rng).sort(1).values
    tensors = dict(positions=real(n_atoms, 3), numbers=torch.randint(1, 90, (n_atoms,), generator=rng),
                   cell=real(1, 3, 3), pbc=torch.ones(1, 3, dtype=torch.bool),
                   forces=real(n_atoms, 3), pair_index=index(n["pairs"]), pair_features=real(n["pairs"], 2, 4))
    if edges:
        (src, dst), shift = index(n["edges"]), torch.randint(-2, 3, (n["edges"], 3), generator=rng).float()
        tensors["edge_index"] = torch.stack([src, dst])
    tails = {"energy": (), "fixed": (), "env": (5,), "node_features": (2,)}
    for name in extra:
        rows = n[rows_of(name)]
        tensors[name] = index(rows) if name.endswith("_index") else real(rows, *tails.get(name, (3,)))
    if "fixed" in tensors: tensors["fixed"] = tensors["fixed"] > 0
    if like: tensors |= {name: getattr(like, name) for name in UNCHANGED if getattr(like, name) is not None}
    if edges:
        positions = tensors["positions"]
        tensors["edge_vec"] = positions[dst] - positions[src] + shift @ tensors["cell"][0]
    return AtomGraph(**tensors, batch=torch.zeros(n_atoms, dtype=torch.int64))


def random_transition(rng, n_atoms, t=0, source=0, terminated=0, truncated=0, after=None, **kwargs):
    """A step from a random state, or from the one in which the step `after` ended."""
    real = lambda *s: torch.randn(*s, generator=rng)
    graph = after.next_graph if after else random_graph(rng, n_atoms, **kwargs)
    whole = lambda x: torch.tensor([x])
    return Batch(graph=graph, next_graph=random_graph(rng, n_atoms, like=graph, **kwargs),
                 displacement_pred=real(n_atoms, 3), displacement=real(n_atoms, 3), target=real(n_atoms, 3),
                 has_target=real(1), a_back=real(1), reward=real(1), terminated=whole(float(terminated)),
                 truncated=whole(float(truncated)), source=whole(int(source)), t_total=whole(t),
                 policy_version=whole(t))


def join(parts):
    """Collate transitions by the slow way."""
    own = [f.name for f in fields(Batch) if f.name not in ("graph", "next_graph", "discount")]
    return Batch(graph=AtomGraph.collate([p.graph for p in parts]),
                 next_graph=AtomGraph.collate([p.next_graph for p in parts]),
                 **{name: torch.cat([getattr(p, name) for p in parts]) for name in own})


def assert_same(a, b, but=("discount",)):
    """To the bit, but for the vectors of edges, which are computed from positions and cell."""
    for f in fields(Batch):
        if f.name in but: continue
        x, y = getattr(a, f.name), getattr(b, f.name)
        if not isinstance(x, AtomGraph): assert torch.equal(x, y), f.name
        else:
            assert replace(x, edge_vec=None) == replace(y, edge_vec=None), f.name
            torch.testing.assert_close(x.edge_vec, y.edge_vec, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sizes", [(4,), (4, 8), (1, 2, 3, 7)])
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("capacity", [4, 7, 50])
def test_what_comes_out_is_what_a_plain_list_holds(capacity, share, sizes):
    rng, t = torch.Generator().manual_seed(capacity), 0
    memory, oracle = ReplayMemory(capacity, MemorySettings(expert_share=share)), {}
    reserved = round(share * capacity)
    for _ in range(60):
        n = int(torch.randint(1, 3, (1,), generator=rng)) if reserved != 1 else 1
        parts = []
        for _ in range(n):
            t += 1
            parts.append(random_transition(rng, sizes[int(torch.randint(len(sizes), (1,), generator=rng))], t,
                                           source=int(torch.rand(1, generator=rng) < 0.3)))
        for slot, part in zip(memory.add(join(parts)).tolist(), parts): oracle[slot] = part
        assert len(memory) == len(oracle)
        pick = torch.tensor(sorted(oracle))[torch.randint(len(oracle), (9,), generator=rng)]
        assert_same(memory.get(pick), join([oracle[int(slot)] for slot in pick]))
    assert memory.written == t
    ages = lambda source: sorted(int(p.t_total) for p in oracle.values() if int(p.source) == source)
    if reserved: assert len(ages(1)) == reserved and len(ages(0)) == capacity - reserved
    else: assert ages(0) + ages(1) and sorted(ages(0) + ages(1)) == list(range(t - capacity + 1, t + 1))


def test_every_field_of_a_graph_is_stored():
    rng = torch.Generator().manual_seed(0)
    parts = [random_transition(rng, n, t, extra=EXTRA, edges=True) for t, n in enumerate((3, 5, 2))]
    assert {f.name for f in fields(AtomGraph)} == set(parts[0].graph.tensors())
    memory = ReplayMemory(5)
    for part in parts: memory.add(part)
    out = memory.get(torch.tensor([2, 0, 1]))
    assert_same(out, join([parts[2], parts[0], parts[1]]))
    assert set(out.graph.tensors()) == set(parts[0].graph.tensors())


def test_agent_data_never_push_out_the_experts():
    rng = torch.Generator().manual_seed(0)
    memory = ReplayMemory(20, MemorySettings(expert_share=0.25))
    for t in range(5): memory.add(random_transition(rng, 4, t, source=1))
    for t in range(5, 200): memory.add(random_transition(rng, 4, t))
    assert sorted(memory.storage["t_total"].tolist()) == [*range(5), *range(185, 200)]


def test_mixed_sizes_waste_little():
    """Slots as wide as the widest structure would take more than twice as much."""
    rng = torch.Generator().manual_seed(0)
    memory, used, widest = ReplayMemory(200), 0, 0
    for t in range(400):
        part = random_transition(rng, 12 if t % 8 == 0 else 2, t)
        size = sum(v.nbytes for g in (part.graph, part.next_graph) for v in g.tensors().values())
        used, widest = used + size * (t >= 200), max(widest, size)
        memory.add(part)
    assert memory.nbytes < 2 * used and 2 * memory.nbytes < 200 * widest


def play(memory, rng, lengths, ends):
    """Write episodes, interleaved as environments in lockstep do; return them with the slots of their steps."""
    episodes, slots, t = [[] for _ in lengths], [[] for _ in lengths], 0
    for step in range(max(lengths)):
        active, parts = [k for k, length in enumerate(lengths) if step < length], []
        for k in active:
            t, last = t + 1, step == lengths[k] - 1
            parts.append(random_transition(rng, 3, t, terminated=last and ends[k] == "terminated",
                                           truncated=last and ends[k] == "truncated",
                                           after=episodes[k][-1] if episodes[k] else None))
        previous = [slots[k][-1] if slots[k] else None for k in active]
        for k, part, slot in zip(active, parts, memory.add(join(parts), previous).tolist()):
            episodes[k].append(part)
            slots[k].append((slot, int(part.t_total)))
    return episodes, slots


@pytest.mark.parametrize("n_step", [1, 2, 5])
def test_n_step_returns(n_step):
    """Against the sum written out: rewards to the end or n steps on, the state there; only `terminated` ends it."""
    gamma, lengths, ends = 0.7, (1, 3, 6, 4), ("terminated", "terminated", "truncated", "going on")
    memory = ReplayMemory(40, MemorySettings(n_step=n_step), gamma)
    episodes, slots = play(memory, torch.Generator().manual_seed(0), lengths, ends)
    for episode, places in zip(episodes, slots):
        for k, (slot, _) in enumerate(places):
            ahead, out = episode[k:k + n_step], memory.get(torch.tensor([slot]))
            torch.testing.assert_close(out.reward, sum(gamma**i * part.reward for i, part in enumerate(ahead)))
            torch.testing.assert_close(out.discount, torch.tensor([gamma**len(ahead)]))
            assert out.graph == episode[k].graph and out.next_graph == ahead[-1].next_graph
            assert (out.terminated, out.truncated) == (ahead[-1].terminated, ahead[-1].truncated)


def test_n_step_stops_where_the_following_step_was_written_over():
    """With a reserve an expert's step outlives the agent's step that followed it."""
    rng = torch.Generator().manual_seed(0)
    memory = ReplayMemory(6, MemorySettings(n_step=3, expert_share=0.34), gamma=0.5)
    first = random_transition(rng, 3, 1, source=1)
    expert = int(memory.add(first, [None]))
    agent = int(memory.add(random_transition(rng, 3, 2, after=first), [(expert, 1)]))
    assert memory.get(torch.tensor([expert])).discount.item() == 0.25
    for t in range(3, 7): memory.add(random_transition(rng, 3, t), [None])
    assert not memory.holds(agent, 2) and memory.get(torch.tensor([expert])).discount.item() == 0.5


@pytest.mark.parametrize("settings",
                         [MemorySettings(), MemorySettings(expert_share=0.4, sampling="expert", n_step=3),
                          MemorySettings(sampling="recent", half_life=4)])
def test_a_saved_memory_goes_on_exactly(tmp_path, settings):
    rng = torch.Generator().manual_seed(1)
    memory = ReplayMemory(15, settings)
    def step(m, part, previous):
        t = int(part.t_total)
        return int(m.add(part, [previous if t % 3 else None])), t
    parts = []
    for t in range(60):  # episodes of three steps
        after = parts[-1] if t % 3 else None
        parts.append(random_transition(rng, (2, 3, 6)[t // 3 % 3], t, source=t % 4 == 0, after=after, edges=True))
    before = None
    for part in parts[:37]: before = step(memory, part, before)
    save_file({k: v.contiguous() for k, v in memory.state().items()}, tmp_path / "memory.safetensors")
    again, other = ReplayMemory(15, settings), before
    again.load_state(load_file(tmp_path / "memory.safetensors"))
    for part in parts[37:]:
        before, other = step(memory, part, before), step(again, part, other)
        mine, other_draw = (m.sample(7, torch.Generator().manual_seed(2)) for m in (memory, again))
        assert_same(mine, other_draw, but=())
        # to the bit, vectors of edges too
        assert mine.graph == other_draw.graph and mine.next_graph == other_draw.next_graph
    a, b = memory.state(), again.state()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_memory_of_an_older_format_is_refused_by_a_sentence(small, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr("atomrl_nb.memory.FORMAT", 1)
        run = train(replace(small, steps=16), progress=False)
    with pytest.raises(InputError, match="saved in format 1, and this version reads format 2: go on with the version"):
        resume(run, steps=32, progress=False)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_steps_of_an_episode_share_states(share):
    """Ten steps lead through eleven states, whichever lane a step lies in; what is overwritten is forgotten."""
    rng, parts = torch.Generator().manual_seed(0), []
    memory, previous = ReplayMemory(50, MemorySettings(expert_share=share)), None
    for t in range(1, 11):
        parts.append(random_transition(rng, 3, t, source=t % 2, after=parts[-1] if parts else None, edges=True))
        previous = (int(memory.add(parts[-1], [previous])), t)
    assert memory.used["graphs"] == 11
    slots = torch.cat([(memory.storage["t_total"] == t).nonzero()[:, 0] for t in range(1, 11)])
    assert_same(memory.get(slots), join(parts))
    for t in range(11, 161): memory.add(random_transition(rng, 3, t, source=t % 3 == 0, edges=True))
    memory.state()
    assert len(memory) == 50 and memory.used["graphs"] == 100


def test_a_step_begins_where_the_one_before_it_ended():
    rng, memory = torch.Generator().manual_seed(0), ReplayMemory(50)
    first = random_transition(rng, 3, 1)
    memory.add(first)
    with pytest.raises(ValueError, match="does not begin where"): memory.add(random_transition(rng, 3, 2), [(0, 1)])
    memory.add(random_transition(rng, 3, 3, after=first), [(0, 1)])
    with pytest.raises(ValueError, match="does not begin where"):
        memory.add(random_transition(rng, 3, 4, after=first), [(0, 1)])
    assert len(memory) == 2 and memory.get(torch.tensor([0, 1])).t_total.tolist() == [1, 3]


def test_vectors_of_edges_are_those_that_went_in():
    """In small, skew, thin and open cells, and where atoms have left the cell."""
    cells = [bulk("Cu"), bulk("Ti"), fcc111("Al", (2, 2, 3), vacuum=8), molecule("CH3CH2OH"), load("cuau4")[0]]
    for atoms in cells:
        atoms = perturb(atoms, 0.1, seed=0)
        atoms.positions[0] += np.array([3, -2, 1]) * atoms.pbc @ atoms.cell.array
        graph = AtomGraph.from_atoms(atoms)
        torch.testing.assert_close(edge_vectors(graph, edge_shifts(graph)), graph.edge_vec, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="wrap the positions"):
        atoms.positions[0] += 200 * atoms.cell[0]
        edge_shifts(AtomGraph.from_atoms(atoms, dtype=torch.float64))


def test_an_empty_memory_is_saved_and_loaded():
    again = ReplayMemory(5)
    again.load_state(ReplayMemory(5).state())
    assert len(again) == 0
    again.add(random_transition(torch.Generator().manual_seed(0), 3))
    assert len(again) == 1


def test_a_checkpoint_holds_only_rows_in_use():
    rng, wide, narrow = torch.Generator().manual_seed(0), ReplayMemory(1000), ReplayMemory(10)
    for t in range(10):
        part = random_transition(rng, 4, t)
        wide.add(part), narrow.add(part)
    a, b = ({k: v for k, v in m.state().items() if k != "lanes"} for m in (wide, narrow))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert sum(v.nbytes for v in a.values()) < wide.nbytes / 4


def test_batches_go_to_a_device():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory, here, rng = ReplayMemory(5, device=device), ReplayMemory(5), torch.Generator().manual_seed(0)
    for t in range(7):
        part = random_transition(rng, 4, t)
        memory.add(part), here.add(to_device(part, torch.device(device)))
    a, b = (to_device(m.sample(8, torch.Generator().manual_seed(0)), torch.device("cpu")) for m in (memory, here))
    assert_same(a, b, but=())
    assert next(iter(memory.storage.values())).device.type == device
    here.load_state(memory.state())
    assert here.storage["t_total"].device.type == "cpu"


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_recent_data_are_drawn_by_their_half_life(share):
    rng = torch.Generator().manual_seed(0)
    memory = ReplayMemory(64, MemorySettings(sampling="recent", half_life=8.0, expert_share=share))
    agents = round(64 * (1 - share))
    for t in range(64 - agents): memory.add(random_transition(rng, 2, t, source=1))
    for t in range(1000, 1100): memory.add(random_transition(rng, 2, t))
    drawn = memory.storage["t_total"][memory.draw(200_000, torch.Generator().manual_seed(0))]
    count = torch.bincount(drawn, minlength=1100).float()
    assert abs(count[:500].sum() / 200_000 - (64 - agents) / 64) < 0.01  # the reserve keeps its share, drawn alike
    age = torch.arange(agents)
    expected = 0.5 ** (age / 8)
    torch.testing.assert_close(count[1099 - age] / count[1000:].sum(), expected / expected.sum(), atol=3e-3, rtol=0)


def test_a_capacity_that_does_not_fit_is_refused_before_a_run_folder_is_made(small):
    with pytest.raises(InputError, match="GB are free: lower it. ([0-9,]+) transitions fit"):
        train(replace(small, buffer_capacity=10**12), progress=False)
    assert not Path(small.run).exists()


def test_what_is_said_to_fit_is_what_fits(monkeypatch):
    """In a machine of 1 MB."""
    rng, parts = torch.Generator().manual_seed(0), []
    monkeypatch.setattr("atomrl_nb.memory.free_memory", lambda: 1e6)
    for t in range(1, 700): parts.append(random_transition(rng, 8, t, after=parts[-1] if parts else None))
    with pytest.raises(InputError, match="transitions fit") as refused: ReplayMemory(10**6).add(parts[0])
    fit = int(re.search("([0-9,]+) transitions fit", str(refused.value))[1].replace(",", ""))
    memory, previous = ReplayMemory(fit), None
    for part in parts: previous = (int(memory.add(part, [previous])), int(part.t_total))
    assert 300 < fit == len(memory) and 5e5 < memory.nbytes < 1.1e6


def test_a_memory_that_outgrows_the_machine_says_how_much_fits(monkeypatch):
    """Structures larger than the first ones."""
    rng, memory = torch.Generator().manual_seed(0), ReplayMemory(100)
    for t in range(10): memory.add(random_transition(rng, 4, t))
    monkeypatch.setattr("atomrl_nb.memory.free_memory", lambda: 1e4)
    with pytest.raises(InputError, match="lower buffer_capacity to [0-9]+, which fit"):
        for t in range(10, 100): memory.add(random_transition(rng, 40, t))


def test_suggested_capacities():
    small = [suggest_capacity(n) for n in range(1, 9)]
    assert all(1000 <= n <= 5000 for n in small) and small == sorted(small)
    assert suggest_capacity(16) > 5000 and suggest_capacity(200) < suggest_capacity(200, limit=1e12) == 100_000
    assert "GB hold" in suggest_capacity(200).why and "small" in suggest_capacity(4).why


def test_the_suggestion_knows_the_size_of_a_transition(trainer):
    """The bytes that `suggest_capacity` reckons with are those that the memory takes, to a factor of 1.5."""
    state = trainer.memory.state()
    taken = sum(v.nbytes for v in state.values()) / len(trainer.memory)
    assert 1 / 1.5 < 1e6 / suggest_capacity(4, limit=1e6) / taken < 1.5


def test_a_transition_of_108_atoms_takes_50_kB_and_not_three_MB(small):
    """Edges are stored by their ends, and the networks say the same of a sampled state as of the observed one."""
    made = Trainer(replace(small, n_envs=2), [bulk("Cu", cubic=True).repeat(3)])
    made.begin()
    for _ in range(3): made.round()
    taken = sum(v.nbytes for v in made.memory.state().values()) / len(made.memory)
    assert 30_000 < taken < 70_000  # a third more states than steps: the episodes are three steps long
    assert 1 / 1.6 < 1e6 / suggest_capacity(108, limit=1e6) / taken < 1.6
    newest = made.memory.get((made.memory.storage["t_total"] > 4).nonzero()[:, 0]).next_graph
    assert newest.pair_features is None and torch.equal(newest.positions, made.graph.positions)
    with torch.no_grad():
        torch.testing.assert_close(made.agent.actor(newest), made.agent.actor(made.graph), rtol=1e-4, atol=1e-6)


def test_structures_of_four_and_twenty_atoms_share_a_memory(small):
    """What is stored is decided for the run, not from step to step."""
    made = Trainer(small, [bulk("Cu", cubic=True), bulk("Cu", cubic=True).repeat((5, 1, 1))])
    made.begin()
    for _ in range(12): made.round()
    sizes = made.memory.get(torch.arange(len(made.memory))).graph.sizes
    assert set(sizes.tolist()) == {4, 20} and made.agent.updates > 0


@pytest.mark.parametrize("changes",
                         [dict(sampling="recent", half_life=10.0), dict(sampling="expert", expert_share=0.3),
                          dict(n_step=3, expert_share=0.2)])
def test_training_reaches_every_setting(small, changes):
    made = Trainer(replace(small, memory=MemorySettings(**changes)), load(*small.structures))
    made.begin()
    for _ in range(12): rows, _ = made.round()
    assert made.agent.updates > 0 and rows[-1]["memory_oldest"] >= rows[-1]["memory_age"] > 0
    batch = made.memory.sample(64, torch.Generator().manual_seed(0))
    if changes.get("sampling") == "expert": assert batch.source.sum() == round(0.3 * 64)
    if "n_step" in changes:
        assert batch.discount.min() < made.settings.td3.gamma and (batch.discount <= made.settings.td3.gamma).all()
    assert {"memory_age", "memory_oldest", "expert_share"} <= rows[-1].keys()


def test_sampling_is_faster_than_lists():
    """Three times on a quiet machine (`nbs/benchmark/memory_speed.json`); two here, whatever else is going on."""
    times = tool("memory_speed").measure(seconds=1.5)
    assert times["list"] > 2 * times["memory"], times


def test_sampling_is_faster_than_pytorch_geometric():
    pytest.importorskip("torch_geometric")
    times = tool("memory_speed").measure(seconds=2.0, geometric=True)
    assert times["geometric"] > 10 * times["memory"], times


def test_the_measurement_of_speed_in_its_quick_form():
    saved = TOOLS.parent / "nbs" / "benchmark"
    before = {p: p.stat().st_mtime_ns for p in saved.iterdir()}
    done = subprocess.run([sys.executable, str(TOOLS / "memory_speed.py"), "--quick"], cwd=TOOLS.parent,
                          capture_output=True, text=True, check=True, timeout=600,
                          env=os.environ | {"PYTHONPATH": str(TOOLS.parent), "OMP_NUM_THREADS": "1"})
    assert '"list"' in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in saved.iterdir()}


def test_lists_and_memory_collate_the_same():
    speed = tool("memory_speed")
    made, memory = speed.transitions(6), ReplayMemory(6)
    for t in made: memory.add(t)
    assert_same(memory.get(torch.tensor([4, 0, 5])), speed.list_collate([made[k] for k in (4, 0, 5)]))
