"""Check the layers: every module comes from a notebook, and imports only modules of lower-numbered notebooks."""
import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "atomrl_nb"
LIB = ROOT / PACKAGE
GENERATED = {"__init__", "_modidx", "_docs"}
TOOLS = ["IPython", "ipywidgets", "jupyterlab", "nbdev", "nglview"]  # for notebooks; scripts do without them


def layers():
    """Return {module: number of its notebook, such as "01a"}, for every notebook with a `#| default_exp`."""
    found = {}
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        name = re.search(r'"#\s*\|\s*default_exp\s+([\w.]+)', path.read_text(encoding="utf-8"))
        if name and ".ipynb_checkpoints" not in path.parts:
            number = re.match(r"\d+[a-z]?(?=_)", path.name)
            if not number:
                sys.exit(f"{path.name} exports {name[1]}, so its name must begin with its layer's number.")
            found[name[1]] = number[0]
    return found


def imported(tree, modules):
    """Yield (module, line) for each import of one of the package's `modules`, at any depth of the code."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = f"{PACKAGE}.{node.module or ''}".strip(".") if node.level else node.module
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in dict.fromkeys(names):
            if name.startswith(PACKAGE + ".") and (module := name[len(PACKAGE) + 1:]) in modules:
                yield module, node.lineno


def problems():
    """Yield a sentence for everything that breaks the layers."""
    numbers = layers()
    for path in sorted(LIB.rglob("*.py")):
        module = ".".join(path.relative_to(LIB).with_suffix("").parts)
        if module in GENERATED:
            continue
        if module not in numbers:
            yield f"{path.relative_to(ROOT)} comes from no notebook: write it in one, under nbs/."
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for other, line in imported(tree, numbers):
            if numbers[other] >= numbers[module]:
                yield (f"{PACKAGE}/{path.name}, line {line}: {module} (layer {numbers[module]}) imports "
                       f"{other} (layer {numbers[other]}); a module imports only lower layers.")
    load = f"import sys, importlib\nfor name in {sorted(numbers)}: importlib.import_module('{PACKAGE}.' + name)\n"
    load += f"print(*(name for name in {TOOLS} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", load], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        yield f"A module cannot be imported:\n{result.stderr}"
    for name in result.stdout.split():
        yield f"Importing {PACKAGE} imports {name}: import it inside the function that needs it."


if __name__ == "__main__":
    found = list(problems())
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))
