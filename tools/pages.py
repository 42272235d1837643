"""What is done to the finished pages of the site, whichever program rendered them.

Every page gets a box for searching, a link to its notebook, and links from names of ASE, torch and e3nn to their pages.
"""
import base64
import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OTHERS = {  # names in prose -> where they are described
    "ase.Atoms": "https://ase-lib.org/ase/atoms.html#ase.Atoms",
    "Atoms": "https://ase-lib.org/ase/atoms.html#ase.Atoms",
    "BFGS": "https://ase-lib.org/ase/optimize.html#ase.optimize.BFGS",
    "ase.optimize.BFGS": "https://ase-lib.org/ase/optimize.html#ase.optimize.BFGS",
    "FIRE": "https://ase-lib.org/ase/optimize.html#ase.optimize.FIRE",
    "Filter": "https://ase-lib.org/ase/filters.html#ase.filters.Filter",
    "StrainFilter": "https://ase-lib.org/ase/filters.html#ase.filters.StrainFilter",
    "FrechetCellFilter": "https://ase-lib.org/ase/filters.html#ase.filters.FrechetCellFilter",
    "FixAtoms": "https://ase-lib.org/ase/constraints.html#ase.constraints.FixAtoms",
    "FixSymmetry": "https://ase-lib.org/ase/constraints.html#ase.constraints.FixSymmetry",
    "Trajectory": "https://ase-lib.org/ase/io/trajectory.html#ase.io.trajectory.Trajectory",
    "torch.Tensor": "https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor",
    "torch.save": "https://docs.pytorch.org/docs/stable/generated/torch.save.html",
    "torch.cat": "https://docs.pytorch.org/docs/stable/generated/torch.cat.html",
    "nn.Module": "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html",
    "e3nn.o3": "https://docs.e3nn.org/en/stable/api/o3/o3.html",
    "Irreps": "https://docs.e3nn.org/en/stable/api/o3/o3_irreps.html#e3nn.o3.Irreps",
    "o3.Irreps": "https://docs.e3nn.org/en/stable/api/o3/o3_irreps.html#e3nn.o3.Irreps",
}
NAMED = re.compile(r'(?<!">)<code>(' + "|".join(map(re.escape, OTHERS)) + r")</code>(?!</a>)")
BOX = ('<div class="atomrl-search"><input type="search" class="form-control form-control-sm" placeholder="Search" '
       'aria-label="Search" autocomplete="off"><div class="atomrl-found dropdown-menu"></div></div>')
SOURCE = re.compile(r'<a\b[^>]*href="[^"]*/blob/[^"]*?/nbs/(?P<path>[^"]+\.ipynb)"[^>]*>.*?</a>', re.DOTALL)
IMAGE = re.compile(r'<img\b(?P<before>[^>]*?)\bsrc="(?P<src>[^"]+)"(?P<after>[^>]*)>')
WIDE = 108  # pixels of the screen for an inch of a figure: its letters of 10 points are as large as those of a caption
LONGEST = 1500  # characters of a section that can be found
HEADINGS = ("h1", "h2", "h3", "h4")
SILENT = ("script", "style", "nav", "svg", "math")


class Sections(HTMLParser):
    """The sections of a page: where each begins, its heading and its text; a name with a place of its own is one, too."""

    def __init__(self, text):
        super().__init__()
        self.found, self.here, self.silent, self.head, self.inside = [], "", [], None, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Begin a section at a heading, and an entry at a named piece of code in a table."""
        attrs = dict(attrs)
        self.inside |= tag == "main"
        if tag in SILENT:
            self.silent.append(tag)
        if tag == "section":
            self.here = attrs.get("id") or self.here
        if tag in HEADINGS and self.inside:
            self.found.append([attrs.get("id") or attrs.get("data-anchor-id") or self.here, "", ""])
            self.head = tag
        elif tag == "code" and attrs.get("id"):  # a setting, whose whole name is its place
            self.found.append([attrs["id"], attrs["id"], ""])

    def handle_endtag(self, tag):
        """End a heading, or what is not read."""
        if self.silent and tag == self.silent[-1]:
            self.silent.pop()
        if tag == self.head:
            self.head = None
        self.inside &= tag != "main"

    def handle_data(self, data):
        """Add text to the heading or to the section."""
        if self.inside and self.found and not self.silent:
            part = 1 if self.head else 2
            self.found[-1][part] += data if self.head else f" {data}"


def index_of(site: Path):
    """Return what can be found: [page, its title, place on it, heading, text] for every section of every page."""
    entries = []
    for path in sorted(site.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        title = html.unescape(re.search(r"<title>(.*?)(?: – [^<]*)?</title>", text, re.DOTALL)[1])
        page = path.relative_to(site).as_posix()
        for number, (place, heading, said) in enumerate(Sections(text).found):
            heading = " ".join((heading if place else title).split())
            entries.append([page, title, place if number else "", heading, " ".join(said.split())[:LONGEST]])
    return [entry for entry in entries if entry[0] != "404.html"]


def inches(picture: bytes):
    """Return the width of a PNG that says how many dots it has on an inch; None for others."""
    at = picture.find(b"pHYs")
    if picture[:4] != b"\x89PNG" or at < 0:
        return None
    width, dots = int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[at + 4:at + 8], "big")  # dots on a metre
    return width / (dots * 0.0254)


def at_reading_size(found, path):
    """Write an image tag with the width at which the letters of a figure are read easily, however sharp the figure is."""
    src, rest = found["src"], re.sub(r'\s(width|height)="[^"]*"', "", found["before"] + found["after"])
    data = re.match(r"data:image/png;base64,(.*)", src, re.DOTALL)
    file = path.parent / src
    wide = inches(base64.b64decode(data[1]) if data else file.read_bytes() if file.suffix == ".png" else b"")
    return f'<img{rest} src="{src}" width="{wide * WIDE:.0f}">' if wide else found[0]


def improve(text, path, site: Path, version):
    """Add to one page the search box, the link to its notebook, links to others, the version, and the site's script."""
    up = os.path.relpath(site, path.parent)
    text = text.replace('<div class="collapse navbar-collapse"', BOX + '<div class="collapse navbar-collapse"', 1)
    text = NAMED.sub(lambda found: f'<a href="{OTHERS[found[1]]}">{found[0]}</a>', text)
    text = text.replace("@version@", version)
    text = IMAGE.sub(lambda found: at_reading_size(found, path), text)
    text = SOURCE.sub(lambda found: f'{found[0]}<a href="{up}/notebooks/{found["path"]}" class="toc-action" download>'
                                    '<i class="bi bi-download"></i> Download notebook</a>', text, count=1)
    return text.replace("</body>", f'<script src="{up}/site.js" data-up="{up}/"></script>\n</body>')


def from_anywhere(text, root):
    """Let the page of an error find its files from any address of the published site."""
    base = f'<script>if (location.protocol.startsWith("http")) document.write(\'<base href="{root}/">\')</script>'
    return text.replace("<head>", f"<head>{base}", 1)


def write_notebooks(site: Path):
    """Put the notebooks into the site, without outputs, to be opened in JupyterLab."""
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        relative = path.relative_to(ROOT / "nbs")
        if any(part.startswith(".") for part in relative.parts):
            continue
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell |= {"outputs": []} if cell["cell_type"] == "code" else {}
        target = site / "notebooks" / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")


def write_search(site: Path):
    """Write the index as a script, which a browser also loads for pages that are opened as files."""
    index = json.dumps(index_of(site), ensure_ascii=False, separators=(",", ":"))
    (site / "search.js").write_text(f"window.atomrlIndex = {index};\n", encoding="utf-8")
