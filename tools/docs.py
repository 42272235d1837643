"""Build the site into _docs/ and check it: with Quarto where it is installed, else in Python alone.

nbdev turns the notebooks into pages (_proc/); Quarto or smalldocs renders them as `_quarto.yml` says.
Nothing is downloaded, and no page loads anything from the network.
"""
import ast
import html
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import is_dataclass
from pathlib import Path

from links import Page, dead_links
from pages import from_anywhere, improve, write_notebooks, write_search
from readme import link_own_names

ROOT = Path(__file__).resolve().parents[1]
DOCS, PAGES = ROOT / "_docs", ROOT / "_proc"
MATH = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.DOTALL)
VIEW = '<div class="atomrl-view">'
LONG = 60  # characters of a default that a signature shows
ADDRESS = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")
# what smalldocs leaves out and this script does, or cannot read and does of itself
HANDLED = ("output-file", "html-math-method", "broken link", "respect-user-color-scheme")
REMOTE_TAG = re.compile(r'<(?:link|script)\b[^>]*(?:href|src)="https?:[^">]*(?:katex|require|jquery|mathjax|polyfill)'
                        r'[^">]*"[^>]*>(?:</script>)?', re.IGNORECASE)
SWITCH = re.compile(r'href="[^"]*"(?=[^<>]*>(?:<span[^>]*>)?English \| 中文)')
OTHER = {"guide": "zh", "zh": "guide"}  # folders of the same pages in two languages
REMOTE_FONT = re.compile(r'@import\s+(?:url\(["\']?https?:[^)]*\)|"https?:[^"]*"|\'https?:[^\']*\')[^;]*;')


def brief(shown):
    """Wrap a function that writes a default of a parameter: what is long is named, and not written out."""
    def written(default):
        """Write a default."""
        text = ADDRESS.sub("…", shown(default))
        return text if len(text) <= LONG else f"{type(default).__name__}(…)"
    return written


def comments():
    """Return {class or function: {field or parameter: the comment beside it}}, as `tools/stubs.py` wrote them."""
    from atomrl_nb._docs import DOCS

    texts = {name: text for module in DOCS.values() for name, text in module.items()}
    return {name: dict(line.split(": ", 1) for line in text.splitlines() if ": " in line) for name, text in texts.items()}


def starred(parameters):
    """Return parameters in which any number of arguments has its stars, and not the name of its kind as a type."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    kinds = {name: one["anno"] for name, one in parameters.items() if isinstance(one["anno"], type(inspect.Parameter.VAR_KEYWORD))}
    return type(parameters)({stars.get(kinds.get(name), "") + name: {**one, "anno": inspect.Parameter.empty} if name in kinds else one
                             for name, one in parameters.items()})


def show_fields():
    """Let a signature on a page name the fields of a dataclass or named tuple, with the comments beside them."""
    from fastcore import docments

    said, begin = comments(), docments._DocmentBase.__init__

    def begun(self, obj):
        """Read a class by its fields: a notebook's class has no file in which its comments could be found."""
        begin(self, obj)
        if inspect.isclass(obj) and (is_dataclass(obj) or hasattr(obj, "_fields")):
            mine = said.get(obj.__name__, {})
            self.dm = {name: dict(docment=mine.get(name), anno=one.annotation, default=one.default)
                       for name, one in inspect.signature(obj).parameters.items()}
        self.dm = starred(self.dm)
        for one in self.dm.values():  # nbdev would make links of names in backticks, and show the links' text
            one["docment"] = one["docment"] and one["docment"].replace("`", "")

    docments._DocmentBase.__init__ = begun
    docments._fmt_default = brief(docments._fmt_default)


def write_pages():
    """Turn the notebooks into the pages under _proc/, as `nbdev_proc_nbs` does with Quarto at hand."""
    import nbdev.processors
    import nbdev.serve
    from nbdev.quarto import refresh_quarto_yml

    def forked(*args, **options):
        """Work on pages side by side, in processes that know what is changed here."""
        return parallel(*args, **{**options, "method": "fork"})

    parallel, nbdev.serve.parallel = nbdev.serve.parallel, forked
    nbdev_runs, names = nbdev.processors._do_eval, nbdev.processors._def_names

    def runs(cell):
        """Choose the cells to run for the reference: exports, imports and `show_doc`, but no demo with an import."""
        imports = all(isinstance(line, (ast.Import, ast.ImportFrom)) for line in cell.parsed_() or [])
        return (imports or "show_doc(" in cell.source or "export" in cell.directives_) and nbdev_runs(cell)

    nbdev.processors._do_eval = runs
    nbdev.processors._def_names = lambda *args: names(*args)[::-1]  # each is put before the last one: in the page's order
    show_fields()
    link_own_names()
    from atomrl_nb._docs import DOCS

    DOCS.clear()  # the pages have the parameters in tables
    refresh_quarto_yml()
    nbdev.serve.proc_nbs(force=True, n_workers=2)


def render_with_quarto():
    """Render _proc/ with Quarto; return the folder of the site."""
    subprocess.run(["quarto", "render", "--no-cache"], cwd=PAGES, check=True)
    return PAGES / DOCS.name


def render_with_smalldocs():
    """Render _proc/ with smalldocs, under Quarto's file names; return the folder of the site."""
    import smalldocs.config
    import smalldocs.site

    class Site(smalldocs.site.Site):
        """A site whose pages have the names that nbdev gives them, such as `graphs.html` for `01_graphs.ipynb`."""

        def read(self, src):
            """Read a page and name it."""
            page = super().read(src)
            page.out = page.out.with_name(page.front.get("output-file", page.out.name))
            return page

    site = Site(smalldocs.config.load(PAGES), quiet=True)
    site.build()
    for warning in site.warnings:
        if not any(known in warning for known in HANDLED):
            print(f"smalldocs: {warning}")
    return site.out


def mathml(match):
    """Return a formula that smalldocs left as TeX as MathML, which browsers draw without help."""
    from latex2mathml.converter import convert

    tex = html.unescape(match[2]).replace("{aligned}", "{align*}")  # the spelling that latex2mathml knows
    math = convert(tex, display="block" if match[1] == "display" else "inline")
    return math.replace('<mo accent="true">&#x02015;</mo>', '<mo class="overline"></mo>')  # styles.css draws it


def finish():
    """Make the pages independent of the network: formulas, fonts and scripts, links to the published site."""
    from nbdev.config import get_config

    cfg = get_config()
    published = re.compile(f'href="{cfg.doc_host}{cfg.doc_baseurl}/(?P<page>[^"#]*)(?:#(?P<name>[^"]*))?"')
    anchors = {path: Page(path).anchors for path in DOCS.rglob("*.html")}
    for path in anchors:
        def relative(found, path=path):
            """Write a link as seen from `path`; a method without a place of its own is found at its class."""
            target, name = DOCS / found["page"], found["name"] or ""
            if name not in anchors.get(target, {name}):
                name = name.rpartition(".")[0]
            return f'href="{os.path.relpath(target, path.parent)}{"#" + name if name else ""}"'

        text = published.sub(relative, REMOTE_TAG.sub("", path.read_text(encoding="utf-8")))
        text = MATH.sub(mathml, text).replace('<code class="sourceCode python">\n', '<code class="sourceCode python">')
        if path.parent.name in OTHER:  # the navigation's switch leads to the same page in the other language
            text = SWITCH.sub(f'href="../{OTHER[path.parent.name]}/{path.name}"', text)
        if VIEW in text:
            scripts = [os.path.relpath(DOCS / "ngl" / name, path.parent) for name in ("ngl.js", "view.js")]
            text = text.replace("</body>", "".join(f'<script src="{src}"></script>\n' for src in scripts) + "</body>")
        text = improve(text, path, DOCS, cfg.version)
        path.write_text(from_anywhere(text, cfg.doc_baseurl) if path.name == "404.html" else text, encoding="utf-8")
    for path in DOCS.rglob("*.css"):
        path.write_text(REMOTE_FONT.sub("", path.read_text(encoding="utf-8")), encoding="utf-8")


def add_scripts():
    """Put NGL and the script that draws 3-D views into the site, once for all pages, and the script for searching."""
    from atomrl_nb.view import page_script

    shutil.copy(ROOT / "nbs" / "site.js", DOCS)
    shutil.copytree(ROOT / "nbs" / "ngl", DOCS / "ngl", dirs_exist_ok=True)
    (DOCS / "ngl" / "view.js").write_text(page_script(), encoding="utf-8")


def lost_text():
    """Yield a sentence for every title cell that says more than a title and a description: nbdev drops the rest."""
    from nbdev.doclinks import nbglob

    for path in sorted(nbglob(ROOT / "nbs", as_path=True)):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title = next((cell["source"] for cell in cells
                      if cell["cell_type"] == "markdown" and "".join(cell["source"]).startswith("# ")), [])
        if any(line.strip() and not re.match(r"# |> |- \S+:", line) for line in title):
            yield (f"{path.relative_to(ROOT)}: the site drops the text below the # title and the > line; "
                   "move it into a cell of its own")


def same_page():
    """Yield a sentence for each page that two notebooks would be written to: nbdev drops the number before a name."""
    from nbdev.doclinks import nbglob

    taken = {}
    for path in sorted(nbglob(ROOT / "nbs", as_path=True)):
        page = path.with_name(re.sub(r"^\d+[a-zA-Z]?_", "", path.stem) + ".html")
        if page in taken:
            yield f"{path.relative_to(ROOT)} and {taken[page]} would be the same page: rename one"
        taken[page] = path.name


def main():
    """Build the site, then check it."""
    start = time.time()
    write_pages()
    with_quarto = shutil.which("quarto")
    built = render_with_quarto() if with_quarto else render_with_smalldocs()
    shutil.rmtree(DOCS, ignore_errors=True)
    shutil.move(built, DOCS)
    add_scripts()
    write_notebooks(DOCS)
    finish()
    write_search(DOCS)
    problems = [*same_page(), *lost_text(), *dead_links(DOCS)]
    print("\n".join(problems), end="\n" if problems else "")
    print(f"{len(list(DOCS.rglob('*.html')))} pages in {DOCS.name}/, {len(problems)} problems, "
          f"{time.time() - start:.0f} s, rendered by {'Quarto' if with_quarto else 'smalldocs'}")
    return len(problems) > 0


if __name__ == "__main__":
    sys.exit(main())
