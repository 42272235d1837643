"""The commands as a person uses them, and what they say to bad input."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read, write

from atomrl_nb.checkpoints import DiskError
from atomrl_nb.cli import relax_main, search_main, train_main
from atomrl_nb.measuring_cli import experiment_main

SETTINGS = {"n_envs": 4, "learning_starts": 16, "batch_size": 16, "evaluation_starts": 2,
            "network": {"channels": 4, "layers": 1}}


@pytest.fixture
def files(tmp_path):
    """Files with something wrong in each."""
    (tmp_path / "empty.xyz").write_text("0\n\n")
    (tmp_path / "garbage.xyz").write_text("no atoms here\n")
    nan = bulk("Cu", cubic=True)
    nan.positions[0, 0] = np.nan
    write(tmp_path / "nan.extxyz", nan)
    write(tmp_path / "clash.extxyz", Atoms("Cu2", [[0, 0, 0], [0, 0, 0.05]]))
    write(tmp_path / "near.extxyz", Atoms("Cu2", [[0, 0, 0], [0, 0, 0.9]]))
    write(tmp_path / "iron.extxyz", bulk("Fe"))
    flat = '1\nLattice="3 0 0 0 3 0 0 3 0" Properties=species:S:1:pos:R:3 pbc="T T T"\nCu 0 0 0\n'
    (tmp_path / "flat.extxyz").write_text(flat)
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "wrong.json").write_text(json.dumps({"bufer_capacity": 3}))
    return tmp_path


BAD_STRUCTURES = {"missing.xyz": "no file", "empty.xyz": "no atoms", "garbage.xyz": "cannot be read",
                  "nan.extxyz": "not finite",
                  "clash.extxyz": "0.050 Å apart", "iron.extxyz": "holds Fe", "flat.extxyz": "zero volume"}


@pytest.mark.parametrize("name", BAD_STRUCTURES)
@pytest.mark.parametrize("command", ["train", "relax"])
def test_bad_structures_get_a_sentence_and_exit_code_2(files, capsys, name, command):
    out = files / "new"
    argv = [str(files / name), "--calculator", "emt"]
    if command == "train": code = train_main([*argv, "--run", str(out)])
    else: code = relax_main([*argv, "--policy", "fcc-alloys", "--out", f"{out}.traj"])
    said = capsys.readouterr().err
    assert code == 2 and BAD_STRUCTURES[name] in said and said.count("\n") == 1
    assert not out.exists() and not list(files.glob("new*"))


@pytest.mark.parametrize("options, said", [
    (["--calculator", "vasp"], "known: emt"), (["--calculator", "eam:none.fs"], "no EAM file"),
    (["--calculator", "lj:size=3"], "options are"),
    (["--steps", "0"], "--steps is '0', but it must be a whole number from 1"),
    (["--perturb", "-1"], "a number from 0 to 10 [Å]"),
    (["--perturb", "nan"], "a number from 0 to 10 [Å]"), (["--seed", "-1"], "--seed is '-1'"),
    (["--steps", "9" * 400], "--steps is '999"),
    (["--settings", "none.toml"], "no file 'none.toml'"),
    (["--settings", "wrong.json"], "did you mean 'buffer_capacity'"),
    (["--device", "gpu"], "one of: auto, cpu, cuda"), (["--device", "cuda"], "no CUDA device")])
def test_bad_training_options(files, capsys, monkeypatch, options, said):
    monkeypatch.chdir(files)
    import torch
    if "cuda" in options and torch.cuda.is_available(): pytest.skip("this machine has a CUDA device")
    assert train_main(["cuau4", "--run", "new", *options]) == 2
    assert said in capsys.readouterr().err and not (files / "new").exists()


@pytest.mark.parametrize("options, said", [
    (["--policy", "gold"], "fcc-alloys"), (["--fmax", "0"], "must be positive"),
    (["--fmax", "nan"], "must be positive"), (["--fmax", "inf"], "must be positive"),
    (["--perturb", "nan"], "length in Å"), (["--perturb", "0.1", "--seed", "-1"], "negative"),
    (["--out", "x"], "no format"), (["--trajectory", "x.xyz"], "ends in .traj"), (["--steps", "-1"], "negative"),
    (["--compare", "BFGS,Newton"], "known: BFGS"), (["--out", "no/where.xyz"], "does not exist"),
    (["--out", "x.nonsense"], "no format")])
def test_bad_relaxing_options(files, capsys, monkeypatch, options, said):
    monkeypatch.chdir(files)
    assert relax_main(["cuau4", "--policy", "fcc-alloys", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_close_start_is_legal(files, capsys):
    assert relax_main([str(files / "near.extxyz"), "--policy", "fcc-alloys", "--calculator", "emt",
                       "--json", str(files / "r.json")]) == 0
    assert json.loads((files / "r.json").read_text())[0]["converged"]


def test_a_run_is_never_overwritten(files, capsys):
    argv = ["cuau4", "--run", str(files / "run"), "--steps", "32", "--settings", str(files / "settings.json")]
    assert train_main(argv) == 0
    before = {p: p.read_bytes() for p in (files / "run").rglob("*") if p.is_file()}
    assert train_main(argv) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in (files / "run").rglob("*") if p.is_file()}
    assert (files / "run" / "plots" / "results.png").stat().st_size > 10_000
    assert relax_main(["cuau4", "--policy", str(files / "run"), "--perturb", "0.2",
                       "--out", str(files / "done.extxyz"), "--fmax", "0.05"]) == 0
    assert np.linalg.norm(read(files / "done.extxyz").get_forces(), axis=1).max() <= 0.05


def test_a_damaged_policy_is_refused(files, capsys):
    (files / "policy.safetensors").write_bytes(b"\x80\x04not a policy")
    assert relax_main(["cuau4", "--policy", str(files / "policy.safetensors")]) == 2
    assert "not a policy" in capsys.readouterr().err


class Failing(EMT):
    """An EMT that fails when it meets a third structure: with an error, or as Ctrl-C does."""
    met, error = set(), ValueError("no convergence of the SCF cycle")

    def calculate(self, atoms=None, *args, **kwargs):
        self.met.add(atoms.get_chemical_formula())
        if len(self.met) > 2: raise self.error
        super().calculate(atoms, *args, **kwargs)


def failing(error):
    """Forget what was met, and fail in a new way."""
    Failing.met, Failing.error = set(), error
    return f"{__name__}:Failing"


def test_a_failing_calculation_loses_no_other(files, capsys):
    argv = ["alloys4-heldout", "--policy", "fcc-alloys", "--perturb", "0.1", "--out", str(files / "out.extxyz"),
            "--json", str(files / "r.json")]
    assert relax_main([*argv, "--calculator", failing(ValueError("no convergence of the SCF cycle"))]) == 1
    said = capsys.readouterr()
    assert "alloys4-heldout:2, RLOptimizer: ValueError: no convergence" in said.err and "2/3" in said.out
    assert len(read(files / "out.extxyz", ":")) == 3
    assert relax_main([*argv, "--calculator", failing(KeyboardInterrupt())]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert relax_main([*argv, "--overwrite", "--calculator", failing(KeyboardInterrupt())]) == 130
    assert len(read(files / "out.extxyz", ":")) == 2 and len(json.loads((files / "r.json").read_text())) == 2


@pytest.mark.parametrize("options, said", [
    (["--out", "mine.db"], "give --overwrite"), (["--out", "o.pwi"], "does not write"),
    (["--out", "pipe.extxyz"], "no ordinary file"),
    (["--json", "in.extxyz", "--overwrite"], "is the input"), (["--out", "in.extxyz", "--overwrite"], "is the input"),
    (["--out", "o.extxyz", "--json", "o.extxyz"], "what --out names already"),
    (["--trajectory", "no/o.traj"], "does not exist"),
    (["--json", "/proc/o.json"], "cannot be written"), (["--json", "."], "is a folder")])
def test_targets_are_checked_before_the_work(files, capsys, monkeypatch, options, said):
    monkeypatch.chdir(files)
    write("in.extxyz", bulk("Cu", cubic=True))
    write("mine.db", [bulk("Cu"), bulk("Au")])
    os.mkfifo("pipe.extxyz")
    before = {p: p.read_bytes() for p in files.iterdir() if p.is_file()}
    assert relax_main(["in.extxyz", "--calculator", failing(AssertionError("asked")), *options]) == 2
    assert said in capsys.readouterr().err and not Failing.met
    assert before == {p: p.read_bytes() for p in files.iterdir() if p.is_file()}


def test_one_output_that_fails_does_not_lose_the_other(files, capsys, monkeypatch):
    def full(*args): raise DiskError("the disk is full")
    monkeypatch.setattr("atomrl_nb.cli.write_structures", full)
    argv = ["cuau4", "--out", str(files / "out.extxyz"), "--json", str(files / "r.json")]
    assert relax_main(argv) == 1 and "the disk is full" in capsys.readouterr().err
    assert len(json.loads((files / "r.json").read_text())) == 1


def test_a_full_disk_is_no_fault_of_the_calculator(files, capsys, monkeypatch):
    (files / "path.traj").write_bytes(b"older")
    monkeypatch.setattr("ase.io.trajectory.TrajectoryWriter.write",
                        lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    argv = ["cuau4", "--perturb", "0.2", "--trajectory", str(files / "path.traj"),
            "--overwrite", "--json", str(files / "r.json")]
    assert relax_main(argv) == 1 and "No space left" in capsys.readouterr().err
    assert (files / "path.traj").read_bytes() == b"older" and (files / "r.json").read_text() == "[]"


class Slow(EMT):
    """An EMT that says when it is asked, and takes its time from the second structure on."""
    met = set()

    def calculate(self, atoms=None, *args, **kwargs):
        self.met.add(atoms.get_chemical_formula())
        if len(self.met) > 1:
            open("asked", "w").close()
            time.sleep(60)
        super().calculate(atoms, *args, **kwargs)


@pytest.mark.parametrize("background", [False, True])
def test_a_queue_that_ends_a_command_loses_nothing_that_is_done(files, background):
    """Also as a shell's background job, for which Ctrl-C is ignored."""
    ignore = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if background else None
    code = "import sys; from atomrl_nb.cli import relax_main; sys.exit(relax_main())"
    argv = ["alloys4-heldout", "--calculator", f"{__name__}:Slow", "--out", "o.extxyz", "--json", "o.json",
            "--trajectory", "o.traj", "--perturb", "0.3"]
    places = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    process = subprocess.Popen([sys.executable, "-c", code, *argv], cwd=files, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": places}, preexec_fn=ignore)
    end = time.monotonic() + 120
    while not (files / "asked").exists() and process.poll() is None and time.monotonic() < end: time.sleep(0.05)
    process.terminate()
    try: said = process.communicate(timeout=30)[1]
    finally: process.kill()
    assert process.returncode == 130 and "interrupted" in said
    assert len(read(files / "o.extxyz", ":")) == len(json.loads((files / "o.json").read_text())) == 1
    assert len(read(files / "o.traj", ":")) >= 2


def test_a_command_leaves_the_process_as_it_was(files, capsys):
    import logging

    import torch
    state = lambda: (list(sys.path), torch.get_num_threads(), signal.getsignal(signal.SIGTERM),
                     logging.getLogger("atomrl_nb").handlers[:],
                     logging.getLogger("atomrl_nb").level, sys.stdout, torch.get_rng_state().tolist(),
                     np.random.get_state()[1].tolist())
    before = state()
    assert relax_main(["cuau4", "--perturb", "0.1", "--quiet"]) == 0
    assert state() == before and capsys.readouterr().out == ""


def test_every_command_tells_its_version(capsys):
    from atomrl_nb import cli, measuring_cli
    mains = {main for room in (cli, measuring_cli) for name, main in vars(room).items() if name.endswith("_main")}
    assert len(mains) == 9
    for main in mains:
        with pytest.raises(SystemExit) as stop: main(["--version"])
        assert stop.value.code == 0 and capsys.readouterr().out.startswith("atomrl-")


@pytest.mark.parametrize("main", [train_main, relax_main])
def test_a_step_has_one_meaning_in_all_commands(main, capsys):
    with pytest.raises(SystemExit): main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    of_steps = said[said.rindex("--steps"):said.rindex("--perturb")]
    assert "one move of the atoms" in of_steps and "one force evaluation" in of_steps, of_steps


def test_names_are_split_once(files, capsys):
    assert relax_main(["cuau4", "--policy", "fcc-alloys", "--perturb", "0.1", "--compare", "BFGS, LBFGS,,BFGS"]) == 0
    assert capsys.readouterr().out.count("LBFGS") == 2  # its line and its summary


def test_a_search_says_what_it_cannot_do(files, capsys):
    write(files / "one.extxyz", Atoms("Cu"))
    held = bulk("Cu", cubic=True)
    held.set_constraint(FixAtoms([0]))
    write(files / "held.traj", held)
    for name, said in (("one.extxyz", "at least two atoms"), ("held.traj", "take the constraints off")):
        assert search_main([str(files / name)]) == 2
        assert said in capsys.readouterr().err
    spec = failing(ValueError("no convergence"))
    Failing.met = {"a", "b", "c"}
    assert search_main(["Cu3", "--budget", "40", "--calculator", spec]) == 1
    assert "the calculator ended 40 relaxations, the first with ValueError: no convergence" in capsys.readouterr().err


@pytest.mark.parametrize("options, said", [
    (["gide"], "did you mean 'guide'"), (["guide", "--workers", "0"], "must be positive"),
    (["guide", "--only", "seed=99"], "it may be 0, 1"), (["guide", "--out", "odd.json"], "cannot be read")])
def test_an_experiment_is_refused_before_anything_is_trained(files, capsys, monkeypatch, options, said):
    monkeypatch.chdir(files)
    (files / "odd.json").write_text("[")
    assert experiment_main(options) == 2
    assert said in capsys.readouterr().err
    assert not (files / "guide.json").exists() and (files / "odd.json").read_text() == "["


def test_commands_start_as_programs(files):
    for main in ("train_main", "relax_main"):
        done = subprocess.run([sys.executable, "-c",
                               f"import sys; from atomrl_nb.cli import {main}; sys.exit({main}())", "--help"],
                              capture_output=True, text=True, timeout=120, check=True)
        assert "eV/Å" in done.stdout and "fcc-alloys" in done.stdout


def test_training_on_real_crystals(alfe, tmp_path, capsys):
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    spec = "eam:" + ",".join(str(alfe / name) for name in ("AlFe.fs", "Al.eam.alloy", "Fe.eam.fs"))
    argv = [str(alfe / "Al-Fe_N=4.extxyz"), "--calculator", spec, "--run", str(tmp_path / "run"), "--steps", "32"]
    assert train_main([*argv, "--settings", str(tmp_path / "settings.json")]) == 0
    assert relax_main([f"{alfe}/Al-Fe_N=2-3.extxyz@0:3", "--policy", str(tmp_path / "run"), "--calculator", spec,
                       "--perturb", "0.5",
                       "--compare", "BFGS", "--json", str(tmp_path / "r.json")]) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert [r["optimizer"] for r in results] == ["RLOptimizer", "BFGS"] * 3 and all(r["converged"] for r in results)


def test_ctrl_c_leaves_a_run_that_goes_on(files, capsys):
    run = files / "run"
    code = "import sys; from atomrl_nb.cli import train_main; sys.exit(train_main())"
    argv = ["cuau4", "--run", str(run), "--steps", "100000", "--settings", str(files / "settings.json")]
    process = subprocess.Popen([sys.executable, "-c", code, *argv], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        time.sleep(0.1)
        if (run / "episodes.csv").exists() and (run / "episodes.csv").stat().st_size > 2000: break
    process.send_signal(signal.SIGINT)
    try: said = process.communicate(timeout=30)[1]
    finally: process.kill()
    assert process.returncode == 130 and "Traceback" not in said and f"--resume {run}" in said
    done = int((run / "checkpoints" / "latest").read_text().removeprefix("step_"))
    assert 0 < done < 100_000
    assert train_main(["--resume", str(run), "--steps", str(done + 8)]) == 0
    steps = [int(line.split(",")[0]) for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == list(range(1, done + 9))
