"""Does reinforcement earn its place? At the same number of force calls: imitation alone, TD3 alone, TD3 from imitation,
planning in the learned model, and a cross-entropy search over the numbers of the relaxer's loop.

    experiment_reinforcement.py [--quick] [--long] [--data FOLDER] [--work DIR] [--jobs N] [--seeds N] [--cases ...]

Every finished training is kept in the work folder, so an interrupted experiment goes on where it stopped. The Al-Fe cells
need --data, the folder with the crystals and potentials. --long trains TD3 alone on the alloys with sixty-four times the force
calls, in run folders that can be watched and are taken up again, and judges it along the way.
"""
import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import cases
import numpy as np
import pandas as pd
import torch
from ase.io import write
from train_shipped import POLICIES, POTENTIALS, alfe_cells

from atomrl_nb.test_sets import draw_crystal, starts_of, thrown
from atomrl_nb.checkpoints import write_text
from atomrl_nb.networks import load_policy, save_policy
from atomrl_nb.loop import LoopSearch, evaluations_of, numbers_of, search_loop, with_numbers
from atomrl_nb.structures import calculator, perturb, random_cluster
from atomrl_nb.settings import Settings
from atomrl_nb.learner import Trainer
from atomrl_nb.evaluation import card_of
from atomrl_nb.callbacks import BaseCallback
from atomrl_nb.training import begin_from, resume, train

FILE = Path(__file__).resolve().parent.parent / "nbs" / "benchmark" / "reinforcement.json"
FMAX, CAP = 0.01, 100


@dataclass(frozen=True)
class Case:
    """A kind of structures to learn on and to be tested on."""
    policy: str  # the shipped policy whose settings it learns with
    budget: int  # force calls of a training
    training: Callable  # data folder -> structures
    starts: Callable  # data folder -> displaced structures, apart from the training's
    changes: dict  # of the settings' environment
    calculator: Callable = lambda folder: "emt"


def crystals(count: int, seed: int, throw: bool = False, sizes: tuple = ((2, 1, 1),)) -> list:
    """Draw random alloys, at their sites or with the atoms thrown anywhere."""
    rngs = [np.random.default_rng([14, seed, k]) for k in range(count)]
    made = [draw_crystal(rng, sizes[k % len(sizes)]) for k, rng in enumerate(rngs)]
    return [thrown(atoms, rng) for atoms, rng in zip(made, rngs)] if throw else made


def clusters(count: int, seed: int) -> list:
    """Draw random compact clusters of 13 atoms."""
    return [random_cluster(13, np.random.default_rng([15, seed, k])) for k in range(count)]


CASES = {
    "alloys8": Case("fcc-alloys", 1600, lambda data: crystals(100, 0), lambda data: starts_of("alloys8", count=24), {}),
    "alfe": Case("al-fe", 1600, alfe_cells, lambda data: starts_of("alfe4", data, 12) + starts_of("alfe5", data, 12), {},
                 lambda data: "eam:" + ",".join(str(data / p) for p in POTENTIALS)),
    "clash": Case("fcc-alloys", 1600, lambda data: crystals(100, 1, True, ((1, 1, 1), (2, 1, 1))),
                  lambda data: crystals(24, 2, True, ((1, 1, 1), (2, 1, 1))), dict(perturb=0.02, max_steps=80)),
    "lj13": Case("lj-clusters", 3200, lambda data: clusters(100, 0), lambda data: clusters(24, 1), {}, lambda data: "lj"),
}
TD3 = dict(q_weight=1.0, imitation_weight=0.0, secant_weight=0.0)  # the critics alone teach


def settings_of(case: Case, data: Path | None, steps: int, seed: int, **td3) -> Settings:
    """Settings of a training, those of the shipped policy but for a smaller batch and one sub-step for a proposal."""
    base = POLICIES[case.policy]
    expert = replace(base.expert, schedule_steps=case.budget // 2)
    if case.changes: expert = replace(expert, mode="rollout", rollout_steps=40)
    return replace(base, steps=steps, seed=seed, batch_size=32, learning_starts=min(128, steps // 4), expert=expert, calculator=case.calculator(data), validation=(),
                   network=replace(base.network, sub_steps=1), environment=replace(base.environment, **case.changes),
                   td3=replace(base.td3, anneal_steps=steps, **td3))


def calls_of(trainer: Trainer) -> int:
    """Count the force calls of a training."""
    return sum(env.force_evaluations for env in trainer.environments)


def run_to(trainer: Trainer, steps: int) -> Trainer:
    """Play and learn up to a number of environment steps."""
    while trainer.t_total < steps: trainer.round()
    return trainer


def begun(settings: Settings, structures: list, parent: Trainer | None = None) -> Trainer:
    """Begin a training, with the actor of another where there is one."""
    for k, atoms in enumerate(structures): atoms.info["source"] = str(k)
    trainer = Trainer(settings, structures)
    if parent is not None: begin_from(trainer.agent, parent.agent.actor, None)
    trainer.begin()
    return trainer


# arms

def trained(name: str, seed: int, data: str | None, folder: str, budget: int | None = None) -> dict:
    """Train all arms of a case with one seed, and keep the policies: force calls and CPU seconds of each."""
    torch.set_num_threads(1)
    case, data, spent, began = CASES[name], data and Path(data), {}, time.process_time()
    case = replace(case, budget=budget or case.budget)
    half, structures = case.budget // 2, case.training(data)

    def keep(arm, trainer, before=0):
        nonlocal began
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_policy(Path(folder) / f"{name}_{seed}_{arm}.safetensors", trainer.agent.actor, card_of(trainer))
        spent[arm] = dict(calls=before + calls_of(trainer), seconds=round(time.process_time() - began, 1))
        began = time.process_time()

    base = begun(settings_of(case, data, half, seed), structures)
    keep("untrained", base)
    run_to(base, half)
    keep("half", base)
    keep("imitation", run_to(begun(settings_of(case, data, half, seed + 100), structures, base), half), calls_of(base))
    tuned = begun(settings_of(case, data, half, seed + 100, **TD3 | dict(imitation_weight=1.0, secant_weight=1.0, actor_lr=3e-3)), structures, base)
    run_to(tuned, half // 2)  # the labels still teach the actor while the critics learn
    tuned.agent.settings = replace(tuned.agent.settings, **TD3)
    keep("TD3 from imitation", run_to(tuned, half), calls_of(base))
    keep("TD3 alone", run_to(begun(settings_of(case, data, case.budget, seed, **TD3 | dict(actor_lr=3e-3)), structures), case.budget))
    return dict(case=name, seed=seed, budget=case.budget, spent=spent)


def handed_numbers(policy: tuple, steps: int | None = None) -> tuple:
    """Take the loop as it is set by hand, or with one step instead of a walk."""
    return with_numbers(policy, numbers_of(policy) | (dict(steps=steps) if steps else {}))


def judged(name: str, seed: int, data: str | None, folder: str, spent: dict, budget: int | None = None, n_test: int | None = None) -> dict:
    """Relax the test starts with each policy of a seed, after one step and after a plan for each force call."""
    torch.set_num_threads(1)
    case, data = CASES[name], data and Path(data)
    half, spec, starts, structures = (budget or case.budget) // 2, case.calculator(data), case.starts(data)[:n_test], case.training(data)
    policies = {arm: load_policy(Path(folder) / f"{name}_{seed}_{arm}.safetensors") for arm in spent}
    counts = lambda policy: evaluations_of(policy, starts, lambda: calculator(spec), FMAX, CAP)
    arms = {f"{arm}, {way}": dict(calls=spent[arm]["calls"] * (arm != "untrained"), counts=counts(handed_numbers(policy, n)))
            for arm, policy in policies.items() for way, n in (("one step", 1), ("planned", None))}
    env = settings_of(case, data, half, seed).environment
    draw = lambda rng: perturb(structures[rng.integers(len(structures))], env.perturb, rng, env.perturb_kind)
    found = search_loop(policies["half"], draw, lambda: calculator(spec), LoopSearch(budget=half - half // 4, population=6, elites=2, n_starts=4), seed)
    arms["cross-entropy, planned"] = dict(calls=spent["half"]["calls"] + found.evaluations, counts=counts(with_numbers(policies["half"], found.numbers)), numbers=found.numbers)
    return dict(case=name, seed=seed, arms=arms)


# TD3 with time

LONG = dict(case="alloys8", seeds=3, calls=102_400, kept=(1600, 6400, 25_600, 102_400))


class KeepPolicies(BaseCallback):
    """Save the actor as it is after so many environment steps."""
    def __init__(self, folder: Path, steps: tuple): self.folder, self.steps = folder, steps

    def on_step(self, loop):
        for n in filter(loop.due, self.steps):
            if loop.trainer.t_total < n + loop.trainer.settings.n_envs: save_policy(self.folder / f"{n}.safetensors", loop.trainer.agent.actor, card_of(loop.trainer))


def long_trained(seed: int, folder: str, long: dict = LONG) -> dict:
    """Train TD3 alone for long in a run folder, or go on with it; then judge what it was like along the way."""
    torch.set_num_threads(1)
    run, case = Path(folder) / f"long_{seed}", CASES[long["case"]]
    kept, began = KeepPolicies(Path(folder) / f"long_{seed}_kept", long["kept"]), time.process_time()
    kept.folder.mkdir(parents=True, exist_ok=True)
    if run.is_dir():
        resume(run, progress=False, callbacks=(kept,))
    else:
        write(structures := Path(folder) / f"long_{seed}.extxyz", case.training(None))
        settings = settings_of(replace(case, budget=long["calls"]), None, long["calls"], seed, **TD3 | dict(actor_lr=3e-3))
        train(replace(settings, run=str(run), structures=(str(structures),), buffer_capacity=20_000, learning_starts=min(128, long["calls"] // 4), checkpoint_interval=min(2000, long["calls"] // 2),
                      evaluation_interval=min(8000, long["calls"] // 2), evaluation_starts=8), False, (kept,))
    seconds, starts = float(pd.read_csv(run / "metrics.csv")["seconds"].iloc[-1]), case.starts(None)[:long.get("n_test")]
    row = dict(seed=seed, wall=round(seconds), cpu=round(time.process_time() - began), kept=[])
    for n in long["kept"]:
        policy = load_policy(kept.folder / f"{n}.safetensors")
        counts = {way: evaluations_of(handed_numbers(policy, steps), starts, lambda: calculator("emt"), FMAX, CAP) for way, steps in (("one step", 1), ("planned", None))}
        row["kept"].append(dict(steps=n, calls=policy[1]["force_evaluations"], counts=counts))
    return row


def learn_long(args):
    """Run the long trainings that are missing, print how they went, and add them to the saved results."""
    long = dict(LONG, seeds=1, calls=64, kept=(32, 64), n_test=1) if args.quick else LONG
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        rows = list(cases.run_all(long_trained, {f"learnt_long_{seed}": (seed, str(work), long) for seed in range(long["seeds"])}, work, args.jobs).values())
    for k, n in enumerate(long["kept"]):
        print(f"{n:6} steps  " + "  ".join(f"{way} {np.mean([row['kept'][k]['counts'][way] for row in rows]):6.2f}" for way in ("one step", "planned")))
    if not args.quick:
        write_text(FILE, json.dumps(json.loads(FILE.read_text()) | dict(long=LONG | dict(rows=rows))) + "\n")


def summary(rows: list) -> list:
    """Compare each arm with planned imitation, paired by seed: mean evaluations, mean difference and a 95 % interval by resampling of seeds."""
    out, rng = [], np.random.default_rng(0)
    for name in dict.fromkeys(row["case"] for row in rows):
        mine = [row["arms"] for row in rows if row["case"] == name]
        base = np.array([np.mean(arms["imitation, planned"]["counts"]) for arms in mine])
        for arm in mine[0]:
            means = np.array([np.mean(arms[arm]["counts"]) for arms in mine])
            drawn = (means - base)[rng.integers(len(mine), size=(4000, len(mine)))].mean(axis=1)
            out.append(dict(case=name, arm=arm, seeds=len(mine), calls=round(float(np.mean([arms[arm]["calls"] for arms in mine]))), mean=round(float(means.mean()), 3),
                            failed=sum(n >= CAP for arms in mine for n in arms[arm]["counts"]), difference=round(float((means - base).mean()), 3),
                            interval=[round(float(x), 3) for x in np.quantile(drawn, (0.025, 0.975))]))
    return out


def main():
    """Run the missing seeds of each case, print a summary, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short seed of one case, nothing saved")
    parser.add_argument("--long", action="store_true", help="TD3 alone for long; needs hours")
    parser.add_argument("--data", type=Path, help="folder with the Al-Fe crystals and potentials")
    parser.add_argument("--work", type=Path, help="folder that keeps finished seeds (default: a temporary one)")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, one core each")
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    if args.long: return learn_long(args)
    chosen = [name for name in args.cases if args.data or name != "alfe"]
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        short = (96, 2) if args.quick else ()
        units = {f"{name}_{seed}": (name, seed, args.data and str(args.data), str(work)) for seed in range(1 if args.quick else args.seeds) for name in (chosen[:1] if args.quick else chosen)}
        learnt = cases.run_all(trained, {k: (*unit, *short[:1]) for k, unit in units.items()}, work, args.jobs)
        tests = {f"judged_{k}": (*unit, learnt[k]["spent"], *short) for k, unit in units.items()}
        rows = list(cases.run_all(judged, tests, work, args.jobs).values())
    for row in (table := summary(rows)):
        print(f"{row['case']:8} {row['arm']:30} {row['mean']:6.2f}  difference {row['difference']:6.2f} {row['interval']}  over {row['seeds']} seeds, {row['failed']} failed; {row['calls']} force calls to learn")
    if not args.quick:
        saved = json.loads(FILE.read_text()) if FILE.is_file() else {}
        write_text(FILE, json.dumps({k: v for k, v in saved.items() if k == "long"} | dict(fmax=FMAX, cap=CAP, budgets={name: case.budget for name, case in CASES.items()}, summary=table, spent={k: v["spent"] for k, v in learnt.items()}, rows=rows)) + "\n")


if __name__ == "__main__":
    main()
