"""What does the environment gate do in a short run?"""
import shutil
import sys
from pathlib import Path

import torch

from atomrl_nb.diagnostics import read_table
from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.experiment import Experiment, experiment_main
from atomrl_nb.graphs import ENV_FEATURES
from atomrl_nb.settings import Settings
from atomrl_nb.training import train

RESULTS = Path(__file__).resolve().parents[1] / "nbs" / "benchmark"
STEPS = 3200


def cases(seeds: int, quick: bool) -> list:
    """List a run with all environment information, and one without, for each seed."""
    return [dict(env_features=features, seed=seed)
            for seed in range(1 if quick else seeds) for features in (list(ENV_FEATURES), [])]


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Train one short run, and read Action Scale off its table."""
    torch.set_num_threads(1)
    steps, interval = (160, 80) if quick else (STEPS, 800)
    folder = work / f"{len(case['env_features'])}_{case['seed']}"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    environment = EnvironmentSettings(perturb=0.5, env_features=tuple(case["env_features"]))
    run = train(Settings(structures=("alloys4",), run=str(folder), steps=steps, seed=case["seed"],
                         evaluation_interval=interval, environment=environment), progress=False)
    metrics, tests = read_table(run), read_table(run, "evaluations")
    every = metrics[metrics.t_total % 80 == 0]
    relaxed = tests.groupby("t_total").steps.mean()
    return dict(t_total=every.t_total.tolist(), action_scale=every.action_scale.round(4).tolist(),
                output_scale=every.output_scale.round(4).tolist(), fmax=every.fmax.round(4).tolist(),
                evaluations={str(t): round(float(n), 2) for t, n in relaxed.items()})


def tell(row: dict) -> str:
    """Say how a run went."""
    return (f"{len(row['env_features'])} features: Action Scale {row['action_scale'][0]} at first, "
            f"{row['action_scale'][-1]} at last; evaluations {row['evaluations']}")


EXPERIMENT = Experiment("gate", "What does the environment gate do in a short run?",
                        cases, measure, dict(steps=STEPS), seeds=1, tell=tell)

if __name__ == "__main__":
    sys.exit(experiment_main(EXPERIMENT, RESULTS))
