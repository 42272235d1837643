"""Check the built site: links lead somewhere, images have alt texts, and nothing is loaded from the network."""
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The places on a page that a link can lead to, its links, and the files that it loads."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads, self.silent = set(), [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Note what one tag refers to."""
        attrs = dict(attrs)
        self.anchors |= {attrs.get("id"), attrs.get("name")}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"] or "")
        self.silent += tag == "img" and not (attrs.get("alt") or "").strip()
        if tag in ("script", "img", "iframe", "source", "video") and attrs.get("src"):
            self.loads.append(attrs["src"])
        if tag == "link" and attrs.get("rel") in ("stylesheet", "icon", "preload", "modulepreload"):
            self.loads.append(attrs["href"])


def faults(path, page, pages, linked):
    """Yield what is wrong with one page's links and images, and add the pages that it leads to to `linked`."""
    if page.silent:
        yield f"images without alt text: {page.silent}; begin their cells with `#| fig-alt: \"...\"`"
    for link in page.links + page.loads:
        url = urlsplit(link)
        if url.scheme or url.netloc:
            if link in page.loads and url.scheme != "data":
                yield f"{link} is loaded from the network"
            continue
        target = (path.parent / unquote(url.path)).resolve() if url.path else path
        target = target / "index.html" if target.is_dir() else target
        if target != path:
            linked.add(target)
        if not target.exists():
            yield f"{link} leads to no file"
        elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].anchors:
            yield f"{link} leads to no place on that page"


def dead_links(site: Path):
    """Yield a sentence for every dead link, file loaded from the network, and page that no other page links to."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    linked, found = {site / "index.html", site / "404.html"}, {}
    for path, page in pages.items():
        for fault in dict.fromkeys(faults(path, page, pages, linked)):
            found.setdefault(fault, []).append(str(path.relative_to(site)))
    for fault, names in found.items():
        yield f"{names[0]}: {fault}" + (f" (and on {len(names) - 1} other pages)" if len(names) > 1 else "")
    for path in sorted(pages.keys() - linked):
        yield f"{path.relative_to(site)}: no other page links to it; list it in _quarto.yml"
    for path in sorted(site.rglob("*.css")):
        for load in re.findall(r"(?:url\(|@import)\s*[\"']?(https?:[^\"')]*)", path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: {load} is loaded from the network"
