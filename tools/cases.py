"""Run the cases of an experiment, each in a process of its own core, and keep what is finished."""
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[_name] = "1"  # before torch is loaded


def run_all(function, cases: dict, work: Path, jobs: int) -> dict:
    """Call `function(*arguments)` for each named case that has no file in `work` yet; return name -> result, plain JSON values."""
    work.mkdir(parents=True, exist_ok=True)
    file = lambda name: work / f"{name}.json"
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(function, *arguments): name for name, arguments in cases.items() if not file(name).exists()}
        for done in as_completed(waiting):
            beside = file(waiting[done]).with_suffix(".part")
            beside.write_text(json.dumps(done.result()), encoding="utf-8")
            os.replace(beside, file(waiting[done]))
            print(f"{waiting[done]}: done", flush=True)
    return {name: json.loads(file(name).read_text(encoding="utf-8")) for name in cases}
