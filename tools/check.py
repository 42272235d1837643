"""Run every check that CI runs: one line and the time for each, and the tests last."""
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import stubs

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "atomrl_nb"
TAIL = 40  # lines of a failed check that are printed once more at the end, where a log is read first
EXPORT = "from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; nbdev_export(); nbdev_clean()"


def files(folder, pattern):
    """Return the paths under `folder` that match `pattern`, relative to it; no hidden or cache folders."""
    paths = (path.relative_to(folder) for path in folder.rglob(pattern))
    return {path for path in paths if not any(part.startswith((".", "__pycache__")) for part in path.parts)}


def in_sync():
    """Export and clean an empty copy of the notebooks, with stubs; return a sentence for each file that then differs."""
    for name in sorted(files(ROOT / "nbs", "*.ipynb")):
        if "widgets" in json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))["metadata"]:
            yield f"nbs/{name} holds widget state, which breaks the site: run `make outputs`, or delete metadata.widgets"
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        shutil.copy(ROOT / "settings.ini", copy)
        shutil.copytree(ROOT / "nbs", copy / "nbs", symlinks=True)
        (copy / PACKAGE).mkdir()
        shutil.copy(ROOT / PACKAGE / "__init__.py", copy / PACKAGE)  # written by hand, but for the version
        subprocess.run([sys.executable, "-c", EXPORT], cwd=copy, check=True, capture_output=True, text=True)
        stubs.write(copy / PACKAGE)
        for folder, pattern, cure in [(PACKAGE, "*.py", "is not what the notebooks export: run `make export`"),
                                      (PACKAGE, "*.pyi", "is not the stub of its module: run `make export`"),
                                      ("nbs", "*.ipynb", "is not clean (counts, metadata or ids): run `make export`")]:
            for name in sorted(files(ROOT / folder, pattern) | files(copy / folder, pattern)):
                old, new = ROOT / folder / name, copy / folder / name
                if not new.exists():
                    yield f"{folder}/{name} comes from no notebook: write it in one"
                elif not old.exists() or not filecmp.cmp(old, new, shallow=False):
                    yield f"{folder}/{name} {cure}"


def export_check():
    """Return what `in_sync` found, as a command's result."""
    try:
        found = list(in_sync())
    except subprocess.CalledProcessError as error:
        found = [error.stderr]
    return len(found), "\n".join(found)


def command(*args):
    """Return a check that runs a Python module or script and succeeds when it does."""
    def run():
        """Run it, and return (status, what it printed)."""
        result = subprocess.run([sys.executable, *args], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
        return result.returncode, result.stdout.strip()
    return run


CHECKS = {
    "the package and the notebooks are in step": export_check,
    "the layers hold": command("tools/layers.py"),
    "the notebooks keep their rhythm": command("tools/rhythm.py"),
    "ruff finds no fault": command("-m", "ruff", "check", "--quiet", "--select", "F", PACKAGE, "tools", "tests"),
    "types hold, in the stubs and in a user's script": command("-m", "mypy", "--no-error-summary"),
    "the Chinese pages are the guide in Chinese": command("tools/translate.py", "--check"),
    "README.md is current": command("tools/readme.py", "--check"),
    "the site builds, with no dead link": command("tools/docs.py"),
    "the notebooks run, and their outputs are current": command("tools/notebooks.py", "--test", "--check"),
}


def tests():
    """Run pytest on two halves of the test files at once, one a core; return (status, output), a failure's last."""
    found = sorted((ROOT / "tests").glob("test_*.py"), key=lambda path: path.stat().st_size)
    halves = [command("-m", "pytest", *map(str, found[start::2])) for start in range(2)]
    with ThreadPoolExecutor(2) as pool:
        results = sorted(pool.map(lambda half: half(), halves), key=lambda result: result[0] != 0)
    return results[-1][0], "\n\n".join(output for _, output in results)


CHECKS["pytest passes"] = tests


def main():
    """Run the checks, the tests last; print what failed once more, at the end."""
    os.environ["PYTHONPATH"] = str(ROOT)
    failed = {}
    for name, check in CHECKS.items():
        start = time.time()
        status, output = check()
        print(f"{'FAILED' if status else 'ok':6} {time.time() - start:6.1f} s  {name}", flush=True)
        if status:
            failed[name] = output
        if status or check is tests:
            print(output, flush=True)
    for name, output in failed.items():
        print(f"\nFAILED: {name}", *output.splitlines()[-TAIL:], sep="\n", flush=True)
    if failed:
        sys.exit("Not so: " + "; ".join(failed) + ".")


if __name__ == "__main__":
    main()
