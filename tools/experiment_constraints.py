"""Train agents among walls: dense starts and starts inside the wall, the original's rule and ours, penalty and shaping off and on.

    experiment_constraints.py [--quick] [--work DIR] [--jobs N] [--seeds N]

Every run is cached in the work folder, so an interrupted experiment goes on where it stopped.
"""
import argparse
import itertools
import json
import multiprocessing
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from atomrl_nb.environment import Environment, EnvironmentSettings
from atomrl_nb.expert import ExpertSettings
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import calculator, closest_pair, load, perturb
from atomrl_nb.td3 import TD3Settings
from atomrl_nb.settings import Settings
from atomrl_nb.learner import Trainer

RESULT = Path(__file__).resolve().parent.parent / "nbs" / "benchmark" / "constraints.json"
SYSTEM, R0 = "cuau4", 2.0  # Å: neighbours in this crystal at rest are 2.7 Å apart, so in a compressed cell the wall stands near
RULES = {"original": "reference", "ours": "structure"}
LAMBDA = 10.0  # 1/Å², where the penalty is on
STEPS, TEST_STARTS = 1000, 32
STALLED = 1e-3  # Å: a start that fails with a mean last move shorter than this stands at a wall
MEASURES = ("evaluations", "failed", "stalled", "fmax", "move", "corrected", "a_back", "training_move", "training_corrected")


def arms():
    """Return (rule, lambda, shaping) of each arm: all combinations."""
    return [*itertools.product(RULES, (0.0, LAMBDA), (False, True))]


def compressed(atoms: Atoms, amplitude: float, low: float, high: float, rng) -> Atoms:
    """Displace the atoms and scale the cell until the closest pair is `low` to `high` times R0 apart.

    Drawn anew until the crystal at rest in that cell keeps clear of the wall, so that every start can be relaxed.
    """
    while True:
        start = perturb(atoms, amplitude, rng)
        factor = rng.uniform(low, high) * R0 / closest_pair(start, 6.0)[0]
        start.set_cell(factor * np.asarray(start.cell), scale_atoms=True)
        if factor * closest_pair(atoms, 6.0)[0] > 1.05 * R0: return start


STARTS = {"dense": (0.1, 1.0, 1.2), "inside": (0.3, 0.9, 0.9)}  # amplitude [Å], closest pair over R0: from, to


def starts(kind: str, n: int, seed: list) -> list:
    """Make `n` starts of one kind, each in a cell of its own."""
    rng, (crystal,) = np.random.default_rng(seed), load(SYSTEM)
    return [compressed(crystal, *STARTS[kind], rng) for _ in range(n)]


def settings_of(rule: str, weight: float, shaping: bool, seed: int, steps: int) -> Settings:
    """Set up one run; nothing but the arm and the seed differs."""
    environment = EnvironmentSettings(perturb=0.0, r0=R0, correction_mode=RULES[rule], correction_weight=0.5 if shaping else 0.0, fmax=0.05)
    return Settings(steps=steps, seed=seed, device="cpu", n_envs=8, batch_size=32, learning_starts=128, buffer_capacity=2000,
                    network=NetworkSettings(channels=8, layers=1), environment=environment, expert=ExpertSettings(schedule_steps=500),
                    td3=TD3Settings(deviation_weight=weight))


@torch.no_grad()
def test(trainer: Trainer, atoms: list) -> list:
    """Relax starts never trained on with the actor alone: a row of what happened for each."""
    environments = [Environment(trainer.structures, calculator("emt"), trainer.settings.environment) for _ in atoms]
    for env, start in zip(environments, atoms): env.reset(options={"atoms": start})
    active, rows = list(range(len(atoms))), [dict(moves=[], a_back=[], failed=True) for _ in atoms]
    while active:
        graph = trainer.observe([environments[k] for k in active])
        moves = trainer.agent.actor(graph).double().numpy()
        for place, k in list(enumerate(active)):
            _, _, terminated, truncated, info = environments[k].step(moves[graph.batch.numpy() == place])
            rows[k]["moves"].append(float(np.linalg.norm(info["displacement"], axis=1).mean()))
            rows[k]["a_back"].append(info["a_back"])
            rows[k] |= dict(failed=not terminated, fmax=info["fmax"], evaluations=info["force_evaluations"])
            if terminated or truncated: active.remove(k)
    return rows


def summarise(rows: list, training: list) -> dict:
    """Average a run's test and the second half of its training."""
    flat = lambda name: np.concatenate([r[name] for r in rows])
    late = training[len(training) // 2:]
    return dict(evaluations=np.mean([r["evaluations"] for r in rows]), failed=np.mean([r["failed"] for r in rows]),
                stalled=np.mean([r["failed"] and np.mean(r["moves"][-5:]) < STALLED for r in rows]), fmax=np.median([r["fmax"] for r in rows]),
                move=flat("moves").mean(), corrected=(flat("a_back") > 0).mean(), a_back=flat("a_back").mean(),
                training_move=np.mean([r["actual_move"] for r in late]), training_corrected=np.mean([r["a_back"] > 0 for r in late]))


def run(job: tuple) -> dict:
    """Train and test one arm with one seed, or read what an earlier call found."""
    kind, (rule, weight, shaping), seed, steps, tests, work = job
    file = Path(work) / f"{kind}-{rule}-{weight:g}-{int(shaping)}-{seed}-{steps}.json"
    if file.exists(): return json.loads(file.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    began, settings, rows = time.process_time(), settings_of(rule, weight, shaping, seed, steps), []
    trainer = Trainer(settings, starts(kind, 64, [seed, 0]))
    trainer.begin()
    while trainer.t_total < steps: rows += trainer.round()[0]
    found = summarise(test(trainer, starts(kind, tests, [seed, 1])), rows)
    result = dict(start=kind, rule=rule, deviation_weight=weight, shaping=shaping, seed=seed, **{k: round(float(v), 5) for k, v in found.items()},
                  cpu_seconds=round(time.process_time() - began, 1))
    file.write_text(json.dumps(result), encoding="utf-8")
    return result


def table(results: list) -> str:
    """Write the means over seeds."""
    lines = [f"{'start':6} {'rule':14} {'lambda':>6} {'shaping':>8} {'seeds':>5}" + "".join(f"{m:>19}" for m in MEASURES)]
    key = lambda r: (r["start"], r["rule"], r["deviation_weight"], r["shaping"])
    for (kind, rule, weight, shaping), group in itertools.groupby(sorted(results, key=key), key):
        group = list(group)
        lines.append(f"{kind:6} {rule:14} {weight:6g} {str(shaping):>8} {len(group):5}" + "".join(f"{np.mean([r[m] for r in group]):19.3f}" for m in MEASURES))
    return "\n".join(lines)


def main():
    """Run all arms and seeds, and save the result (not in the quick form)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form that writes nothing, to see that the command works")
    parser.add_argument("--work", type=Path, help="folder that keeps finished runs")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one core each")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    steps, tests, seeds, chosen = (48, 4, 1, arms()[::7]) if args.quick else (STEPS, TEST_STARTS, args.seeds, arms())
    with tempfile.TemporaryDirectory() as folder:
        work = args.work if args.work and not args.quick else Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        jobs = [(kind, arm, seed, steps, tests, str(work)) for seed in range(seeds) for kind in STARTS for arm in chosen]
        if args.quick or args.jobs == 1: results = [run(job) for job in jobs]
        else:
            with multiprocessing.get_context("spawn").Pool(args.jobs) as pool: results = pool.map(run, jobs, chunksize=1)
    print(table(results))
    if args.quick: return
    facts = dict(system=SYSTEM, r0=R0, steps=STEPS, test_starts=TEST_STARTS, max_steps=EnvironmentSettings().max_steps, stalled=STALLED,
                 settings=asdict(settings_of("ours", LAMBDA, True, 0, STEPS)), machine=f"{platform.machine()}, one core a run", runs=results)
    RESULT.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
