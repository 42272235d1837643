"""What the site is made of, without a browser: alt texts, what can be found, links to others, tutorials without a network."""
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
sys.path.insert(0, str(ROOT / "tools"))
import links  # noqa: E402
import pages  # noqa: E402

PAGE = """<html><head><title>Constraints – atomrl_nb</title></head><body><nav>Search</nav>
<main class="content" id="quarto-document-content"><h1>Constraints</h1><p>Read <code>BFGS</code> first.</p>
<section id="a_back"><h2>a_back <em>of a move</em></h2><p>The share.</p><table><tr><td><code id="td3.gamma">gamma</code></td><td>0.5</td></tr></table></section>
<img src="data:image/png;base64,">
<a href="https://github.com/o/r/blob/main/nbs/03_constraints.ipynb" class="toc-action">View source</a></main></body></html>"""


def code(path):
    """Return the code cells of a notebook."""
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", sorted(NBS.rglob("*.ipynb")), ids=lambda path: path.stem)
def test_a_cell_that_draws_a_figure_says_what_it_shows(path):
    for cell in code(path):
        drawn = any("image/png" in out.get("data", {}) for out in cell["outputs"])
        source = "".join(cell["source"])
        assert not drawn or re.search(r'^#\| fig-alt: "[^"]{20,}"$', source, re.MULTILINE), cell["id"]


@pytest.mark.parametrize("path", sorted((NBS / "tutorials").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_tutorial_fetches_nothing(path):
    for cell in code(path):
        assert not re.search(r"https?://|urlopen|urlretrieve|requests\.|!pip|!wget|!curl", "".join(cell["source"])), cell["id"]


@pytest.fixture
def site(tmp_path):
    """A site of one page."""
    (tmp_path / "constraints.html").write_text(PAGE, encoding="utf-8")
    return tmp_path


def test_sections_and_settings_are_found_by_their_places(site):
    assert pages.index_of(site) == [
        ["constraints.html", "Constraints", "", "Constraints", "Read BFGS first."],
        ["constraints.html", "Constraints", "a_back", "a_back of a move", "The share."],
        ["constraints.html", "Constraints", "td3.gamma", "td3.gamma", "gamma 0.5 View source"]]


def test_a_page_gets_links_to_others_and_to_its_notebook(site):
    text = pages.improve(PAGE.replace("<nav>", '<div class="collapse navbar-collapse">@version@<nav>'), site / "constraints.html", site, "1.2.3")
    assert f'<a href="{pages.OTHERS["BFGS"]}"><code>BFGS</code></a>' in text and "1.2.3" in text
    assert 'href="./notebooks/03_constraints.ipynb" class="toc-action" download' in text
    assert text.count('class="atomrl-search"') == 1 and 'src="./site.js"' in text
    assert pages.improve(text, site / "constraints.html", site, "").count(pages.OTHERS["BFGS"]) == 1


def test_a_figure_is_as_wide_as_its_letters_need():
    import io

    from matplotlib import pyplot as plt

    made = io.BytesIO()
    plt.figure(figsize=(5, 2)).savefig(made, dpi=160)
    plt.close()
    assert pages.inches(made.getvalue()) == pytest.approx(5, abs=0.02) and pages.inches(b"GIF89a") is None


def test_an_image_without_alt_text_is_a_fault(site):
    assert any("images without alt text: 1" in fault for fault in links.dead_links(site))
