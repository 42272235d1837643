"""Campaigns are killed, their workers die, their folders are damaged: nothing is lost, doubled or half written."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read

from atomrl_nb.campaign import campaign, read_starts
from atomrl_nb.checkpoints import DiskError
from atomrl_nb.cli import relax_main, status_main
from atomrl_nb.jobs import Ended, JobSettings
from atomrl_nb.ledger import RELAXED, RESULTS, Kept, Ledger, claimed, read_lines, status
from atomrl_nb.structures import load, perturb
from atomrl_nb.workers import Workers

SETTINGS = JobSettings(policy="none", fmax=0.05)


class Slow(EMT):
    """EMT that takes its time."""

    def calculate(self, atoms=None, *args, **kwargs):
        time.sleep(0.02)
        super().calculate(atoms, *args, **kwargs)


def metals(n=12):
    """Make small structures; two of them are bad."""
    made = [perturb(atoms, 0.2, seed=k) for k, atoms in enumerate(load("alloys4")[:n])]
    made[3].positions[1] = made[3].positions[0]
    made[7].positions[0] = np.nan
    return made


def fates(folder):
    """Take from the lines what does not depend on clocks."""
    return sorted((row.id, row.state, row.evaluations, row.energy or 0.0) for row in read_lines(folder).rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A campaign that was never killed."""
    folder = tmp_path_factory.mktemp("whole") / "work"
    with ThreadPoolExecutor(1) as pool:
        campaign(metals(), folder, replace(SETTINGS, calculator=(Slow, (), {})), executor=pool)
    return folder


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from concurrent.futures import ThreadPoolExecutor
from test_campaign import SETTINGS, Slow, campaign, metals, replace
print("begun", flush=True)
with ThreadPoolExecutor(2) as pool:
    campaign(metals(), {folder!r}, replace(SETTINGS, calculator=(Slow, (), dict())), executor=pool)
"""


def test_a_campaign_that_is_killed_twice_loses_and_doubles_nothing(whole, tmp_path):
    work, code = tmp_path / "work", SCRIPT.format(tests=os.path.dirname(__file__), folder=str(tmp_path / "work"))
    for kills in range(2):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout.readline()
        while len(read_lines(work).rows) < 3 * kills + 2: time.sleep(0.005)
        assert status(work).state == "running"
        process.kill()
        process.communicate()
        now = status(work)
        assert now.state == "stopped" and now.counts["running"] == 0
        assert set(fates(work)) <= set(fates(whole)) and len(set(fates(work))) == len(fates(work)) >= 2
    with ThreadPoolExecutor(2) as pool:
        assert campaign(metals(), work, replace(SETTINGS, calculator=(Slow, (), {})), executor=pool).state == "finished"
    assert fates(work) == fates(whole)
    mine, theirs = (sorted(read(folder / RELAXED, ":"), key=lambda a: a.info["id"]) for folder in (work, whole))
    assert [a.info["id"] for a in mine] == [a.info["id"] for a in theirs] and len(mine) == 10
    for a, b in zip(mine, theirs): np.testing.assert_array_equal(a.positions, b.positions)


def test_a_worker_that_is_killed_costs_one_structure_which_is_relaxed_again_on_request(whole, tmp_path):
    settings, killed = replace(SETTINGS, calculator=(Slow, (), {})), []
    with Workers(1, deaths=1) as workers:
        def kill(ended):
            if ended.state == "converged" and not killed: killed.append(os.kill(workers.processes[0].pid, signal.SIGKILL))
        now = campaign(metals(), tmp_path / "work", settings, executor=workers, watch=kill)
        assert now.counts["failed"] in (2, 3) and workers.replaced == 1  # it may just have been between two structures
        assert sum("SIGKILL" in member.reason for member in now.members) == now.counts["failed"] - 2
        again = campaign(metals(), tmp_path / "work", settings, executor=workers, retry=True)
    assert [m[:3] for m in again.members] == [m[:3] for m in status(whole).members]


def test_workers_end_with_the_process_that_started_them():
    code = ("import time; from atomrl_nb.workers import Workers\nw = Workers(1); w.submit(abs, 1).result()\n"
            "w.submit(time.sleep, 60); print(w.processes[0].pid, flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate()
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
        if not state or state.startswith("Z"): return
        time.sleep(0.1)
    pytest.fail(f"the worker goes on: {state}")


def test_a_second_campaign_in_a_folder_is_refused(tmp_path, capsys):
    work = tmp_path / "work"
    options = ["cuau4", "--policy", "none", "--work", str(work)]
    with claimed(work, Kept({}, {})): assert relax_main(options) == 2
    said = capsys.readouterr().err
    assert "Another process is relaxing" in said and said.count("\n") == 1


def test_a_damaged_folder_is_named_and_the_status_has_an_exit_code(whole, tmp_path, capsys):
    work = tmp_path / "work"
    work.mkdir()
    for path in whole.iterdir(): (work / path.name).write_bytes(path.read_bytes())
    assert status_main([str(work), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == 12 and set(listed[0]) == {"id", "state", "evaluations", "fmax", "energy", "reason"}
    assert listed[3]["state"] == "failed" and listed[3]["energy"] is None and "apart" in listed[3]["reason"]
    lines = (work / RESULTS).read_bytes().splitlines(keepends=True)
    (work / RESULTS).write_bytes(b"".join([*lines[:4], lines[4].replace(b"converged", b"conVerged"), *lines[5:]]))
    assert status_main([str(work)]) == 2 and "line 5 is not as it was written" in capsys.readouterr().err
    assert status_main([str(tmp_path)]) == 2 and "no folder of a campaign" in capsys.readouterr().err


def test_a_disk_that_fills_up_stops_a_campaign_and_the_next_goes_on(tmp_path, monkeypatch):
    work, left = tmp_path / "work", [2500]
    metal = bulk("Cu")
    metal.calc = EMT()
    ends = [Ended(f"{k}", "converged", 1, 0.0, metal.get_potential_energy(), atoms=metal) for k in range(9)]

    def write(file, data):
        written = min(len(data), left[0])
        left[0] -= written
        file.write(data[:written])
        if written < len(data): raise OSError(28, "No space left on device")

    with claimed(work, Kept({}, {end.id: "" for end in ends})):
        ledger = Ledger(work)
        monkeypatch.setattr(Ledger, "write", staticmethod(write))
        with pytest.raises(DiskError, match="No space left"):
            for end in ends: ledger.keep(end)
        ledger.close()
        monkeypatch.undo()
        done = len(read_lines(work).rows)
        ledger = Ledger(work)
        assert 0 < len(ledger.newest) == done < 9
        for end in ends[done:]: ledger.keep(end)
        ledger.close()
    assert [row.id for row in read_lines(work).rows] == [end.id for end in ends]
    assert len(read(work / RELAXED, ":")) == 9


def test_ten_thousand_structures_make_no_more_files_and_no_more_memory(tmp_path):
    """Lines are appended in constant time; the folder holds five files."""
    ids = [f"{k:05}.cif:0" for k in range(10_000)]
    with claimed(tmp_path / "work", Kept({}, dict.fromkeys(ids, "0"))) as work:
        ledger = Ledger(work)
        for id in ids: ledger.keep(Ended(id, "failed", 3, 0.1, -1.0, "the largest force is above its target"))
        ledger.close()
    now = status(work)
    assert now.counts["failed"] == 10_000 and list(now.reasons()) == ["the largest force is above its target"]
    assert len(list(work.iterdir())) == 4 and (work / RESULTS).stat().st_size < 400 * 10_000


def test_a_folder_of_files_and_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.cif").write_text("nothing")
    (tmp_path / "good.xyz").write_text("1\n\nCu 0 0 0\n")
    bad, good = read_starts([tmp_path])
    assert bad.atoms is None and "cannot be read" in bad.reason and good.id == "good.xyz:0"


def test_ctrl_c_keeps_what_is_done(tmp_path):
    """An interrupt in the middle leaves a folder that goes on, and no thread."""
    def interrupt(ended): raise KeyboardInterrupt
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt): campaign(metals(), tmp_path / "work", SETTINGS, executor=pool, watch=interrupt)
        assert sum(status(tmp_path / "work").counts[s] for s in ("converged", "failed")) == 1
        assert campaign(metals(), tmp_path / "work", SETTINGS, executor=pool).state == "finished"
    assert not [t for t in threading.enumerate() if "ThreadPool" in t.name]


@pytest.mark.parametrize("name", ["executorlib", "ray"])
def test_other_engines_relax_a_campaign_where_they_are_installed(name, whole, tmp_path):
    pytest.importorskip(name)
    from atomrl_nb.engines import engine
    with engine(name, 2) as pool:
        now = campaign(metals(), tmp_path / "work", replace(SETTINGS, calculator="emt"), executor=pool, at_once=4)
    assert [m[:3] for m in now.members] == [m[:3] for m in status(whole).members]
