"""Write README.md from nbs/index.ipynb; with `--check`, only say whether it is current."""
import posixpath
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINKED_OR_NAMED = re.compile(r"\[[^\]\[]*\]\([^)]*\)|`([^`\s]+?)(?:\(\))?`")  # a whole link, or a name in backticks


def link_own_names():
    """Make nbdev link the names of this package, installed or not, and of no other."""
    import nbdev.doclinks

    sys.path.insert(0, str(ROOT))
    own = EntryPoint("atomrl_nb", "atomrl_nb._modidx:d", "nbdev")
    nbdev.doclinks.entry_points = lambda group: [own]

    def link_line(self, line):
        """Link names in backticks, but none that is the text of a link already."""
        return LINKED_OR_NAMED.sub(lambda found: self._link_sym(found) if found[1] else found[0], line)

    nbdev.doclinks.NbdevLookup.link_line = link_line


def from_root(match):
    """Turn a link that is relative to nbs/ into one that is relative to the top folder."""
    path, anchor = match["path"], match["anchor"] or ""
    local = posixpath.normpath(f"nbs/{path}")
    return f"]({local}{anchor})" if (ROOT / local).exists() else match[0]


def readme():
    """Return nbs/index.ipynb as Markdown for GitHub: nbdev's filters, then nbconvert."""
    import nbformat
    from execnb.nbio import nb2str, read_nb
    from nbconvert import MarkdownExporter
    from nbdev.processors import FilterDefaults

    link_own_names()
    nb = read_nb(ROOT / "nbs" / "index.ipynb")
    FilterDefaults()(nb)
    head = nb.frontmatter_
    nb.metadata["language_info"] = {"name": "python"}  # for the colours of code blocks
    nb.cells = [cell for cell in nb.cells if cell.cell_type != "raw"]
    for cell in nb.cells:
        if re.match(r"#\| echo: false\n", cell.source):
            cell.metadata["tags"] = ["no-code"]
        cell.source = re.sub(r"^(#\|.*\n)+", "", cell.source)  # directives
    exporter = MarkdownExporter(config={"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"no-code"}}})
    body, resources = exporter.from_notebook_node(nbformat.reads(nb2str(nb), as_version=4))
    if resources["outputs"]:
        sys.exit("README.md: a cell of nbs/index.ipynb shows a picture. "
                 "Save it in nbs/images/ and show it with ![...](images/...), so that GitHub finds it.")
    body = re.sub(r"<style.*?</style>\n*", "", body, flags=re.DOTALL)
    body = re.sub(r"\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)", from_root, body)
    body = re.sub(r"[ \t]+$", "", body, flags=re.MULTILINE)
    text = f"# {head['title']}\n\n> {head['description']}\n\n{body.strip()}\n"
    return re.sub(r"\n{3,}", "\n\n", text)


def main():
    """Write the README, or compare it with `--check`."""
    path = ROOT / "README.md"
    text = readme()
    if "--check" not in sys.argv[1:]:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        sys.exit("README.md is not current with nbs/index.ipynb: run `make readme`.")


if __name__ == "__main__":
    main()
