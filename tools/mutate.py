"""Change the code on purpose, and name the changes that no test notices.

    mutate.py [--list] [WORD ...]

Each mutation is applied to a copy of the checkout, where the tests that should fail are run, two mutations at a time.
Without mutation the same tests must pass. Words choose the mutations whose names contain one of them.
Exit code 1: a change was not noticed, or its text is no longer in the code.
"""
import argparse
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "atomrl_nb"
CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = ["ase.build", "ase.calculators.emt", "ase.filters", "ase.mep", "e3nn.o3", "gymnasium", "pytest",
           "scipy.sparse.linalg", "torch"]  # loaded once, before the processes fork
WORKERS, TIMEOUT = 2, 600  # mutations at a time, seconds for one run of pytest
APART = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "_docs", "_proc", "nbs", "build", "dist", ".*_cache")


class Mutation(NamedTuple):
    """A change that a test should notice."""
    name: str
    modules: str  # of the package, as "trust.py"; "*.py" where the text may move from one to another
    old: str  # found once in these, however the lines are broken
    new: str
    tests: str  # as "test_planning.py::test_this", apart by blanks; one of them should fail


MUTATIONS = [Mutation(*row) for row in [
    ("the targets of the critics stay", "td3.py",
     "polyak_update(self.critics, self.critics_target, self.settings.polyak)", "pass",
     "test_mechanisms.py::test_the_targets_follow_actor_and_critics_slowly"),
    ("a project takes whatever it has learnt", "project.py",
     "better = reached < wanted", "better = True",
     "test_fit.py::test_a_worse_policy_is_not_taken"),
    ("the last test of a fit is kept, not the best", "fit.py",
     'update == 0 or row["force_change"] < best', "True",
     "test_fit.py::test_the_best_test_is_kept_not_the_last"),
    ("energies that are not known poison the learning", "fit.py",
     "known = torch.isfinite(graph.energy)", "known = torch.isfinite(graph.energy) | True",
     "test_fit.py::test_structures_without_energies_do_not_stop_the_learning"),
    ("a policy is compared with classical optimizers alone", "payback.py",
     'min((found.none, "planning without a policy"), (found.classical, found.best_classical))',
     "(found.classical, found.best_classical)",
     "test_fit.py::test_the_verdict_is_against_the_best_alternative"),
    ("the same frames count twice", "frames.py",
     '"seen already" if frame_key(atoms) in known else ""', '""',
     "test_fit.py::test_what_teaches_nothing_is_left_out_and_counted"),
    ("trajectories of one formula stand on both sides", "frames.py",
     'by = "formula" if len(formulas) >= 5 else "trajectory"', 'by = "trajectory"',
     "test_fit.py::test_no_formula_is_on_both_sides"),
    ("auto takes universal for charged molecules and model potentials", "learned.py",
     "if strange and", "if False and",
     "test_fit.py::test_auto_takes_nothing_of_real_chemistry_for_a_model_potential"),
    ("the target of the actor stays", "td3.py",
     "polyak_update(self.actor, self.actor_target, self.settings.polyak)", "pass",
     "test_mechanisms.py::test_the_targets_follow_actor_and_critics_slowly"),
    ("the trust radius grows whatever the forecast was worth", "trust.py",
     "good: float = 0.35", "good: float = 3.5",
     "test_planning.py::test_the_trust_radius_follows_the_forecasts"),
    ("the trust radius does not fall after a wrong forecast", "trust.py",
     "bad: float = 0.8", "bad: float = 8.0",
     "test_planning.py::test_the_trust_radius_follows_the_forecasts"),
    ("the trust radius does not fall after a refused move", "trust.py",
     "max(s.least, move / 3)", "trust.radius",
     "test_planning.py::test_a_refused_move_cuts_the_trust_radius_to_a_third_of_it"),
    ("moves are refused by the force alone", "trust.py",
     "rise > trust.slack or trebled", "trebled",
     "test_planning.py::test_a_rise_of_the_energy_is_refused_even_where_the_force_falls"),
    ("energies that disagree with the forces are believed", "trust.py",
     "trust.by_forces, trust.refused, trust.rejected = True", "trust.by_forces, trust.refused, trust.rejected = False",
     "test_planning.py::test_energies_that_disagree_throughout_are_not_believed"),
    ("the slack does not know the noise of the energy", "trust.py",
     "return LEAST_SLACK + self.noise", "return LEAST_SLACK",
     "test_planning.py::test_a_rise_of_the_energy_is_refused_even_where_the_force_falls"),
    ("forces that turn the whole are believed", "planner.py",
     "return self._shaping(evaluation) if self.rigid_noise else forces", "return forces",
     "test_planning.py::test_forces_that_turn_the_whole_are_noise"),
    ("the walk leaves the trust radius", "walk.py",
     "max(_share(move, radius), 1.0)", "1.0",
     "test_planning.py::test_a_walk_ends_within_its_radius"),
    ("the walk goes uphill", "walk.py",
     "if after <= energy + 1e-6: return", "if True: return",
     "test_planning.py::test_a_walk_does_not_go_uphill"),
    ("the strain is not limited", "planner.py",
     "min(radius, STRAINED * LEVER)", "radius",
     "test_cells.py::test_no_step_strains_the_cell_by_more_than_a_few_per_cent"),
    ("moves of the whole have the lowest curvature", "planner.py",
     "return 10 * STIFF * whole", "return 0.0 * whole",
     "test_report.py::test_the_lowest_curvature_is_of_atoms_not_of_moves_of_the_whole"),
    ("numbers of trust are not checked", "trust.py",
     'self.settings = build(self.settings, plain_values(self.settings), TRUST, "planner.trust.")', "pass",
     "test_settings.py::test_trust_that_makes_no_sense_is_refused_wherever_it_comes_from"),
    ("a search draws walks of no step", "loop.py",
     'steps=max(1.0, found["steps"])', 'steps=found["steps"]',
     "test_settings.py::test_a_search_over_the_loop_draws_what_a_card_may_hold"),
    ("the reach in the card is not read", "learned.py",
     'card.get("loop", {})', "{}",
     "test_planning.py::test_no_move_is_longer_than_the_reach_in_the_card"),
    ("the reach in the card is no limit", "learned.py",
     "min(maxstep, loop.reach)", "maxstep",
     "test_planning.py::test_no_move_is_longer_than_the_reach_in_the_card"),
    ("a plan of the network leaves its reach", "planning.py",
     "shift = capped(shift + move, graph, task.reach)", "shift = shift + move",
     "test_networks.py::test_a_plan_stays_within_its_reach"),
    ("episodes that were cut off give labels", "*.py",
     "if terminated:", "if True:",
     "test_mechanisms.py::test_an_episode_that_was_cut_off_gives_no_labels"),
    ("the last evaluation is offered", "*.py",
     "<= min(found.values())", "<= 1e9",
     "test_training.py::test_a_later_evaluation_is_offered_only_where_it_is_no_worse"),
    ("a found loop is always taken", "loop.py",
     "better = np.log(after).mean() < np.log(before).mean()", "better = True",
     "test_mechanisms.py::test_a_found_loop_is_taken_only_where_it_is_better"),
    ("strange surroundings are noticed late", "learned.py",
     "if strange > 0.5", "if strange > 0.9",
     "test_planning.py::test_more_than_half_of_the_atoms_must_have_surroundings_as_in_training"),
    ("a policy that knows a tenth of the atoms is chosen", "learned.py",
     "if 0.5 <= known.mean()", "if 0.1 <= known.mean()",
     "test_planning.py::test_a_policy_is_chosen_where_it_knows_half_of_the_atoms"),
    ("a policy that fails its tests is trusted", "learned.py",
     "if relaxed < 0.5 else", "if relaxed < 0.1 else",
     "test_planning.py::test_a_policy_that_failed_half_of_its_own_tests_begins_carefully"),
    ("the rate of the critics is not annealed", "td3.py",
     "((self.actor_optimizer, s.actor_lr), (self.critics_optimizer, s.critic_lr))",
     "((self.actor_optimizer, s.actor_lr),)",
     "test_mechanisms.py::test_the_learning_rates_of_actor_and_critics_fall_together"),
    ("the learning rates stay as they were at first", "*.py",
     ".set_rates(", ".set_rates(0 * ",
     "test_mechanisms.py::test_the_learning_rates_of_actor_and_critics_fall_together"),
    ("success counts the expert's steps", "*.py",
     "1 - episode.expert_steps", "1 - 0 * episode.expert_steps",
     "test_expert.py::test_success_does_not_count_what_the_expert_has_done"),
    ("the search knows no nearest image", "search.py",
     "mic=bool(atoms.pbc.any())", "mic=False",
     "test_search.py::test_a_crystal_is_known_wherever_its_cell_begins"),
    ("the stress has the wrong sign", "coordinates.py",
     "virial = -place.volume", "virial = place.volume",
     "test_cells.py::test_the_forces_on_the_coordinates_are_minus_the_gradient_of_the_enthalpy"),
    ("the pressure has the wrong sign", "coordinates.py",
     "_energy(atoms, consistent) + c.pressure", "_energy(atoms, consistent) - c.pressure",
     "test_cells.py::test_the_forces_on_the_coordinates_are_minus_the_gradient_of_the_enthalpy"),
    ("the lever is left out of the slopes", "coordinates.py",
     "@ self.coordinates.strains / LEVER", "@ self.coordinates.strains",
     "test_cells.py::test_the_forces_on_the_coordinates_are_minus_the_gradient_of_the_enthalpy"),
    ("the volume may change under constant volume", "coordinates.py",
     "if constant_volume:", "if False:",
     "test_cells.py::test_a_filter_is_relaxed_as_it_measures_it[volume-none]"),
    ("forces are not projected onto what constraints allow", "coordinates.py",
     "return forces.ravel() if self.moves is None else self.moves @ forces.ravel()", "return forces.ravel()",
     "test_cells.py::test_a_constraint_is_obeyed_by_planning[FixCartesian]"),
    ("slopes are not projected onto what constraints allow", "coordinates.py",
     "if place.moves is not None: made = made @ place.moves", "pass",
     "test_cells.py::test_a_constraint_is_obeyed_by_planning[FixCartesian]"),
    ("bonds of a fixed length are not put right", "coordinates.py",
     "if not self.curved: return x", "return x",
     "test_cells.py::test_a_plan_keeps_bond_lengths_that_must_stay"),
    ("two projectors are averaged", "coordinates.py",
     "v[:, w > 1 - 1e-7] @ v[:, w > 1 - 1e-7].T", "(v * w) @ v.T",
     "test_cells.py::test_a_filter_is_relaxed_as_it_measures_it[hydrostatic-none]"),
    ("a moving filter moves all atoms", "coordinates.py",
     "only if moves is None else only @ moves @ only", "moves",
     "test_cells.py::test_some_atoms_of_a_filter_move"),
    ("noise is not tried where forecasts go wrong", "error_model.py",
     "if doubtful else (s.noise,)", "if False else (s.noise,)",
     "test_planning.py::test_clean_forces_speak_against_noise_and_noisy_ones_for_it"),
    ("noise is believed without evidence", "error_model.py",
     "DISBELIEF = 5.0", "DISBELIEF = -500.0",
     "test_planning.py::test_clean_forces_speak_against_noise_and_noisy_ones_for_it"),
    ("the error model does not choose by evidence", "error_model.py",
     "options[int(np.argmax(found))]", "options[0]",
     "test_planning.py::test_the_most_probable_process_is_taken"),
    ("alike fragments do not learn from one another", "error_model.py",
     "alike: float = 0.95", "alike: float = 0.0",
     "test_planning.py::test_alike_bonds_learn_from_one_another"),
    ("evaluations from far away teach", "planner.py",
     "and e.fmax < largest_force]", "]",
     "test_planning.py::test_an_evaluation_beyond_all_measure_teaches_nothing"),
    ("measured noise does not weaken what was seen", "planner.py",
     "if planner.trust.force_noise: errors = replace(errors, noise=planner.trust.force_noise)", "pass",
     "test_planning.py::test_measured_noise_weakens_what_was_seen"),
    ("noise is never measured", "planner.py",
     "if trust.measured is None and first.learnt.noise > NOISY", "if False",
     "test_planning.py::test_noise_is_noticed_and_not_chased[0.005-none]"),
    ("forces at the noise are chased", "planner.py",
     "if planner.at_noise: return here.positions", "planner.at_noise = ''",
     "test_planning.py::test_nothing_is_proposed_where_the_noise_is_larger_than_what_is_expected"),
    ("a surrogate has no credit", "planner.py",
     "learnt.evidence + s.credit * trusted", "learnt.evidence",
     "test_planning.py::test_a_surrogate_has_credit_until_its_first_forces_are_found_wrong"),
    ("a refuted surrogate keeps its credit", "planner.py",
     "first_error(planner) < s.refuted", "True",
     "test_planning.py::test_a_surrogate_has_credit_until_its_first_forces_are_found_wrong"),
    ("soft forces take long moves", "planner.py",
     "min(trust.radius, soft)", "trust.radius",
     "test_planning.py::test_soft_forces_make_short_moves"),
    ("a surrogate may break bonds", "planner.py",
     "return start if torn.any() else end", "return end",
     "test_planning.py::test_a_surrogate_that_breaks_or_fuses_bonds_does_not_move_the_start"),
    ("a repeated place is walked to again", "planner.py",
     "if any(largest(end.positions - known.positions) < nothing for known in trust.history)", "if False",
     "test_planning.py::test_a_place_that_is_known_is_not_proposed_again"),
    ("a planner does not give up after refusals", "trust.py",
     "if trust.refused >= s.refusals", "if False",
     "test_planning.py::test_planning_is_given_up_after_refusals_and_without_progress"),
    ("a planner does not give up without progress", "trust.py",
     "number - trust.landmark[0] >= s.patience", "False",
     "test_planning.py::test_planning_is_given_up_after_refusals_and_without_progress"),
    ("a refused point may be the best", "trust.py",
     "if k not in trust.rejected]", "]",
     "test_planning.py::test_among_points_of_the_same_energy_the_best_has_the_smallest_force"),
    ("the best point is that of the lowest energy whatever its force", "trust.py",
     "e <= energies.min() + trust.slack", "e <= energies.min()",
     "test_planning.py::test_among_points_of_the_same_energy_the_best_has_the_smallest_force"),
    ("a kick from a saddle is always accepted", "stages.py",
     "if self.here().energy < began.energy - self.trust.slack: return False", "self.here(); return False",
     "test_cells.py::test_a_kick_that_gains_nothing_is_undone"),
    ("a saddle is never looked for", "stages.py",
     "if curvature is None or curvature > -SADDLE", "if True",
     "test_cells.py::test_a_saddle_that_the_surrogate_knows_is_left"),
    ("atoms that are fused are converged", "optimizer.py",
     "if converged and pairs", "if False",
     "test_report.py::test_an_end_that_is_fused_is_not_converged"),
    ("an end above the start is converged", "optimizer.py",
     "if converged and not trust.by_forces and", "if False and",
     "test_planning.py::test_an_end_above_the_start_is_not_converged"),
    ("an unconverged run leaves its last point", "optimizer.py",
     "if not converged: self.go_back()", "pass",
     "test_mechanisms.py::test_an_unconverged_run_goes_back_to_its_best_point"),
    ("a hand-over is not in the report", "optimizer.py",
     "handed_over=opt.handed_over, why=why", 'handed_over="", why=why',
     "test_report.py::test_a_hand_over_is_named_in_log_and_report"),
    ("a hand-over is not in the log", "stages.py",
     'self.say(f"handing over to', 'str(f"handing over to',
     "test_report.py::test_a_hand_over_is_named_in_log_and_report"),
    ("a hand-over begins at the last point", "stages.py",
     "here, matrix = trust.history[best(trust)]", "here, matrix = trust.history[-1]",
     "test_mechanisms.py::test_the_hand_over_goes_on_from_the_best_positions_and_evaluates_none_twice"),
    ("what was learnt is lost at a hand-over", "last_resort.py",
     "made.H0 = matrix if", "_ = matrix if",
     "test_mechanisms.py::test_the_last_resort_begins_with_what_planning_has_learnt"),
    ("a filter's last resort measures strains as coordinates do", "last_resort.py",
     "unit[-9:] = LEVER /", "unit[-9:] = 1.0 /",
     "test_cells.py::test_the_last_resort_gets_curvatures_in_the_units_of_its_filter"),
    ("a constraint that planning does not know is planned with", "optimizer.py",
     "(reason := _foreign(self.coordinates.atoms))", '(reason := "")',
     "test_cells.py::test_a_constraint_that_planning_does_not_know_is_handed_over"),
    ("a restart file of another structure is taken", "optimizer.py",
     '!= (there["symbols"], there["pbc"]) or not same', '!= (there["symbols"], there["pbc"]) and not same',
     "test_planning.py::test_a_restart_file_belongs_to_one_structure"),
    ("a fused pair is not flagged", "report.py",
     '"are fused" if relative < FUSED', '"are fused" if False',
     "test_report.py::test_pairs_that_are_fused_too_close_or_apart_are_named"),
    ("a pair that is too close is not flagged", "report.py",
     "pairs = close_pairs(end)", "pairs = []",
     "test_report.py::test_pairs_that_are_fused_too_close_or_apart_are_named"),
    ("a structure that came apart is not flagged", "report.py",
     "if after > before:", "if False:",
     "test_report.py::test_pairs_that_are_fused_too_close_or_apart_are_named"),
    ("a rise of the energy is not flagged", "report.py",
     "energy_change > RISE:", "False:",
     "test_report.py::test_a_rise_of_the_energy_and_a_stress_that_is_left_are_named"),
    ("a stress that was not relaxed is not flagged", "report.py",
     "abs(stress) > UNRELAXED", "False",
     "test_report.py::test_a_rise_of_the_energy_and_a_stress_that_is_left_are_named"),
    ("an absurd end counts as a lowest energy", "comparing.py",
     "if not r.absurd: lowest", "if True: lowest",
     "test_report.py::test_what_is_fused_is_no_lowest_energy"),
    ("digests of tensors are not checked", "checkpoints.py",
     "if digest((folder/name).read_bytes()) != sums[name]]", "if False]",
     "test_checkpoints.py::test_a_harmed_file_is_refused_with_the_way_out[tampered-agent.safetensors]"),
    ("the seal of the state is not checked", "checkpoints.py",
     "if _seal(state) != seal else []", "if False else []",
     "test_checkpoints.py::test_a_state_that_was_changed_by_hand_is_refused"),
    ("a text file is written in place", "checkpoints.py",
     'beside = path.with_name(path.name + ".part")', "beside = path",
     "test_checkpoints.py::test_a_text_file_is_there_whole_or_as_it_was"),
    ("a checkpoint is written in place", "checkpoints.py",
     'beside, folder = run/"checkpoints"/".part",', 'beside, folder = run/"checkpoints"/f"step_{t_total:08d}",',
     "test_checkpoints.py::test_a_save_may_be_killed_before_each_of_its_calls"),
    ("a checkpoint of another run is taken", "checkpoints.py",
     'if found.state.get("identity") != identity(run)', "if False",
     "test_checkpoints.py::test_a_checkpoint_belongs_to_its_run"),
    ("two processes write to one run", "checkpoints.py",
     "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) break", "break",
     "test_checkpoints.py::test_two_processes_do_not_write_to_one_run"),
    ("two processes make one run", "checkpoints.py",
     "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) except", "pass\n    except",
     "test_checkpoints.py::test_of_two_who_make_one_run_at_once_one_is_refused"),
    ("what is mixed remembers", "workers.py",
     '(getattr(calculator, "mixer", None), "calcs", ()): begin_afresh(part)', '(None, "calcs", ()): begin_afresh(part)',
     "test_training.py::test_a_mixture_of_calculators_trains_and_resumes_exactly"),
]]


def mutated(root, mutation):
    """Return {path: text} of the one module that changes, or raise `LookupError`."""
    parts = re.findall(r"\w+|[^\w\s]", mutation.old)
    old = re.compile(r"\s*".join(rf"\b{part}\b" if part[0].isalnum() else re.escape(part) for part in parts))
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((root / PACKAGE).glob(mutation.modules))}
    found = {path: len(old.findall(text)) for path, text in texts.items()}
    times = sum(found.values())
    if times != 1:
        raise LookupError(f"{mutation.old!r} is {times} times in {PACKAGE}/{mutation.modules}, and not once")
    path = next(path for path in found if found[path])
    return {path: old.sub(lambda _: mutation.new, texts[path])}


def copied(folder):
    """Copy the checkout into `folder`, with the data beside it, and return the copy."""
    copy = Path(folder) / ROOT.name
    shutil.copytree(ROOT, copy, ignore=APART)
    (copy / "nbs").symlink_to(ROOT / "nbs")
    if (ROOT.parent / "shared").exists():
        (copy.parent / "shared").symlink_to(ROOT.parent / "shared")
    return copy


def run(copy, tests, log):
    """Run tests in a copy, in a process of their own, and end it with the exit code of pytest."""
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode, os.environ["PYTHONPATH"] = True, str(copy)
    import pytest
    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)])))


def tested(copy, tests):
    """Run tests in a copy: (exit code of pytest, what it printed). What no mutation changes is loaded before, once."""
    log = copy.parent / "log"
    CONTEXT.set_forkserver_preload(PRELOAD)
    process = CONTEXT.Process(target=run, args=(copy, tests, log))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join()
        return None, f"the tests took longer than {TIMEOUT} s"
    return process.exitcode, log.read_text(encoding="utf-8")


def tried(mutation):
    """Apply one mutation to a copy and run its tests: (whether it was noticed, what to say)."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(folder)
        try:
            for path, text in mutated(copy, mutation).items():
                path.write_text(text, encoding="utf-8")
        except LookupError as error:
            return False, f"NOT FOUND: {error}"
        code, said = tested(copy, mutation.tests.split())
    if code == 1:
        return True, "noticed"
    return False, "SURVIVED" if code == 0 else f"FAILED:\n{said}"


def passed(mutations):
    """Tell whether the tests pass without any mutation, else print what they say."""
    with tempfile.TemporaryDirectory() as folder:
        code, said = tested(copied(folder), dict.fromkeys(test for m in mutations for test in m.tests.split()))
    if code != 0:
        print(f"Without any mutation the tests fail:\n{said}")
    return code == 0


def main(argv=None):
    """Try the mutations that are asked for: one line each, and the survivors last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="try the mutations whose names contain one of these; all without")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    args = parser.parse_args(argv)
    chosen = [m for m in MUTATIONS if not args.words or any(word in m.name for word in args.words)]
    if args.list:
        print(*(m.name for m in chosen), sep="\n")
        return 0
    if not chosen:
        parser.error("no mutation has such a name; --list prints them")
    os.environ["OMP_NUM_THREADS"] = "1"  # two mutations at a time, one core each
    if not passed(chosen):
        return 1

    def timed(mutation):
        """Try one, and say so."""
        began = time.monotonic()
        noticed, said = tried(mutation)
        print(f"{time.monotonic() - began:6.1f} s  {mutation.name}: {said}", flush=True)
        return noticed

    with ThreadPoolExecutor(WORKERS) as pool:
        left = [m.name for m, noticed in zip(chosen, pool.map(timed, chosen)) if not noticed]
    said = f"{len(chosen) - len(left)} of {len(chosen)} mutations were noticed."
    print(said, *(f"not: {name}" for name in left), sep="\n  ")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
