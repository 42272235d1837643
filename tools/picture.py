"""Draw the moving picture of the README: an agent and BFGS relax the same crystal, one frame a force evaluation."""
import argparse
from pathlib import Path

import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.optimize import BFGS
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.structures import calculator, load, perturb

ROOT = Path(__file__).resolve().parent.parent
FMAX, VIEW = 0.01, (14, -24, 0)  # eV/Å; turns about x, y and z in degrees
METHODS = {"RLOptimizer": RLOptimizer, "BFGS": BFGS}


def relaxation(start, optimizer) -> tuple:
    """Relax a copy of `start`; return positions and force norms at each force evaluation."""
    atoms, positions, forces = start.copy(), [], []
    atoms.calc = calculator("emt")
    made = optimizer(atoms, logfile=None)
    made.attach(lambda: (positions.append(atoms.positions.copy()), forces.append(np.linalg.norm(atoms.get_forces(), axis=1))))
    made.run(fmax=FMAX, steps=200)
    return np.array(positions), np.array(forces)


def turned(positions):
    """Look at positions from a little aside."""
    for axis, angle in enumerate(np.radians(VIEW)):
        matrix, (a, b) = np.eye(3), [k for k in range(3) if k != axis]
        matrix[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        positions = positions @ matrix.T
    return positions


def draw(path: Path):
    """Write the picture."""
    start = perturb(load("cuau32")[0], 0.5, seed=3)
    ways = {name: relaxation(start, optimizer) for name, optimizer in METHODS.items()}
    last = max(len(forces) for _, forces in ways.values())
    figure = Figure(figsize=(7.2, 4.6), dpi=90, layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=(3, 1.6))
    corners = turned(start.positions)
    reach = np.abs(corners - corners.mean(axis=0)).max() + 1.4
    top = max(forces.max() for _, forces in ways.values())

    def frame(k):
        for column, (name, (positions, forces)) in enumerate(ways.items()):
            now, done = min(k, len(forces) - 1), k >= len(forces) - 1
            above, below = axes[0, column], axes[1, column]
            above.clear(), below.clear()
            places = turned(positions[now]) - corners.mean(axis=0)
            for i in np.argsort(places[:, 2]):
                heat = np.clip(np.log10(forces[now, i] / FMAX) / np.log10(top / FMAX), 0, 1)
                above.add_patch(Circle(places[i, :2], 0.62 * covalent_radii[start.numbers[i]], facecolor=jmol_colors[start.numbers[i]],
                                       edgecolor=(0.85 * heat + 0.15, 0.15, 0.15), lw=0.6 + 2.4 * heat))
            above.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=f"{name}: {now + 1} force evaluation{'s' * (now > 0)}" + (", relaxed" if done else ""))
            above.set_axis_off()
            below.semilogy(np.arange(1, now + 2), forces.max(axis=1)[:now + 1], "o-", ms=3.5, color="tab:orange" if column == 0 else "tab:blue")
            below.axhline(FMAX, color="k", lw=0.8, ls="--")
            below.set(xlim=(0.5, last + 0.5), ylim=(FMAX / 4, 2 * top), xlabel="force evaluations", ylabel="largest force [eV/Å]" if column == 0 else "")
            below.grid(alpha=0.3)

    path.parent.mkdir(parents=True, exist_ok=True)
    FuncAnimation(figure, frame, frames=[0, 0, *range(last), *[last] * 6]).save(path, writer=PillowWriter(fps=3))
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB; " + ", ".join(f"{name} {len(forces)} force evaluations" for name, (_, forces) in ways.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "nbs" / "images" / "relaxing.gif")
    draw(parser.parse_args().out)
