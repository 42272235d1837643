"""What the parts promise each other: each test fails when the mechanism it names is taken out."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from safetensors.torch import load_file

from atomrl_nb.coordinates import coordinates_of
from atomrl_nb.constraints import correct_action, correction_reward, covalent_r0
from atomrl_nb.environment import Environment, EnvironmentSettings, force_norm, log_force_ratio
from atomrl_nb.expert import fake_step
from atomrl_nb.graphs import AtomGraph
from atomrl_nb.networks import Actor, NetworkSettings, relative_inputs, rms_force
from atomrl_nb.learned import smallest_allowed
from atomrl_nb.loop import LoopSearch, numbers_of, search_loop
from atomrl_nb.last_resort import best_matrix, last_resort
from atomrl_nb.optimizer import RelaxMany, RLOptimizer
from atomrl_nb.structures import CountedCalculator, calculator, fixed_mask, load, perturb
from atomrl_nb.learner import Trainer
from atomrl_nb.evaluation import card_of
from atomrl_nb.training import resume, train
from atomrl_nb.trust import Trust, best, evaluated, note


def climb(planner, fmax):
    """Propose a short move uphill."""
    here = planner.trust.history[planner.trust.anchor]
    return here.positions - 0.004 * len(planner.trust.history) * here.forces / here.fmax


def sampled(trainer):
    return trainer.memory.sample(16, torch.Generator().manual_seed(0))


def test_hindsight_labels_point_to_the_end_and_leave_reused_slots_alone(trainer):
    slots = trainer.episodes[0].slots
    assert len(slots) >= 2
    end = trainer.environments[0].atoms.positions
    (kept, _), (reused, _) = slots[-1], slots[-2]
    trainer.memory.storage["has_target"].zero_()
    trainer.memory.storage["t_total"][reused] = 10_000  # the ring has written over it
    trainer.label(trainer.episodes[0], end)
    batch = trainer.memory.get(torch.tensor([kept, reused]))
    assert batch.has_target.tolist() == [1, 0]
    way = torch.as_tensor(end - trainer.episodes[0].positions[-1], dtype=torch.float32)
    torch.testing.assert_close(batch.target[:4], way)


def test_the_target_takes_the_smaller_critic_and_is_smoothed(trainer):
    agent, batch = trainer.agent, sampled(trainer)
    smoothed = agent.settings
    agent.settings = replace(smoothed, target_policy_noise=0.0)
    q = agent.critics_target(batch.next_graph, agent.actor_target(batch.next_graph))
    expected = batch.reward + smoothed.gamma * (1 - batch.terminated) * q.min(0).values
    torch.testing.assert_close(agent.q_target(batch), expected.detach())
    agent.settings = smoothed
    assert (agent.q_target(batch) - expected).abs().max() > 0


def test_the_reward_counts_what_was_rejected():
    env = Environment(load("cuau4"), calculator("emt"), seed=0)
    env.reset(seed=2)
    crash, before = np.zeros((4, 3)), force_norm(env.forces)
    crash[0] = (env.atoms.positions[1] - env.atoms.positions[0]) * 0.9
    _, reward, _, _, info = env.step(crash)
    plain = log_force_ratio(before, force_norm(env.forces), 1e-3) - env.settings.step_cost
    assert info["a_back"] > 0.1
    np.testing.assert_allclose(reward - plain, correction_reward(info["a_back"], env.settings.correction_weight))
    assert reward < plain


def test_the_actor_pays_for_what_the_environment_would_hold_back(trainer):
    agent, batch = trainer.agent, sampled(trainer)
    agent.r0 = 2.8  # longer than many bonds: proposals are held back
    losses = []
    for weight in (0.0, 10.0):
        agent.settings = replace(agent.settings, deviation_weight=weight)
        loss, log = agent.compute_loss_pi(batch)
        losses.append(loss)
    assert log["deviation"] > 0
    torch.testing.assert_close(losses[1] - losses[0], 10 * log["deviation"], rtol=1e-3, atol=1e-5)


def test_the_penalty_turns_the_actor_aside_and_counts_no_noise(trainer):
    agent, batch = trainer.agent, sampled(trainer)
    agent.r0 = 2.8
    move = agent.actor(batch.graph).detach().requires_grad_()
    slopes = {}
    for through in (True, False):
        agent.settings = replace(agent.settings, deviation_through=through)
        slopes[through], = torch.autograd.grad(agent.deviation_penalty(batch, move), move)
    held = correct_action(batch.graph, move, 2.8).a_back[batch.graph.batch] > 0
    along = lambda g: torch.nn.functional.cosine_similarity(g[held], move[held], dim=1)
    assert (along(slopes[False]) > 0.999).all() and (along(slopes[True]) < 0.99).any()
    noisy = replace(batch, displacement=batch.displacement + 0.5)  # what was executed then, noise and all
    assert agent.deviation_penalty(noisy, move) == agent.deviation_penalty(batch, move)
    agent.settings = replace(agent.settings, deviation_target="replay")
    assert agent.deviation_penalty(noisy, move) > agent.deviation_penalty(batch, move) + 0.1


@pytest.mark.parametrize("mode", ["structure", "atom"])
def test_the_agent_corrects_as_its_environment_does(small, mode):
    """One rule and one distance in play, in the penalty and in the policy's card."""
    env = replace(small.environment, correction_mode=mode, r0_factor=0.9)
    trainer = Trainer(replace(small, environment=env), load("alloys4"))
    trainer.begin()
    agent, (played, *_) = trainer.agent, trainer.agent.act(trainer.graph)
    pushed = 4 * played
    wanted = correct_action(trainer.graph, pushed, agent.r0, agent.correction_mode)
    for k, env in enumerate(trainer.environments):
        info = env.step(pushed[trainer.graph.batch == k].numpy())[4]
        np.testing.assert_allclose(info["displacement"], wanted.displacement[trainer.graph.batch == k], atol=1e-4)
    assert agent.correction_mode == mode and torch.equal(agent.r0, covalent_r0(0.9)) and 0 < wanted.a_back.max()
    card = card_of(trainer)
    assert json.loads(json.dumps(card)) == card
    assert (card["correction_mode"], card["r0_factor"], card["r0"]) == (mode, 0.9, None)
    atoms = perturb(load("alloys4")[0], 0.3, seed=0)
    atoms.calc = calculator("emt")
    opt = RLOptimizer(atoms, (agent.actor, card), logfile=None)
    assert torch.equal(smallest_allowed(opt.planner.card), covalent_r0(0.9)) and opt.run(fmax=0.05, steps=60)


def test_resume_is_exact_with_everything_switched_on(small, tmp_path):
    """History, features, a schedule of lambda and one share for each atom: all of it goes on where it stopped."""
    env = replace(small.environment, history=True, env_features=("last_a_back", "budget_used"), correction_mode="atom",
                  r0=2.4, reward="hybrid")
    settings = replace(small, environment=env,
                       td3=replace(small.td3, deviation_weight=0.0, deviation_weight_end=5.0, deviation_steps=40))
    whole = train(replace(settings, run=str(tmp_path / "whole")), progress=False)
    parts = train(replace(settings, run=str(tmp_path / "parts"), steps=20), progress=False)
    resume(parts, steps=48, progress=False)
    for name in ("agent", "memory"):
        a, b = (load_file(run / "checkpoints" / "step_00000048" / f"{name}.safetensors") for run in (whole, parts))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    states = [(run / "checkpoints" / "step_00000048" / "state.json").read_text() for run in (whole, parts)]
    assert states[0] == states[1]
    constant = train(replace(settings, run=str(tmp_path / "constant"), td3=small.td3), progress=False)
    other = load_file(constant / "checkpoints" / "step_00000048" / "agent.safetensors")
    mine = load_file(whole / "checkpoints" / "step_00000048" / "agent.safetensors")
    assert any(not torch.equal(mine[k], other[k]) for k in mine)


def test_imitation_fades(trainer):
    batch = sampled(trainer)
    batch.has_target[:] = 1
    with_labels, without = (trainer.agent.compute_loss_pi(batch, imitation=w) for w in (1.0, 0.0))
    torch.testing.assert_close(with_labels[0] - without[0],
                               trainer.agent.settings.imitation_weight * without[1]["imitation_error"], rtol=1e-3,
                               atol=1e-5)


def test_updates_are_counted_through_all_episodes(trainer):
    s, began = trainer.settings, trainer.episode_count
    for _ in range(20): trainer.round()
    assert trainer.episode_count > began
    learning_rounds = (trainer.t_total - s.learning_starts) // s.n_envs
    assert trainer.agent.updates == int(learning_rounds * s.n_envs * s.updates_per_step)


def test_rms_force_is_that_of_the_free_atoms():
    slab = perturb(load("cu-slab")[0], 0.2, seed=0)
    slab.calc = calculator("emt")
    free = slab.get_forces()[~fixed_mask(slab)]
    np.testing.assert_allclose(rms_force(AtomGraph.from_atoms(slab)).item(), np.sqrt((free**2).sum(1).mean()),
                               rtol=1e-5)


def test_the_hand_over_goes_on_from_the_best_positions_and_evaluates_none_twice(monkeypatch):
    monkeypatch.setattr("atomrl_nb.optimizer.propose", climb)
    atoms = perturb(load("alloys4-heldout")[2], 0.5, seed=1)
    atoms.calc = counted = CountedCalculator(calculator("emt"))
    visited = []
    opt = RLOptimizer(atoms, policy="none", logfile=None)
    opt.attach(lambda: visited.append(atoms.positions.copy()))
    assert opt.run(fmax=0.01, steps=100)
    assert counted.evaluations == len(visited) == opt.get_number_of_steps() + 1
    assert opt.handed_over == "5 moves in a row were refused" and opt.trust.rejected == [1, 2, 3, 4, 5]
    then = Trust(history=opt.trust.history[:6], rejected=opt.trust.rejected)
    first = visited[0] + fake_step(best_matrix(coordinates_of(atoms), then), then.history[0].forces, 0.2)
    np.testing.assert_allclose(visited[6], first, atol=1e-12)


def test_the_last_resort_begins_with_what_planning_has_learnt():
    atoms, trust = start_of("alloys8", 0.1), Trust()
    for _ in range(3):
        note(trust, evaluated(atoms))
        atoms.positions += 0.02 * atoms.get_forces()
    c, now = coordinates_of(atoms), evaluated(atoms)
    learnt = best_matrix(c, trust, (trust.history[best(trust)], now))
    np.testing.assert_array_equal(last_resort(atoms, c, trust, now).H0, learnt)
    assert np.linalg.eigvalsh(learnt)[0] > 0 and np.ptp(np.linalg.eigvalsh(learnt)) > 1  # eV/Å²


def test_an_unconverged_run_goes_back_to_its_best_point(monkeypatch):
    monkeypatch.setattr("atomrl_nb.optimizer.propose", climb)
    atoms = start_of("alloys8", 0.1)
    start = atoms.positions.copy()
    opt = RLOptimizer(atoms, policy="none", logfile=None)
    assert not opt.run(0.01, 3) and opt.trust.rejected == [1, 2, 3]
    np.testing.assert_allclose(atoms.positions, start, atol=1e-12)
    assert atoms.get_potential_energy() == pytest.approx(opt.trust.history[0].energy)


def test_maxstep_holds_before_and_after_the_hand_over(monkeypatch):
    for wrong in (False, True):
        if wrong:
            monkeypatch.setattr("atomrl_nb.optimizer.propose", climb)
        atoms = perturb(load("alloys4-heldout")[2], 0.3, seed=1)
        atoms.calc = calculator("emt")
        visited = []
        opt = RLOptimizer(atoms, policy="none" if wrong else "auto", maxstep=0.02, logfile=None)
        opt.attach(lambda: visited.append(atoms.positions.copy()))
        opt.run(fmax=0.01, steps=30)
        steps = [np.linalg.norm(b - a, axis=1).max() for a, b in zip(visited, visited[1:])]
        # one step leaves a refused point
        assert bool(opt.handed_over) == wrong and max(steps) <= 0.04 + 1e-8 and sorted(steps)[-3] <= 0.02 + 1e-8


def test_a_policy_gets_the_environment_information_and_history_it_was_trained_with():
    """The relaxer shows its policy what `Environment` showed it in training."""
    start = perturb(load("alloys4-heldout")[0], 0.3, seed=2)
    names = ("budget_used", "last_a_back", "log_fmax", "number_density", "r0")
    seen = {"relaxer": [], "environment": []}

    class Watching(Actor):
        side = "relaxer"

        def forward(self, graph):
            seen[self.side].append({k: v.clone() for k, v in graph.tensors().items()
                                    if k in ("env", "prev_displacement", "prev_forces")})
            return super().forward(graph)

    torch.manual_seed(0)
    actor = Watching(NetworkSettings(channels=4, env_input_dim=len(names), history=True))
    settings = EnvironmentSettings(fmax=0.01, max_steps=40, r0=1.5, env_features=names, history=True)
    env = Environment([start], calculator("emt"), settings)
    graph, _ = env.reset(options={"atoms": start})
    atoms = start.copy()
    atoms.calc = calculator("emt")
    opt = RLOptimizer(atoms, (actor, dict(r0=1.5, env_features=names, max_steps=40)), logfile=None)
    opt.run(fmax=0.01, steps=3)
    actor.side = "environment"
    for _ in range(3): graph, *_ = env.step(actor(graph).detach().double().numpy())
    assert len(seen["relaxer"]) == 3 and seen["relaxer"][2]["env"][0, 0] > 0
    for a, b in zip(*seen.values()):
        for name in a: torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def planner(seed=0):
    torch.manual_seed(seed)
    return Actor(NetworkSettings(channels=4, head="potential")).eval()


def start_of(name="cuau4", amplitude=0.2, seed=0, spec="emt"):
    atoms = perturb(load(name)[0], amplitude, seed=seed)
    atoms.calc = CountedCalculator(calculator(spec))
    return atoms


@pytest.mark.parametrize("name", ["cuau4", "cu-slab", "cu-vacancy"])
def test_an_untrained_model_loses_nothing(name):
    """What the policy cannot do, the planner that knows nothing does; each step is one evaluation."""
    atoms = start_of(name)
    opt = RLOptimizer(atoms, (planner(), {}), logfile=None)
    assert opt.run(fmax=0.01, steps=200)
    assert atoms.calc.evaluations == opt.get_number_of_steps() + 1
    held = fixed_mask(atoms)
    np.testing.assert_array_equal(atoms.positions[held], load(name)[0].positions[held])


def test_rotated_structures_take_the_same_way():
    """Planning, correction and step together are equivariant: the energies along the way agree."""
    ways, turn = [], np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    for matrix in (np.eye(3), turn):
        atoms = start_of(amplitude=0.3, seed=3)
        atoms.set_cell(np.asarray(atoms.cell) @ matrix.T)
        atoms.positions = atoms.positions @ matrix.T
        energies = []
        opt = RLOptimizer(atoms, (planner(), {}), logfile=None)
        opt.attach(lambda: energies.append(atoms.get_potential_energy()))
        opt.run(fmax=0.01, steps=4)
        ways.append(energies)
    np.testing.assert_allclose(*ways, atol=2e-4)


def test_a_relaxation_goes_on_from_its_restart_file(tmp_path):
    atoms, whole = start_of(seed=5), []
    RLOptimizer(atoms, (planner(), {}), logfile=None).run(fmax=0.01, steps=6)
    whole, again = atoms.positions.copy(), start_of(seed=5)
    RLOptimizer(again, (planner(), {}), logfile=None, restart=tmp_path / "way.json").run(fmax=0.01, steps=3)
    opt = RLOptimizer(again, (planner(), {}), logfile=None, restart=tmp_path / "way.json")
    assert len(opt.trust.history) == 3
    opt.run(fmax=0.01, steps=3)
    np.testing.assert_allclose(again.positions, whole, atol=1e-5)


def test_many_structures_take_the_ways_they_take_alone():
    names = ("cuau4", "cu-slab", "cu-vacancy", "alloys8")
    alone, together = ([start_of(name, 0.3, seed=k) for k, name in enumerate(names)] for _ in range(2))
    flags = RelaxMany(together, (planner(), {})).run(fmax=0.02, steps=200)
    assert flags == [RLOptimizer(atoms, (planner(), {}), logfile=None).run(fmax=0.02, steps=200)
                     for atoms in alone] == [True] * 4
    for a, b in zip(alone, together):
        assert a.calc.evaluations == b.calc.evaluations
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-3)


def test_a_learned_energy_that_lies_is_found_out():
    """An energy that is upside down is left for the springs by evidence; no anchor lies higher than the last one."""
    class Liar(Actor):
        def local_energy(self, graph):
            local = super().local_energy(graph)
            return replace(local, pair=-local.pair)

    torch.manual_seed(0)
    atoms = start_of("alloys8", 0.1, seed=1)
    opt = RLOptimizer(atoms, (Liar(NetworkSettings(channels=4, head="potential")), {}), logfile=None)
    anchors, planned = [], []
    opt.attach(lambda: (anchors.append(opt.trust.anchor), planned.append(opt.planner.planned_in)))
    assert opt.run(fmax=0.01, steps=200)
    assert "a model force field" in planned and len(opt.trust.history) < 12 and not opt.handed_over
    energies = [e.energy for e in opt.trust.history]
    assert all(energies[b] <= energies[a] + opt.trust.slack for a, b in zip(anchors, anchors[1:]))


def test_no_relative_force_is_longer_than_training_has_shown():
    """One large force among many small ones: what the network sees does not grow with the number of atoms."""
    atoms = load("cuau4")[0].repeat((4, 4, 4))
    graph = AtomGraph.from_atoms(atoms, 5.0)
    forces = torch.full_like(graph.positions, 0.01)
    forces[0] = 10.0
    _, vectors = relative_inputs(replace(graph, forces=forces), NetworkSettings())
    assert 3.99 < float(vectors.norm(dim=-1).max()) <= 4.0001


def test_the_targets_follow_actor_and_critics_slowly(trainer):
    """Each keeps the share `polyak` of itself at an update."""
    agent = trainer.agent
    agent.updates = agent.settings.policy_delay - 1  # the actor learns, too
    parameters = lambda name: [p.detach().clone() for p in getattr(agent, name).parameters()]
    before = {name: parameters(f"{name}_target") for name in ("actor", "critics")}
    agent.update(sampled(trainer))
    for name, old in before.items():
        targets = parameters(f"{name}_target")
        expected = [q.lerp(p, 1 - agent.settings.polyak) for q, p in zip(old, parameters(name))]
        torch.testing.assert_close(targets, expected)
        assert any((a != b).any() for a, b in zip(old, targets))


def test_the_learning_rates_of_actor_and_critics_fall_together(trainer):
    agent = trainer.agent
    s = agent.settings = replace(agent.settings, anneal_steps=2 * trainer.t_total)
    trainer.learn()
    rates = [group["lr"] for name in agent.OPTIMIZERS for group in getattr(agent, name).param_groups]
    np.testing.assert_allclose(rates, [0.51 * s.actor_lr, 0.51 * s.critic_lr])  # half of the way down to a fiftieth


def test_an_episode_that_was_cut_off_gives_no_labels(small):
    """Where it ended is no minimum."""
    trainer = Trainer(replace(small, environment=replace(small.environment, fmax=1e-9, max_steps=2)), load("alloys4"))
    trainer.begin()
    finished = [row for _ in range(4) for row in trainer.round()[1]]
    assert len(finished) == 8 and not any(row["terminated"] for row in finished)
    assert len(trainer.memory) == 16 and not trainer.memory.storage["has_target"].any()


@pytest.mark.parametrize("factor, taken", [(2.0, False), (1.0, False), (0.5, True)])
def test_a_found_loop_is_taken_only_where_it_is_better(monkeypatch, factor, taken):
    """Judged beside the old numbers, on starts that the search has not seen."""
    policy, settings = (planner(), {}), LoopSearch(budget=320, population=4, elites=2, n_starts=2)
    old = numbers_of(policy)

    def evaluations(other, starts, make, *_):
        make().evaluations += 10 * len(starts)  # as the relaxations would
        fresh = len(starts) == 2 * settings.n_starts
        return [10 * factor if fresh and numbers_of(other) != old else 10] * len(starts)

    monkeypatch.setattr("atomrl_nb.loop.evaluations_of", evaluations)
    found = search_loop(policy, lambda rng: start_of(), EMT, settings)
    assert len(found.generations) == 2 and found.taken == taken
    assert found.old == [10] * 4 and found.new == [10 * factor] * 4
    assert (found.numbers == old) != taken
