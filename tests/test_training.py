"""The loop: exact resume across processes, axes, runs from old parameters, callbacks, numbers that are not finite."""
import json
import math
import os
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT
from ase.calculators.mixing import LinearCombinationCalculator
from safetensors.torch import load_file

from atomrl_nb.checkpoints import Table, checkpoints, latest_t_total, read_state
from atomrl_nb.cli import train_main
from atomrl_nb.diagnostics import plot_results, read_table
from atomrl_nb.environment import CalculatorBroken, Environment, EvaluationFailed
from atomrl_nb.expert import ExpertSettings
from atomrl_nb.networks import NetworkSettings
from atomrl_nb.policies import load_policy, save_policy
from atomrl_nb.learned import shipped_policies
from atomrl_nb.structures import InputError, load
from atomrl_nb.settings import Settings
from atomrl_nb.learner import loop_state
from atomrl_nb.evaluation import scores
from atomrl_nb.callbacks import BaseCallback, ProgressBarCallback, TensorBoardCallback
from atomrl_nb.training import read_parameters, resume, train
from atomrl_nb.workers import Workers

ROOT = Path(__file__).resolve().parent.parent
SMALL = Settings(structures=("alloys4",), n_envs=4, learning_starts=8, batch_size=8, steps=48, seed=1,
                 evaluation_interval=20, evaluation_starts=2,
                 checkpoint_interval=16, buffer_capacity=40, network=NetworkSettings(channels=4, layers=1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that went through; its memory of 40 transitions has been written over."""
    return train(replace(SMALL, run=str(tmp_path_factory.mktemp("whole") / "run")), progress=False)


def content(run):
    """The last checkpoint, byte for byte, the policy, and the rows without their clock."""
    folder = run / "checkpoints" / "step_00000048"
    rows = {name: [{k: v for k, v in row.items() if k != "seconds"} for row in Table.rows(run / f"{name}.csv")]
            for name in ("metrics", "episodes", "evaluations")}
    policy, card = load_policy(run / "policy.safetensors")
    files = {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
    return files, {k: v.tolist() for k, v in policy.state_dict().items()}, card, rows


def test_a_run_on_workers_of_which_one_dies_is_the_run_in_one_process(whole, tmp_path):
    """The same transitions in the same order, byte for byte; nothing is lost or counted twice."""
    class Killed(BaseCallback):
        def on_step(self, loop):
            if loop.trainer.t_total == 16:
                workers.processes[0].kill()
    with Workers(2) as workers:
        run = train(replace(SMALL, run=str(tmp_path / "run"), steps=24), progress=False, executor=workers,
                    callbacks=(Killed(),))
        assert workers.replaced == 1
        run = resume(run, 48, progress=False, executor=workers)
    assert content(run) == content(whole)


def test_a_run_cut_many_times_in_mid_episode_is_the_run_that_went_through(whole, tmp_path):
    parts = train(replace(SMALL, run=str(tmp_path / "parts"), steps=4), progress=False)
    for stop in (12, 20, 28, 44, 48):
        newest = parts / "checkpoints" / f"step_{latest_t_total(parts):08d}"
        playing = json.loads((newest / "state.json").read_text())["episodes"]
        assert any(episode["environment"]["steps"] > 0 for episode in playing)  # in mid-episode
        resume(parts, steps=stop, progress=False)
    assert content(parts) == content(whole)


def test_another_process_goes_on_exactly(whole, tmp_path):
    parts = train(replace(SMALL, run=str(tmp_path / "parts"), steps=20), progress=False)
    code = "import sys; from atomrl_nb.cli import train_main; sys.exit(train_main())"
    done = subprocess.run([sys.executable, "-c", code, "--resume", str(parts), "--steps", "48"], capture_output=True,
                          text=True, timeout=300,
                          cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert content(parts) == content(whole)


def test_the_clock_counts_on(tmp_path):
    run = train(replace(SMALL, run=str(tmp_path / "run"), steps=24, evaluation_interval=0), progress=False)
    before = float(Table.rows(run / "metrics.csv")[-1]["seconds"])
    resume(run, steps=28, progress=False)
    seconds = [float(row["seconds"]) for row in Table.rows(run / "metrics.csv")]
    assert seconds == sorted(seconds) and seconds[-1] > before


def test_start_iter_is_0_unless_a_checkpoint_is_continued(whole, tmp_path, capsys):
    with pytest.raises(InputError, match="no checkpoint whose curves it could continue"):
        train(replace(SMALL, run=str(tmp_path / "run"), start_iter=48))
    (tmp_path / "settings.toml").write_text("start_iter = 100\n")
    assert train_main(["cuau4", "--run", str(tmp_path / "run"), "--settings", str(tmp_path / "settings.toml")]) == 2
    assert "an offset would draw its points" in capsys.readouterr().err and not (tmp_path / "run").exists()


def drawn(run):
    """What lies on the x axis of each panel of a run's figure."""
    return [(axis.get_xlim()[1], [x for line in axis.lines for x in line.get_xdata()])
            for axis in plot_results(run).axes[:6]]


def test_drawn_axes_are_the_true_t_total(whole, tmp_path):
    """Of a resumed run: 1 to 48, though it was resumed at 20; of a run that began with its parameters: 1 to 24."""
    resumed = train(replace(SMALL, run=str(tmp_path / "resumed"), steps=20), progress=False)
    resume(resumed, steps=48, progress=False)
    child = train(replace(SMALL, run=str(tmp_path / "child"), init_from=str(whole), steps=24), progress=False)
    for run, last, tests in ((resumed, 48, [20, 40, 48]), (child, 24, [20, 24])):
        panels = drawn(run)
        assert [end for end, _ in panels] == [last] * 6
        for _, x in (panels[1], panels[3], panels[4], panels[5]):
            assert sorted({float(v) for v in x} - {0.0}) == list(range(1, last + 1))
        assert sorted({float(v) for v in panels[2][1]}) == tests
        assert {float(v) for v in panels[0][1]} == set(read_table(run, "episodes").t_total)


def test_a_new_run_begins_with_the_policy_and_the_critics_of_another(whole, tmp_path):
    child = train(replace(SMALL, run=str(tmp_path / "child"), init_from=str(whole), steps=4, evaluation_interval=0),
                  progress=False)
    start, rest, state = read_state(child / "checkpoints" / "step_00000000")
    policy = load_file(whole / "policy.safetensors")
    last = load_file(whole / "checkpoints" / "step_00000048" / "agent.safetensors")
    for name in ("actor", "actor_target"): assert all(torch.equal(start[f"{name}.{k}"], v) for k, v in policy.items())
    for k in [k for k in last if k.startswith("critics.")]:
        assert torch.equal(start[k], last[k])
        assert torch.equal(start[k.replace("critics.", "critics_target.", 1)], last[k])
    assert not [k for k in start if "optimizer" in k] and int(start["updates"]) == 0
    assert state["t_total"] == 0 and not [k for k in rest if k.startswith("storage.")]  # the memory is empty
    assert [int(row["t_total"]) for row in Table.rows(child / "metrics.csv")] == [1, 2, 3, 4]


def test_a_policy_file_gives_its_actor_and_its_shape(tmp_path, capsys):
    (tmp_path / "settings.json").write_text(json.dumps(dict(n_envs=4, batch_size=8, evaluation_starts=2)))
    argv = ["cuau4", "--init-from", "fcc-alloys", "--steps", "4", "--settings", str(tmp_path / "settings.json")]
    assert train_main([*argv, "--run", str(tmp_path / "child")]) == 0
    actor, critics = read_parameters(shipped_policies()["fcc-alloys"])
    start = read_state(tmp_path / "child" / "checkpoints" / "step_00000000")[0]
    assert critics is None and all(torch.equal(start[f"actor.{k}"], v) for k, v in actor.state_dict().items())
    (tmp_path / "settings.json").write_text(json.dumps(dict(network=dict(channels=4))))
    assert train_main([*argv, "--run", str(tmp_path / "other")]) == 2
    assert "have other settings" in capsys.readouterr().err and not (tmp_path / "other").exists()
    assert train_main(["cuau4", "--init-from", "gold", "--run", str(tmp_path / "other")]) == 2
    assert "no policy file 'gold'" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_total_already_reached_is_said_and_no_error(whole, capsys):
    for steps in ([], ["--steps", "20"]):
        assert train_main(["--resume", str(whole), *steps]) == 0
        assert "has already reached t_total 48" in capsys.readouterr().out
    assert train_main(["--resume", str(whole), "--steps", "0"]) == 2
    assert "--steps is '0', but it must be a whole number from 1" in capsys.readouterr().err


FACTORY = """
import numpy as np
from atomrl_nb.structures import CompiledEMT
class Tired(CompiledEMT):
    left = {left}
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        Tired.left -= 1
        if Tired.left < 0: self.results["forces"] = np.full_like(self.results["forces"], np.nan)
def make(): return Tired()
"""


class Poison(BaseCallback):
    """Make a network's parameters NaN at some step."""

    def __init__(self, network, t_total): self.network, self.t_total = network, t_total
    def on_step(self, loop):
        if loop.trainer.t_total == self.t_total:
            with torch.no_grad(): next(getattr(loop.trainer.agent, self.network).parameters()).fill_(math.nan)


@pytest.mark.parametrize("what, cause", [("displacement", "the actor diverged"), ("loss", "the critics diverged")])
def test_a_number_that_is_not_finite_ends_the_run_and_is_explained(tmp_path, monkeypatch, what, cause):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / f"lab_{what}.py").write_text(FACTORY.format(left=10**9))
    settings = replace(SMALL, run="run", calculator=f"lab_{what}:make", checkpoint_interval=8, evaluation_interval=0,
                       steps=200)
    poison = {"displacement": [Poison("actor", 28)], "loss": [Poison("critics", 28)]}[what]
    with pytest.raises(FloatingPointError) as caught: train(settings, progress=False, callbacks=poison)
    said = str(caught.value)
    assert f"Likely cause: {cause}" in said and "The state is kept in" in said
    kept = next(Path("run/inspect").iterdir())
    assert read_state(kept)[2]["likely_cause"].startswith(cause) and (kept / "structures.extxyz").stat().st_size > 1000
    good = read_state(checkpoints("run")[latest_t_total("run")])[0]
    assert all(torch.isfinite(v).all() for v in good.values() if v.is_floating_point())
    monkeypatch.setattr(sys.modules[f"lab_{what}"].Tired, "left", 10**9)  # the calculator is mended
    resume("run", steps=latest_t_total("run") + 8, progress=False, calculator=f"lab_{what}:make")


def test_a_gradient_that_is_not_finite_does_not_reach_a_checkpoint(tmp_path, monkeypatch):
    from atomrl_nb.td3 import TD3Agent
    plain, calls = TD3Agent.update, []
    def update(self, *args):
        calls.append(1)
        return plain(self, *args) | ({"grad_norm_q": math.inf} if len(calls) > 4 else {})
    monkeypatch.setattr(TD3Agent, "update", update)
    with pytest.raises(FloatingPointError, match="grad_norm_q is not finite"):
        train(replace(SMALL, run=str(tmp_path / "run"), checkpoint_interval=4), progress=False)
    # two updates a round from 12 on: the fifth is in the round that ends at 20
    assert latest_t_total(tmp_path / "run") == 16


def test_patience_ends_a_run_that_does_not_improve(tmp_path, capsys):
    (tmp_path / "settings.json").write_text(json.dumps(dict(n_envs=4, batch_size=8, learning_starts=8,
                                                            evaluation_interval=8, evaluation_starts=2,
                                                            network=dict(channels=4, layers=1),
                                                            td3=dict(actor_lr=1e-12))))
    argv = ["alloys4", "--steps", "400", "--settings", str(tmp_path / "settings.json"), "--run", str(tmp_path / "run"),
            "--patience", "2"]
    assert train_main(argv) == 0
    assert "No improvement in 2 evaluations: stopped at t_total 24." in capsys.readouterr().out
    assert latest_t_total(tmp_path / "run") == 24 and len(scores(tmp_path / "run")) == 3


def test_the_offered_policy_is_that_of_the_best_evaluation(whole):
    found = scores(whole)
    best = [t for t, steps in found.items() if steps == min(found.values())][-1]
    assert load_policy(whole / "policy.safetensors")[1]["t_total"] == best


def test_callbacks_see_every_round_and_an_error_in_one_loses_nothing(tmp_path):
    class Broken(BaseCallback):
        seen, ended = [], False
        def on_step(self, loop):
            self.seen.append(loop.trainer.t_total)
            if loop.trainer.t_total == 28: raise RuntimeError("broken")
        def on_training_end(self, loop): self.ended = loop.failed
    broken = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        train(replace(SMALL, run=str(tmp_path / "run")), progress=False, callbacks=[broken])
    assert broken.seen == [4, 8, 12, 16, 20, 24, 28] and broken.ended
    assert latest_t_total(tmp_path / "run") == 28


def test_progress_bar(whole, tmp_path, capsys):
    bar = ProgressBarCallback()
    train(replace(SMALL, run=str(tmp_path / "run"), steps=8, evaluation_interval=0), progress=False, callbacks=[bar])
    assert bar.bar.n == bar.bar.total == 8 and "eV/Å" in capsys.readouterr().err


def test_tensorboard_itself_takes_what_is_written(tmp_path):
    pytest.importorskip("tensorboard")
    run = train(replace(SMALL, run=str(tmp_path / "run"), steps=8, evaluation_interval=0), progress=False,
                callbacks=[TensorBoardCallback()])
    assert [file.stat().st_size > 0 for file in (run / "tensorboard").iterdir()] == [True]


def test_tensorboard_is_optional_and_writes_the_true_t_total(tmp_path, monkeypatch):
    settings = replace(SMALL, run=str(tmp_path / "run"), steps=16, evaluation_interval=0)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install"): TensorBoardCallback()
    written = []
    class SummaryWriter:
        def __init__(self, folder, purge_step): written.append((folder, purge_step))
        def add_scalar(self, name, value, step): written.append((name, value, step))
        def close(self): written.append("closed")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    run = train(settings, progress=False, callbacks=[TensorBoardCallback()])
    assert written[0] == (str(run / "tensorboard"), 1) and written[-1] == "closed"
    fmax = [(value, step) for name, value, step in written[1:-1] if name == "fmax"]
    assert [step for _, step in fmax] == [4, 8, 12, 16]
    np.testing.assert_allclose(fmax[-1][0], read_table(run).fmax.tail(4).mean())
    resume(run, steps=20, progress=False, callbacks=[TensorBoardCallback()])
    assert (str(run / "tensorboard"), 17) in written


def test_evaluation_costs_training_nothing(whole, tmp_path):
    """Also where a run is resumed between two evaluations, and another number of starts is tested."""
    other = train(replace(SMALL, run=str(tmp_path / "other"), evaluation_interval=8, evaluation_starts=3, steps=20),
                  progress=False)
    resume(other, steps=48, progress=False)
    for name in ("agent.safetensors", "memory.safetensors"): assert content(other)[0][name] == content(whole)[0][name]


def test_learning_starts_by_256_at_the_latest(): assert Settings().learning_starts <= 256


def test_the_state_can_be_kept_where_a_reset_failed_in_another_structure(trainer):
    """The episode that ended had four atoms, and the start that failed has eight."""
    env = trainer.environments[0]
    assert trainer.episodes[0].positions
    env.atoms, env.forces = env.atoms.repeat((2, 1, 1)), np.full((8, 3), math.nan)
    tensors, _ = loop_state(trainer)
    assert tensors["0.visited"].shape[1:] == (4, 3) and tensors["0.positions"].shape == (8, 3)


# Calculators that fail

class Flaky(EMT):
    """An EMT that fails at every `every`-th call, or from one call on."""
    calls, every, broken_from, single = 0, 0, math.inf, False

    def calculate(self, *args, **kwargs):
        Flaky.calls += 1
        if Flaky.calls >= Flaky.broken_from or Flaky.every and Flaky.calls % Flaky.every == 0:
            raise CalculationFailed("no convergence of the SCF cycle")
        super().calculate(*args, **kwargs)
        if Flaky.single: self.results = {k: np.float32(v) for k, v in self.results.items()}


def flaky(**how):
    """Forget the calls, and fail in a new way."""
    Flaky.calls, Flaky.every, Flaky.broken_from, Flaky.single = 0, 0, math.inf, False
    for name, value in how.items(): setattr(Flaky, name, value)
    return f"{__name__}:Flaky"


@pytest.mark.parametrize("expert", ["step", "jump"])
def test_a_failed_evaluation_ends_its_episode_and_not_the_run(tmp_path, expert, caplog):
    settings = replace(SMALL, run=str(tmp_path / "run"), steps=96, calculator=flaky(every=7),
                       expert=ExpertSettings(mode=expert), evaluation_interval=48, evaluation_starts=3)
    run = train(settings, progress=False)
    rows = Table.rows(run / "metrics.csv")
    failed = [row for row in rows if int(row["failed"])]
    assert len(rows) == 96 and len(failed) > 5 and (run / "policy.safetensors").exists()
    assert "no convergence" in caplog.text
    stopped = [row for row in rows if row["truncated"] == "1" and float(row["actual_move"]) == 0]
    assert stopped and all(row["terminated"] == "0" and float(row["a_back"]) == 1 for row in stopped)
    assert all(math.isfinite(float(row["reward"])) for row in rows)


class Remembering(EMT):
    """An EMT whose forces depend on what it was asked before, as those of a density that is gone on with."""
    asked = 0

    def reset(self):
        super().reset()
        self.asked = 0

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.asked += 1
        self.results["forces"] *= 1 + 0.01 * self.asked


def mixed():
    """Mix two calculators: ASE gives the mixture no `reset`."""
    return LinearCombinationCalculator([Remembering(), Flaky()], [0.5, 0.5])


def test_a_mixture_of_calculators_trains_and_resumes_exactly(tmp_path):
    flaky()
    spec = f"{__name__}:mixed"
    settings = replace(SMALL, run=str(tmp_path / "whole"), calculator=spec)
    whole = train(settings, progress=False)
    parts = train(replace(settings, run=str(tmp_path / "parts"), steps=12), progress=False)
    resume(parts, steps=48, progress=False, calculator=spec)
    assert content(parts) == content(whole) and len(Table.rows(whole / "metrics.csv")) == 48


def test_a_mixture_of_calculators_that_fails_ends_an_episode(tmp_path):
    flaky(every=7)
    run = train(replace(SMALL, run=str(tmp_path / "run"), calculator=f"{__name__}:mixed"), progress=False)
    assert len(rows := Table.rows(run / "metrics.csv")) == 48 and any(int(row["failed"]) for row in rows)


def test_numbers_of_single_precision_are_plain_floats(tmp_path):
    run = train(replace(SMALL, run=str(tmp_path / "run"), steps=32, calculator=flaky(single=True)), progress=False)
    resume(run, steps=48, progress=False, calculator=f"{__name__}:Flaky")
    assert len(Table.rows(run / "metrics.csv")) == 48


def test_a_broken_calculator_ends_the_run_with_a_sentence_and_a_checkpoint(tmp_path):
    spec = flaky(broken_from=60)
    settings = replace(SMALL, run=str(tmp_path / "run"), steps=400, calculator=spec, checkpoint_interval=1000,
                       evaluation_interval=0)
    with pytest.raises(CalculatorBroken, match="failed 10 times in a row; the last time: .*no convergence"):
        train(settings, progress=False)
    reached = latest_t_total(settings.run)
    assert reached > 40
    flaky()
    resume(settings.run, steps=reached + 16, progress=False, calculator=spec)
    rows = Table.rows(Path(settings.run) / "metrics.csv")
    assert [int(row["t_total"]) for row in rows] == list(range(1, reached + 17))


def test_a_run_ends_with_an_evaluation_that_is_dropped_when_it_goes_on(tmp_path):
    small = replace(SMALL, steps=40, evaluation_interval=16, evaluation_starts=2, checkpoint_interval=24)
    whole = train(replace(small, run=str(tmp_path / "whole"), steps=64), progress=False)
    parts = train(replace(small, run=str(tmp_path / "parts")), progress=False)
    times = lambda run: sorted({int(row["t_total"]) for row in Table.rows(run / "evaluations.csv")})
    frames = lambda run: sorted(int(path.stem[-8:]) for path in (run / "trajectories").glob("evaluation_*"))
    assert times(parts) == frames(parts) == [16, 32, 40]
    resume(parts, steps=64, progress=False)
    assert times(parts) == frames(parts) == times(whole) == [16, 32, 48, 64]
    assert (parts / "policy.safetensors").read_bytes() == (whole / "policy.safetensors").read_bytes()


def test_what_a_killed_evaluation_left_goes_when_the_run_goes_on(tmp_path):
    """Killed between the policy of an evaluation and the checkpoint after it, and before any of it."""
    small = replace(SMALL, steps=48, evaluation_interval=16, evaluation_starts=2, checkpoint_interval=16)
    whole = train(replace(small, run=str(tmp_path / "whole")), progress=False)
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    for t in (48,): shutil.rmtree(checkpoints(killed)[t])
    (killed / "checkpoints" / "latest").write_text("step_00000032")
    actor, card = load_policy(killed / "policy.safetensors")
    save_policy(killed / "policy.safetensors", actor, card | dict(t_total=4711))
    rows = (killed / "evaluations.csv").read_text().splitlines()
    (killed / "evaluations.csv").write_text("\n".join(rows[:4]) + "\n")  # the evaluation at 32 was broken off
    resume(killed, progress=False)
    for name in ("policy.safetensors", "evaluations.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


class Spoilt(BaseCallback):
    """Make the actor useless from some step on: it moves nothing."""

    def __init__(self, t_total): self.t_total = t_total
    def on_step(self, loop):
        if loop.trainer.t_total >= self.t_total:
            with torch.no_grad(): [p.zero_() for p in loop.trainer.agent.actor.parameters()]


@pytest.mark.parametrize("spoilt_at, offered", [(24, 20), (48, 40)])
def test_a_later_evaluation_is_offered_only_where_it_is_no_worse(tmp_path, spoilt_at, offered):
    still, loose = replace(SMALL.td3, actor_lr=1e-12), replace(SMALL.environment, fmax=1.0)
    settings = replace(SMALL, run=str(tmp_path / "run"), steps=40, td3=still, environment=loose)
    run = train(settings, progress=False, callbacks=[Spoilt(spoilt_at)])
    found = scores(run)
    assert list(found) == [20, 40] and (found[40] > found[20]) == (spoilt_at == 24)
    actor, card = load_policy(run / "policy.safetensors")
    assert card["t_total"] == offered and any(p.any() for p in actor.parameters())


def test_a_start_that_the_calculator_fails_on_is_not_there_half():
    """The former episode stays as it ended, of its own size, and can be saved."""
    flaky()
    env = Environment(load("alloys4", "cu-vacancy"), Flaky(), seed=0)
    env.reset()
    before = env.atoms.copy(), env.forces.copy(), env.index
    Flaky.broken_from = 0
    for _ in range(6):  # some of them of the other size
        with pytest.raises(EvaluationFailed): env.reset()
        assert env.atoms == before[0] and (env.forces == before[1]).all() and env.index == before[2]
    assert len(env.state()[0]["positions"]) == len(env.state()[0]["forces"])


@pytest.mark.parametrize("options, said", [(["--workers", "0"], "--workers must be positive"),
                                           (["--workers", "2", "--planner"], "are for TD3"),
                                           (["--workers", "2", "--suggest"], "trains nothing")])
def test_workers_that_make_no_sense_are_refused(options, said, tmp_path, capsys):
    run = [] if "--suggest" in options else ["--run", str(tmp_path / "run")]
    assert train_main(["alloys4", *run, *options]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
