"""Each known fault of the original research code, as a test that this package passes.

The name of a test says the fault; its docstring says which part holds against it.
"""
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from safetensors.torch import load_file

from atomrl_nb.checkpoints import Table
from atomrl_nb.environment import Environment, EnvironmentSettings
from atomrl_nb.expert import ExpertSettings, fake_step, initial_hessian
from atomrl_nb.memory import MemorySettings
from atomrl_nb.structures import calculator, load, perturb
from atomrl_nb.td3 import TD3Settings
from atomrl_nb.evaluation import evaluate
from atomrl_nb.training import resume, train


def test_atom_crossing_the_cell_boundary_gets_no_lattice_jump(trainer):
    """environment: the executed displacement is the true move; hindsight and memory store that one."""
    env = Environment(load("cuau4"), calculator("emt"), seed=0)
    env.reset(options={"atoms": load("cuau4")[0]})
    inverse = np.linalg.inv(np.asarray(env.atoms.cell))
    push = np.zeros((4, 3))
    push[0] = (-0.3, -0.2, -0.1)  # the atom at the origin leaves the cell
    *_, info = env.step(push)
    assert (env.atoms.positions[0] @ inverse < 0).any()
    np.testing.assert_allclose(info["displacement"], push, atol=1e-12)
    assert np.abs(info["displacement"]).max() < 1
    stored = trainer.memory.storage["displacement"]
    assert stored.norm(dim=-1).max() < 1 and trainer.memory.storage["target"].norm(dim=-1).max() < 3


def test_action_noise_is_explored_and_not_added_after_the_fact(trainer):
    """environment, training: the executed and stored move includes the noise; the actor's is stored beside it."""
    batch = trainer.memory.get(torch.arange(len(trainer.memory)))
    agent = (batch.source == 0)[batch.graph.batch]
    free = agent & (batch.a_back == 0)[batch.graph.batch]
    difference = (batch.displacement - batch.displacement_pred)[free].norm(dim=1)
    size = batch.displacement_pred[free].norm(dim=1)
    assert free.any() and 0.1 < (difference.mean() / size.mean()) < 0.6
    moved = batch.next_graph.positions - batch.graph.positions
    torch.testing.assert_close(moved, batch.displacement, atol=1e-5, rtol=1e-4)


def test_testing_does_not_reseed_the_global_generators(trainer):
    """training: evaluation has random streams of its own."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first, _ = evaluate(trainer)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    np.random.seed(99)
    assert evaluate(trainer)[0] == first


def test_evaluation_changes_nothing_in_training(small, tmp_path):
    """training: with and without evaluation the parameters are identical."""
    runs = [train(replace(small, run=str(tmp_path / name), evaluation_interval=k), progress=False)
            for name, k in (("with", 16), ("without", 0))]
    a, b = (load_file(run / "checkpoints" / "step_00000048" / "agent.safetensors") for run in runs)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("changes", [
    {},
    dict(expert=ExpertSettings(mode="rollout", rollout_steps=3, schedule="success", imitate_steps=True),
         buffer_capacity=30, memory=MemorySettings(expert_share=0.3, sampling="recent", half_life=10.0, n_step=3),
         td3=TD3Settings(q_filter=True)),
    dict(expert=ExpertSettings(mode="jump", schedule="cosine"),
         memory=MemorySettings(expert_share=0.2, sampling="expert"), structures=("alloys4", "cu-vacancy"))])
def test_checkpoints_hold_memory_random_state_and_counters(small, tmp_path, changes):
    """checkpoints: a run that is stopped in mid-episode and resumed is the run that went through, bit for bit."""
    small = replace(small, **changes)
    whole = train(replace(small, run=str(tmp_path / "whole")), progress=False)
    for stop in (20,) if changes else (16, 20, 36):
        parts = train(replace(small, run=str(tmp_path / f"parts{stop}"), steps=stop), progress=False)
        resume(parts, steps=48, progress=False)
        for name in ("agent", "memory"):
            a, b = (load_file(run / "checkpoints" / "step_00000048" / f"{name}.safetensors") for run in (whole, parts))
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) for k in a), f"{name} differs after a stop at {stop}"
        state = [(run / "checkpoints" / "step_00000048" / "state.json").read_text() for run in (whole, parts)]
        assert state[0] == state[1]
        for table in ("metrics", "episodes"):
            rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in Table.rows(run / f"{table}.csv")]
                    for run in (whole, parts)]
            assert rows[0] == rows[1]


def test_expert_does_not_jump_to_the_minimum():
    """expert: `fake_step` is one BFGS iteration from the present forces, and asks for no further evaluation."""
    env = Environment(load("cuau4"), calculator("emt"), seed=0)
    env.reset(options={"atoms": perturb(load("cuau4")[0], 0.5, seed=0)})
    spent = env.force_evaluations
    step = fake_step(initial_hessian(4, 10.0), env.forces, maxstep=0.3)
    assert env.force_evaluations == spent
    *_, terminated, _, info = env.step(step)
    assert not terminated and info["fmax"] > 10 * env.settings.fmax
    assert env.force_evaluations == spent + 1


def test_critics_are_frozen_while_the_actor_learns(trainer):
    """td3: the actor's loss leaves no gradient in the critics; `q_params` is no exhausted iterator."""
    agent, batch = trainer.agent, trainer.memory.sample(8, torch.Generator().manual_seed(0))
    agent.updates = agent.settings.policy_delay - 1
    generator = agent.generator.get_state()
    loss, _ = agent.compute_loss_q(batch)
    expected = torch.autograd.grad(loss, list(agent.critics.parameters()), allow_unused=True)
    norm = torch.stack([g.norm() for g in expected if g is not None]).norm()
    agent.generator.set_state(generator)
    log = agent.update(batch)
    assert "loss_pi" in log  # the actor did learn in this update
    found = [p.grad for p in agent.critics.parameters()]
    scale = min(1.0, agent.settings.max_grad_norm / (float(norm) + 1e-6))
    for g, e in zip(found, expected):
        if e is not None: torch.testing.assert_close(g, e * scale, rtol=1e-3, atol=1e-6)
    assert all(p.requires_grad for p in agent.critics.parameters())


def test_starts_are_not_all_positive():
    """structures: starts are symmetric and centred; the original's noise is there under its name."""
    atoms = bulk("Cu", cubic=True).repeat(2)
    noise = perturb(atoms, 0.3, seed=0).positions - atoms.positions
    assert 0.3 < (noise > 0).mean() < 0.7
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=1e-12)
    assert (perturb(atoms, 0.3, seed=0, kind="positive").positions >= atoms.positions).all()


def test_policy_delay_does_not_restart_with_an_episode(trainer):
    """td3: the delay counts all updates, so episodes of one step still teach the actor."""
    agent, batch = trainer.agent, trainer.memory.sample(8, torch.Generator().manual_seed(0))
    agent.updates, learnt = 0, []
    for _ in range(6):
        env = Environment(load("cuau4"), calculator("emt"), seed=0)
        env.reset()  # a new episode before every update
        learnt.append("loss_pi" in agent.update(batch))
    assert learnt == [False, True] * 3


def test_nothing_is_downloaded_at_import():
    """all parts: importing every module opens no connection."""
    code = """
import importlib, pkgutil, socket
def refuse(*args, **kwargs): raise AssertionError("a connection was opened at import")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import atomrl_nb
for module in pkgutil.iter_modules(atomrl_nb.__path__): importlib.import_module(f"atomrl_nb.{module.name}")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_start_that_violates_the_distance_is_not_finished_before_it_began():
    """constraints, environment: such a start may move apart, and the episode goes on."""
    pair = bulk("Cu", cubic=True)
    pair.positions[1] = pair.positions[0] + (0, 0, 1.0)
    env = Environment([bulk("Cu", cubic=True)], calculator("emt"), EnvironmentSettings(r0=1.5), seed=0)
    env.reset(options={"atoms": pair})
    apart = np.zeros((4, 3))
    apart[1, 2] = 0.4
    _, _, terminated, truncated, info = env.step(apart)
    assert info["a_back"] == 0 and not terminated and not truncated
    *_, info = env.step(-apart / 2)
    assert info["a_back"] == 1
