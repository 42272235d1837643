"""Check the rhythm of the notebooks: say, export a little, show or test it at once; nothing too wide or too long to read."""
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "atomrl_nb"
WIDEST = 120  # characters of a line of code: two of them fit side by side on a screen
LONGEST_MODULE = 600  # lines: what a reader can keep apart in one room
LONGEST_CELL = 111  # lines of code: today's longest, a script for the browser, then classes; they may shrink, not grow
IN_A_ROW = 11  # exported cells before one that shows or tests them: today's most, and they may become fewer, not more
EXPORTED = re.compile(r"#\s*\|\s*exporti?\s*$", re.MULTILINE)
DIRECTIVE = re.compile(r"\s*#\s*\|")
HIDDEN = re.compile(r"#\s*\|\s*hide\s*$|nbdev_export\(\)|#\s*\|\s*default_exp", re.MULTILINE)


def notebooks():
    """Return the notebooks that are in git: what others will read."""
    listed = subprocess.run(["git", "ls-files", "nbs/*.ipynb"], cwd=ROOT, check=True, capture_output=True,
                            text=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).exists()]


def cells_of(path):
    """Return the (kind, source) of a notebook's cells; kinds are markdown, code, export and hidden."""
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        kind = cell["cell_type"]
        if kind == "code":
            kind = "export" if EXPORTED.search(source) else "hidden" if HIDDEN.search(source) else "code"
        found.append((kind, source))
    return found


def code_lines(source):
    """Return the lines of a cell without directives."""
    return [line for line in source.strip().splitlines() if not DIRECTIVE.match(line)]


def only_names(source):
    """Tell whether an exported cell has nothing to show: imports and constants alone."""
    return not re.search(r"^(\s*def|class) ", source, re.MULTILINE)


def too_wide(name, cells):
    """Yield a sentence for each line of code that is too wide."""
    for number, (kind, source) in enumerate(cells):
        for line in source.splitlines() if kind in ("code", "export", "hidden") else ():
            if len(line) > WIDEST:
                yield f"{name}, cell {number}: a line has {len(line)} characters, and {WIDEST} are the most: {line.strip()[:60]}..."


def too_long(name, cells):
    """Yield a sentence for each exported cell that is too long."""
    for number, (kind, source) in enumerate(cells):
        lines = code_lines(source)
        if kind == "export" and len(lines) > LONGEST_CELL:
            yield f"{name}, cell {number}: {len(lines)} lines are exported at once, and {LONGEST_CELL} are the most: {lines[0].strip()[:60]}"


def not_shown(name, cells):
    """Yield a sentence for each row of exported cells in which nothing is shown or tested for too long."""
    row = []
    for number, (kind, source) in enumerate([*cells, ("code", "")]):
        if kind == "export" and not only_names(source):
            row.append(number)
        if kind == "code":
            last = number == len(cells)  # the notebook ends, and nothing has shown them
            if len(row) > IN_A_ROW or row and last:
                end = "before the notebook ends" if last else f"before one shows or tests them, and {IN_A_ROW} are the most"
                yield f"{name}, cells {row[0]} to {row[-1]}: {len(row)} exported cells follow one another {end}"
            row = []


def problems(paths):
    """Yield a sentence for everything that breaks the rhythm of some notebooks."""
    for path in paths:
        name, cells = path.name, cells_of(path)
        for rule in (too_wide, too_long, not_shown):
            yield from rule(name, cells)


def long_modules(folder=ROOT / PACKAGE):
    """Yield a sentence for each module that is too long."""
    for path in sorted(folder.glob("[!_]*.py")):
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > LONGEST_MODULE:
            yield f"{path.name} has {length} lines, and {LONGEST_MODULE} are the most: part it into the rooms that it holds"


def summary(paths):
    """Return a sentence on how long exported cells are, with the longest one."""
    lengths = [(len(code_lines(source)), path.name) for path in paths for kind, source in cells_of(path)
               if kind == "export"]
    longest, name = max(lengths)
    short = sum(length <= 15 for length, _ in lengths)
    return (f"{len(lengths)} exported cells: {100 * short // len(lengths)} % have 15 lines or less, "
            f"the longest {longest} ({name}).")


if __name__ == "__main__":
    found = [*problems(notebooks()), *long_modules()]
    print("\n".join([*found, summary(notebooks())]))
    sys.exit(bool(found))
