"""Wishes for a run that goes on (followed at a logged time, replayed on resume), and the dashboard."""
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from atomrl_nb.checkpoints import HELD, Table, check_wishes, is_held, latest_t_total, only_writer, read_wishes, wish
from atomrl_nb.diagnostics import live, read_table
from atomrl_nb.monitor import SHARE, Dashboard, body, monitor, panels, progress
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.structures import InputError
from atomrl_nb.td3 import TD3Settings
from atomrl_nb.settings import Settings
from atomrl_nb.callbacks import BaseCallback, held_at, read_changes
from atomrl_nb.training import resume, train

ROOT = Path(__file__).resolve().parent.parent
SMALL = Settings(structures=("alloys4",), n_envs=4, learning_starts=8, batch_size=8, steps=48, seed=1,
                 evaluation_interval=16, evaluation_starts=2,
                 checkpoint_interval=16, buffer_capacity=100, network=NetworkSettings(channels=4, layers=1))
CHANGES = {20: dict(nfake=0.9, deviation_weight=5.0), 28: dict(exploration_noise=0.05), 36: dict(nfake=None)}


class At(BaseCallback):
    """Do something after some rounds: {t_total: function of the loop}."""

    def __init__(self, actions): self.actions = actions

    def on_step(self, loop):
        if loop.trainer.t_total in self.actions: self.actions[loop.trainer.t_total](loop)


def asks(changes): return At({t: lambda loop, wishes=wishes: wish(loop.run, **wishes) for t, wishes in changes.items()})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that nobody steered."""
    return train(replace(SMALL, run=str(tmp_path_factory.mktemp("plain") / "run")), progress=False)


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    """A run that was steered three times, and went through."""
    return train(replace(SMALL, run=str(tmp_path_factory.mktemp("steered") / "run")), progress=False,
                 callbacks=[asks(CHANGES)])


def content(run):
    """All that must come out the same: the last checkpoint, byte for byte, and the rows without their clock."""
    folder = run / "checkpoints" / "step_00000048"
    rows = {name: [{k: v for k, v in row.items() if k != "seconds"} for row in Table.rows(run / f"{name}.csv")]
            for name in ("metrics", "episodes", "evaluations", "changes")}
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}, rows


def copied(run, to, t_total):
    """The run as a kill leaves it that comes right before the checkpoint after `t_total`."""
    shutil.copytree(run, to)
    for folder in (to / "checkpoints").glob("step_*"):
        if int(folder.name[5:]) > t_total: shutil.rmtree(folder)
    (to / "checkpoints" / "latest").write_text(f"step_{t_total:08d}")
    return to


def test_a_change_takes_effect_after_the_round_that_it_is_logged_with(steered, plain):
    assert read_changes(steered) == {20: dict(deviation_weight=5.0, nfake=0.9, exploration_noise=None),
                                     28: dict(deviation_weight=5.0, nfake=0.9, exploration_noise=0.05),
                                     36: dict(deviation_weight=5.0, nfake=None, exploration_noise=0.05)}
    rows, others = Table.rows(steered / "metrics.csv"), Table.rows(plain / "metrics.csv")
    held = lambda name: [float(row[name] or "nan") for row in rows]
    assert held("nfake")[20:36] == [0.9] * 16 and held("nfake")[:20] == [float(row["nfake"]) for row in others[:20]]
    assert held("nfake")[36:40] == [float(row["nfake"]) for row in others[36:40]]  # as scheduled, again
    assert held("deviation_weight")[12:] == [0.1] * 8 + [5.0] * 28
    first = [row["reward"] for row in rows[:20]]
    assert first == [row["reward"] for row in others[:20]] != [row["reward"] for row in rows[20:40]]
    assert content(steered)[0] != content(plain)[0]


@pytest.mark.parametrize("t_total", [16, 32])
@pytest.mark.parametrize("control", ["as it was", "gone", "not JSON"])
def test_a_resume_from_an_earlier_checkpoint_replays_the_changes_exactly(steered, tmp_path, t_total, control):
    run = copied(steered, tmp_path / "run", t_total)
    if control == "gone": (run / "control.json").unlink()
    if control == "not JSON": (run / "control.json").write_text('{"nfake"')
    resume(run, progress=False)
    assert content(run) == content(steered)


def test_a_new_wish_waits_until_the_logged_ones_are_replayed(steered, tmp_path):
    run = copied(steered, tmp_path / "run", 16)
    wish(run, nfake=0.4)
    resume(run, progress=False)
    new = {36: dict(deviation_weight=5.0, nfake=0.4, exploration_noise=0.05)}
    assert read_changes(run) == read_changes(steered) | new
    again = copied(run, tmp_path / "again", 16)
    resume(again, progress=False)
    assert content(again) == content(run)


def test_killed_in_the_middle_and_resumed_it_is_the_run_whose_changes_were_asked_for_in_time(tmp_path):
    """A process of its own, steered from outside at a time that nobody chose, and killed before the next checkpoint."""
    settings = dict(n_envs=4, learning_starts=8, batch_size=8, seed=1, evaluation_interval=16, evaluation_starts=2,
                    checkpoint_interval=16, buffer_capacity=100,
                    network=dict(channels=4, layers=1))
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    run = tmp_path / "run"
    code = "import sys; from atomrl_nb.cli import train_main; sys.exit(train_main())"
    process = subprocess.Popen([sys.executable, "-c", code, "alloys4", "--run", run, "--steps", "4000",
                                "--settings", tmp_path / "settings.json"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    try:
        end = time.monotonic() + 120
        while not (run / "checkpoints" / "step_00000016").exists() and time.monotonic() < end: time.sleep(0.01)
        wish(run, nfake=0.0, deviation_weight=3.0)
        while not read_changes(run) and time.monotonic() < end: time.sleep(0.005)
    finally: process.kill(), process.wait()
    (t, held), = read_changes(run).items()
    steps = 16 * (t // 16) + 16
    resume(run, steps=steps, progress=False)
    twin = train(replace(SMALL, run=str(tmp_path / "twin"), steps=steps), progress=False,
                 callbacks=[asks({t: dict(nfake=0.0, deviation_weight=3.0)})])
    name = f"step_{steps:08d}"
    assert read_changes(twin) == {t: held}
    for file in ("agent.safetensors", "memory.safetensors", "state.json"):
        assert (run / "checkpoints" / name / file).read_bytes() == (twin / "checkpoints" / name / file).read_bytes()


@pytest.mark.parametrize("text, said",
                         [("", "no valid JSON"), ('{"nfake": 0.5, "pau', "no valid JSON"),
                          ("[1]", "names with values"), ('{"gamma": 0.1}', "Unknown setting 'gamma'"),
                          ('{"nfake": 1.01}', "from 0 to 1"), ('{"nfake": -0.1}', "from 0 to 1"),
                          ('{"nfake": true}', "must be a number"),
                          ('{"nfake": "0.1"}', "must be a number"),
                          ('{"deviation_weight": Infinity}', "must be a number"),
                          ('{"exploration_noise": NaN}', "must be a number"),
                          ('{"paused": 1}', "true or false"),
                          ('{"nfake": 0.1, "stop": "yes"}', "true or false"),
                          ("\udcff", "no text in UTF-8")])
def test_a_bad_file_is_named_once_and_changes_nothing(plain, tmp_path, capsys, text, said):
    run = copied(plain, tmp_path / "run", 32)
    (run / "control.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    resume(run, progress=False)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "control.json'" in errors and "It is not followed" in errors and said in errors
    assert content(run) == content(plain)
    with pytest.raises(InputError, match="It is not followed"): read_wishes(run)
    assert wish(run, nfake=0.3) == dict(nfake=0.3)  # the next wish mends it


def test_a_wish_is_checked_before_it_is_written(plain, tmp_path):
    run = copied(plain, tmp_path / "run", 48)
    for wishes in (dict(nfake=2.0), dict(gamma=0.5), dict(deviation_weight=math.nan), dict(stop="yes")):
        with pytest.raises(InputError): wish(run, **wishes)
    assert not (run / "control.json").exists() and check_wishes(dict.fromkeys(HELD)) == dict.fromkeys(HELD)
    with pytest.raises(InputError, match="no run folder"): wish(tmp_path, nfake=0.1)


def later(seconds, function):
    """Call a function in some time, from another thread."""
    timer = threading.Timer(seconds, function)
    timer.start()


def test_a_pause_changes_nothing_and_its_time_does_not_count(plain, tmp_path, capsys):
    went_on = []
    def pause(loop):
        wish(loop.run, paused=True)
        later(1.5, lambda: (went_on.append(progress(loop.run)), wish(loop.run, paused=False)))
    began = time.perf_counter()
    run = train(replace(SMALL, run=str(tmp_path / "run")), progress=False, callbacks=[At({20: pause})])
    assert time.perf_counter() - began > 1.5
    assert capsys.readouterr().err == "Paused at t_total 20, as control.json asks.\n"
    assert (went_on[0].state, went_on[0].t_total) == ("paused", 20)  # the tables were on the disk
    assert content(run) == content(plain)
    seconds = [float(row["seconds"]) for row in Table.rows(run / "metrics.csv")]
    assert seconds[20] - seconds[19] < 1.2


def test_a_paused_run_is_stopped_by_ctrl_c_and_goes_when_it_is_resumed(plain, tmp_path):
    def pause(loop):
        wish(loop.run, paused=True)
        later(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    run = train(replace(SMALL, run=str(tmp_path / "run")), progress=False, callbacks=[At({20: pause})])
    assert latest_t_total(run) == 20 and read_wishes(run)["paused"] and progress(run).state == "stopped"
    resume(run, progress=False)  # who resumes a run wants it to go
    assert not read_wishes(run)["paused"] and content(run) == content(plain)


def test_stop_ends_a_run_with_a_checkpoint_also_a_paused_one(plain, tmp_path):
    def pause(loop):
        wish(loop.run, paused=True)
        later(0.3, lambda: wish(loop.run, stop=True))
    for at, ask in ((20, pause), (24, lambda loop: wish(loop.run, stop=True))):
        run = train(replace(SMALL, run=str(tmp_path / f"run{at}")), progress=False, callbacks=[At({at: ask})])
        assert latest_t_total(run) == at
        resume(run, progress=False)
        assert content(run) == content(plain)


def test_who_only_looks_does_not_keep_a_run_from_starting(plain, tmp_path):
    run = copied(plain, tmp_path / "run", 48)
    with open(run / "config.json") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        later(0.1, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        with only_writer(run): assert is_held(run)
    assert not is_held(run)


def test_lambda_held_by_hand_is_what_diagnostics_count_with(steered):
    table, metrics = live(steered), Table.rows(steered / "metrics.csv")
    for t in (16, 44):
        row, weight = metrics[t - 1], 5.0 if t > 20 else 0.1
        terms = weight * float(row["deviation"]), float(row["imitation_error"]), 0.1
        assert table.penalty[t - 1] == pytest.approx(terms[0] / sum(terms))


def test_the_newest_episode_is_kept(plain):
    from ase.io import read
    frames, rows = read(plain / "trajectories" / "newest.traj", ":"), Table.rows(plain / "episodes.csv")
    assert any(len(frames) == int(row["steps"]) + 1 for row in rows)
    assert not (plain / "trajectories" / "newest.part").exists()
    assert held_at({}, 5) == dict.fromkeys(HELD)


# The dashboard

def test_a_dashboard_without_ipywidgets_says_what_to_install(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InputError, match=r"atomrl_nb\[notebook\]"): Dashboard(plain)


def test_a_table_that_grows_while_it_is_looked_at_is_drawn_as_it_was(steered, monkeypatch):
    monkeypatch.setattr("atomrl_nb.monitor.read_table", lambda run, name="metrics": read_table(run, name).iloc[:-3])
    assert len(panels(steered, [])) == 6


def test_a_finished_run_is_shown_and_what_is_wished_waits_for_its_resume(steered, tmp_path):
    run = copied(steered, tmp_path / "run", 48)
    board = Dashboard(run)
    assert "finished" in board.head.value and board.pause.disabled and board.resume.disabled and board.stop.disabled
    assert board.body.value.count("<svg") == 6 and board.body.value.count("t_total 28:") == 6
    assert board.numbers["deviation_weight"].slider.value == 5.0 and "held at 5 since t_total 20" in board.still()
    board.numbers["exploration_noise"].slider.value = 0.6
    assert "asked for: 0.6" in board.numbers["exploration_noise"].said.value
    resume(run, steps=52, progress=False)
    board.look()
    assert board.numbers["exploration_noise"].said.value == "held at 0.6 since t_total 48"
    bundle = board._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and "<svg" in bundle["text/html"]


def test_a_run_before_its_first_step_and_one_that_met_infinity_are_shown(tmp_path):
    class Nothing(BaseCallback):
        def on_training_start(self, loop): self.board = Dashboard(loop.run)
    first = Nothing()
    settings = replace(SMALL, run=str(tmp_path / "run"), td3=TD3Settings(critic_lr=1e30))
    with pytest.raises(FloatingPointError): train(settings, progress=False, callbacks=[first])
    assert "training" in first.board.head.value and "No step was taken yet" in first.board.body.value
    first.board.look(everything=True)
    assert "stopped" in first.board.head.value and "not finite" in first.board.body.value


def test_findings_are_shown_with_what_to_change(steered, tmp_path):
    run = copied(steered, tmp_path / "run", 48)
    read_table(run).assign(a_back=0.9, fmax=9.0).to_csv(run / "metrics.csv", index=False)
    page = body(run, progress(run))
    # the finding, and the indicator Actual Move
    assert "hitting the wall" in page and "Lower environment.r0" in page and page.count('title="sick"') == 2


def test_a_dashboard_rests_in_proportion_to_what_it_took(steered, tmp_path):
    run = copied(steered, tmp_path / "run", 48)
    board, before = Dashboard(run), time.monotonic()
    spent = time.thread_time()
    board.look(everything=True)
    spent = time.thread_time() - spent
    assert board.rest_until - before > 0.8 * spent / SHARE
    drawn = board.body.value
    with open(run / "metrics.csv", "a") as file:
        file.write(file.name and (run / "metrics.csv").read_text().splitlines()[-1].replace("48,", "49,", 1) + "\n")
    board.look()
    assert board.body.value == drawn and "<b>49</b>" in board.head.value  # it rests: a glance only
    board.rest_until = 0.0
    board.look()
    assert board.body.value != drawn


@pytest.mark.parametrize("file, text, said", [
    ("config.json", '{"steps": 48', "config.json' is no valid JSON"), ("config.json", "{}", "is missing in"),
    ("metrics.csv", "t_total,half\n1,2\n", "metrics.csv', line 1: the header"), ("metrics.csv", "", "metrics.csv', line 0: the header")])
def test_a_glance_names_a_file_that_cannot_be_understood(plain, tmp_path, file, text, said):
    run = copied(plain, tmp_path / "run", 48)
    (run / file).write_text(text)
    with pytest.raises(InputError, match=said): progress(run)


def test_a_glance_names_the_line_that_is_no_row(plain, tmp_path):
    run = copied(plain, tmp_path / "run", 48)
    with open(run / "metrics.csv", "a") as table: table.write("49,junk\n")
    with pytest.raises(InputError, match="metrics.csv', line 50: 2 cells"): progress(run)


def test_watching_sees_what_changes_and_survives_a_file_that_is_being_made_anew(steered, tmp_path):
    run = copied(steered, tmp_path / "run", 48)
    board = monitor(run, interval=0.05)
    def until(true):
        end = time.monotonic() + 20
        while not true() and time.monotonic() < end: time.sleep(0.02)
        assert true()
    metrics = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text("t_total,half\n1,")
    until(lambda: "Not shown just now" in board.message.value or "0</b> of" in board.head.value)
    (run / "metrics.csv").write_text(metrics)
    until(lambda: "<b>48</b>" in board.head.value and not board.message.value)
    board.close()


def test_what_was_measured_keeps_the_promise():
    found = json.loads((ROOT / "nbs" / "benchmark" / "monitor.json").read_text())
    assert len(found["pairs"]) >= 3 and found["limit"] == 0.03
    assert found["dashboard_share"] < found["limit"] and found["slower_by_cpu_time"] < found["limit"]
    assert all(pair["watched"]["share"] < found["limit"] for pair in found["pairs"])
