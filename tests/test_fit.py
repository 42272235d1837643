"""Learning from old relaxations: frames, fits, projects, and what they are used for."""
import json
import multiprocessing

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedPlane
from ase.filters import FrechetCellFilter
from ase.io import write
from ase.optimize import BFGS

from atomrl_nb.choosing import plan_for
from atomrl_nb.cli import fit_main, relax_main
from atomrl_nb.coordinates import coordinates_of
from atomrl_nb.embedded import EmbeddedEnergy, EmbeddedSettings, LearnedCalculator, compute
from atomrl_nb.fit import FitSettings, Fitted, errors_of, fit
from atomrl_nb.frames import Sampler, read_frames, split, trajectories_of
from atomrl_nb.learned import choose_policy
from atomrl_nb.optimizer import RLOptimizer
from atomrl_nb.payback import Prices, prices, replayed, verdict
from atomrl_nb.policies import Policy, load_policy, save_policy
from atomrl_nb.project import Project
from atomrl_nb.structures import CountedCalculator, InputError

SMALL = EmbeddedSettings(channels=8, elements=8, width=32)


def alloy(seed, elements=("Cu", "Au"), width=0.15):
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True)
    atoms.symbols = rng.choice(elements, len(atoms))
    atoms.positions += rng.normal(0, width, atoms.positions.shape)
    atoms.calc = EMT()
    return atoms


def relaxed(seed, elements=("Cu", "Au"), cell=False):
    atoms, frames = alloy(seed, elements), []

    def keep():
        results = dict(energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        if cell: results["stress"] = atoms.get_stress()
        frames.append(atoms.copy())
        frames[-1].calc = SinglePointCalculator(atoms, **results)
        frames[-1].info["source"] = str(seed)

    opt = BFGS(FrechetCellFilter(atoms) if cell else atoms, logfile=None)
    opt.attach(keep)
    opt.run(fmax=0.03, steps=25)
    return frames


@pytest.fixture(scope="module")
def frames(): return [atoms for seed in range(24) for atoms in relaxed(seed, ("Cu", "Au", "Pd"))]


@pytest.fixture(scope="module")
def policy(frames): return fit(frames, FitSettings(updates=250, checks=2, network=SMALL)).policy


def test_what_teaches_nothing_is_left_out_and_counted(tmp_path):
    old = relaxed(0)
    write(tmp_path / "a.extxyz", old), write(tmp_path / "b.traj", old)  # the same twice
    write(tmp_path / "c.xyz", molecule("H2O"))
    (tmp_path / "d.xyz").write_text("rubbish")
    held = old[0].copy()
    held.positions += 0.3
    held.set_constraint(FixedPlane(0, (0, 0, 1)))
    held.calc = SinglePointCalculator(held, energy=0.0, forces=np.zeros((4, 3)))
    write(tmp_path / "e.traj", held)
    found = read_frames([tmp_path, tmp_path / "a.extxyz"])
    assert len(found.frames) == len(old)
    assert found.left_out == {"seen already": len(old), "without forces": 1, "files that cannot be read": 1,
                              "under other constraints": 1}


def test_relaxations_in_one_file_are_told_apart(tmp_path):
    for atoms in (frames := [atoms for seed in range(5) for atoms in relaxed(seed, ("Cu",))]): del atoms.info["source"]
    write(tmp_path / "all.traj", frames)
    assert len(trajectories_of(read_frames([tmp_path]).frames)) == 5


def test_loose_frames_of_the_same_atoms_are_put_together(tmp_path):
    for k, atoms in enumerate(relaxed(0)): write(tmp_path / f"{k}.traj", atoms)
    assert [len(t) for t in trajectories_of(read_frames([tmp_path]).frames)] == [len(relaxed(0))]


def test_large_structures_make_small_batches(monkeypatch, frames):
    monkeypatch.setattr("atomrl_nb.frames.EDGES_OF_BATCH", 500)
    monkeypatch.setattr("atomrl_nb.frames.MOST_EDGES", 1000)
    sampler = Sampler(trajectories_of(frames), 5.0)
    for seed in range(5):
        batch = sampler.draw(8, 4, np.random.default_rng(seed))
        assert 2 <= batch.graph.n_graphs <= 4 and len(set(batch.group.tolist())) < batch.graph.n_graphs
    assert sum(graph.edge_index.shape[1] for graph in sampler.graphs.values()) == sampler.edges <= 1000


@pytest.mark.parametrize("name", ["old.extxyz", "old.traj", "old.db"])
def test_whatever_ase_reads_is_a_lesson(tmp_path, name):
    old = relaxed(0)
    write(tmp_path / name, old)
    found = trajectories_of(read_frames([tmp_path]).frames)
    assert [len(t) for t in found] == [len(old)]
    np.testing.assert_allclose(found[0].forces[0], old[0].get_forces(), atol=1e-6)


def test_fixed_atoms_teach_no_forces(tmp_path):
    atoms = alloy(0)
    atoms.set_constraint(FixAtoms([0]))
    atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=atoms.get_forces(apply_constraint=False))
    write(tmp_path / "one.traj", [atoms, atoms])
    t = trajectories_of(read_frames([tmp_path / "one.traj"]).frames)[0]
    assert t.fixed.tolist() == [True, False, False, False] and not t.forces[:, 0].any()


def test_frames_that_were_folded_back_do_not_jump():
    atoms = alloy(0)
    atoms.calc = None
    walked = []
    for k in range(6):
        step = atoms.copy()
        step.positions[0] += (0.4 * k, 0, 0)
        step.wrap()
        step.calc = SinglePointCalculator(step, energy=0.0, forces=np.zeros((4, 3)))
        walked.append(step)
    t = trajectories_of(walked)[0]
    np.testing.assert_allclose(np.diff(t.positions[:, 0], axis=0), np.tile([0.4, 0, 0], (5, 1)), atol=1e-9)


def test_no_formula_is_on_both_sides(frames):
    parts = split(trajectories_of(frames), 0.3)
    assert parts.by == "formula" and parts.kept_back
    assert not {t.formula for t in parts.train} & {t.formula for t in parts.kept_back}


def test_a_fit_learns_and_leaves_the_global_generator_alone(frames):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = fit(frames, FitSettings(updates=80, checks=2, rate=1e-2, network=SMALL))
    assert torch.equal(before, torch.get_rng_state())
    assert found.curve[-1]["force_change"] < 0.6 * found.curve[0]["force_change"]
    again = fit(frames, FitSettings(updates=80, checks=2, rate=1e-2, network=SMALL))
    assert [row["force_change"] for row in again.curve] == [row["force_change"] for row in found.curve]


def test_stress_is_learnt_where_it_is_known():
    free = [atoms for seed in range(8) for atoms in relaxed(seed, cell=True)]
    found = fit(free, FitSettings(updates=120, checks=2, rate=1e-2, network=SMALL))
    assert found.curve[-1]["stress"] < 0.7 * found.curve[0]["stress"]


def test_the_best_test_is_kept_not_the_last(frames, monkeypatch):
    errors, seen = iter([0.5, 0.1, 0.3]), []

    def tested(model, _):
        seen.append([p.detach().clone() for p in model.parameters()])
        return dict(force_change=next(errors))

    monkeypatch.setattr("atomrl_nb.fit._tested", tested)
    found = fit(frames, FitSettings(updates=4, checks=2, network=SMALL))
    assert found.policy.card["errors"]["force_change"] == 0.1
    for mine, then, last in zip(found.policy.actor.parameters(), seen[1], seen[2]):
        torch.testing.assert_close(mine.float(), then)
    assert not all(torch.equal(then, last) for then, last in zip(seen[1], seen[2]))


def test_changes_count_not_what_is_constant(frames):
    sampler = Sampler(trajectories_of(frames), 5.0)
    batch = sampler.draw(4, 3, np.random.default_rng(0))
    model = EmbeddedEnergy(SMALL)
    errors = errors_of(model, batch)
    batch.graph.energy = batch.graph.energy + 100.0
    np.testing.assert_allclose(errors_of(model, batch).energy.detach(), errors.energy.detach(), atol=1e-4)


def test_structures_without_energies_do_not_stop_the_learning(frames):
    for k, atoms in enumerate(mixed := [atoms.copy() for atoms in frames]):
        results = dict(frames[k].calc.results)
        if int(atoms.info["source"]) % 2: del results["energy"]
        atoms.calc = SinglePointCalculator(atoms, **results)
    found = fit(mixed, FitSettings(updates=60, checks=1, rate=1e-2, network=SMALL))
    assert found.curve[-1]["force_change"] < 0.8 * found.curve[0]["force_change"]


def test_steps_that_give_no_numbers_end_a_fit(frames, monkeypatch):
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(np.nan))
    with pytest.raises(FloatingPointError, match="4 of 4 steps"): fit(frames, FitSettings(updates=4, network=SMALL))


def test_a_policy_in_memory_can_be_fitted_on(frames, policy):
    found = fit(frames, FitSettings(updates=20, checks=1, rate=1e-2), begin_with=policy)
    assert found.curve[0]["force_change"] != found.curve[1]["force_change"]


def test_batched_is_single(policy):
    structures = [alloy(k) for k in range(3)] + [molecule("H2O"), bulk("Cu").repeat((3, 1, 1))]
    from atomrl_nb.graphs import AtomGraph
    graphs = [AtomGraph.from_atoms(Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc), 5.0, torch.float64)
              for a in structures]
    together = compute(policy.actor, AtomGraph.collate(graphs))
    apart = [compute(policy.actor, graph) for graph in graphs]
    torch.testing.assert_close(together.forces, torch.cat([one.forces for one in apart]), atol=1e-10, rtol=0)
    torch.testing.assert_close(together.energy, torch.cat([one.energy for one in apart]), atol=1e-10, rtol=0)


def test_one_atom_far_from_all_others_has_an_energy(policy):
    atoms = Atoms("Cu")
    atoms.calc = LearnedCalculator(policy.actor)
    assert np.isfinite(atoms.get_potential_energy()) and not atoms.get_forces().any()


def test_a_fitted_policy_saves_evaluations(policy):
    starts = [alloy(seed, ("Cu", "Au", "Pd"), 0.2) for seed in range(100, 106)]
    found = prices(policy, starts)
    assert found.policy < 0.7 * found.none < found.classical


def test_a_policy_of_other_numbers_is_found_wrong(policy):
    """Parameters at random are as bad a surrogate as there is: a few evaluations are lost, no start."""
    rubbish = Policy(EmbeddedEnergy(SMALL).double().requires_grad_(False), policy.card)
    for seed in range(200, 204):
        ours, none = alloy(seed, width=0.2), alloy(seed, width=0.2)
        for atoms in (ours, none): atoms.calc = CountedCalculator(EMT())
        opt = RLOptimizer(ours, policy=rubbish, logfile=None)
        assert opt.run(0.02, 100)
        RLOptimizer(none, policy="none", logfile=None).run(0.02, 100)
        assert ours.calc.evaluations <= none.calc.evaluations + 3


def test_the_log_says_that_a_fitted_policy_is_planned_in(policy):
    choice = plan_for(coordinates_of(alloy(0)), EMT(), policy)
    assert choice.planned_in == "what the given policy learned, until its forces are found wrong"
    assert "knows nothing of" in plan_for(coordinates_of(molecule("H2O")), None, policy).planned_in
    assert "plans for whole structures" in plan_for(coordinates_of(Atoms("CuO", [[0, 0, 0], [1.8, 0, 0]])), None, policy).planned_in


def test_auto_takes_nothing_of_real_chemistry_for_a_model_potential(policy):
    atoms = alloy(0)
    assert choose_policy(atoms, {"universal": policy}) == ""
    atoms.calc = None
    assert choose_policy(atoms, {"universal": policy}) == "universal"


def test_a_fitted_policy_is_a_file_like_others(policy, tmp_path):
    file = tmp_path / "policy.safetensors"
    save_policy(file, *policy)
    again = load_policy(file)
    assert again.card == json.loads(json.dumps(policy.card))
    for a, b in zip(again.actor.parameters(), policy.actor.parameters()): torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert file.stat().st_size < 2e6
    file.write_bytes(file.read_bytes().replace(b'"embedded', b'"embellis'.ljust(9)))
    with pytest.raises(InputError): load_policy(file)


def test_a_fit_goes_on_from_a_fit_alone(frames, policy):
    with pytest.raises(InputError, match="of another kind"):
        from atomrl_nb.learned import find_policy
        fit(frames, begin_with=find_policy("fcc-alloys"))
    with pytest.raises(InputError, match="fit.updates"): fit(frames, FitSettings(updates=0))


def test_replays_agree_with_the_calculator(frames):
    starts = replayed([t for t in trajectories_of(frames) if len(t) > 5], 4)
    assert len(starts) == 4
    for start in starts:
        replay, truth = start.copy(), start.copy()
        replay.calc, truth.calc = start.calc, EMT()
        np.testing.assert_allclose(replay.get_forces(), truth.get_forces(), atol=0.05 * np.abs(truth.get_forces()).max())
        counts = []
        for atoms in (replay, truth):
            atoms.calc = CountedCalculator(atoms.calc)
            assert RLOptimizer(atoms, policy="none", logfile=None).run(0.05, 60)
            counts.append(atoms.calc.evaluations)
        assert abs(counts[0] - counts[1]) <= 2


def test_fixed_atoms_stay_fixed_in_the_comparison():
    held = []
    for atoms in relaxed(0):
        atoms.set_constraint(FixAtoms([0, 1]))
        forces = atoms.get_forces(apply_constraint=False)
        atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=forces)
        held.append(atoms)
    t = trajectories_of(held)[0]
    t.fmax[-1] = 0.01
    assert replayed([t])[0].constraints[0].index.tolist() == [0, 1]


@pytest.mark.parametrize("prices, spent, said", [
    ((3.0, 6.0, 12.0), 0, "pays from the first relaxation"), ((3.0, 6.0, 12.0), 93, "pays after 31 relaxations"),
    ((3.0, 6.0, 4.0), 10, "pays after 10 relaxations"), ((6.0, 6.0, 12.0), 0, "planning without a policy needs no more"),
    ((6.0, 7.0, 5.0), 0, "does not pay, BFGSTuned needs no more: use none")])
def test_the_verdict_is_against_the_best_alternative(prices, spent, said):
    assert said in verdict(Prices(*prices, "BFGSTuned", 4, 0, 0.05), spent)


def test_the_command_makes_a_folder_that_relax_takes(tmp_path, frames, capsys):
    write(tmp_path / "old.extxyz", frames)
    write(tmp_path / "start.xyz", Atoms("Cu3Au", alloy(300).positions, cell=bulk("Cu", cubic=True).cell, pbc=True))
    assert fit_main(f"{tmp_path}/old.extxyz --run {tmp_path}/mine --updates 20".split()) == 0
    assert "0 force evaluations spent" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["fit.json", "fit.png", "policy.safetensors"]
    assert relax_main(f"{tmp_path}/start.xyz --policy {tmp_path}/mine".split()) == 0
    assert "what the given policy learned" in capsys.readouterr().out


@pytest.mark.parametrize("line, said", [
    ("nowhere --run {0}/new", "There is no file or folder"), ("{0}/bare.xyz --run {0}/new", "No frame with forces"),
    ("{0}/one.extxyz --run {0}/new", "no two frames"), ("{0}/one.extxyz --run {0}", "needs a new folder"),
    ("{0}/one.extxyz --run {0}/new --updates 0", "fit.updates"), ("{0}/one.extxyz --run {0}/new --fmax nan", "--fmax"),
    ("{0}/one.extxyz --run {0}/new --from absent", "There is no policy"),
    ("{0}/one.extxyz --run {0}/new --calculator none", "calculator"), ("{0}/rubbish.xyz --run {0}/new", "cannot be read")])
def test_bad_input_gets_a_sentence(tmp_path, frames, capsys, line, said):
    write(tmp_path / "one.extxyz", frames[0])
    write(tmp_path / "bare.xyz", molecule("H2O"))
    (tmp_path / "rubbish.xyz").write_text("3\nno\nrubbish")
    assert fit_main(line.format(tmp_path).split()) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert not (tmp_path / "new" / "policy.safetensors").exists()


@pytest.fixture
def short_fits(monkeypatch):
    monkeypatch.setattr("atomrl_nb.project._universal", lambda frames: None)
    for name in ("ANEW", "ONWARDS"):
        monkeypatch.setattr(f"atomrl_nb.project.{name}", FitSettings(updates=150, checks=2, rate=1e-2, network=SMALL))


def test_a_project_learns_while_one_works(tmp_path, short_fits):
    said = []
    for seed in range(6):
        atoms = alloy(seed)
        opt = RLOptimizer(atoms, "none", learn=tmp_path / "mine", logfile=None)
        opt.say = said.append
        assert opt.run(0.02, 60)
    project = Project(tmp_path / "mine")
    assert len(project.seen()) == 6 and project.policy() is not None
    assert any(text.startswith("learnt from 4 relaxations") for text in said)
    opt = RLOptimizer(alloy(50), learn=tmp_path / "mine", logfile=None)
    assert "learned, until" in opt.planned_in
    assert opt.run(0.02, 60) and len(opt.trust.history) <= 5


def test_a_worse_policy_is_not_taken(tmp_path, policy, monkeypatch):
    project = Project(tmp_path / "mine")
    for seed in range(4): Project(project.folder).keep(relaxed(seed), "CuAu")
    save_policy(project.file, *policy)
    worse = [dict(force_change=0.1), dict(force_change=0.2)]
    monkeypatch.setattr("atomrl_nb.project.fit", lambda *_, **__: Fitted(policy, worse, []))
    said = project.learn()
    assert "nothing changes" in said and load_policy(project.file).card["learnt_until"] == 3
    for mine, first in zip(load_policy(project.file).actor.parameters(), policy.actor.parameters()):
        torch.testing.assert_close(mine, first, rtol=0, atol=0)
    assert project.learn() == ""  # nothing new


def test_what_is_kept_is_bounded_and_not_kept_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("atomrl_nb.project.MOST", 120)
    old = [relaxed(seed) for seed in range(6)]
    for group in old + old[-1:]: Project(tmp_path / "mine").keep(group, "0.1 0.2\nAu@")
    seen = Project(tmp_path / "mine").seen()
    assert sum(map(len, seen.values())) <= 30 and 5 in seen and 0 not in seen
    assert seen[5][0].info["source"] == "relaxation 5: 0.1 0.2 Au@"


def _keep(folder, seed): Project(folder).keep(relaxed(seed), "CuAu")


def test_two_runs_of_one_optimizer_are_one_relaxation(tmp_path):
    opt = RLOptimizer(alloy(0), "none", learn=tmp_path / "mine", logfile=None)
    for fmax in (1.0, 0.3, 0.05): opt.run(fmax, 60)
    seen = Project(tmp_path / "mine").seen()
    assert list(seen) == [0] and len(seen[0]) == len(opt.trust.history)


def test_only_frames_of_one_calculator_are_learnt_from_at_a_time(tmp_path):
    for seed, teacher in enumerate(["EMT"] * 5 + ["PBE"]): Project(tmp_path / "mine").keep(relaxed(seed), "CuAu", teacher)
    lessons, kept_back, last = Project(tmp_path / "mine").lessons()
    assert last == 5 and {atoms.info["relaxation"] for atoms in lessons + kept_back} == {5}


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "frames.extxyz", relaxed(0))
    with pytest.raises(InputError, match="no project has kept"): Project(tmp_path / "mine").seen()
    said = []
    opt = RLOptimizer(alloy(1), learn=tmp_path / "mine", logfile=None)
    opt.say = said.append
    assert opt.run(0.05, 60) and "nothing was learnt" in said[-1]
    (tmp_path / "file").write_text("")
    assert relax_main(f"cuau4 --learn {tmp_path}/file".split()) == 2


def test_a_project_waits_for_the_other_process(tmp_path):
    project, context = Project(tmp_path / "mine"), multiprocessing.get_context("forkserver")
    worker = context.Process(target=_keep, args=(project.folder, 0))
    with project.alone():
        worker.start()
        worker.join(8)
        assert worker.is_alive() and not project.frames.exists()
    worker.join(60)
    assert len(project.seen()) == 1


def test_two_processes_keep_what_both_have_seen(tmp_path):
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=_keep, args=(tmp_path / "mine", seed)) for seed in range(3)]
    for worker in workers: worker.start()
    for worker in workers: worker.join(120)
    assert len(Project(tmp_path / "mine").seen()) == 3


def test_cells_are_kept_with_their_stress(tmp_path):
    atoms = alloy(3)
    atoms.set_cell(1.03 * atoms.cell.array, scale_atoms=True)
    assert RLOptimizer(FrechetCellFilter(atoms), learn=tmp_path / "mine", logfile=None).run(0.05, 60)
    seen = next(iter(Project(tmp_path / "mine").seen().values()))
    for kept in seen:
        truth = kept.copy()
        truth.calc = EMT()
        np.testing.assert_allclose(kept.get_forces(), truth.get_forces(), atol=1e-5)
        np.testing.assert_allclose(kept.get_stress(), truth.get_stress(), atol=1e-5)
        assert kept.get_potential_energy() == pytest.approx(truth.get_potential_energy(), abs=1e-5)


def test_a_folder_that_cannot_be_written_changes_nothing_in_a_relaxation(tmp_path, monkeypatch):
    from atomrl_nb.checkpoints import DiskError
    opt = RLOptimizer(alloy(0), learn=tmp_path / "mine", logfile=None)

    def full(*_): raise DiskError("no room")

    monkeypatch.setattr("atomrl_nb.project.write_structures", full)
    said = []
    opt.say = said.append
    assert opt.run(0.05, 60) and said[-1] == "nothing was learnt: no room"


def test_ctrl_c_while_learning_leaves_the_relaxation(tmp_path, monkeypatch):
    def stop(*_, **__): raise KeyboardInterrupt

    monkeypatch.setattr("atomrl_nb.project.Project.learn", stop)
    said = []
    opt = RLOptimizer(alloy(0), learn=tmp_path / "mine", logfile=None)
    opt.say = said.append
    assert opt.run(0.05, 60) and said[-1] == "learning was interrupted, nothing else"


def test_a_fit_that_was_interrupted_leaves_no_policy_and_can_be_repeated(tmp_path, frames, monkeypatch):
    write(tmp_path / "old.extxyz", frames)
    line = f"{tmp_path}/old.extxyz --run {tmp_path}/mine --updates 4".split()

    def stop(*_): raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("atomrl_nb.fit._Learning.step", stop)
        assert fit_main(line) == 130
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["unfinished.safetensors"]
    assert fit_main(line) == 0 and (tmp_path / "mine" / "policy.safetensors").exists()
    saved = (tmp_path / "mine" / "fit.json").read_text()
    assert "NaN" not in saved and json.loads(saved)["provenance"]["versions"]
