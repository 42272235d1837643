"""Does old experience make wrong targets? Train with memories of 100,000, 5,000 and 1,000 transitions."""
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from atomrl_nb.environment import Environment, EnvironmentSettings
from atomrl_nb.experiment import Experiment
from atomrl_nb.graphs import AtomGraph
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import load
from atomrl_nb.settings import Settings
from atomrl_nb.learner import Trainer
from atomrl_nb.evaluation import evaluate

CAPACITIES = (100_000, 5_000, 1_000)
SETTINGS = Settings(structures=("alloys4",), steps=20_000, n_envs=32, updates_per_step=0.1, batch_size=64,
                    evaluation_starts=32, network=NetworkSettings(channels=8, layers=1),
                    environment=EnvironmentSettings(perturb=0.5))
SAMPLED, AHEAD = 32, 6  # transitions each time a run is probed, steps whose rewards are summed (gamma 0.5)


def cases(seeds: int, quick: bool) -> list:
    """List the capacities for each seed."""
    capacities = CAPACITIES[2:] if quick else CAPACITIES
    return [dict(capacity=capacity, seed=seed) for seed in range(1 if quick else seeds) for capacity in capacities]


def structures_of(graph: AtomGraph) -> list:
    """Turn a batch of structures back into `ase.Atoms`."""
    found = []
    for k in range(graph.n_graphs):
        mine = graph.batch == k
        found.append(Atoms(numbers=graph.numbers[mine].numpy(), positions=graph.positions[mine].double().numpy(),
                           cell=graph.cell[k].double().numpy(), pbc=graph.pbc[k].numpy()))
    return found


@torch.no_grad()
def true_returns(trainer: Trainer, batch) -> torch.Tensor:
    """Follow the target policy without noise from each transition's next state: discounted rewards, (n_graphs,)."""
    template, gamma, total = trainer.environments[0], trainer.settings.td3.gamma, batch.reward.double().clone()
    endless = replace(template.settings, max_steps=10**6)
    active = {k: Environment([atoms], template.calculator, endless, template.cutoff)
              for k, atoms in enumerate(structures_of(batch.next_graph)) if not batch.terminated[k]}
    for env in active.values():
        env.reset(options={"atoms": env.structures[0]})
    for ahead in range(1, AHEAD + 1):
        if not active:
            break
        graph = trainer.observe(list(active.values()))
        move, ends = trainer.agent.actor_target(graph).double().numpy(), np.cumsum([0] + graph.sizes.tolist())
        steps = {k: env.step(move[start:end]) for (k, env), start, end in zip(active.items(), ends, ends[1:])}
        for k, step in steps.items():
            total[k] += gamma**ahead * step[1]
        active = {k: env for k, env in active.items() if not steps[k][2]}
    return total


def target_error(trainer: Trainer, slots: torch.Tensor) -> tuple:
    """Hold Bellman targets against true returns: errors and ages [steps] of transitions that have not terminated."""
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
                target_error_old=float(np.abs(sampled[old]).mean()),
                target_error_young=float(np.abs(sampled[~old]).mean()),
                target_error_newest=float(np.abs(target_error(trainer, newest)[0]).mean()), age=float(age.mean()),
                evaluations=float(np.mean([r["steps"] + 1 for r in results])),
                relaxed=sum(r["terminated"] for r in results))


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Train until the agent has taken its steps, and probe it on the way."""
    torch.set_num_threads(1)
    agent_steps, n_probes = (400, 1) if quick else (SETTINGS.steps, 5)
    settings = replace(SETTINGS, buffer_capacity=case["capacity"], seed=case["seed"])
    trainer, began = Trainer(settings, load(*SETTINGS.structures)), time.process_time()
    trainer.begin()
    logs, probes, agents = [], [], 0
    while agents < agent_steps:
        rows, _ = trainer.round()
        agents += sum(not row["expert"] for row in rows)
        if "loss_q" in rows[0]:
            logs.append({name: rows[0][name] for name in ("loss_q", "td_error", "memory_age", "memory_oldest")})
        if agents >= (len(probes) + 1) * agent_steps / n_probes:
            probes.append(probe(trainer))
    late = {name: np.array([log[name] for log in logs[len(logs) // 2:]]) for name in logs[0]}
    return dict(agent_steps=agents, force_evaluations=sum(env.force_evaluations for env in trainer.environments),
                expert_evaluations=trainer.expert_evaluations, updates=trainer.agent.updates,
                overwritten=1 - len(trainer.memory) / trainer.memory.written, nbytes=trainer.memory.nbytes,
                loss=float(late["loss_q"].mean()), oscillation=oscillation(late["loss_q"]),
                memory_age=float(late["memory_age"].mean()), memory_oldest=float(late["memory_oldest"].mean()),
                probes=probes, cpu_seconds=round(time.process_time() - began, 1))


def oscillation(loss: np.ndarray) -> float:
    """Take the standard deviation of log10 of a loss around its running mean."""
    loss, window = np.log10(loss), min(21, 1 + len(loss) // 4)
    smooth = np.convolve(loss, np.ones(window) / window, "valid")
    return float((loss[window // 2:window // 2 + len(smooth)] - smooth).std())


def tell(row: dict) -> str:
    """Say how a run went."""
    last = row["probes"][-1]
    return (f"{row['capacity']:7} seed {row['seed']}: target error {last['target_error']:.3f}, "
            f"oscillation {row['oscillation']:.3f}, {last['evaluations']:.2f} force evaluations, "
            f"{row['cpu_seconds']:.0f} s")


EXPERIMENT = Experiment(
    "memory", "Does old experience make wrong targets?", cases, measure,
    dict(settings=asdict(SETTINGS), sampled=SAMPLED, ahead=AHEAD), seeds=5, tell=tell, rows="runs")
