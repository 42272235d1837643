"""Cure sick runs as their findings ask, one change after the other, until nothing is found; write `nbs/benchmark/cures.json`.

The sick runs are those of `experiment_diagnostics.py`. What is changed is what a finding names; the curves of one seed are
kept in `nbs/benchmark/cured/`.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded

from experiment_diagnostics import BENCHMARK, CONDITIONS, _curves, _short, found
from atomrl_nb.checkpoints import write_text
from atomrl_nb.diagnostics import diagnose, indicators
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.training import train

CURES = {  # each change keeps those before it
    "hitting the wall": [dict(environment=dict(r0=None))],
    "critic overestimates": [dict(td3=dict(gamma=0.5)), dict(td3=dict(imitation_weight=1.0, q_weight=0.1), expert=dict(nfake=0.5))],
    "hides by not moving": [dict(td3=dict(deviation_weight=0.1), environment=dict(correction_weight=0.5)), dict(environment=dict(r0=None)),
                            dict(td3=dict(imitation_weight=1.0), expert=dict(nfake=0.5))],
}
KEPT = 0  # the seed whose curves are kept


def changed(settings, change: dict):
    """Return the settings with a change of some groups."""
    return replace(settings, **{group: replace(getattr(settings, group), **values) for group, values in change.items()})


def cure(illness: str, seed: int, work: Path, quick: bool = False) -> dict:
    """Change and train until nothing is found, or no change is left."""
    sick, steps = CONDITIONS[illness], []
    for number, change in enumerate(CURES[illness], 1):
        sick, run = changed(sick, change), work / f"{illness.replace(' ', '-')}-{number}-{seed}"
        kept = run.with_suffix(".json")
        if not kept.exists():
            shutil.rmtree(run, ignore_errors=True)
            settings = replace(sick, run=str(run), seed=seed)
            if quick: settings = replace(settings, steps=80, evaluation_interval=40, evaluation_starts=2, network=NetworkSettings(channels=4, layers=1))
            try: train(settings, progress=False)
            except FloatingPointError: pass  # a finding, too
            findings = diagnose(run)
            _curves(run).to_csv(run.with_suffix(".csv.gz"), index=False, float_format="%.3g", compression=dict(method="gzip", mtime=0))
            write_text(kept, json.dumps(dict(change=change, findings=[f.name for f in findings], indicators={k: _short(v) for k, v in indicators(run).items()})))
            shutil.rmtree(run)
        steps.append(json.loads(kept.read_text(encoding="utf-8")))
        if not steps[-1]["findings"]: break
    return dict(illness=illness, seed=seed, steps=steps)


def summary(cures: list) -> dict:
    """Put the sick runs in front of their cures, and count."""
    sick = {(r["condition"], r["seed"]): found(r) for r in json.loads((BENCHMARK / "diagnostics.json").read_text(encoding="utf-8"))["runs"]}
    cures = [c | dict(sick=sick[c["illness"], c["seed"]]) for c in cures]
    count = lambda illness: dict(illness=illness, runs=sum(c["illness"] == illness for c in cures),
                                 cured_after=[sum(c["illness"] == illness and not c["steps"][min(k, len(c["steps"]) - 1)]["findings"] for c in cures) for k in range(len(CURES[illness]))])
    return dict(changes=CURES, cured=[count(illness) for illness in CURES], runs=cures)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short run, to see that the command works; writes no result")
    parser.add_argument("--seeds", type=int, default=4, help="seeds 0 to N-1 (4)")
    parser.add_argument("--work", type=Path, help="folder where finished runs are kept, so that an interruption loses little")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work, cures = args.work or Path(scratch), []
        work.mkdir(parents=True, exist_ok=True)
        for seed in [KEPT] if args.quick else range(args.seeds):
            for illness in list(CURES)[:1] if args.quick else CURES:
                cures.append(cure(illness, seed, work, args.quick))
                print(f"{illness:24} seed {seed}: " + "; ".join(", ".join(step["findings"]) or "nothing found" for step in cures[-1]["steps"]), flush=True)
        result = summary(cures)
        print(json.dumps(result["cured"], indent=1))
        if args.quick: return
        write_text(BENCHMARK / "cures.json", json.dumps(result) + "\n")
        (BENCHMARK / "cured").mkdir(exist_ok=True)
        for path in work.glob(f"*-{KEPT}.csv.gz"): shutil.copyfile(path, BENCHMARK / "cured" / path.name.replace(f"-{KEPT}.csv", ".csv"))


if __name__ == "__main__":
    sys.exit(main())
