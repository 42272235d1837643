"""Run the notebooks: test them as `nbdev_test` does, and keep their saved outputs current.

    notebooks.py [--test] [--check] [--save] [NOTEBOOK ...]

Every notebook runs once, in a process of its own, with nbdev's own shell; the same run serves all three modes.
A cell that starts with `#| volatile: true` (timings and the like) may print something else each time.
"""
import argparse
import copy
import difflib
import json
import math
import multiprocessing
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # two notebooks at a time, one core each; set before torch is loaded

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = ["nbdev.test", "matplotlib.pyplot", "torch", "e3nn.o3", "ase"]  # loaded once, before the processes fork
WORKERS, TIMEOUT = 2, 1200  # notebooks at a time, seconds for one notebook
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
WIDGET = "application/vnd.jupyter.widget-view+json"
# a picture, though HTML
VIEW = re.compile(r'<div class="atomrl-view">.*?<script type="application/json">(.*?)</script></div>', re.DOTALL)


def execute(path, answer):
    """Run the notebook at `path` as `nbdev_test` does and send (outputs by cell id, traceback or "") to `answer`."""
    from execnb.shell import CaptureShell
    from fastcore.basics import str2bool
    from nbdev.config import get_config
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor

    os.environ["IN_TEST"] = "1"
    sys.path.insert(0, str(ROOT))
    os.chdir(path.parent)
    skipped = set(get_config().tst_flags.split())
    nb = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    if str2bool(nb.frontmatter_.get("skip_exec", False)):
        return answer.send(({}, ""))
    shell, ran = CaptureShell(path), []

    def skip(cell):
        """Say whether nbdev_test leaves `cell` out; note and empty the others."""
        flags = getattr(cell, "directives_", {})
        if (cell.cell_type != "code" or "nbdev_export(" in cell.source or skipped & flags.keys()
                or flags.get("eval:", [""])[0].lower() == "false"):
            return True
        cell.outputs = []
        ran.append(cell)

    try:
        shell.run_all(nb, exc_stop=True, preproc=skip)
        error = ""
    except BaseException:  # as nbdev_test: a cell may also raise SystemExit
        error = shell.prettytb(fname=path.relative_to(ROOT)) + f"\nThe cell (id {ran[-1].id}):\n{ran[-1].source}\n"
    answer.send(({cell.id: json.loads(json.dumps(cell.outputs, default=str)) for cell in ran}, error))


def run(path):
    """Execute one notebook in a fresh process; return (outputs by cell id, traceback or "", seconds)."""
    start = time.time()
    receive, send = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=execute, args=(path, send))
    process.start()
    send.close()
    try:
        outputs, error = receive.recv() if receive.poll(TIMEOUT) else ({}, f"no end after {TIMEOUT} s")
    except EOFError:
        outputs, error = {}, "the process died without an answer"
    process.join(10)
    process.kill()
    return outputs, error, time.time() - start


def clean(nb):
    """Clean the notebook in place as `nbdev_clean` does, and drop warnings and widget state, which rot when saved."""
    from nbdev.clean import clean_nb
    from nbdev.config import get_config

    cfg = get_config()
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [out for out in cell["outputs"] if out.get("name") != "stderr"]
            for out in cell["outputs"]:
                out.get("data", {}).pop(WIDGET, None)
    nb["metadata"].pop("widgets", None)
    clean_nb(nb, allowed_metadata_keys=cfg.allowed_metadata_keys.split(),
             allowed_cell_metadata_keys=cfg.allowed_cell_metadata_keys.split(), clean_ids=cfg.clean_ids)
    return nb


def texts(outputs):
    """Return the outputs as text, with only the kind of each picture."""
    lines = []
    for out in outputs:
        for kind, value in sorted(out.get("data", {"text/plain": out.get("text", "")}).items()):
            lines.append(VIEW.sub("[3-D view]", "".join(value)) if kind.startswith("text/") else f"[{kind}]")
    return "\n".join(lines)


def volatile(cell):
    """Say whether a code cell may print something else each time."""
    return bool(re.match(r"\s*#\|\s*volatile", "".join(cell["source"])))


def htmls(cell):
    """Yield each HTML output of a cell."""
    for out in cell.get("outputs", []):
        yield "".join(out.get("data", {}).get("text/html", ""))


def formats(cell):
    """Return which fields each 3-D view of a cell has: a page's script draws no view of an older format."""
    scenes = [json.loads(scene) for text in htmls(cell) for scene in VIEW.findall(text)]
    return [(sorted(scene), sorted(scene["trajectories"][0])) for scene in scenes]


def same(old, new):
    """Say whether two texts agree: words and whole numbers exactly, others to four significant digits or 1e-6."""
    def words(text):
        return [" ".join(part.split()) for part in NUMBER.split(text)]

    def close(a, b):
        whole = all(re.fullmatch(r"[-+]?\d+", one) for one in (a, b))
        return a == b or not whole and math.isclose(float(a), float(b), rel_tol=1e-4, abs_tol=1e-6)

    return words(old) == words(new) and all(map(close, NUMBER.findall(old), NUMBER.findall(new)))


def differences(saved, fresh):
    """Yield a readable difference for every cell whose fresh text no longer agrees with the saved one."""
    for old, new in zip(saved["cells"], fresh["cells"]):
        if old["cell_type"] != "code":
            continue
        if formats(old) != formats(new):
            yield f"  cell {old['id']}: the format of its 3-D view is no longer the one that is drawn"
        if volatile(old):
            continue
        a, b = texts(old["outputs"]), texts(new["outputs"])
        if not same(a, b):
            diff = list(difflib.unified_diff(a.splitlines(), b.splitlines(), "saved", "now", n=1, lineterm=""))
            yield "\n".join([f"  cell {old['id']}:", *("    " + line[:200] for line in diff[:20])])


def pictures(nb):
    """Return every picture of a notebook, to see whether one has changed; 3-D views of volatile cells always have."""
    images = [value for cell in nb["cells"] for out in cell.get("outputs", [])
              for kind, value in out.get("data", {}).items() if kind.startswith("image/")]
    lasting = [cell for cell in nb["cells"] if cell["cell_type"] == "code" and not volatile(cell)]
    return images, [scene for cell in lasting for text in htmls(cell) for scene in VIEW.findall(text)]


def handle(path, check, save):
    """Run one notebook, check or save its outputs, print how it went; return what is wrong, or ""."""
    from execnb.nbio import write_nb

    outputs, error, seconds = run(path)
    saved = json.loads(path.read_text(encoding="utf-8"))
    fresh = copy.deepcopy(saved)
    for cell in fresh["cells"]:
        cell["outputs"] = outputs.get(cell.get("id"), cell.get("outputs"))
        if cell["outputs"] is None:
            del cell["outputs"]
    clean(fresh)
    changes = list(differences(saved, fresh)) if check or save else []
    write = save and not error and (changes or pictures(saved) != pictures(fresh))
    if write:
        write_nb(fresh, path)
    verdict = "FAILED" if error else "saved" if write else "OUTDATED" if check and changes else "ok"
    print(f"{verdict:8} {seconds:6.1f} s  {path.relative_to(ROOT)}", flush=True)
    if verdict in ("ok", "saved"):
        return ""
    details = [error] if error else [*changes, "  Look at the change, then run `make outputs` to save it."]
    return "\n".join([f"{verdict}  {path.relative_to(ROOT)}", *details])


def main():
    """Run the notebooks that the command line names, or all of them."""
    from nbdev.doclinks import nbglob

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", action="store_true", help="fail on any exception, as every mode does (the default)")
    parser.add_argument("--check", action="store_true", help="fail where a saved text output is no longer current")
    parser.add_argument("--save", action="store_true", help="save the outputs of notebooks where one has changed")
    parser.add_argument("notebooks", nargs="*", type=Path, help="notebooks to run (all of nbs/)")
    args = parser.parse_args()
    paths = [path.resolve() for path in args.notebooks or sorted(nbglob(ROOT / "nbs", as_path=True))]
    CONTEXT.set_forkserver_preload(PRELOAD)
    with ThreadPoolExecutor(WORKERS) as pool:
        problems = list(filter(None, pool.map(lambda path: handle(path, args.check, args.save), paths)))
    print(*problems, f"{len(paths)} notebooks, {len(problems)} with problems", sep="\n")
    return len(problems) > 0


if __name__ == "__main__":
    sys.exit(main())
