"""Stubs say what the modules say, and notebooks keep their rhythm."""
import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import rhythm  # noqa: E402
import stubs  # noqa: E402

sys.path.pop(0)

SOURCE = '''"""A module."""
__all__ = ["Shape", "Pair", "Size", "area"]
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from fastcore.basics import patch

LIMIT = 2.5  # Å: no more
FIRST, SECOND = "a", (1, 2)
Numbers = list[float] | np.ndarray
_HIDDEN = 3

class Shape:
    "A shape."
    corners: int  # how many
    def __init__(
        self,
        size: float = math.inf,  # of an edge [Å]
        names: Numbers = [1.0],
    ):
        self.size, self.name = size, ""
        self._own = 1

@patch
def grow(
    self: Shape,
    by: float = 1.5,  # factor
    *,
    often: int = LIMIT,
) -> Shape:  # the larger one
    "Make it larger."
    return self

@patch(as_prop=True)
def double(self: Shape) -> float: return 2 * self.size

@patch(cls_method=True)
def unit(cls: Shape) -> Shape: return cls(1.0)

@patch(static_method=True)
def count(shape: Shape, more: int = 0) -> int: return more

@patch
def _secret(self: Shape): pass

@dataclass(frozen=True)
class Size:
    "Edges."
    width: float  # [Å]
    height: float = np.pi  # [Å]
    names: list = field(default_factory=list)
    made: Any = field(init=False, default=None)
    least: str = "n"
    UNIT = "Å"

class Pair(NamedTuple):
    "Two."
    first: int  # the lower one
    second: int = 2

@contextmanager
def held() -> Iterator[None]:
    yield

@lru_cache(maxsize=None)
def area(
    width: float,  # [Å]
    height: float = 1.0,
    unit: str = r"\\A",  # "Å" or \\n
) -> float:  # [Å²]
    return width * height

def _helper(): return 1
'''


@pytest.fixture(scope="module")
def parts():
    """Return {name: node} of the stub of `SOURCE`, and of its methods as `Class.name`."""
    tree = ast.parse(stubs.Module(SOURCE).stub())
    found = {n.name: n for n in tree.body if hasattr(n, "name")}
    return found | {f"{n.name}.{m.name}": m for n in tree.body if isinstance(n, ast.ClassDef) for m in n.body if hasattr(m, "name")}


def lines(parts, name):
    """Return the lines of one part of the stub."""
    return ast.unparse(parts[name]).splitlines()


def test_a_stub_has_patched_methods_where_they_belong(parts):
    assert ast.unparse(parts["Shape.grow"].args) == "self, by: float=1.5, *, often: int=..." and "grow" not in parts
    assert ast.get_docstring(parts["Shape.grow"]) == "Make it larger.\n\nby: factor\nreturns: the larger one"
    assert lines(parts, "Shape.double")[:2] == ["@property", "def double(self) -> float:"]
    assert lines(parts, "Shape.unit")[:2] == ["@classmethod", "def unit(cls) -> Shape:"]
    assert lines(parts, "Shape.count")[:2] == ["@staticmethod", "def count(shape: Shape, more: int=0) -> int:"]
    assert not [name for name in parts if "_secret" in name or "_helper" in name]


def test_a_stub_has_fields_and_what_comments_say_of_them(parts):
    assert {"corners: int", "size: float", "name: str"} <= {line.strip() for line in lines(parts, "Shape")}
    assert not any("_own" in line for line in lines(parts, "Shape"))
    assert ast.get_docstring(parts["Shape"]) == "A shape.\n\ncorners: how many"
    assert ast.get_docstring(parts["Shape.__init__"]) == "size: of an edge [Å]"
    assert ast.unparse(parts["Shape.__init__"].args) == "self, size: float=..., names: Numbers=[1.0]"
    fields = [line.strip() for line in lines(parts, "Size") if ":" in line]
    assert fields[-6:] == ["width: float", "height: float = ...", "names: list = ...", "made: Any = field(init=False, default=...)",
                           "least: str = 'n'", "UNIT: ClassVar[str]"]
    assert lines(parts, "Pair")[-2:] == ["    first: int", "    second: int = 2"] and "class Pair(NamedTuple):" in lines(parts, "Pair")


def test_a_stub_has_functions_constants_and_the_imports_that_it_needs(parts):
    text = stubs.Module(SOURCE).stub()
    assert ast.get_docstring(parts["area"]) == 'width: [Å]\nunit: "Å" or \\n\nreturns: [Å²]'
    assert lines(parts, "area")[0] == r"def area(width: float, height: float=1.0, unit: str='\\A') -> float:"
    assert lines(parts, "held")[0] == "@contextmanager"
    assert "LIMIT: float  # Å: no more" in text and "FIRST: str" in text and "SECOND: tuple[int, ...]" in text
    assert "Numbers = list[float] | np.ndarray" in text and "_HIDDEN" not in text
    assert "import numpy as np" in text and "lru_cache" not in text and "import math" not in text and "import patch" not in text


def test_a_stub_is_read_without_an_error(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "made.pyi").write_text(stubs.Module(SOURCE).stub(), encoding="utf-8")
    (tmp_path / "used.py").write_text("from made import Pair, Shape, Size, area\nx: float = Shape.unit().grow(2.0).double + area(1.0)\n"
                                      "Size(1.0, least='m')\nPair(1).first\nShape().shrink()  # type: ignore[attr-defined]\n"
                                      "Size(1.0, UNIT='m')  # type: ignore[call-arg]\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir",
                           str(ROOT / ".mypy_cache"), "made.pyi", "used.py"], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_stubs_of_modules_that_are_gone_go(tmp_path):
    (tmp_path / "new.py").write_text("def f(): return 1\n")
    (tmp_path / "_modidx.py").write_text("d = {}\n")
    (tmp_path / "old.pyi").write_text("")
    stubs.write(tmp_path)
    assert [path.name for path in tmp_path.glob("*.pyi")] == ["new.pyi"]


def test_help_shows_what_comments_say():
    from pydoc import plain, render_doc

    from atomrl_nb._docs import DOCS
    from atomrl_nb.optimizer import RLOptimizer
    from atomrl_nb.settings import Settings
    from atomrl_nb.training import resume

    assert "maxstep: no atom moves farther in a step [Å]" in plain(render_doc(RLOptimizer))
    assert "batch_size: transitions an update" in plain(render_doc(Settings))
    assert "steps: total of environment steps to reach" in plain(render_doc(resume))
    for name, docs in DOCS.items():
        module = importlib.import_module(f"atomrl_nb.{name}")
        for path, text in docs.items():
            assert inspect.getdoc(attrgetter(path)(module)) == inspect.cleandoc(text), f"{name}.{path}"


def test_names_that_are_gone_keep_no_module_from_being_imported():
    code = ("from atomrl_nb._docs import DOCS; DOCS['files'] = {'gone': 'x', 'Gone.too': 'x', 'NAMES.gone': 'x', 'COUNTS': 'x'}\n"
            "import atomrl_nb.files")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_every_method_of_every_class_is_in_its_stub():
    for path in stubs.modules():
        module, text = stubs.Module(path.read_text(encoding="utf-8")), path.with_suffix(".pyi").read_text(encoding="utf-8")
        shown = {n.name: {m.name for m in n.body if hasattr(m, "name")} for n in ast.parse(text).body if isinstance(n, ast.ClassDef)}
        for name, methods in module.patched.items():
            assert {m.name for m in methods if not stubs.private(m.name)} <= shown.get(name, set()), f"{path.name}: {name}"


def notebook(*cells):
    """Return (kind, source) of cells: prose begins with "%", exported code with "|"."""
    kinds = {"%": "markdown", "|": "export"}
    return [(kinds.get(text[0], "code"), text.lstrip("%|")) for text in cells]


@pytest.mark.parametrize("rule, good, bad", [
    (rhythm.too_wide, ["|x = 1" + " " * 115, "%" + "word " * 100], ["y = 1" + " " * 116]),
    (rhythm.too_long, ["|#| export\n" + "x = 1\n" * rhythm.LONGEST_CELL, "x = 1\n" * 999],
     ["|" + "x = 1\n" * (rhythm.LONGEST_CELL + 1)]),
    (rhythm.not_shown, ["|def f(): pass", "%prose", "|def g(): pass", "f()"], ["|def f(): pass", "%prose"]),
    (rhythm.not_shown, [*["|def f(): pass"] * rhythm.IN_A_ROW, "|import math", "f()"], [*["|def f(): pass"] * (rhythm.IN_A_ROW + 1), "f()"]),
])
def test_the_rhythm_is_kept_or_a_sentence_says_where_not(rule, good, bad):
    assert not list(rule("n.ipynb", notebook(*good)))
    found, = rule("n.ipynb", notebook(*bad))
    assert found.startswith("n.ipynb, cell")


def test_exported_and_hidden_cells_are_known(tmp_path):
    import json
    cells = [("markdown", "# T"), ("code", "#| export\nx = 1"), ("code", "#| hide\n#| export\ny = 1"), ("code", "#| hide\nx"), ("code", "x")]
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": [dict(cell_type=kind, source=[text]) for kind, text in cells]}))
    assert [kind for kind, _ in rhythm.cells_of(path)] == ["markdown", "export", "export", "hidden", "code"]


def test_a_long_module_is_named(tmp_path):
    (tmp_path / "long.py").write_text("\n" * 601)
    (tmp_path / "_modidx.py").write_text("\n" * 900)
    (tmp_path / "short.py").write_text("\n" * 600)
    found, = rhythm.long_modules(tmp_path)
    assert found.startswith("long.py has 601 lines")


def markdown_of(path):
    """Yield the Markdown that a notebook says and prints."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            yield cell["id"], "".join(cell["source"])
        for out in cell.get("outputs", []):
            yield cell["id"], "".join(out.get("data", {}).get("text/markdown", ""))


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(path):
    for name, text in markdown_of(path):
        for table in re.findall(r"(?:^\|.*\|$\n?){2,}", text, flags=re.MULTILINE):
            counts = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
            assert len(set(counts)) == 1, (name, table.splitlines()[counts.index(max(counts))])
