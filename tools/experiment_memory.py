"""Does old experience make wrong targets? Train with memories of 100,000, 5,000 and 1,000 transitions; write `nbs/benchmark/memory.json`."""
import argparse
import json
import platform
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import cases
import numpy as np
import torch
from ase import Atoms

from atomrl_nb.environment import Environment, EnvironmentSettings
from atomrl_nb.graphs import AtomGraph
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import load
from atomrl_nb.settings import Settings
from atomrl_nb.learner import Trainer
from atomrl_nb.evaluation import evaluate

ROOT = Path(__file__).resolve().parent.parent
CAPACITIES = (100_000, 5_000, 1_000)
SETTINGS = Settings(structures=("alloys4",), steps=20_000, n_envs=32, updates_per_step=0.1, batch_size=64, evaluation_starts=32,
                    network=NetworkSettings(channels=8, layers=1), environment=EnvironmentSettings(perturb=0.5))
SAMPLED, AHEAD = 32, 6  # transitions each time a run is probed, steps whose rewards are summed (gamma 0.5)


def structures_of(graph: AtomGraph) -> list:
    """Turn a batch of structures back into `ase.Atoms`."""
    rows = [graph.batch == k for k in range(graph.n_graphs)]
    return [Atoms(numbers=graph.numbers[r].numpy(), positions=graph.positions[r].double().numpy(), cell=graph.cell[k].double().numpy(), pbc=graph.pbc[k].numpy())
            for k, r in enumerate(rows)]


@torch.no_grad()
def true_returns(trainer: Trainer, batch) -> torch.Tensor:
    """Follow the target policy without noise from the next state of each transition, and sum its discounted rewards: (n_graphs,)."""
    template, gamma, total = trainer.environments[0], trainer.settings.td3.gamma, batch.reward.double().clone()
    active = {k: Environment([atoms], template.calculator, replace(template.settings, max_steps=10**6), template.cutoff)
              for k, atoms in enumerate(structures_of(batch.next_graph)) if not batch.terminated[k]}
    for env in active.values(): env.reset(options={"atoms": env.structures[0]})
    for ahead in range(1, AHEAD + 1):
        if not active: break
        graph = trainer.observe(list(active.values()))
        move, ends = trainer.agent.actor_target(graph).double().numpy(), np.cumsum([0] + graph.sizes.tolist())
        steps = {k: env.step(move[start:end]) for (k, env), start, end in zip(active.items(), ends, ends[1:])}
        for k, step in steps.items(): total[k] += gamma**ahead * step[1]
        active = {k: env for k, env in active.items() if not steps[k][2]}
    return total


def target_error(trainer: Trainer, slots: torch.Tensor) -> tuple:
    """Hold the Bellman targets of some transitions against true returns: errors and ages [steps] of those that have not terminated."""
    batch, generator = trainer.memory.get(slots), trainer.agent.generator.get_state()
    error = trainer.agent.q_target(batch).double() - true_returns(trainer, batch)
    trainer.agent.generator.set_state(generator)  # a probe changes nothing in the run
    going = batch.terminated == 0
    return error[going].numpy(), (trainer.t_total - batch.t_total)[going].numpy()


def probe(trainer: Trainer) -> dict:
    """Look at a run: targets on what it samples, on its newest data, and its policy on fixed starts."""
    sampled, age = target_error(trainer, trainer.memory.draw(SAMPLED, torch.Generator().manual_seed(trainer.t_total)))
    newest = trainer.memory.storage["t_total"].topk(SAMPLED).indices
    old = age > np.median(age)
    results, _ = evaluate(trainer)
    return dict(t_total=trainer.t_total, target_error=float(np.abs(sampled).mean()), target_bias=float(sampled.mean()),
                target_error_old=float(np.abs(sampled[old]).mean()), target_error_young=float(np.abs(sampled[~old]).mean()),
                target_error_newest=float(np.abs(target_error(trainer, newest)[0]).mean()), age=float(age.mean()),
                evaluations=float(np.mean([r["steps"] + 1 for r in results])), relaxed=sum(r["terminated"] for r in results))


def one_run(capacity: int, seed: int, agent_steps: int, n_probes: int) -> dict:
    """Train until the agent has taken `agent_steps` steps, probe it on the way, and return a summary."""
    torch.set_num_threads(1)
    trainer, began = Trainer(replace(SETTINGS, buffer_capacity=capacity, seed=seed), load(*SETTINGS.structures)), time.process_time()
    trainer.begin()
    logs, probes, agents = [], [], 0
    while agents < agent_steps:
        rows, _ = trainer.round()
        agents += sum(not row["expert"] for row in rows)
        if "loss_q" in rows[0]: logs.append({name: rows[0][name] for name in ("loss_q", "td_error", "memory_age", "memory_oldest")})
        if agents >= (len(probes) + 1) * agent_steps / n_probes: probes.append(probe(trainer))
    late = {name: np.array([log[name] for log in logs[len(logs) // 2:]]) for name in logs[0]}
    loss, window = np.log10(late["loss_q"]), min(21, 1 + len(late["loss_q"]) // 4)
    smooth = np.convolve(loss, np.ones(window) / window, "valid")
    wobble = loss[window // 2:window // 2 + len(smooth)] - smooth
    return dict(capacity=capacity, seed=seed, agent_steps=agents, force_evaluations=sum(e.force_evaluations for e in trainer.environments),
                expert_evaluations=trainer.expert_evaluations, updates=trainer.agent.updates, overwritten=1 - len(trainer.memory) / trainer.memory.written,
                nbytes=trainer.memory.nbytes, loss=float(late["loss_q"].mean()), oscillation=float(wobble.std()), memory_age=float(late["memory_age"].mean()),
                memory_oldest=float(late["memory_oldest"].mean()), probes=probes, cpu_seconds=round(time.process_time() - began, 1))


def main():
    """Run all capacities and seeds, and save the summaries unless in the quick form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form that writes nothing into the repository")
    parser.add_argument("--work", type=Path, help="folder that keeps finished runs (default: a temporary one)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    args = parser.parse_args()
    steps, seeds, capacities, probes = (400, 1, CAPACITIES[2:], 1) if args.quick else (SETTINGS.steps, args.seeds, CAPACITIES, 5)
    with tempfile.TemporaryDirectory() as folder:
        chosen = {f"{capacity}_{seed}": (capacity, seed, steps, probes) for seed in range(seeds) for capacity in capacities}
        runs = list(cases.run_all(one_run, chosen, args.work or Path(folder), args.jobs).values())
    for run in runs: print(f"{run['capacity']:7} seed {run['seed']}: target error {run['probes'][-1]['target_error']:.3f}, oscillation {run['oscillation']:.3f}, "
                           f"{run['probes'][-1]['evaluations']:.2f} force evaluations, {run['cpu_seconds']:.0f} s")
    if args.quick: return
    facts = dict(settings=asdict(SETTINGS), machine=platform.machine(), sampled=SAMPLED, ahead=AHEAD, runs=runs)
    (ROOT / "nbs" / "benchmark" / "memory.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
