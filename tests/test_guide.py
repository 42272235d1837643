"""What the guide, the tutorials and the README tell a person to type is accepted, and what they name exists."""
import json
import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from atomrl_nb import cli, measuring_cli
from atomrl_nb.diagnostics import METRIC_GUIDE, RULES
from atomrl_nb.settings import Settings, check_settings, settings_from

NBS = Path(__file__).resolve().parents[1] / "nbs"
GUIDE = sorted((NBS / "guide").glob("*.ipynb"))
PAGES = [NBS / "index.ipynb", *GUIDE, *sorted((NBS / "tutorials").glob("*.ipynb"))]
PARSERS = {"atomrl-fit": cli.fit_parser, "atomrl-train": cli.train_parser, "atomrl-tune": cli.tune_parser, "atomrl-diagnose": cli.diagnose_parser,
           "atomrl-relax": cli.relax_parser, "atomrl-status": cli.status_parser,
           "atomrl-bench": measuring_cli.bench_parser, "atomrl-experiment": measuring_cli.experiments_parser}


def prose(path):
    """Return the Markdown cells of a notebook."""
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "markdown"]


def blocks(path, language):
    """Return the fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", "\n\n".join(prose(path)), flags=re.MULTILINE | re.DOTALL)


def commands(path):
    """Return the commands of this package that a page shows, in blocks and where they are whole within a line."""
    lines = [line for block in blocks(path, "sh") for line in block.replace("\\\n", " ").splitlines()]
    inline = [code for code in re.findall(r"`(atomrl-[^`\n]*)`", "\n".join(prose(path))) if " runs/" in code]
    typed = [re.sub(r"\$\w+", "2", line.partition(" > ")[0]) for line in [*lines, *inline]]  # variables of the shell are numbers
    return [shlex.split(line, comments=True) for line in typed if line.startswith("atomrl-")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_are_accepted(path):
    for name, *arguments in commands(path):
        PARSERS[name]().parse_args(arguments)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_settings_are_accepted(path):
    for block in blocks(path, "toml"):
        check_settings(settings_from(tomllib.loads(block)))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_settings_that_are_named_exist(path):
    groups = {f.name: {g.name for g in fields(f.default_factory)} for f in fields(Settings)
              if callable(f.default_factory)}
    for group, name in re.findall(rf"`({'|'.join(groups)})\.(\w+)", "\n".join(prose(path))):
        assert name in groups[group], f"{group}.{name}"


@pytest.mark.parametrize("path", GUIDE[1:], ids=lambda path: path.stem)
def test_a_guide_page_is_whole(path):
    cells = prose(path)
    text = "\n".join(cells)
    for heading in ("The symptom", "The cause", "The change", "What was measured", "When it does not help",
                    "What to watch"):
        assert f"## {heading}" in text, heading
    watch = next(cell for cell in cells if "## What to watch" in cell)
    assert set(re.findall(r"\*\*(.+?)\*\*", watch)) <= {metric.name for metric in METRIC_GUIDE.values()}
    assert set(re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", watch)) <= {rule.name for rule in RULES}
    assert re.search(r"\]\(\.\./\d\w+\.ipynb\)", watch), "no link to the part's notebook"


def test_every_page_is_in_the_navigation():
    site = (NBS.parent / "_quarto.yml").read_text(encoding="utf-8")
    for path in PAGES:
        assert f"- {path.relative_to(NBS)}\n" in site or f"href: {path.relative_to(NBS)}\n" in site, path


def test_the_pages_hold_commands_and_settings():
    assert sum(len(commands(path)) for path in PAGES) > 10 and sum(len(blocks(path, "toml")) for path in PAGES) >= 5


def test_the_home_page_and_the_navigation_list_every_notebook_in_order():
    rooms = sorted((path.name for path in NBS.glob("[0-9]*.ipynb")), key=lambda name: name.partition("_")[0])
    table = next(cell for cell in prose(NBS / "index.ipynb") if "| notebook |" in cell)
    assert re.findall(r"^\| \[\w+\]\((\w+\.ipynb)\) \| .{5,} \|$", table, flags=re.MULTILINE) == rooms
    assert re.findall(r"^ +- (\d\w+\.ipynb)$", (NBS.parent / "_quarto.yml").read_text(encoding="utf-8"), flags=re.MULTILINE) == rooms
