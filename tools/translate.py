"""Keep the Chinese pages of the guide (nbs/zh/) in step with the English ones (nbs/guide/).

    translate.py             copy code cells and their outputs from the English pages; new prose comes along in English
    translate.py --check     say where a Chinese page differs from its English page
    translate.py --accept    note that the Chinese prose says what the English prose says today

Chinese pages are not run: their figures and numbers are those of the English pages. Cells belong together by their id.
`words.json` has the Chinese for what cells print; each `#` in its keys is a number, and `{0}` is the first of them.
"""
import argparse
import copy
import hashlib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SWITCH = "1a460000"  # id of the cell that links a page with its counterpart
LINKS = {"guide": "[中文](../zh/{})", "zh": "[English](../guide/{})（图中文字与代码为英文；图和数字与英文页相同。）"}
ENGLISH = re.compile(r"[A-Za-z]{2,} [A-Za-z]{2,} [A-Za-z]{2,}")  # three words in a row
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
KEPT = re.compile(r"`[^`\n]+`|\]\([^)\s]*\)|" + NUMBER.pattern)  # what prose keeps in every language: names, links, numbers


def read(path):
    """Read a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    """Return the text of a cell."""
    return "".join(cell["source"])


def digest(cell):
    """Return a short mark of what a cell says."""
    return hashlib.sha256(source(cell).encode()).hexdigest()[:8]


class Words:
    """Chinese for what cells print."""

    def __init__(self, words):
        self.words, self.missing = words, []

    def phrase(self, text):
        """Translate one table cell or line, or its parts; numbers stay as they are, and what is not known stays English."""
        key, numbers = NUMBER.sub("#", text), NUMBER.findall(text)
        if key in self.words:
            return self.words[key].format(*numbers)
        if ", " in text:
            return "，".join(map(self.phrase, text.split(", ")))
        if re.search("[A-Za-z]{3}", re.sub("`[^`]*`", "", text)):
            self.missing.append(key)
        return text

    def line(self, text):
        """Translate a line, which may be a row of a table or bold."""
        parts = re.split(r"(\s*\|\s*|\*\*|\n)", text)
        return "".join(part if number % 2 or not part else self.phrase(part) for number, part in enumerate(parts))

    def outputs(self, outputs):
        """Translate the Markdown and the printed text among the outputs of a cell."""
        outputs = copy.deepcopy(outputs)
        for out in outputs:
            for holder, kind in ((out, "text"), (out.get("data", {}), "text/markdown")):
                if kind in holder:
                    holder[kind] = [self.line(line) for line in "".join(holder[kind]).splitlines(keepends=True)]
        return outputs


def translated(english, chinese, words, name):
    """Return the Chinese page with code, outputs and order of the English one."""
    prose = {cell["id"]: cell for cell in chinese["cells"] if cell["cell_type"] == "markdown"}
    cells = []
    for cell in copy.deepcopy(english["cells"]):
        if cell["cell_type"] == "code":
            cell["outputs"] = words.outputs(cell["outputs"])
        elif cell["id"] == SWITCH:
            cell["source"] = [LINKS["zh"].format(name)]
        else:
            cell = prose.get(cell["id"], cell)
        cells.append(cell)
    return english | {"cells": cells}


def differences(english, chinese, words, accepted, name):
    """Yield a sentence for each way in which a Chinese page is not the English one in Chinese."""
    if [cell["id"] for cell in english["cells"]] != [cell["id"] for cell in chinese["cells"]]:
        yield f"nbs/zh/{name} has other cells than the English page: run `python tools/translate.py`."
        return
    for old, new in zip(english["cells"], chinese["cells"]):
        where = f"nbs/zh/{name}, cell {old['id']}"
        if old["cell_type"] == "code":
            if source(old) != source(new) or words.outputs(old["outputs"]) != new["outputs"]:
                yield f"{where}: code or output is not that of the English page: run `python tools/translate.py`."
        elif old["id"] == SWITCH:
            if (source(old), source(new)) != (LINKS["guide"].format(name), LINKS["zh"].format(name)):
                yield f"{where}: the link to the page in the other language is missing."
        else:
            yield from prose_differences(old, new, accepted, where)


def prose_differences(old, new, accepted, where):
    """Yield what is wrong with the translation of one Markdown cell."""
    a, b = (sorted(KEPT.findall(source(cell))) for cell in (old, new))
    if a != b:
        only = [", ".join(dict.fromkeys(x for x in one if one.count(x) > other.count(x))) for one, other in ((a, b), (b, a))]
        yield f"{where}: numbers, names or links differ: English has {only[0] or 'none'} more, Chinese {only[1] or 'none'}."
    if accepted.get(old["id"]) != digest(old):
        yield (f"{where}: the English has changed since it was translated. Translate it anew, "
               "then run `python tools/translate.py --accept`.")


class Pages:
    """The pages in both languages."""

    def __init__(self, nbs=ROOT / "nbs"):
        self.guide, self.zh = nbs / "guide", nbs / "zh"
        self.words = Words(self.load("words.json"))
        self.names = sorted(path.name for path in self.guide.glob("*.ipynb"))

    def load(self, name):
        """Read a table beside the Chinese pages."""
        path = self.zh / name
        return read(path) if path.exists() else {}

    def save(self, name, made):
        """Write a notebook or a table beside the Chinese pages."""
        (self.zh / name).write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def problems(self):
        """Yield a sentence for each fault of the Chinese pages."""
        accepted = self.load("translated.json")
        for name in sorted({path.name for path in self.zh.glob("*.ipynb")} - set(self.names)):
            yield f"nbs/zh/{name} has no English page."
        for name in self.names:
            if not (self.zh / name).exists():
                yield f"nbs/guide/{name} has no Chinese page: run `python tools/translate.py`, and translate its prose."
                continue
            pair = read(self.guide / name), read(self.zh / name)
            yield from differences(*pair, self.words, accepted.get(name, {}), name)

    def copy(self):
        """Copy code and outputs into the Chinese pages."""
        for name in self.names:
            chinese = read(self.zh / name) if (self.zh / name).exists() else {"cells": []}
            self.save(name, translated(read(self.guide / name), chinese, self.words, name))

    def accept(self):
        """Note for each Markdown cell which English text it is the translation of; what is English still is not noted."""
        marks = {}
        for name in self.names:
            chinese = {cell["id"]: source(cell) for cell in read(self.zh / name)["cells"]}
            marks[name] = {cell["id"]: digest(cell) for cell in read(self.guide / name)["cells"]
                           if cell["cell_type"] == "markdown" and cell["id"] != SWITCH
                           and (chinese.get(cell["id"]) != source(cell) or not ENGLISH.search(source(cell)))}
        self.save("translated.json", marks)


def main():
    """Copy, check or accept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say where a Chinese page differs from its English page")
    parser.add_argument("--accept", action="store_true", help="note that the prose is translated as it is now")
    args, pages = parser.parse_args(), Pages()
    if args.accept:
        pages.accept()
    if not args.check:
        pages.copy()
    found = list(pages.problems())
    print("\n".join(found + [f"left in English: {text}" for text in dict.fromkeys(pages.words.missing) if not args.check]))
    return len(found) > 0


if __name__ == "__main__":
    sys.exit(main())
