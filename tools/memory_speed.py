"""Measure sampling from the memory against collating lists of transitions; write `nbs/benchmark/memory_speed.json`."""
import argparse
import json
import platform
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
from ase.build import bulk

from atomrl_nb.experiment import provenance
from atomrl_nb.graphs import AtomGraph, with_pairs
from atomrl_nb.memory import Batch, ReplayMemory
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import calculator, load, perturb
from atomrl_nb.settings import Settings
from atomrl_nb.learner import Trainer

ROOT = Path(__file__).resolve().parent.parent
UNCHANGED = ("numbers", "cell", "pbc", "fixed")


def transitions(n: int) -> list:
    """Make `n` transitions of one four-atom structure each, as the trainer stores them."""
    def state(atoms):
        atoms = atoms.copy()
        atoms.calc = calculator("emt")
        atoms.get_forces()
        return replace(with_pairs(AtomGraph.from_atoms(atoms)), edge_index=None, edge_vec=None)
    structures, made = load("alloys4"), []
    for k in range(n):
        before = perturb(structures[k % len(structures)], 0.3, seed=k)
        after = perturb(before, 0.1, seed=k)
        move, one = torch.as_tensor(after.positions - before.positions, dtype=torch.float32), lambda dtype=torch.float32: torch.zeros(1, dtype=dtype)
        made.append(Batch(graph=state(before), next_graph=state(after), displacement_pred=move, displacement=move, target=move, has_target=one(),
                          a_back=one(), reward=one(), terminated=one(), truncated=one(), source=one(torch.int64), t_total=torch.tensor([k]),
                          policy_version=one(torch.int64)))
    return made


def list_collate(picked: list) -> Batch:
    """Join transitions by one `torch.cat` a field: the fastest way with a list of objects."""
    def join(graphs, shared):
        tensors = {name: torch.cat([getattr(g, name) for g in graphs], -1 if name == "pair_index" else 0) for name in graphs[0].tensors()
                   if name not in UNCHANGED + ("batch",)}
        pairs = torch.tensor([g.pair_index.shape[1] for g in graphs])
        tensors["pair_index"] += first.repeat_interleave(pairs)
        return AtomGraph(**tensors, **shared, batch=batch)
    graphs, following = [p.graph for p in picked], [p.next_graph for p in picked]
    sizes = torch.tensor([len(g.positions) for g in graphs])
    first, batch = sizes.cumsum(0) - sizes, torch.arange(len(graphs)).repeat_interleave(sizes)
    shared = {name: torch.cat([getattr(g, name) for g in graphs]) for name in UNCHANGED}
    own = [f.name for f in fields(Batch) if f.name not in ("graph", "next_graph", "discount")]
    return Batch(graph=join(graphs, shared), next_graph=join(following, shared), **{name: torch.cat([getattr(p, name) for p in picked]) for name in own})


def geometric_data(made: list) -> list:
    """Turn transitions into `torch_geometric.data.Data` with the same tensors."""
    from torch_geometric.data import Data
    def data(t):
        tensors = {k: v for k, v in t.graph.tensors().items() if k != "batch"}
        tensors |= {f"next_{k}": v for k, v in t.next_graph.tensors().items() if k not in UNCHANGED + ("batch",)}
        tensors |= {f.name: getattr(t, f.name) for f in fields(Batch) if f.name not in ("graph", "next_graph", "discount")}
        return Data(num_nodes=len(t.graph.positions), **tensors)
    return [data(t) for t in made]


def best(functions: dict, seconds: float) -> dict:
    """Take the shortest processor time of each function [ms], of some calls in a row, again and again in turn."""
    shortest, end = dict.fromkeys(functions, float("inf")), time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, function in functions.items():
            for _ in range(10):
                began = time.process_time()
                function()
                shortest[name] = min(shortest[name], (time.process_time() - began) * 1000)
    return shortest


def measure(stored: int = 400, n: int = 100, seconds: float = 3.0, geometric: bool = False) -> dict:
    """Time sampling and collating `n` of `stored` transitions by each way [ms]."""
    torch.set_num_threads(1)
    made, generator, memory = transitions(stored), torch.Generator().manual_seed(0), ReplayMemory(stored)
    for t in made: memory.add(t)
    draw = lambda: torch.randint(stored, (n,), generator=generator).tolist()
    functions = {"memory": lambda: memory.sample(n, generator), "list": lambda: list_collate([made[k] for k in draw()])}
    if geometric:
        from torch_geometric.data import Batch as GeometricBatch
        data = geometric_data(made)
        functions["geometric"] = lambda: GeometricBatch.from_data_list([data[k] for k in draw()])
    return best(functions, seconds)


def share_of_update(head: str, cells: tuple, seconds: float) -> float:
    """Share of sampling in an update of 64 transitions, sampled from crystals of so many cells of four copper atoms."""
    settings = Settings(n_envs=4, batch_size=64, learning_starts=10**9, network=NetworkSettings(head=head))
    trainer, generator = Trainer(settings, [bulk("Cu", cubic=True).repeat(cells)]), torch.Generator().manual_seed(0)
    trainer.begin()
    for _ in range(12): trainer.round()
    sample = lambda: trainer.memory.sample(64, generator)
    times = best({"sample": sample, "both": lambda: trainer.agent.update(sample())}, seconds)
    return round(times["sample"] / times["both"], 4)


def main():
    """Measure, print, and save unless in the quick form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form that writes nothing")
    args = parser.parse_args()
    try: import torch_geometric
    except ImportError: torch_geometric = None
    times = measure(seconds=1.0 if args.quick else 20.0, geometric=torch_geometric is not None)
    sizes = {4: (1, 1, 1)} if args.quick else {4: (1, 1, 1), 8: (2, 1, 1), 16: (2, 2, 1)}
    seconds = 0.1 if args.quick else 3.0
    shares = {head: {n: share_of_update(head, cells, seconds) for n, cells in sizes.items()} for head in ("direct", "potential")}
    facts = dict(provenance=provenance("python tools/memory_speed.py"), milliseconds={k: round(v, 3) for k, v in times.items()}, ratio={k: round(v / times["memory"], 1) for k, v in times.items() if k != "memory"},
                 share_of_update=shares, what="100 of 400 four-atom transitions, one thread, shortest of many", torch=torch.__version__.split("+")[0],
                 torch_geometric=getattr(torch_geometric, "__version__", None), machine=platform.machine())
    print(json.dumps(facts, indent=1))
    if not args.quick: (ROOT / "nbs" / "benchmark" / "memory_speed.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
