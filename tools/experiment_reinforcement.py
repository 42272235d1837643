"""Does reinforcement earn its place? At the same number of force calls: imitation, TD3, and a search of the loop.

The arms are imitation alone, TD3 alone, TD3 from imitation, and a cross-entropy search over the numbers of the
relaxer's loop, each after one step and after a plan for each force call. Trained policies stay in the work folder.
The Al-Fe cells need the folder with their crystals and potentials, in the environment variable ALFE_DATA.
"""
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from train_shipped import POLICIES, POTENTIALS, alfe_cells

from atomrl_nb.checkpoints import write_text
from atomrl_nb.experiment import Experiment
from atomrl_nb.loop import LoopSearch, evaluations_of, numbers_of, search_loop, with_numbers
from atomrl_nb.policies import load_policy, save_policy
from atomrl_nb.structures import calculator, perturb, random_cluster
from atomrl_nb.test_sets import draw_crystal, starts_of, thrown
from atomrl_nb.evaluation import card_of
from atomrl_nb.learner import Trainer
from atomrl_nb.settings import Settings
from atomrl_nb.training import begin_from

RESULTS = Path(__file__).resolve().parents[1] / "nbs" / "benchmark"
FMAX, CAP = 0.01, 100
QUICK = dict(budget=96, tests=2)


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


SIZES = ((1, 1, 1), (2, 1, 1))
CASES = {
    "alloys8": Case("fcc-alloys", 1600, lambda data: crystals(100, 0), lambda data: starts_of("alloys8", count=24), {}),
    "alfe": Case("al-fe", 1600, alfe_cells,
                 lambda data: starts_of("alfe4", data, 12) + starts_of("alfe5", data, 12), {},
                 lambda data: "eam:" + ",".join(str(data / name) for name in POTENTIALS)),
    "clash": Case("fcc-alloys", 1600, lambda data: crystals(100, 1, True, SIZES),
                  lambda data: crystals(24, 2, True, SIZES), dict(perturb=0.02, max_steps=80)),
    "lj13": Case("lj-clusters", 3200, lambda data: clusters(100, 0), lambda data: clusters(24, 1), {},
                 lambda data: "lj"),
}
UNSEEN = dict(alfe=slice(12, None))  # the cells of 4 atoms before these are in the training, displaced
TD3 = dict(q_weight=1.0, imitation_weight=0.0, secant_weight=0.0)  # the critics alone teach


def cases(data: Path | None, seeds: int, quick: bool) -> list:
    """List the kinds of structures for each seed."""
    names = [name for name in CASES if data or name != "alfe"][:1 if quick else None]
    return [dict(case=name, seed=seed) for seed in range(1 if quick else seeds) for name in names]


def settings_of(case: Case, data: Path | None, steps: int, seed: int, **td3) -> Settings:
    """Settings of a training, those of the shipped policy but for a smaller batch and one sub-step for a proposal."""
    base = POLICIES[case.policy]
    expert = replace(base.expert, schedule_steps=case.budget // 2)
    if case.changes:
        expert = replace(expert, mode="rollout", rollout_steps=40)
    return replace(base, steps=steps, seed=seed, batch_size=32, learning_starts=min(128, steps // 4), expert=expert,
                   calculator=case.calculator(data), validation=(), network=replace(base.network, sub_steps=1),
                   environment=replace(base.environment, **case.changes),
                   td3=replace(base.td3, anneal_steps=steps, **td3))


def calls_of(trainer: Trainer) -> int:
    """Count the force calls of a training."""
    return sum(env.force_evaluations for env in trainer.environments)


def run_to(trainer: Trainer, steps: int) -> Trainer:
    """Play and learn up to a number of environment steps."""
    while trainer.t_total < steps:
        trainer.round()
    return trainer


def begun(settings: Settings, structures: list, parent: Trainer | None = None) -> Trainer:
    """Begin a training, with the actor of another where there is one."""
    for k, atoms in enumerate(structures):
        atoms.info["source"] = str(k)
    trainer = Trainer(settings, structures)
    if parent is not None:
        begin_from(trainer.agent, parent.agent.actor, None)
    trainer.begin()
    return trainer


def trained(case: Case, seed: int, data: Path | None, folder: Path) -> dict:
    """Train all arms of a case with one seed, and keep the policies: force calls and CPU seconds of each."""
    spent, began = {}, time.process_time()
    half, structures = case.budget // 2, case.training(data)
    setup = partial(settings_of, case, data)

    def keep(arm, trainer, before=0):
        """Save a policy, and note what it cost."""
        nonlocal began
        save_policy(folder / f"{arm}.safetensors", trainer.agent.actor, card_of(trainer))
        spent[arm] = dict(calls=before + calls_of(trainer), seconds=round(time.process_time() - began, 1))
        began = time.process_time()

    base = begun(setup(half, seed), structures)
    keep("untrained", base)
    run_to(base, half)
    keep("half", base)
    keep("imitation", run_to(begun(setup(half, seed + 100), structures, base), half), calls_of(base))
    both = TD3 | dict(imitation_weight=1.0, secant_weight=1.0, actor_lr=3e-3)
    tuned = begun(setup(half, seed + 100, **both), structures, base)
    run_to(tuned, half // 2)  # the labels still teach the actor while the critics learn
    tuned.agent.settings = replace(tuned.agent.settings, **TD3)
    keep("TD3 from imitation", run_to(tuned, half), calls_of(base))
    alone = begun(setup(case.budget, seed, **TD3 | dict(actor_lr=3e-3)), structures)
    keep("TD3 alone", run_to(alone, case.budget))
    return spent


def handed_numbers(policy: tuple, steps: int | None = None) -> tuple:
    """Take the loop as it is set by hand, or with one step instead of a walk."""
    return with_numbers(policy, numbers_of(policy) | (dict(steps=steps) if steps else {}))


def judged(case: Case, seed: int, data: Path | None, folder: Path, spent: dict, tests: int | None) -> dict:
    """Relax the test starts with each policy of a seed, after one step and after a plan for each force call."""
    spec, starts = case.calculator(data), case.starts(data)[:tests]
    policies = {arm: load_policy(folder / f"{arm}.safetensors") for arm in spent}
    counts = lambda policy: evaluations_of(policy, starts, lambda: calculator(spec), FMAX, CAP)
    arms = {}
    for arm, policy in policies.items():
        calls = 0 if arm == "untrained" else spent[arm]["calls"]
        for way, steps in (("one step", 1), ("planned", None)):
            arms[f"{arm}, {way}"] = dict(calls=calls, counts=counts(handed_numbers(policy, steps)))
    searched = by_search(case, seed, data, policies["half"], spent["half"]["calls"], counts)
    return arms | {"cross-entropy, planned": searched}


def by_search(case: Case, seed: int, data: Path | None, policy: tuple, calls: int, counts: Callable) -> dict:
    """Search the loop's numbers of a half-trained policy with most of the other half."""
    half, structures, spec = case.budget // 2, case.training(data), case.calculator(data)
    env = settings_of(case, data, half, seed).environment
    draw = lambda rng: perturb(structures[rng.integers(len(structures))], env.perturb, rng, env.perturb_kind)
    how = LoopSearch(budget=half - half // 4, population=6, elites=2, n_starts=4)
    found = search_loop(policy, draw, lambda: calculator(spec), how, seed)
    policy = with_numbers(policy, found.numbers)
    return dict(calls=calls + found.evaluations, counts=counts(policy), numbers=found.numbers)


def measure(data: Path | None, case: dict, quick: bool, work: Path) -> dict:
    """Train and judge all arms with one seed; a training that is in the work folder is judged alone."""
    torch.set_num_threads(1)
    kind, seed = CASES[case["case"]], case["seed"]
    if quick:
        kind = replace(kind, budget=QUICK["budget"])
    folder = work / f"{case['case']}_{seed}"
    folder.mkdir(exist_ok=True)
    done = folder / "spent.json"
    if not done.exists():
        write_text(done, json.dumps(trained(kind, seed, data, folder)))
    spent = json.loads(done.read_text(encoding="utf-8"))
    return dict(spent=spent, arms=judged(kind, seed, data, folder, spent, QUICK["tests"] if quick else None))


def compared(rows: list) -> list:
    """Compare each arm with planned imitation, paired by seed, with a 95 % interval by resampling of seeds."""
    out, rng = [], np.random.default_rng(0)
    for name in dict.fromkeys(row["case"] for row in rows):
        mine = [row["arms"] for row in rows if row["case"] == name]
        part = UNSEEN.get(name, slice(None))
        means = {arm: np.array([np.mean(arms[arm]["counts"][part]) for arms in mine]) for arm in mine[0]}
        for arm in means:
            difference = means[arm] - means["imitation, planned"]
            drawn = difference[rng.integers(len(mine), size=(4000, len(mine)))].mean(axis=1)
            out.append(dict(case=name, arm=arm, seeds=len(mine),
                            calls=round(float(np.mean([arms[arm]["calls"] for arms in mine]))),
                            mean=round(float(means[arm].mean()), 3),
                            failed=sum(n >= CAP for arms in mine for n in arms[arm]["counts"][part]),
                            difference=round(float(difference.mean()), 3),
                            interval=[round(float(x), 3) for x in np.quantile(drawn, (0.025, 0.975))]))
    return out


def table(rows: list) -> str:
    """Write the comparison."""
    return "\n".join(f"{row['case']:8} {row['arm']:30} {row['mean']:6.2f}  difference {row['difference']:6.2f} "
                     f"{row['interval']}  over {row['seeds']} seeds, {row['failed']} failed; "
                     f"{row['calls']} force calls to learn" for row in compared(rows))


def tell(row: dict) -> str:
    """Say how planned imitation did."""
    return f"{row['case']} seed {row['seed']}: imitation {np.mean(row['arms']['imitation, planned']['counts']):.2f}"


DATA = Path(os.environ["ALFE_DATA"]) if "ALFE_DATA" in os.environ else None
EXPERIMENT = Experiment(
    "reinforcement", "Does reinforcement earn its place?", partial(cases, DATA), partial(measure, DATA),
    dict(fmax=FMAX, cap=CAP, budgets={name: case.budget for name, case in CASES.items()}),
    tell=tell, summary=lambda rows: dict(summary=compared(rows)), conclude=table)
