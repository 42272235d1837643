"""Train what the rules that came later are about, and count their true and their false alarms.

Their metrics are not in the result of `experiment_diagnostics.py`, which stays as it is. Thresholds are set on seeds
0 to 2; the table is of seeds 3 and 4. Each run is looked at in eighths, too, as if it were asked while it is young.
"""
from dataclasses import asdict, replace
from pathlib import Path

from ase.calculators.emt import EMT
from experiment_diagnostics import (CONDITIONS, HEALTHY, alarms_as_text, file_name, found, illness, signs, tally,
                                    tell, thresholds, trained)

from atomrl_nb.diagnostics import examine, live, read_table
from atomrl_nb.experiment import Experiment
from atomrl_nb.td3 import TD3Settings as TD3

FAR_SIGHTED, EXPLODING = TD3(gamma=0.99), CONDITIONS["exploding gradients"]
LATER = {
    "healthy: gamma 0.99": replace(HEALTHY, td3=FAR_SIGHTED),
    "healthy: gamma 0.99, alloys8": replace(HEALTHY, structures=("alloys8",), td3=FAR_SIGHTED),
    "healthy: cuau4": HEALTHY,
    "healthy: alloys8": CONDITIONS["healthy: alloys8"],
    "held by the bound": replace(HEALTHY, network=replace(HEALTHY.network, max_displacement=0.01)),
    "forces in other units: a thousandfold": replace(HEALTHY, calculator="experiment_findings:thousandfold"),
    "forces in other units: a thousandth": replace(HEALTHY, calculator="experiment_findings:thousandth"),
    "critic diverges": replace(EXPLODING, td3=replace(EXPLODING.td3, critic_lr=0.3)),
    "critic overestimates": CONDITIONS["critic overestimates"],
}
TUNED, COUNTED = range(0, 3), range(3, 5)  # seeds
QUICK = ("healthy: gamma 0.99", "forces in other units: a thousandfold", "critic diverges")


class Scaled(EMT):
    """EMT in other units."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def calculate(self, *args):
        """Compute, then multiply all that was computed."""
        super().calculate(*args)
        self.results = {name: self.factor * value for name, value in self.results.items()}


def thousandfold() -> Scaled:
    """Make a calculator whose energies and forces are too large."""
    return Scaled(1e3)


def thousandth() -> Scaled:
    """Make a calculator whose energies and forces are too small."""
    return Scaled(1e-3)


def cases(seeds: int, quick: bool) -> list:
    """List the conditions for each seed."""
    conditions = QUICK if quick else LATER
    return [dict(condition=condition, seed=seed) for seed in range(1 if quick else seeds) for condition in conditions]


def at_any_age(run: Path) -> list:
    """List the severe findings that an eighth of a run, a quarter and so on would have given."""
    metrics = read_table(run)
    tables = [live(run, metrics.iloc[:len(metrics) * k // 8]) for k in range(1, 8)]
    return sorted({finding.name for table in tables for finding in examine(table) if finding.severity == "severe"})


def look(run: Path) -> dict:
    """Keep what the rules look at, and what was severe before the end."""
    return signs(run) | dict(severe_at_any_age=at_any_age(run))


def measure(case: dict, quick: bool, work: Path) -> dict:
    """Train one run, and look at it."""
    condition, seed = case["condition"], case["seed"]
    run = work / f"{file_name(condition)}-{seed}"
    return trained(replace(LATER[condition], seed=seed), run, quick, look)


def summary(runs: list) -> dict:
    """Count the alarms, and list what was found in any healthy run at its end, or was severe before."""
    well = [run for run in runs if illness(run["condition"]) == "healthy"]
    return tally(runs, LATER, COUNTED) | dict(
        found_in_healthy=sorted({name for run in well for name in found(run) + run["severe_at_any_age"]}))


def table(runs: list) -> str:
    """Write the thresholds and the alarms as text."""
    result = summary(runs)
    said = ", ".join(result["found_in_healthy"]) or "nothing"
    return f"{thresholds(runs, TUNED)}\n\n{alarms_as_text(result)}\nIn healthy runs, at any age: {said}"


EXPERIMENT = Experiment(
    "findings", "Are the rules that came later right, about healthy runs with gamma 0.99 too?", cases, measure,
    dict(settings={name: asdict(settings) for name, settings in LATER.items()}),
    seeds=5, tell=tell, summary=summary, conclude=table, rows="runs")
