"""Train the policies that ship with the package, and measure them on structures they have not seen."""
import argparse
import json
import platform
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from matplotlib.figure import Figure

from atomrl_nb.environment import EnvironmentSettings
from atomrl_nb.expert import ExpertSettings
from atomrl_nb.optimizer import find_policy, relax, summary
from atomrl_nb.structures import calculator, load, perturb
from atomrl_nb.training import Settings, train

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = Settings(structures=("alloys4",), steps=10_000, seed=0, evaluation_starts=32, expert=ExpertSettings(schedule_steps=4000),
                    environment=EnvironmentSettings(perturb=0.5))
OPTIMIZERS = ("RLOptimizer", "BFGSTuned", "BFGSLineSearch", "BFGS", "LBFGS", "FIRE")


def picture():
    """Draw how many force evaluations each start took, from the saved results."""
    results = json.loads((ROOT / "nbs" / "benchmark" / "alloys4.json").read_text(encoding="utf-8"))["results"]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    for row, name in enumerate(reversed(OPTIMIZERS)):
        counts = sorted(r["force_evaluations"] for r in results if r["optimizer"] == name and r["fmax_target"] == 0.01)
        spread = [row + 0.3 * ((7 * k) % len(counts) / len(counts) - 0.5) for k in range(len(counts))]
        axis.plot(counts, spread, ".", alpha=0.4, color="tab:orange" if name == "RLOptimizer" else "tab:blue")
        axis.plot(counts[len(counts) // 2], row, "|", ms=22, mew=2.5, color="k")
    axis.set(yticks=range(len(OPTIMIZERS)), yticklabels=reversed(OPTIMIZERS), xlim=(0, None), xlabel="force evaluations to 0.01 eV/Å, the first included",
             title=f"{len(counts)} starts of three alloys never seen in training (bar: median)")
    axis.grid(alpha=0.3)
    (ROOT / "nbs" / "images").mkdir(exist_ok=True)
    figure.savefig(ROOT / "nbs" / "images" / "alloys4.png", dpi=130)


def teach(quick: bool) -> float:
    """Train the policy and put it into the package (not in the quick form); return the minutes it took."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = train(replace(SETTINGS, run=f"{folder}/alloys4", steps=320 if quick else SETTINGS.steps))
        if not quick: shutil.copyfile(run / "policy.safetensors", ROOT / "atomrl_nb" / "policies" / "alloys4.safetensors")
    return (time.perf_counter() - began) / 60


def measure(quick: bool, minutes: float | None):
    """Relax held-out starts with the policy of the package and with ASE's optimizers, and save the results (not in the quick form)."""
    starts, policy = [perturb(a, 0.5, seed=[11, k]) for k in range(2 if quick else 32) for a in load("alloys4-heldout")], find_policy("alloys4")
    for k, atoms in enumerate(starts): atoms.info["source"] = f"{atoms.symbols} {k}"
    results = {fmax: [relax(a, calculator("emt"), name, policy, fmax)[0] for a in starts for name in OPTIMIZERS] for fmax in (0.05, 0.01)}
    text = "\n\n".join(f"fmax {fmax} eV/Å\n{summary(r)}" for fmax, r in results.items())
    print(text)
    if quick: return
    target = ROOT / "nbs" / "benchmark"
    target.mkdir(exist_ok=True)
    file = target / "alloys4.json"
    if minutes is None: minutes = json.loads(file.read_text(encoding="utf-8"))["minutes"]
    facts = dict(settings=asdict(SETTINGS), card=policy[1], minutes=round(minutes, 1), machine=f"{platform.machine()}, 2 cores",
                 results=[asdict(r) | dict(fmax_target=fmax) for fmax, rs in results.items() for r in rs])
    file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (target / "alloys4.txt").write_text(text + "\n", encoding="utf-8")
    picture()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form that writes nothing, to see that the command works")
    parser.add_argument("--measure", action="store_true", help="only measure the policy that is there")
    args = parser.parse_args()
    measure(args.quick, None if args.measure else teach(args.quick))
