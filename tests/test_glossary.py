"""Each name in the glossary exists, and each entry says it in English and Chinese and leads to a page."""
import ast
import json
import re
from pathlib import Path

import pytest

CHINESE = "[\u4e00-\u9fff]"
ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
WANTED = """Network, Late Fusion, tail_mlp, env_input_dim, compute_loss_pi, Environment.step, Reward Shaping, a_back, buffer_capacity,
    fake_step, nfake, start_iter, save_results, t_total, Actual Move, Action Scale, Policy, Surrogate, Error model, Anchor, Trust radius,
    Refused move, Hand-over, fmax, maxstep, ReplayMemory, Critic, Actor, Target network, polyak, Hindsight, Imitation, Embedded energy,
    Fit, Learn, Env Gate, Equivariance, Action Deviation Penalty, Hitting the wall, Q-Value vs Reward"""


def entries():
    """Return {heading: the paragraphs below it} of the glossary."""
    cells = json.loads((NBS / "glossary.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells)
    parts = re.split(r"^#{2,3} ", text, flags=re.MULTILINE)[1:]
    found = {part.partition("\n")[0]: [line for line in part.splitlines()[1:] if line] for part in parts}
    return {heading: lines for heading, lines in found.items() if lines}


ENTRIES = entries()


@pytest.fixture(scope="module")
def names():
    """Return every name that the package defines or takes: classes, functions, parameters, fields."""
    found = set()
    for path in (ROOT / "atomrl_nb").glob("[!_]*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found |= {getattr(node, part, None) for part in ("name", "arg", "id", "attr")}
    return found


def test_every_word_that_readers_look_for_has_an_entry():
    assert {word.strip() for word in WANTED.split(",")} <= {heading.split(" · ")[0] for heading in ENTRIES}


@pytest.mark.parametrize("heading", ENTRIES)
def test_an_entry_is_whole(heading, names):
    english, chinese, links = ENTRIES[heading]
    assert re.fullmatch(r".+ · .+", heading) and not re.search(CHINESE, english) and re.search(CHINESE, chinese)
    assert english.count(". ") <= 2
    name = heading.split(" · ")[0]
    if "_" in name or "." in name:
        assert english.startswith(f"`{name}`")
    for code in re.findall(r"`([\w.]+)`", english + chinese):
        assert code.endswith((".json", ".csv")) or set(code.split(".")) <= names, f"{code} is no name in the package"
    targets = re.findall(r"\]\(([^)#]+)\)", links)
    assert targets and all((NBS / target).exists() for target in targets)
