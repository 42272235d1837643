"""What all measurements share: rows survive a kill, do not mix with others, and say where they come from."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from atomrl_nb.experiment import Experiment, provenance, read_result, rows_as_json, run_experiment
from atomrl_nb.measuring_cli import EXPERIMENTS, experiment_main
from atomrl_nb.structures import InputError

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = '''
import sys, time
from pathlib import Path
from atomrl_nb import measuring_cli as cli
from atomrl_nb.experiment import Experiment

def cases(seeds, quick):
    return [dict(arm=arm, seed=seed) for seed in range(seeds) for arm in ("a", "b")]

def measure(case, quick, work):
    with open(Path(__file__).with_name("measured"), "a") as file: file.write(f"{case['arm']}{case['seed']} ")
    time.sleep(0.3)
    return dict(number=ord(case["arm"]) + case["seed"])

EXPERIMENT = Experiment("tiny", "How large is a letter?", cases, measure, dict(unit="one"), ("fcc-alloys",), seeds=6)
if __name__ == "__main__":
    cli.EXPERIMENTS["tiny"] = EXPERIMENT
    sys.exit(cli.experiment_main(["tiny", "--out", str(Path(__file__).with_name("tiny.json")), *sys.argv[1:]]))
'''


def cases(seeds, quick):
    """List arms and seeds."""
    return [dict(arm=arm, seed=seed) for seed in range(seeds) for arm in ("a", "b")]


TINY = Experiment("tiny", "What?", cases, lambda case, quick, work: dict(n=case["seed"]), dict(pair=(1, 2)), seeds=2)


def command(folder, *options):
    """Begin the tiny experiment as a command, in a group of its own."""
    return subprocess.Popen([sys.executable, str(folder / "tiny.py"), *options], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_a_killed_command_goes_on_with_what_is_missing(tmp_path):
    (tmp_path / "tiny.py").write_text(SCRIPT)
    file, killed = tmp_path / "tiny.json", command(tmp_path, "--workers", "2")
    end = time.time() + 100
    while not (file.exists() and len(read_result(file)["rows"]) > 2) and time.time() < end: time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    kept = read_result(file)["rows"]
    assert 2 < len(kept) < 12
    _, errors = (done := command(tmp_path)).communicate(timeout=100)
    assert done.returncode == 0, errors
    result = read_result(file)
    assert [(row["arm"], row["seed"]) for row in result["rows"]] == [(arm, seed) for seed in range(6) for arm in "ab"]
    assert all(row in result["rows"] for row in kept)
    again = (tmp_path / "measured").read_text().split()
    assert all(again.count(f"{row['arm']}{row['seed']}") == 1 for row in kept)  # what was there is not measured twice
    assert result["unit"] == "one" and result["provenance"]["command"] == "atomrl-experiment tiny --seeds 6"
    assert set(result["provenance"]) == {"commit", "versions", "policies", "machine", "date", "command"}
    assert os.uname().nodename not in json.dumps(result)


@pytest.mark.parametrize("options, said", [
    (["--seeds", "0"], "must be positive"), (["--only", "arm=c"], "it may be a, b"),
    (["--out", "nowhere/tiny.json"], "folder of --out 'nowhere/tiny.json' does not exist")])
def test_what_cannot_be_measured_is_refused_before_the_work(tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(TINY, measure=None))
    assert experiment_main(["tiny", *options]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_an_interruption_says_that_the_same_command_goes_on(capsys, monkeypatch):
    def interrupted(case, quick, work): raise KeyboardInterrupt
    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(TINY, measure=interrupted))
    assert experiment_main(["tiny", "--quick"]) == 130
    assert capsys.readouterr().err == "atomrl-experiment: interrupted; the same command goes on\n"


def test_rows_are_counted_anew_and_kept(tmp_path, monkeypatch):
    file = tmp_path / "tiny.json"
    first = run_experiment(TINY, file)
    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(TINY, measure=None, summary=lambda rows: dict(counted=len(rows))))
    assert experiment_main(["tiny", "--recount", "--out", str(file)]) == 0
    assert read_result(file) == first | dict(counted=4)


def test_rows_of_other_settings_do_not_mix(tmp_path):
    file = tmp_path / "tiny.json"
    first = run_experiment(TINY, file)
    assert run_experiment(TINY, file) == first == read_result(file)  # tuples and lists are the same in a file
    other = replace(TINY, settings=dict(pair=(1, 3)))
    with pytest.raises(InputError, match="other settings"): run_experiment(other, file)
    assert read_result(file) == first
    assert run_experiment(other, file, overwrite=True)["pair"] == [1, 3]


def test_a_setting_may_grow_by_an_arm_and_not_change_one(tmp_path):
    file, arms = tmp_path / "tiny.json", dict(a=dict(x=1))
    run_experiment(replace(TINY, settings=dict(arms=arms)), file)
    grown = run_experiment(replace(TINY, settings=dict(arms=arms | dict(b=dict(x=2)))), file)
    assert grown["arms"] == dict(a=dict(x=1), b=dict(x=2))
    file.write_text(rows_as_json(grown))
    for other in (dict(a=dict(x=3), b=dict(x=2)), arms, 7):
        with pytest.raises(InputError, match="other settings"):
            run_experiment(replace(TINY, settings=dict(arms=other)), file)
    with pytest.raises(InputError, match="other settings"):
        run_experiment(replace(TINY, settings=dict(arms=grown["arms"], more=1)), file)


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 3}', '{"runs": []}', "{" * 100_000])
def test_a_file_that_holds_no_rows_is_kept(tmp_path, text):
    file = tmp_path / "tiny.json"
    file.write_text(text)
    with pytest.raises(InputError, match="tiny.json"): run_experiment(TINY, file)
    assert file.read_text() == text


def test_older_rows_keep_where_they_come_from(tmp_path):
    file, now = tmp_path / "tiny.json", provenance("")
    old = dict(pair=[1, 2], provenance=now | dict(commit="1234567"), rows=[dict(arm="a", seed=0, n=7)])
    file.write_text(rows_as_json(old))
    result = run_experiment(TINY, file)
    assert result["rows"][0] == dict(arm="a", seed=0, n=7) and len(result["rows"]) == 4
    assert result["provenance"]["commit"] == now["commit"]
    assert [block["commit"] for block in result["provenance"]["earlier"]] == ["1234567"]
    file.write_text(rows_as_json({name: value for name, value in old.items() if name != "provenance"}))
    assert run_experiment(TINY, file)["provenance"]["earlier"] == [dict(commit="unknown")]


def test_a_row_that_is_measured_anew_takes_the_place_of_the_old_one(tmp_path):
    file = tmp_path / "tiny.json"
    run_experiment(TINY, file)
    anew = replace(TINY, measure=lambda case, quick, work: dict(n=-1))
    result = run_experiment(anew, file, again=lambda case: case["arm"] == "b")
    assert [row["n"] for row in result["rows"]] == [0, -1, 1, -1]


@pytest.mark.parametrize("path", sorted((Path(__file__).resolve().parents[1] / "nbs" / "benchmark").glob("*.json")), ids=lambda path: path.stem)
def test_every_result_file_says_which_commit_and_command_made_it(path):
    origin = json.loads(path.read_text(encoding="utf-8"))["provenance"]
    assert re.fullmatch("[0-9a-f]{7,}", origin["commit"]) and origin["command"]
