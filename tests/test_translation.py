"""The Chinese pages are the guide's pages: the same cells, numbers, names and links."""
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import translate  # noqa: E402

sys.path.pop(0)

NAME = "03_memory.ipynb"


def test_every_page_of_the_guide_has_its_chinese_page():
    assert list(translate.Pages().problems()) == []


def test_chinese_pages_are_not_run_and_say_their_language():
    for path in (ROOT / "nbs" / "zh").glob("*.ipynb"):
        title = translate.source(translate.read(path)["cells"][0])
        assert title.endswith("- lang: zh\n- skip_exec: true\n- skip_showdoc: true"), path.name


def test_the_guide_is_quoted_alike_in_both_languages():
    for name in translate.Pages().names:
        quotes = [[line for cell in translate.read(ROOT / "nbs" / folder / name)["cells"] for line in translate.source(cell).splitlines()
                   if cell["id"].startswith("5a75") and line.startswith(">")] for folder in ("guide", "zh")]
        assert quotes[0] == quotes[1] and quotes[0], name


@pytest.fixture
def pages(tmp_path):
    """Two pages with a cell of code and a cell of prose, and their translations."""
    for folder, prose in (("guide", "Five of `nfake`, 12.5 %"), ("zh", "`nfake` 有五个，12.5 %")):
        (tmp_path / folder).mkdir()
        for name in ("a.ipynb", "b.ipynb"):
            cells = [dict(cell_type="markdown", id=translate.SWITCH, metadata={}, source=[translate.LINKS[folder].format(name)]),
                     dict(cell_type="markdown", id="p", metadata={}, source=[prose]),
                     dict(cell_type="code", id="c", execution_count=None, metadata={}, source=["print(3)"],
                          outputs=[dict(output_type="stream", name="stdout", text=["3 seeds\n"])])]
            (tmp_path / folder / name).write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    (tmp_path / "zh" / "words.json").write_text('{"# seeds": "{0} 个种子"}')
    made = translate.Pages(tmp_path)
    made.accept()
    made.copy()
    assert list(made.problems()) == []
    return made


def change(path, cell, **values):
    """Change one cell of a notebook."""
    page = translate.read(path)
    page["cells"][cell].update(values)
    path.write_text(json.dumps(page))


@pytest.mark.parametrize("folder, cell, values, said", [
    ("zh", 1, dict(source=["`nfake` 有五个，12.6 %"]), "English has 12.5 more, Chinese 12.6"),
    ("zh", 1, dict(source=["有五个，12.5 %"]), "English has `nfake` more, Chinese none"),
    ("guide", 1, dict(source=["Four of `nfake`, 12.5 %"]), "the English has changed since it was translated"),
    ("zh", 2, dict(source=["print(4)"]), "code or output is not that of the English page"),
    ("guide", 2, dict(outputs=[]), "code or output is not that of the English page"),
    ("zh", 0, dict(source=[""]), "the link to the page in the other language is missing"),
    ("zh", 1, dict(id="q"), "has other cells than the English page")])
def test_a_difference_is_a_sentence(pages, folder, cell, values, said):
    change(getattr(pages, folder) / "a.ipynb", cell, **values)
    found, = pages.problems()
    assert said in found and "nbs/zh/a.ipynb" in found


def test_a_page_without_its_counterpart_is_named(pages):
    (pages.zh / "a.ipynb").unlink()
    (pages.guide / "b.ipynb").unlink()
    assert [text.partition(":")[0] for text in translate.Pages(pages.zh.parent).problems()] == [
        "nbs/zh/b.ipynb has no English page.", "nbs/guide/a.ipynb has no Chinese page"]


def test_outputs_are_copied_with_their_numbers_and_prose_stays(pages):
    change(pages.guide / "a.ipynb", 2, source=["print(4)"], outputs=[dict(output_type="stream", name="stdout", text=["4 seeds, 5 new\n"])])
    pages.copy()
    cells = translate.read(pages.zh / "a.ipynb")["cells"]
    assert cells[2]["outputs"][0]["text"] == ["4 个种子，5 new\n"] and pages.words.missing == ["# new"]
    assert translate.source(cells[1]) == "`nfake` 有五个，12.5 %" and list(pages.problems()) == []


def test_a_new_cell_comes_along_in_english_and_is_asked_for(pages):
    page = translate.read(pages.guide / "a.ipynb")
    page["cells"].append(dict(cell_type="markdown", id="new", metadata={}, source=["New."]))
    (pages.guide / "a.ipynb").write_text(json.dumps(page))
    pages.copy()
    assert translate.source(translate.read(pages.zh / "a.ipynb")["cells"][-1]) == "New."
    found, = pages.problems()
    assert "cell new" in found and "Translate it anew" in found
