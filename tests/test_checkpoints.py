"""A run folder after kills, full disks and strangers: it goes on exactly, or says in one sentence why not."""
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from atomrl_nb.checkpoints import (TENSORS, DiskError, Table, _seal, check_free, checkpoints, create_run, digest,
                                   find_checkpoint, latest_t_total, load_checkpoint,
                                   only_writer, read_run, read_state, save_checkpoint, write_text)
from atomrl_nb.cli import train_main
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import InputError, load
from atomrl_nb.settings import Settings, settings_from
from atomrl_nb.learner import Trainer
from atomrl_nb.callbacks import BaseCallback
from atomrl_nb.training import resume, train

ROOT = Path(__file__).resolve().parent.parent
SMALL = Settings(structures=("alloys4",), n_envs=4, learning_starts=8, batch_size=8, steps=48, seed=1,
                 evaluation_interval=16, evaluation_starts=2,
                 checkpoint_interval=16, buffer_capacity=100, network=NetworkSettings(channels=4, layers=1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    return train(replace(SMALL, run=str(tmp_path_factory.mktemp("whole") / "run")), progress=False)


@pytest.fixture
def run(whole, tmp_path):
    """The same run, to be disturbed: its checkpoints are those of 16, 32 and 48 steps."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def content(run):
    """All that must come out the same: the last checkpoint, byte for byte, and the rows without their clock."""
    folder = run / "checkpoints" / "step_00000048"
    rows = {name: [{k: v for k, v in row.items() if k != "seconds"} for row in Table.rows(run / f"{name}.csv")]
            for name in ("metrics", "episodes", "evaluations")}
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}, rows


@contextmanager
def small_disk(size):
    """Refuse files larger than `size` bytes, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before), signal.signal(signal.SIGXFSZ, handler)


def test_the_folder_holds_the_last_three_and_names_the_newest(whole):
    folder = whole / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step_00000016", "step_00000032", "step_00000048"]
    assert (folder / "latest").read_text() == "step_00000048"
    parts = sorted(p.name for p in (folder / "step_00000048").iterdir())
    assert parts == ["agent.safetensors", "memory.safetensors", "policy.safetensors", "state.json"]


def test_checkpoint_0_is_there_before_the_first_step(tmp_path):
    class First(BaseCallback):
        def on_training_start(self, loop): self.found = list(checkpoints(loop.run)), latest_t_total(loop.run)
    first = First()
    train(replace(SMALL, run=str(tmp_path / "run"), steps=4, evaluation_interval=0), progress=False, callbacks=[first])
    assert first.found == ([0], 0)


@pytest.mark.parametrize("latest", [None, "", "step_00000099", "../../elsewhere", "step_00000032"])
def test_a_stale_or_missing_latest_costs_nothing(run, whole, capsys, latest):
    """`step_00000032` is what a kill between the two renames leaves behind."""
    path = run / "checkpoints" / "latest"
    if latest is None: path.unlink()
    else: path.write_text(latest)
    found = latest_t_total(run)
    said = capsys.readouterr().err
    if latest == "step_00000032": assert found == 32 and said == ""
    else: assert found == 48 and "newest checkpoint that is whole" in said and path.read_text() == "step_00000048"
    resume(run, progress=False)
    assert content(run) == content(whole)


@pytest.mark.parametrize("name", [*TENSORS, "state.json"])
@pytest.mark.parametrize("harm", ["truncated", "foreign", "tampered", "gone"])
def test_a_harmed_file_is_refused_with_the_way_out(run, whole, capsys, name, harm):
    newest = run / "checkpoints" / "step_00000048"
    data, foreign = (newest / name).read_bytes(), (newest.with_name("step_00000032") / name).read_bytes()
    tampered = data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
    if harm == "gone": (newest / name).unlink()
    else: (newest / name).write_bytes({"truncated": data[:len(data) // 2], "foreign": foreign,
                                       "tampered": tampered}[harm])
    if name == "state.json" and harm == "foreign": (newest / name).write_text('{"t_total": 48}')
    assert train_main(["--resume", str(run), "--steps", "56"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "missing or damaged" in said and "go on from step_00000032" in said
    if harm != "tampered": return  # one of each file's four is enough to see that the way out is one
    shutil.rmtree(newest)
    resume(run, progress=False)
    assert content(run) == content(whole)


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


def test_loading_executes_nothing(run, tmp_path, capsys):
    """Not even where the checksums were made anew to fit."""
    folder, trace = run / "checkpoints" / "step_00000048", tmp_path / "trace"
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()
    trace.unlink()
    (folder / TENSORS[0]).write_bytes(pickle.dumps(Bomb(trace)))
    state = json.loads((folder / "state.json").read_text())
    state["checksums"][TENSORS[0]] = digest((folder / TENSORS[0]).read_bytes())
    state["seal"] = _seal({k: v for k, v in state.items() if k != "seal"})
    (folder / "state.json").write_text(json.dumps(state))
    assert train_main(["--resume", str(run), "--steps", "56"]) == 2
    assert "missing or damaged" in capsys.readouterr().err and not trace.exists()


def test_a_strangers_calculator_is_not_executed(tmp_path, monkeypatch, capsys):
    (tmp_path / "lab.py").write_text("from pathlib import Path\nfrom atomrl_nb.structures import calculator\n"
                                     "Path('trace').touch()\ndef make(): return calculator('emt')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "settings.json").write_text(json.dumps(dict(n_envs=4, batch_size=8, learning_starts=8,
                                                            network=dict(channels=4, layers=1))))
    assert train_main(["cuau4", "--run", "run", "--calculator", "lab:make", "--steps", "8",
                       "--settings", "settings.json"]) == 0
    (tmp_path / "trace").unlink()
    sys.modules.pop("lab")
    capsys.readouterr()
    assert train_main(["--resume", "run", "--steps", "16"]) == 2
    said = capsys.readouterr().err
    assert "executes code" in said and "--calculator lab:make" in said and not (tmp_path / "trace").exists()
    assert train_main(["--resume", "run", "--steps", "16", "--calculator", "emt"]) == 2
    assert "a run keeps its calculator" in capsys.readouterr().err
    assert train_main(["--resume", "run", "--steps", "16", "--calculator", "lab:make"]) == 0
    assert (tmp_path / "trace").exists() and latest_t_total("run") == 16


def test_a_checkpoint_belongs_to_its_run(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    # where and how far make no difference
    (run / "config.json").write_text(json.dumps(config | {"steps": 52, "run": "moved"}))
    resume(run, progress=False)
    assert latest_t_total(run) == 52
    (run / "config.json").write_text(json.dumps(config | {"seed": 2}))
    with pytest.raises(InputError, match="belongs to another run, or config.json"):
        resume(run, steps=60, progress=False)
    (run / "config.json").write_text(json.dumps(config)[:100])
    with pytest.raises(InputError, match="config.json' is no valid JSON"): resume(run, steps=60, progress=False)
    (run / "config.json").write_text(json.dumps(config | {"bufer_capacity": 7}))
    with pytest.raises(InputError, match="did you mean 'buffer_capacity'"): resume(run, steps=60, progress=False)


@pytest.mark.parametrize("size", [30_000, 200_000])
def test_a_full_disk_is_one_sentence_and_costs_one_checkpoint(run, whole, capsys, size):
    """The limit of 30 kB is met by a table or the agent's file, that of 200 kB by the memory's."""
    (run / "checkpoints" / "latest").write_text("step_00000016")
    with small_disk(size): assert train_main(["--resume", str(run)]) == 1
    said = capsys.readouterr().err
    assert "could not be written" in said and "Traceback" not in said
    assert said.splitlines()[-1].startswith("atomrl-train:")
    assert all(read_state(folder) for folder in checkpoints(run).values()) and latest_t_total(run) == 16
    resume(run, progress=False)
    assert content(run) == content(whole)


def test_a_full_disk_before_the_first_checkpoint_leaves_a_folder_that_is_free(tmp_path, whole):
    settings = replace(SMALL, run=str(tmp_path / "run"))
    with small_disk(5_000), pytest.raises(DiskError, match="make room"): train(settings, progress=False)
    assert not (tmp_path / "run" / "config.json").exists()
    assert content(train(settings, progress=False)) == content(whole)


def test_two_processes_do_not_write_to_one_run(run, capsys):
    code = (f"import fcntl, time; file = open({str(run / 'config.json')!r}); fcntl.flock(file, fcntl.LOCK_EX); "
            "print('held', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        assert train_main(["--resume", str(run), "--steps", "56"]) == 2
        assert "Another process is training" in capsys.readouterr().err
    finally: other.kill(), other.communicate()
    with only_writer(run): pass  # a kill lets go


def test_a_torn_row_and_rows_of_a_lost_future_are_cut(run, whole):
    (run / "checkpoints" / "latest").write_text("step_00000032")
    for name in ("metrics", "episodes", "evaluations"):
        with open(run / f"{name}.csv", "a") as file: file.write("49,1,0.")
    resume(run, progress=False)
    assert content(run) == content(whole)
    assert [int(row["t_total"]) for row in Table.rows(run / "metrics.csv")] == list(range(1, 49))


class Killed(BaseException):
    """Ends the process, as far as the files can tell."""


def test_a_save_may_be_killed_before_each_of_its_calls(run, monkeypatch):
    """Every call that changes files fails once: afterwards the old checkpoint is found or the new one, whole."""
    config, structures = read_run(run)
    trainer = Trainer(settings_from(config), structures)
    tensors, state = load_checkpoint(run, trainer.agent, trainer.memory)
    found, calls = [], ("replace", "fsync", "mkdir", "rmdir", "unlink", "rename")
    save = lambda: save_checkpoint(run, 60, trainer.agent, trainer.memory, tensors, state)
    while True:
        left = [len(found)]
        def counted(function):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0: raise Killed
                return function(*args, **kwargs)
            return call
        with monkeypatch.context() as patched:
            for name in calls: patched.setattr(os, name, counted(getattr(os, name)))
            try: save()
            except Killed: found.append(latest_t_total(run))
            else: break
        assert read_state(find_checkpoint(run)) and all(read_state(folder) for folder in checkpoints(run).values())
        for folder in checkpoints(run).values():  # the next one begins where this one began
            if folder.name == "step_00000060": shutil.rmtree(folder)
        (run / "checkpoints" / "latest").write_text("step_00000048")
    assert len(found) > 10 and found == sorted(found) and set(found) == {48, 60}
    assert list(checkpoints(run)) == [32, 48, 60] and latest_t_total(run) == 60


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    file = tmp_path / "kills.json"
    code = "import sys; from atomrl_nb.measuring_cli import experiment_main; sys.exit(experiment_main())"
    done = subprocess.run([sys.executable, "-c", code, "kills", "--seeds", "20", "--out", str(file)],
                          capture_output=True, text=True, timeout=1200, env=os.environ | {"PYTHONPATH": str(ROOT)})
    found = json.loads(file.read_text())
    assert done.returncode == 0 and found["kills"] == found["resumed"] == found["exact"] == 20, done.stderr
    assert found["most_lost"] <= found["checkpoint_interval"] + found["n_envs"]
    assert {t["kind"] for t in found["trials"]} == {"moment", "call", "half a file"}


def test_a_text_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "control.json"
    write_text(path, "before")
    with small_disk(100), pytest.raises(DiskError, match="make room"): write_text(path, 1000 * "after")
    assert path.read_text() == "before"
    write_text(path, "after")
    assert path.read_text() == "after" and [p.name for p in tmp_path.iterdir()] == ["control.json"]


@pytest.mark.parametrize("name, value", [("owed_updates", 0.25), ("success", 1.0)])
def test_a_state_that_was_changed_by_hand_is_refused(run, name, value):
    """It is valid JSON, and its seal is broken."""
    path = run / "checkpoints" / "step_00000048" / "state.json"
    state = json.loads(path.read_text())
    assert state[name] != value
    path.write_text(json.dumps(state | {name: value}))
    with pytest.raises(InputError, match="state.json is not as it was written"): read_state(path.parent)


def test_a_damaged_policy_of_a_checkpoint_replaces_no_whole_one(run):
    before = (run / "policy.safetensors").read_bytes()
    damaged = run / "checkpoints" / "step_00000048" / "policy.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    with pytest.raises(InputError, match="policy.safetensors.*damaged"): resume(run, steps=60, progress=False)
    assert (run / "policy.safetensors").read_bytes() == before


def test_of_two_who_make_one_run_at_once_one_is_refused(tmp_path, monkeypatch):
    """The second comes while the first is making the folder, and again in the moment after."""
    structures, run = load("alloys4")[:1], tmp_path / "run"
    with create_run(run, {"a": 1}, structures):
        with pytest.raises(InputError, match="Another process is making the run"):
            with create_run(run, {"a": 2}, structures): pass
    with pytest.raises(InputError, match="already holds a run"):
        with create_run(run, {"a": 2}, structures): pass
    looked = iter([Path])  # the first look was before the other began
    monkeypatch.setattr("atomrl_nb.checkpoints.check_free", lambda path: next(looked, check_free)(path))
    with pytest.raises(InputError, match="already holds a run"):
        with create_run(run, {"a": 2}, structures): pass
    assert json.loads((run / "config.json").read_text()) == {"a": 1} and not (run / "config.json.part").exists()
