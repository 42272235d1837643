"""Train runs that have an illness and runs that are healthy, and count the true and the false alarms of `diagnose`.

Thresholds (the healthy ranges of `diagnostics.METRIC_GUIDE`) are set on seeds 0 to 3; the table is of seeds 4 to 7.
`--thresholds` trains nothing: it says what seeds 0 to 3 of the saved result suggest, and counts the alarms anew.
The curves of seed 0 are kept in `nbs/benchmark/sick/`. Rules that came later rest on `experiment_findings.py`.
"""
import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from atomrl_nb.diagnostics import METRIC_GUIDE, RULES, indicators, live, read_table
from atomrl_nb.environment import EnvironmentSettings as Env
from atomrl_nb.experiment import Experiment
from atomrl_nb.expert import ExpertSettings as Expert
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.td3 import TD3Settings as TD3
from atomrl_nb.settings import Settings
from atomrl_nb.training import train

RESULTS = Path(__file__).resolve().parents[1] / "nbs" / "benchmark"
HEALTHY = Settings(structures=("cuau4",), steps=800, n_envs=8, learning_starts=64, batch_size=32, buffer_capacity=1000,
                   evaluation_interval=200, evaluation_starts=8, checkpoint_interval=10_000,
                   network=NetworkSettings(channels=8, layers=1), expert=Expert(schedule_steps=400))
GREEDY = dict(imitation_weight=0.0, q_weight=10.0, policy_delay=1,
              target_policy_noise=0.0)  # the actor follows the critic alone, at once
CONDITIONS = {
    "healthy: cuau4": HEALTHY,
    "healthy: alloys4": replace(HEALTHY, structures=("alloys4",)),
    "healthy: alloys8": replace(HEALTHY, structures=("alloys8",)),
    "healthy: young": replace(HEALTHY, steps=320, expert=Expert()),  # stopped early: the expert still plays, as planned
    "hitting the wall": replace(HEALTHY, environment=Env(r0=2.68, correction_weight=0.0),
                                td3=TD3(deviation_weight=0.0)),
    "critic overestimates": replace(HEALTHY, steps=400, batch_size=16, updates_per_step=1.0, expert=Expert(nfake=0.0),
                                    td3=TD3(gamma=0.99, polyak=0.0, critic_lr=2e-3, actor_lr=3e-3, **GREEDY)),
    "hides by not moving": replace(HEALTHY, environment=Env(r0=2.65, correction_weight=5.0), expert=Expert(nfake=0.0),
                                   td3=TD3(deviation_weight=1e4, imitation_weight=0.0)),
    "stale memory": replace(HEALTHY, steps=8000, n_envs=16, updates_per_step=0.05, buffer_capacity=8000,
                            evaluation_interval=4000, expert=Expert(schedule_steps=4000)),  # nothing is forgotten
    "expert leaned on too long": replace(HEALTHY, expert=Expert(nfake=0.9, schedule_steps=10**9)),
    "penalty dominates": replace(HEALTHY, environment=Env(r0=2.6), td3=TD3(deviation_weight=1e5)),
    "collapsed exploration": replace(HEALTHY, expert=Expert(nfake=0.0), td3=TD3(exploration_noise=1e-3)),
    "exploding gradients": replace(HEALTHY, steps=400, batch_size=16, updates_per_step=1.0, expert=Expert(nfake=0.0),
                                   td3=TD3(gamma=0.99, polyak=0.0, critic_lr=5e-2, actor_lr=1e-2, max_grad_norm=1e9,
                                           **GREEDY)),
}
TUNED, COUNTED = range(0, 4), range(4, 8)  # seeds
QUICK = ("healthy: cuau4", "hitting the wall", "exploding gradients")
KEPT = 0  # the seed whose curves are kept


def cases(seeds: int, quick: bool) -> list:
    """List the conditions for each seed."""
    conditions = QUICK if quick else CONDITIONS
    return [dict(condition=condition, seed=seed) for seed in range(1 if quick else seeds) for condition in conditions]


def short(settings: Settings) -> Settings:
    """Shorten a training to a second or two."""
    return replace(settings, steps=80, evaluation_interval=40, evaluation_starts=2,
                   network=NetworkSettings(channels=4, layers=1))


def file_name(condition: str) -> str:
    """Name the file of the curves of a condition."""
    return condition.replace(": ", "-").replace(", ", "-").replace(" ", "-") + ".csv.gz"


def illness(condition: str) -> str:
    """Name the rule that should name a condition; what follows a colon tells conditions of one name apart."""
    return condition.partition(":")[0]


def trained(settings: Settings, run: Path, quick: bool, look: Callable) -> dict:
    """Train one run, look at it, and forget the rest."""
    torch.set_num_threads(1)
    began, error = time.process_time(), ""
    shutil.rmtree(run, ignore_errors=True)  # of a run that was killed
    try:
        train(replace(short(settings) if quick else settings, run=str(run)), progress=False)
    except FloatingPointError as caught:
        error = str(caught).split(" The state is kept")[0]
    seen = look(run)
    shutil.rmtree(run)
    return seen | dict(error=error, cpu_seconds=round(time.process_time() - began, 1))


def signs(run: Path) -> dict:
    """Keep what the rules look at."""
    return dict(indicators={name: rounded(value) for name, value in indicators(run).items()})


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Train one run and keep its signs, of one seed also its curves."""
    condition, seed = case["condition"], case["seed"]

    def look(run):
        """Keep what stays of a run."""
        if not quick and seed == KEPT:
            keep_curves(run, RESULTS / "sick" / file_name(condition))
        return signs(run)

    run = work / f"{file_name(condition)}-{seed}"
    return trained(replace(CONDITIONS[condition], seed=seed), run, quick, look)


def rounded(value: float) -> float | None:
    """Round to four digits; JSON knows no NaN."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def keep_curves(run: Path, file: Path):
    """Join the guide's metrics with what a picture of a run needs, one row in four where there are many."""
    file.parent.mkdir(exist_ok=True)
    table = live(run).assign(**{name: read_table(run)[name] for name in ("episode", "reward", "fmax", "q", "a_back")})
    table = table[:: max(len(table) // 800, 1)]
    table.to_csv(file, index=False, float_format="%.3g", compression=dict(method="gzip", mtime=0))


def found(run: dict) -> list:
    """Return which rules hold for a run, by the thresholds of now; metrics younger than the run have no say."""
    values = {name: math.nan if value is None else value for name, value in run["indicators"].items()}
    return list(dict.fromkeys(rule.name for rule in RULES if rule.holds(values)))


def alarms(runs: list, conditions: Iterable = CONDITIONS) -> list:
    """Count for each illness how often it was found where it is, and in healthy runs where it is not."""
    well, rows = [run for run in runs if illness(run["condition"]) == "healthy"], []
    for name in dict.fromkeys(map(illness, conditions)):
        if name == "healthy":
            continue
        sick = [run for run in runs if illness(run["condition"]) == name]
        rows.append(dict(illness=name, found=sum(name in found(run) for run in sick), of_sick=len(sick),
                         false=sum(name in found(run) for run in well), of_healthy=len(well)))
    return rows


def tally(runs: list, conditions: Iterable, counted: Iterable) -> dict:
    """Count the alarms on the seeds that count, or on all where these were not run."""
    seeds = sorted({run["seed"] for run in runs})
    counted = [seed for seed in seeds if seed in counted] or seeds
    minutes = round(sum(run["cpu_seconds"] for run in runs) / 60, 1)
    return dict(seeds=seeds, counted=counted, cpu_minutes=minutes,
                alarms=alarms([run for run in runs if run["seed"] in counted], conditions))


def summary(runs: list) -> dict:
    """Count the alarms, and say by what ranges."""
    result = tally(runs, CONDITIONS, COUNTED)
    well = [run for run in runs if run["seed"] in result["counted"] and illness(run["condition"]) == "healthy"]
    return result | dict(found_in_healthy=sorted({name for run in well for name in found(run)}),
                         ranges={name: [rounded(v) for v in metric.healthy] for name, metric in METRIC_GUIDE.items()})


def thresholds(runs: list, tuned: Iterable) -> str:
    """Write for each sign of a rule what some seeds say: its range in healthy runs, and in those with the illness."""
    runs = [run for run in runs if run["seed"] in tuned]

    def values(sign, name):
        """Write the range of a sign in the runs of an illness, or in the healthy ones."""
        known = sorted(run["indicators"][sign] for run in runs
                       if illness(run["condition"]) == name and run["indicators"].get(sign) is not None)
        return f"{known[0]:.4g} to {known[-1]:.4g}" if known else "unknown"

    lines = [f"{'illness':26} {'sign':14} {'healthy':>24} {'sick':>24}  now"]
    for rule in RULES:
        for sign in rule.signs:
            well, sick = values(sign, "healthy"), values(sign, rule.name)
            lines.append(f"{rule.name:26} {sign:14} {well:>24} {sick:>24}  {METRIC_GUIDE[sign].range}")
    return "\n".join(lines)


def alarms_as_text(result: dict) -> str:
    """Write the alarms of a `tally`."""
    seeds = ", ".join(map(str, result["counted"]))
    lines = [f"{'illness':26} found where it is   found in healthy runs   (seeds {seeds})"]
    for a in result["alarms"]:
        lines.append(f"{a['illness']:26} {a['found']:>3} of {a['of_sick']:<12} {a['false']:>8} of {a['of_healthy']}")
    return "\n".join(lines)


def table(runs: list) -> str:
    """Write the thresholds and the alarms as text."""
    return thresholds(runs, TUNED) + "\n\n" + alarms_as_text(summary(runs))


def tell(run: dict) -> str:
    """Say what was found in a run."""
    said = ", ".join(found(run)) or "healthy"
    return f"{run['condition']:38} seed {run['seed']} {run['cpu_seconds']:6.1f} s: {said} {run['error']}"


EXPERIMENT = Experiment(
    "diagnostics", "Are illnesses found where they are, and only there?", cases, measure,
    dict(settings={name: asdict(settings) for name, settings in CONDITIONS.items()}),
    tell=tell, summary=summary, conclude=table, rows="runs")
