"""Cure sick runs as their findings ask, one change after the other, until nothing is found.

The sick runs are those of `experiment_diagnostics.py`. What is changed is what a finding names. The curves of one seed
are kept in `nbs/benchmark/cured/`.
"""
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from experiment_diagnostics import CONDITIONS, KEPT, RESULTS, found, keep_curves, rounded, short

from atomrl_nb.diagnostics import diagnose, indicators
from atomrl_nb.experiment import Experiment, experiment_main, read_result
from atomrl_nb.training import train

IMITATE = dict(td3=dict(imitation_weight=1.0), expert=dict(nfake=0.5))
CURES = {  # each change keeps those before it
    "hitting the wall": [dict(environment=dict(r0=None))],
    "critic overestimates": [dict(td3=dict(gamma=0.5)),
                             dict(td3=dict(imitation_weight=1.0, q_weight=0.1), expert=dict(nfake=0.5))],
    "hides by not moving": [dict(td3=dict(deviation_weight=0.1), environment=dict(correction_weight=0.5)),
                            dict(environment=dict(r0=None)), IMITATE],
}


def cases(seeds: int, quick: bool) -> list:
    """List the illnesses for each seed."""
    illnesses = list(CURES)[:1] if quick else CURES
    return [dict(illness=illness, seed=seed) for seed in ([KEPT] if quick else range(seeds)) for illness in illnesses]


def changed(settings, change: dict):
    """Return the settings with a change of some groups."""
    return replace(settings, **{group: replace(getattr(settings, group), **values) for group, values in change.items()})


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Change and train until nothing is found, or no change is left."""
    torch.set_num_threads(1)
    illness, seed, steps = case["illness"], case["seed"], []
    settings = CONDITIONS[illness]
    for number, change in enumerate(CURES[illness], 1):
        settings, name = changed(settings, change), f"{illness.replace(' ', '-')}-{number}"
        steps.append(dict(change=change, **trained(replace(settings, run=str(work / f"{name}-{seed}"), seed=seed),
                                                   quick, RESULTS / "cured" / f"{name}.csv.gz")))
        if not steps[-1]["findings"]:
            break
    return dict(steps=steps, sick=sick_runs().get((illness, seed), []))


def trained(settings, quick: bool, curves: Path) -> dict:
    """Train once, and say what is found."""
    run = Path(settings.run)
    shutil.rmtree(run, ignore_errors=True)  # of a run that was killed
    try:
        train(short(settings) if quick else settings, progress=False)
    except FloatingPointError:
        pass  # a finding, too
    result = dict(findings=[finding.name for finding in diagnose(run)],
                  indicators={name: rounded(value) for name, value in indicators(run).items()})
    if not quick and settings.seed == KEPT:
        keep_curves(run, curves)
    shutil.rmtree(run)
    return result


def sick_runs() -> dict:
    """Read what was found in the sick runs: (illness, seed) -> names."""
    runs = read_result(RESULTS / "diagnostics.json", "runs")["runs"]
    return {(run["condition"], run["seed"]): found(run) for run in runs}


def counted(rows: list) -> dict:
    """Count how many runs of each illness are cured after each change."""
    cured = []
    for illness, changes in CURES.items():
        mine = [row["steps"] for row in rows if row["illness"] == illness]
        after = [sum(not steps[min(k, len(steps) - 1)]["findings"] for steps in mine) for k in range(len(changes))]
        cured.append(dict(illness=illness, runs=len(mine), cured_after=after))
    return dict(cured=cured)


def tell(row: dict) -> str:
    """Say what each change left to be found."""
    said = "; ".join(", ".join(step["findings"]) or "nothing found" for step in row["steps"])
    return f"{row['illness']:24} seed {row['seed']}: {said}"


EXPERIMENT = Experiment("cures", "Do the changes that findings name cure sick runs?", cases, measure,
                        dict(changes=CURES), seeds=4, tell=tell, summary=counted, rows="runs")

if __name__ == "__main__":
    sys.exit(experiment_main(EXPERIMENT, RESULTS))
