"""The expert: one BFGS iteration at a time, rollouts, the original's jump, its schedule, its labels and its cost."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.optimize import BFGS

from atomrl_nb.checkpoints import Table
from atomrl_nb.cli import _outcome
from atomrl_nb.environment import Environment
from atomrl_nb.expert import (SCHEDULES, ExpertSettings, call_share, fade, fake_step, hindsight, imitation_at,
                              initial_hessian, nfake_at, running_success, update_hessian)
from atomrl_nb.memory import MemorySettings
from atomrl_nb.policies import load_policy
from atomrl_nb.structures import CountedCalculator, calculator, load, perturb
from atomrl_nb.learner import Trainer
from atomrl_nb.training import train


def trainer_with(small, rounds=0, **changes):
    made = Trainer(replace(small, **changes), load(*small.structures))
    made.begin()
    rows = [row for _ in range(rounds) for row in made.round()[0]]
    return made, rows


@pytest.mark.parametrize("system", ["cuau4", "alloys8", "cu-vacancy"])
@pytest.mark.parametrize("alpha, maxstep", [(70.0, 0.2), (10.0, 0.3), (10.0, 0.05)])
def test_the_steps_are_those_of_ase(system, alpha, maxstep):
    start = perturb(load(system)[0], 0.2, seed=1)
    path, hessian = [], initial_hessian(len(start), alpha)
    reference, ours = start.copy(), start.copy()
    reference.calc, ours.calc = calculator("emt"), calculator("emt")
    optimizer = BFGS(reference, alpha=alpha, maxstep=maxstep, logfile=None)
    optimizer.attach(lambda: path.append(reference.positions.copy()))
    optimizer.run(fmax=0.02, steps=25)
    for expected in path[1:]:
        forces, step = ours.get_forces(), fake_step(hessian, ours.get_forces(), maxstep)
        assert np.linalg.norm(step, axis=1).max() <= maxstep + 1e-12
        ours.positions += step
        hessian = update_hessian(hessian, step, ours.get_forces() - forces)
        np.testing.assert_allclose(ours.positions, expected, atol=1e-6)


def test_the_hessian_is_warm_from_the_agents_moves(small):
    """A step after five moves that the expert did not make is better than one from the default Hessian."""
    worse, better = [], []
    for seed in range(8):
        env, rng = Environment(load("cuau4"), calculator("emt"), seed=seed), np.random.default_rng(seed)
        env.reset(options={"atoms": perturb(load("cuau4")[0], 0.1, seed=seed)})
        hessian = initial_hessian(4, 70.0)
        for _ in range(5):
            forces = env.forces
            *_, info = env.step(0.02 * rng.normal(size=(4, 3)))
            hessian = update_hessian(hessian, info["displacement"], env.forces - forces)
        here = env.atoms.copy()
        for learnt, ratios in ((initial_hessian(4, 70.0), worse), (hessian, better)):
            env.reset(options={"atoms": here})
            before = env.fmax
            env.step(fake_step(learnt, env.forces, 0.3))
            ratios.append(env.fmax / before)
    assert np.median(better) < 0.8 * np.median(worse)


def test_a_rollout_keeps_the_environment(small):
    made, _ = trainer_with(small,
                           expert=ExpertSettings(mode="rollout", rollout_steps=3, nfake=0.4, schedule="constant"))
    runs, open_runs = [], [0] * small.n_envs
    for _ in range(60):
        steps, experts, _ = made.play()
        made.memory.add(made.transitions(steps, experts))
        for k, (step, expert) in enumerate(zip(steps, experts)):
            made.note(k, step, expert, 0)
            if expert: open_runs[k] += 1
            over = step[2] or step[3]
            if open_runs[k] and (over or not expert):
                runs.append((open_runs[k], over))
                open_runs[k] = 0
            if over: made.begin_episodes([k])
        made.graph = made.observe(made.environments)
    whole = [n for n, cut in runs if not cut]
    assert len(whole) > 10 and all(n % 3 == 0 for n in whole) and max(whole) >= 3


@pytest.mark.parametrize("settings", [ExpertSettings(), ExpertSettings(mode="rollout", rollout_steps=5)])
def test_the_expert_takes_the_share_that_nfake_says(settings):
    rng, left, taken = np.random.default_rng(0), 0, 0
    for _ in range(50_000):
        if left == 0 and rng.random() < call_share(0.3, settings):
            left = settings.rollout_steps if settings.mode == "rollout" else 1
        taken, left = taken + (left > 0), max(left - 1, 0)
    assert abs(taken / 50_000 - 0.3) < 0.015


def test_a_jump_ends_in_the_minimum_and_hides_no_evaluation(small):
    made, _ = trainer_with(small, expert=ExpertSettings(mode="jump", nfake=1.0, schedule="constant"))
    for env in made.environments: env.calculator = CountedCalculator(calculator("emt"))
    steps, experts, _ = made.play()
    for env, step, cost in zip(made.environments, steps, experts):
        assert step[2] and step[4]["fmax"] <= env.settings.fmax
        assert env.calculator.evaluations == cost > 2
        assert env.force_evaluations == 1 + cost  # the start's own, made before it was counted


def test_a_jump_leaves_fixed_atoms_alone():
    slab = perturb(load("cu-slab")[0], 0.1, seed=0)
    env = Environment([slab], calculator("emt"), seed=0)
    env.reset(options={"atoms": slab})
    def forces_at(move):
        moved = env.atoms.copy()
        moved.positions += move
        moved.calc = calculator("emt")
        return moved.get_forces()
    jump = fake_step(initial_hessian(len(slab), 10.0), env.forces, 0.3, "jump", forces_at, fmax=0.05)
    assert np.abs(jump[slab.constraints[0].index]).max() < 1e-9
    assert np.linalg.norm(forces_at(jump), axis=1).max() <= 0.05


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_fade_from_one_to_none_whatever_the_length_of_the_run(schedule):
    settings = ExpertSettings(schedule=schedule, schedule_steps=300)
    values = [fade(t, settings, success=t / 300) for t in range(400)]
    assert values[0] == 1 and all(0 <= b <= a for a, b in zip(values, values[1:]))
    assert values[300:] == ([1.0] if schedule == "constant" else [0.0]) * 100
    assert nfake_at(0, settings) == settings.nfake
    assert imitation_at(399, settings, 1.0) == (1.0 if schedule == "constant" else settings.imitation_floor)


def test_success_is_the_agents_own():
    success = 0.0
    for _ in range(500): success = running_success(success, True, agent_share=0.0)
    assert success == 0.0
    rng = np.random.default_rng(0)
    for _ in range(2000): success = running_success(success, bool(rng.random() < 0.6), agent_share=1.0)
    assert abs(success - 0.6) < 0.2


def test_the_schedule_by_success_calls_the_expert_off_and_back(small):
    made, rows = trainer_with(small, 30, expert=ExpertSettings(schedule="success"))
    assert rows[0]["nfake"] == 0.5 and rows[-1]["nfake"] == nfake_at(0, made.settings.expert, rows[-1]["success"]) < 0.5
    made.success = 1.0
    assert made.round()[0][0]["nfake"] == 0.0


@pytest.mark.parametrize("mode", ["step", "rollout", "jump"])
def test_force_evaluations_of_the_expert_are_counted_apart(small, tmp_path, mode):
    run = train(replace(small, expert=ExpertSettings(mode=mode), evaluation_interval=16), progress=False)
    metrics, episodes = Table.rows(run / "metrics.csv"), Table.rows(run / "episodes.csv")
    cost, taken = (sum(int(row[name]) for row in metrics) for name in ("expert_evaluations", "expert"))
    assert cost > taken > 0 if mode == "jump" else cost == taken > 0
    assert sum(int(row["expert_evaluations"]) for row in episodes) <= cost
    card = load_policy(run / "policy.safetensors")[1]
    spent = sum(int(row["expert_evaluations"]) for row in metrics if int(row["t_total"]) <= card["t_total"])
    assert card["expert_evaluations"] == spent
    steps = sum(int(row["expert"]) for row in metrics if int(row["t_total"]) <= card["t_total"])
    assert card["force_evaluations"] >= card["t_total"] + (spent - steps)
    assert f"({cost} force evaluations by the expert)" in _outcome(run)


def test_an_experts_step_is_a_label_until_hindsight_knows_better(small):
    made, _ = trainer_with(small, 8, expert=ExpertSettings(imitate_steps=True, nfake=0.5))
    batch = made.memory.get(torch.arange(len(made.memory)))
    per_atom = lambda mask: mask[batch.graph.batch]
    assert batch.has_target[batch.source == 1].all()
    own = (batch.target == batch.displacement).all(1)
    unlabelled = per_atom((batch.source == 0) & (batch.has_target == 0))
    assert (batch.target[unlabelled] == 0).all() and own[per_atom(batch.source == 1)].any()
    assert not own[per_atom(batch.source == 1)].all()  # episodes that converged were labelled again


def test_hindsight_points_to_the_end_across_the_boundary():
    env = Environment(load("cuau4"), calculator("emt"), seed=0)
    start = perturb(load("cuau4")[0], 0.1, seed=0)
    env.reset(options={"atoms": start})
    visited, push = [env.atoms.positions.copy()], np.zeros((4, 3))
    push[0] = -0.2  # the atom at the origin leaves the cell
    env.step(push)
    np.testing.assert_allclose(hindsight(np.array(visited), env.atoms.positions)[0], push, atol=1e-12)


def test_the_q_filter_keeps_labels_that_the_critic_prefers(trainer):
    agent, batch = trainer.agent, trainer.memory.sample(32, torch.Generator().manual_seed(0))
    batch.has_target[:] = 1
    move = agent.actor(batch.graph).detach()
    of_label = agent.critics(batch.graph, batch.target)[0]
    q = of_label.median().expand(32)  # half of the labels are better than that
    everything, _ = agent.imitation_error(batch, move, q)
    agent.settings = replace(agent.settings, q_filter=True)
    error, log = agent.imitation_error(batch, move, q)
    better = of_label > q
    assert 0 < better.sum() < 32 and log["label_share"] == better.float().mean()
    from atomrl_nb.td3 import relative_error
    torch.testing.assert_close(error, relative_error(batch.graph, move, batch.target)[better].mean())
    assert not torch.isclose(error, everything)


def test_a_run_with_everything_on_trains(small):
    made, rows = trainer_with(small, 20, expert=ExpertSettings(mode="rollout", imitate_steps=True, schedule="success"),
                              td3=replace(small.td3, q_filter=True),
                              memory=MemorySettings(expert_share=0.2, sampling="recent", n_step=2))
    assert made.agent.updates > 0 and all(np.isfinite(v) for v in rows[-1].values() if isinstance(v, float))
    assert any(0 < row.get("label_share", 0) <= 1 for row in rows)


def test_success_does_not_count_what_the_expert_has_done(small):
    """Every episode converges, by steps of the expert alone."""
    made, rows = trainer_with(small, 3, expert=ExpertSettings(mode="jump", nfake=1.0, schedule="constant"))
    assert all(row["terminated"] and row["expert"] for row in rows) and len({row["episode"] for row in rows}) == 12
    assert made.success == 0.0
