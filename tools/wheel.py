"""Build the wheel, install it into an empty environment, and use it outside of this folder, as a user does.

pip takes the newest of all requirements, or what the variable PIP_CONSTRAINT says (`PIP_CONSTRAINT=constraints.txt`).
"""
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RELAX = ["fcc-copper.xyz", "--calculator", "emt", "--policy", "fcc-alloys", "--out", "relaxed.xyz"]
COPPER = """
from ase.build import bulk
from ase.io import write
from atomrl_nb.structures import perturb
write("fcc-copper.xyz", perturb(bulk("Cu", cubic=True), 0.2, seed=0))
"""
IMPORTS = """
import importlib, pkgutil, sys
from pathlib import Path
import atomrl_nb
home = Path(atomrl_nb.__file__).parent
assert home.is_relative_to(sys.prefix), f"{home} is not what was installed"
assert (home / "py.typed").exists(), "py.typed is missing"
for module in pkgutil.iter_modules([str(home)]):
    assert module.name.startswith("_") or (home / f"{module.name}.pyi").exists(), f"{module.name} has no stub"
    importlib.import_module(f"atomrl_nb.{module.name}")
"""


def main():
    """Build, install, import all modules, ask every command for help, and relax a crystal with a policy that ships."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    if "PIP_CONSTRAINT" in environment:
        environment["PIP_CONSTRAINT"] = str(Path(environment["PIP_CONSTRAINT"]).resolve())
    with tempfile.TemporaryDirectory() as scratch:
        def run(*command):
            """Run a command in the scratch folder, and stop where it fails."""
            subprocess.run([str(word) for word in command], cwd=scratch, env=environment, check=True)

        pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
        makes, home = Path(scratch, "makes"), Path(scratch, "environment")
        for folder in (makes, home):
            venv.create(folder, with_pip=True)
        run(makes / "bin" / "python", *pip, "install", "build")
        run(makes / "bin" / "python", "-m", "build", "--outdir", "dist", ROOT)  # the wheel from the source archive
        python = home / "bin" / "python"
        run(python, *pip, "install", *Path(scratch, "dist").glob("*.whl"))
        run(python, "-c", IMPORTS)
        commands = list((home / "bin").glob("atomrl-*"))
        for command in commands:
            subprocess.run([command, "--help"], cwd=scratch, env=environment, check=True, stdout=subprocess.DEVNULL)
        run(python, "-c", COPPER)
        run(home / "bin" / "atomrl-relax", *RELAX)
    print(f"The wheel works: all modules, {len(commands)} commands, and a policy that ships.")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"The wheel does not work: {error}")
