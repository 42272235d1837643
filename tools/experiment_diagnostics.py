"""Train runs that have an illness and runs that are healthy, and count the true and the false alarms of `diagnose`.

Thresholds (the healthy ranges of `diagnostics.METRIC_GUIDE`) are set on seeds 0 to 3, the table comes from seeds 4 to 7.
`--thresholds` trains nothing: it says what seeds 0 to 3 of the saved result suggest, and counts the alarms anew.
`--later` trains the conditions of rules that came later (seeds 0 to 2 set, 3 and 4 count) and writes `findings.json`: the
metrics that those rules look at are not in the older result, whose other numbers stay as they are.
"""
import argparse
import json
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one run, one core; before torch is loaded

from ase.calculators.emt import EMT

from atomrl_nb.checkpoints import write_text
from atomrl_nb.diagnostics import METRIC_GUIDE, RULES, examine, indicators, live, read_table
from atomrl_nb.environment import EnvironmentSettings as Env
from atomrl_nb.expert import ExpertSettings as Expert
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.suites import provenance
from atomrl_nb.td3 import TD3Settings as TD3
from atomrl_nb.settings import Settings
from atomrl_nb.training import train

BENCHMARK = Path(__file__).resolve().parent.parent / "nbs" / "benchmark"
HEALTHY = Settings(structures=("cuau4",), steps=800, n_envs=8, learning_starts=64, batch_size=32, buffer_capacity=1000, evaluation_interval=200,
                   evaluation_starts=8, checkpoint_interval=10_000, network=NetworkSettings(channels=8, layers=1), expert=Expert(schedule_steps=400))
GREEDY = dict(imitation_weight=0.0, q_weight=10.0, policy_delay=1, target_policy_noise=0.0)  # the actor follows the critic alone, at once
CONDITIONS = {
    "healthy: cuau4": HEALTHY,
    "healthy: alloys4": replace(HEALTHY, structures=("alloys4",)),
    "healthy: alloys8": replace(HEALTHY, structures=("alloys8",)),
    "healthy: young": replace(HEALTHY, steps=320, expert=Expert()),  # stopped early: the expert still plays, as planned
    "hitting the wall": replace(HEALTHY, environment=Env(r0=2.68, correction_weight=0.0), td3=TD3(deviation_weight=0.0)),
    "critic overestimates": replace(HEALTHY, steps=400, batch_size=16, updates_per_step=1.0, expert=Expert(nfake=0.0),
                                    td3=TD3(gamma=0.99, polyak=0.0, critic_lr=2e-3, actor_lr=3e-3, **GREEDY)),
    "hides by not moving": replace(HEALTHY, environment=Env(r0=2.65, correction_weight=5.0), expert=Expert(nfake=0.0),
                                   td3=TD3(deviation_weight=1e4, imitation_weight=0.0)),
    "stale memory": replace(HEALTHY, steps=8000, n_envs=16, updates_per_step=0.05, buffer_capacity=8000, evaluation_interval=4000,
                            expert=Expert(schedule_steps=4000)),  # nothing is forgotten, as with 100,000
    "expert leaned on too long": replace(HEALTHY, expert=Expert(nfake=0.9, schedule_steps=10**9)),
    "penalty dominates": replace(HEALTHY, environment=Env(r0=2.6), td3=TD3(deviation_weight=1e5)),
    "collapsed exploration": replace(HEALTHY, expert=Expert(nfake=0.0), td3=TD3(exploration_noise=1e-3)),
    "exploding gradients": replace(HEALTHY, steps=400, batch_size=16, updates_per_step=1.0, expert=Expert(nfake=0.0),
                                   td3=TD3(gamma=0.99, polyak=0.0, critic_lr=5e-2, actor_lr=1e-2, max_grad_norm=1e9, **GREEDY)),
}
TUNED, COUNTED = range(0, 4), range(4, 8)  # seeds
FAR_SIGHTED = TD3(gamma=0.99)
LATER = {
    "healthy: gamma 0.99": replace(HEALTHY, td3=FAR_SIGHTED),
    "healthy: gamma 0.99, alloys8": replace(HEALTHY, structures=("alloys8",), td3=FAR_SIGHTED),
    "healthy: cuau4": HEALTHY,
    "healthy: alloys8": replace(HEALTHY, structures=("alloys8",)),
    "held by the bound": replace(HEALTHY, network=replace(HEALTHY.network, max_displacement=0.01)),
    "forces in other units: a thousandfold": replace(HEALTHY, calculator="experiment_diagnostics:thousandfold"),
    "forces in other units: a thousandth": replace(HEALTHY, calculator="experiment_diagnostics:thousandth"),
    "critic diverges": replace(CONDITIONS["exploding gradients"], td3=replace(CONDITIONS["exploding gradients"].td3, critic_lr=0.3)),
    "critic overestimates": CONDITIONS["critic overestimates"],
}
LATER_TUNED, LATER_COUNTED = range(0, 3), range(3, 5)  # seeds


class Scaled(EMT):
    """EMT in other units."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def calculate(self, *args):
        """Compute, then multiply all that was computed."""
        super().calculate(*args)
        self.results = {name: self.factor * value for name, value in self.results.items()}


def thousandfold(): return Scaled(1e3)
def thousandth(): return Scaled(1e-3)


def illness(condition):
    """Return the rule that a condition should be named by."""
    return condition.partition(":")[0]


def once(task):
    """Train one run, keep what the rules look at, and forget the rest; one that is in `work` already is taken from there."""
    condition, seed, work, quick = task
    name = f"{_file_name(condition)}-{seed}"
    kept = work / f"{name}.json"
    if kept.exists(): return json.loads(kept.read_text(encoding="utf-8"))
    began, run = time.process_time(), work / name
    shutil.rmtree(run, ignore_errors=True)
    settings = replace((CONDITIONS | LATER)[condition], run=str(run), seed=seed)
    if quick: settings = replace(settings, steps=80, evaluation_interval=40, evaluation_starts=2, network=NetworkSettings(channels=4, layers=1))
    error = ""
    try: train(settings, progress=False)
    except FloatingPointError as caught: error = str(caught).split(" The state is kept")[0]
    result = dict(condition=condition, seed=seed, indicators={k: _short(v) for k, v in indicators(run).items()}, error=error)
    if condition in LATER: result["severe_at_any_age"] = at_any_age(run)
    _curves(run).to_csv(work / f"{name}.csv.gz", index=False, float_format="%.3g", compression=dict(method="gzip", mtime=0))
    shutil.rmtree(run)
    write_text(kept, json.dumps(result | dict(cpu_seconds=round(time.process_time() - began, 1))))
    return json.loads(kept.read_text(encoding="utf-8"))


def at_any_age(run):
    """Return the severe findings that an eighth of a run, a quarter and so on would have given."""
    metrics = read_table(run)
    ages = [len(metrics) * k // 8 for k in range(1, 8)]
    return sorted({f.name for age in ages for f in examine(live(run, metrics.iloc[:age])) if f.severity == "severe"})


def _file_name(condition):
    """Return a condition as a file may be called."""
    return condition.replace(": ", "-").replace(", ", "-").replace(" ", "-")


def _short(value):
    """Round to four digits; JSON knows no NaN."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _curves(run):
    """Join the guide's metrics with what a picture of a run needs, one row in four where there are many."""
    table = live(run).assign(**{name: read_table(run)[name] for name in ("episode", "reward", "fmax", "q", "a_back")})
    return table[:: max(len(table) // 800, 1)]


def found(run):
    """Return which rules hold for a run, by the thresholds of now."""
    values = {name: math.nan if value is None else value for name, value in run["indicators"].items()}
    return list(dict.fromkeys(rule.name for rule in RULES if rule.holds(values)))


def alarms(runs, conditions=CONDITIONS):
    """Count for each illness how often it was found where it is, and in healthy runs where it is not."""
    well = [r for r in runs if illness(r["condition"]) == "healthy"]
    def row(name):
        sick = [r for r in runs if illness(r["condition"]) == name]
        return dict(illness=name, found=sum(name in found(r) for r in sick), of_sick=len(sick),
                    false=sum(name in found(r) for r in well), of_healthy=len(well))
    return [row(name) for name in dict.fromkeys(map(illness, conditions)) if name != "healthy"]


def summary(runs):
    """Make the result: the alarms on the seeds that count (on all where these were not run), and every run."""
    seeds = sorted({r["seed"] for r in runs})
    counted = [seed for seed in seeds if seed in COUNTED] or seeds
    chosen = [r for r in runs if r["seed"] in counted]
    others = sorted({name for r in chosen if r["condition"].startswith("healthy") for name in found(r)})
    return dict(seeds=seeds, counted=counted, cpu_minutes=round(sum(r["cpu_seconds"] for r in runs) / 60, 1), alarms=alarms(chosen), found_in_healthy=others,
                ranges={name: [_short(v) for v in metric.healthy] for name, metric in METRIC_GUIDE.items()},
                settings={name: asdict(settings) for name, settings in CONDITIONS.items()}, runs=runs)


def later(runs, options):
    """Make the result of the conditions that came later."""
    counted = [r for r in runs if r["seed"] in LATER_COUNTED]
    well = [r for r in runs if illness(r["condition"]) == "healthy"]
    return dict(seeds=sorted({r["seed"] for r in runs}), counted=list(LATER_COUNTED), cpu_minutes=round(sum(r["cpu_seconds"] for r in runs) / 60, 1),
                alarms=alarms(counted, LATER), found_in_healthy=sorted({name for r in well for name in found(r) + r["severe_at_any_age"]}),
                settings={name: asdict(settings) for name, settings in LATER.items()}, runs=runs, provenance=provenance(f"tools/experiment_diagnostics.py {options}"))


def thresholds(runs, tuned=TUNED):
    """Print for each sign of a rule what seeds 0 to 3 say: its range in healthy runs, and in those that have the illness."""
    runs = [r for r in runs if r["seed"] in tuned]
    values = lambda keep, sign: sorted(r["indicators"][sign] for r in runs if keep(r["condition"]) and r["indicators"].get(sign) is not None)
    words = lambda x: f"{x[0]:.4g} to {x[-1]:.4g}" if x else "unknown"
    print(f"{'illness':26} {'sign':14} {'healthy':>24} {'sick':>24}  {'now'}")
    for rule in RULES:
        for sign in rule.signs:
            well, sick = values(lambda c: c.startswith("healthy"), sign), values(lambda c: illness(c) == rule.name, sign)
            print(f"{rule.name:26} {sign:14} {words(well):>24} {words(sick):>24}  {METRIC_GUIDE[sign].range}")


def save(runs, work):
    """Write the result, and the curves of one run of each condition."""
    BENCHMARK.mkdir(exist_ok=True)
    write_text(BENCHMARK / "diagnostics.json", json.dumps(summary(runs)) + "\n")
    if work is None: return
    (BENCHMARK / "sick").mkdir(exist_ok=True)
    for condition in CONDITIONS:
        name = _file_name(condition)
        shutil.copyfile(work / f"{name}-0.csv.gz", BENCHMARK / "sick" / f"{name}.csv.gz")


def table(result):
    """Write the alarms as text."""
    lines = [f"{'illness':26} found where it is   found in healthy runs   (seeds {', '.join(map(str, result['counted']))})"]
    return "\n".join(lines + [f"{a['illness']:26} {a['found']:>3} of {a['of_sick']:<12} {a['false']:>8} of {a['of_healthy']}" for a in result["alarms"]])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three short runs, to see that the command works; writes no result")
    parser.add_argument("--seeds", type=int, default=8, help="seeds 0 to N-1 (8)")
    parser.add_argument("--work", type=Path, help="folder where finished runs are kept, so that an interruption loses little")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each (2)")
    parser.add_argument("--later", action="store_true", help="seeds 0 to 4 of the conditions that came later")
    parser.add_argument("--thresholds", action="store_true", help="train nothing: print what seeds 0 to 3 suggest, and count the alarms anew")
    args = parser.parse_args()
    if args.thresholds:
        runs = json.loads((BENCHMARK / "diagnostics.json").read_text(encoding="utf-8"))["runs"]
        thresholds(runs)
        save(runs, None)
        return print("\n" + table(summary(runs)))
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        seeds = [0] if args.quick else range(5) if args.later else range(args.seeds)
        conditions = ("healthy: cuau4", "hitting the wall", "exploding gradients") if args.quick else LATER if args.later else CONDITIONS
        tasks = [(condition, seed, work, args.quick) for seed in seeds for condition in conditions]
        runs = []
        with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("forkserver")) as pool:
            for result in pool.map(once, tasks):
                runs.append(result)
                print(f"{result['condition']:26} seed {result['seed']} {result['cpu_seconds']:6.1f} s: {', '.join(found(result)) or 'healthy'} {result['error']}", flush=True)
        result = later(runs, "--later") if args.later and not args.quick else summary(runs)
        if args.later and not args.quick: write_text(BENCHMARK / "findings.json", json.dumps(result) + "\n")
        elif not args.quick: save(runs, work)
        thresholds(runs, LATER_TUNED if args.later else TUNED)
        print("\n" + table(result))


if __name__ == "__main__":
    sys.exit(main())
