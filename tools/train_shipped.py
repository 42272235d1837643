"""Train the policies that ship with the package, or the one on the Al-Fe crystals, which does not.

`fcc-alloys` and `lj-clusters` go into the package with a card that says how they were made. `al-fe` needs the folder
with the crystals and potentials (--data) and stays in its run folder. A stopped training is taken up again.
"""
import argparse
import json
import os
import platform
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from ase.io import write

from atomrl_nb.checkpoints import write_text
from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.expert import ExpertSettings
from atomrl_nb.loop import LoopSearch, tune_run
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.policies import load_policy, save_policy
from atomrl_nb.structures import load, scatter
from atomrl_nb.td3 import TD3Settings
from atomrl_nb.settings import Settings
from atomrl_nb.training import resume, train

ROOT = Path(__file__).resolve().parent.parent
POTENTIALS = ("AlFe.fs", "Al.eam.alloy", "Fe.eam.fs")
TABLES = ("Al-Fe_N=2-3.extxyz", "Al-Fe_N=4.extxyz", "AlandFe_mono.extxyz")
VOLUME = {"Al": 17.0, "Fe": 10.45}  # Å³ an atom, as in the tables


def imitation(steps: int, **more) -> TD3Settings:
    """Learn from hindsight and secants alone, at a rate that falls to a fiftieth."""
    return TD3Settings(q_weight=0.0, actor_lr=1e-2, max_grad_norm=20.0, anneal_steps=steps, **more)


COMMON = Settings(buffer_capacity=4000, evaluation_interval=1000, evaluation_starts=32, checkpoint_interval=2000)
POLICIES = {
    "fcc-alloys": replace(COMMON, structures=("fcc-alloys",), validation=("fcc-alloys-validation",), steps=16_000,
                          td3=imitation(16_000),
                          network=NetworkSettings(head="potential", max_displacement=0.8),
                          expert=ExpertSettings(schedule_steps=2000),
                          environment=EnvironmentSettings(perturb=0.5, r0_factor=0.5)),
    "lj-clusters": replace(COMMON, structures=("lj-clusters",), validation=("lj-clusters-validation",),
                           calculator="lj", steps=9000,
                           td3=imitation(9000, exploration_noise=0.15),
                           network=NetworkSettings(head="potential", powers=True, stiffness=60.0,
                                                   max_displacement=0.35),
                           expert=ExpertSettings(mode="rollout", rollout_steps=60, nfake=0.8, schedule_steps=3000,
                                                 alpha=100.0, maxstep=0.1),
                           environment=EnvironmentSettings(perturb=0.02, r0=0.5, max_steps=120)),
    "al-fe": replace(COMMON, steps=24_000, td3=imitation(24_000),
                     network=NetworkSettings(head="potential", cutoff=5.5, max_displacement=0.8),
                     expert=ExpertSettings(mode="rollout", rollout_steps=40, schedule_steps=3000),
                     environment=EnvironmentSettings(perturb=0.5, r0_factor=0.5, max_steps=80)),
}


def alfe_cells(data: Path, copies: int = 6) -> list:
    """Read the crystals of 1 to 4 atoms, and add strained, newly decorated and scattered copies of them."""
    tables, rng = load(*(str(data / name) for name in TABLES)), np.random.default_rng(0)
    cells = [atoms for atoms in tables if len(atoms) > 1]
    for k in range(copies):
        for atoms in tables:
            made = atoms.repeat((2, 1, 1)) if len(atoms) == 1 else atoms.copy()
            made.symbols = rng.choice(["Al", "Fe"], len(made))
            wanted = sum(VOLUME[symbol] for symbol in made.get_chemical_symbols())
            deform = (wanted / made.get_volume())**(1 / 3) * (np.eye(3) + rng.normal(0, 0.03, (3, 3)))
            made.set_cell(np.asarray(made.cell) @ deform, scale_atoms=True)
            if k % 2:
                scatter(made, 0.7, rng)
            cells.append(made)
    return cells


def settings_of(name: str, run: Path, data: Path | None) -> Settings:
    """Complete the settings of a policy; the crystals are written beside the run."""
    if name != "al-fe":
        return replace(POLICIES[name], run=str(run))
    if data is None:
        raise SystemExit("al-fe needs --data FOLDER, with the crystals and their potentials.")
    beside = run.parent / f"{run.name}-cells.extxyz"
    beside.parent.mkdir(parents=True, exist_ok=True)
    write(beside, alfe_cells(data))
    return replace(POLICIES[name], run=str(run), structures=(str(beside),),
                   calculator="eam:" + ",".join(str(data / p) for p in POTENTIALS))


def teach(name: str, run: Path, data: Path | None, quick: bool) -> Path:
    """Train, or go on with a training that was stopped."""
    if run.is_dir():
        return resume(run)
    settings = settings_of(name, run, data)
    if quick:
        settings = replace(settings, steps=48, learning_starts=24, batch_size=8, evaluation_starts=2, n_envs=4,
                           network=replace(settings.network, channels=4))
    return train(settings)


def ship(name: str, run: Path):
    """Put the policy of a run into the package, with what its card adds about the training, and the curves beside the results."""
    actor, card = load_policy(run / "policy.safetensors")
    metrics, evaluations = pd.read_csv(run / "metrics.csv"), pd.read_csv(run / "evaluations.csv")
    validation = evaluations.groupby("t_total")["steps"].mean()
    card |= dict(command=f"python tools/train_shipped.py {name}",
                 minutes=round(float(metrics["seconds"].iloc[-1]) / 60, 1),
                 machine=f"{platform.machine()}, one thread of {os.cpu_count()} shared cores",
                 ingredients="imitation of hindsight and secant labels; no critic; the loop's numbers by cross-entropy search", validation_steps=round(float(validation.min()), 3))
    save_policy(ROOT / "atomrl_nb" / "policies" / f"{name}.safetensors", actor, card)
    errors = metrics[["t_total", "secant_error", "imitation_error"]].dropna()
    smooth = errors.rolling(400).mean().dropna().iloc[::200].round(4)
    curves = smooth.to_dict("list") | dict(validation={str(t): round(float(v), 3) for t, v in validation.items()})
    write_text(ROOT / "nbs" / "benchmark" / f"policy_{name}.json", json.dumps(curves, indent=1) + "\n")


def main():
    """Train one policy, and ship it where it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=POLICIES)
    parser.add_argument("--data", type=Path, help="folder with the Al-Fe crystals and potentials")
    parser.add_argument("--run", type=Path, help="run folder (default: runs/NAME)")
    parser.add_argument("--quick", action="store_true",
                        help="a short form that ships nothing, to see that the command works")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = args.run or (Path(scratch) / args.name if args.quick else ROOT / "runs" / args.name)
        done = teach(args.name, run, args.data, args.quick)
        quick = LoopSearch(budget=500, population=2, elites=1, n_starts=1)
        tune_run(done, quick if args.quick else LoopSearch(budget=12_000))
        if not args.quick and args.name != "al-fe":
            ship(args.name, done)
        print(f"{args.name}: " + ("works" if args.quick else f"policy in {done}"))


if __name__ == "__main__":
    main()
