"""Suggested settings: few calls, sound values, a sentence and a page for each, and no training."""
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc100
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from atomrl_nb.cli import train_main
from atomrl_nb.diagnostics import METRIC_GUIDE
from atomrl_nb.memory import suggest_capacity
from atomrl_nb.settings import Settings, check_settings, settings_from
from atomrl_nb.structures import CountedCalculator, InputError, load
from atomrl_nb.suggest import RULES, USUAL, near_the_wall, settings_file, suggest_settings

NBS = Path(__file__).resolve().parents[1] / "nbs"
SLAB = fcc100("Cu", (2, 2, 3), vacuum=6)


def names(found):
    """Return the names of what is suggested."""
    return {reason.name for reason in found.reasons}


@pytest.mark.parametrize("structures, calculator, wanted", [
    (load("cuau4"), "emt", set()),
    (load("lj13"), "lj", set()),
    ([SLAB], "emt", set())])
def test_each_kind_of_structure_gets_what_it_asks_for(structures, calculator, wanted):
    found = suggest_settings(structures, calculator)
    assert names(found) == wanted
    assert check_settings(settings_from(tomllib.loads(settings_file(found)))) == found.settings
    assert all(reason.why in settings_file(found) and (NBS / reason.page).exists() for reason in found.reasons)


def test_at_most_twelve_evaluations_and_the_structures_stay():
    structures = [load("cuau4")[0] for _ in range(5)]
    before, counted = structures[0].positions.copy(), CountedCalculator(EMT())
    found = suggest_settings(structures, counted)
    assert counted.evaluations == found.measured.calls == 12
    assert (structures[0].positions == before).all() and structures[0].calc is None


def test_what_is_set_already_is_not_suggested_again():
    far = replace(Settings(), environment=replace(Settings().environment, perturb=0.6))
    once = suggest_settings(load("lj13"), "lj", far)
    assert names(once) == {"environment.perturb"}
    assert suggest_settings(load("lj13"), "lj", once.settings).reasons == []


@pytest.mark.parametrize("noise, fmax", [(0.0005, 0.01), (0.02, 0.2)])
def test_the_target_follows_the_noise(noise, fmax):
    class Noisy(EMT):
        """EMT with noise."""
        rng = np.random.default_rng(1)

        def calculate(self, *args, **options):
            """Add noise."""
            super().calculate(*args, **options)
            self.results["forces"] = self.results["forces"] + self.rng.normal(0, noise, self.results["forces"].shape)

    assert suggest_settings([SLAB], Noisy()).settings.environment.fmax == pytest.approx(fmax, rel=0.25)


def test_a_memory_that_has_no_room_is_made_smaller():
    seen = suggest_settings([SLAB], EMT()).measured
    (_, rule, _), = [one for one in RULES if one[0] == "buffer_capacity"]
    assert rule(seen, [SLAB], Settings()) is None
    assert rule(seen._replace(n_atoms=2000), [SLAB], Settings())[0] == suggest_capacity(2000) < Settings().buffer_capacity


def test_other_units_are_seen():
    class Thousandfold(EMT):
        """EMT in meV."""

        def calculate(self, *args, **options):
            """Multiply."""
            super().calculate(*args, **options)
            self.results["forces"] = 1000 * self.results["forces"]

    reason, = [one for one in suggest_settings([SLAB], Thousandfold()).reasons if one.name == "network.stiffness"]
    assert reason.value > 3000 and "does not give eV and Å" in reason.why


def test_td3_alone_is_given_shaping():
    alone = replace(Settings(), td3=replace(Settings().td3, imitation_weight=0.0, q_weight=1.0),
                    environment=replace(Settings().environment, correction_weight=0.0))
    found = suggest_settings(load("lj13"), "lj", alone)
    assert names(found) == {"environment.correction_weight"} and found.settings.environment.correction_weight == 0.5


def test_starts_inside_the_wall_are_brought_outside():
    far = replace(Settings(), environment=replace(Settings().environment, perturb=0.6))
    assert (near_the_wall(load("lj13"), far) < 1).mean() > 0.5
    found = suggest_settings(load("lj13"), "lj", far)
    assert "environment.perturb" in names(found) and (near_the_wall(load("lj13"), found.settings) < 1).mean() < 0.1


def test_fixed_atoms_and_lone_atoms_are_no_obstacle():
    half = SLAB.copy()
    half.set_constraint(FixAtoms(mask=half.get_tags() > 1))
    assert 3 < suggest_settings([half], EMT()).measured.stiffness < 24
    assert names(suggest_settings([Atoms("Cu")], EMT())) == set()


@pytest.mark.parametrize("spoil, said", [(lambda f: np.inf * f, "not finite"), (lambda f: f[:1], "have shape"),
                                         (lambda f: 1 / 0, "ZeroDivisionError")])
def test_a_bad_calculator_is_a_sentence(spoil, said):
    class Bad(EMT):
        """A calculator that fails."""

        def calculate(self, *args, **options):
            """Fail."""
            super().calculate(*args, **options)
            self.results["forces"] = spoil(self.results["forces"])

    with pytest.raises(InputError, match=said):
        suggest_settings(load("cuau4"), Bad())


def test_the_command_prints_a_file_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_main(["lj13", "--suggest"]) == 0
    assert settings_from(tomllib.loads(capsys.readouterr().out)) == Settings() and not list(tmp_path.iterdir())
    for wrong in (["--run", "x"], ["--steps", "9"], ["--planner"], ["--settings", "x.toml"], ["--no-price"]):
        assert train_main(["cuau4", "--suggest", *wrong]) == 2
    assert train_main(["lj13", "--suggest", "--calculator", "emt"]) == 2
    assert "gives no forces" in capsys.readouterr().err


def test_every_rule_names_a_setting_and_a_page():
    for name, _, page in RULES:
        group, _, last = name.rpartition(".")
        assert hasattr(getattr(Settings(), group) if group else Settings(), last) and (NBS / page).exists()


def test_the_stiffness_is_judged_as_in_a_run():
    assert USUAL == METRIC_GUIDE["stiffness"].healthy
