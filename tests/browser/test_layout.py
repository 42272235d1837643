"""The pages as readers see them: nothing cut off on a desktop or a phone, names found first, a wheel that scrolls the page."""
import pytest

pytestmark = pytest.mark.browser

# What sticks out of the window or is cut off; tables, figures and formulas that are scrolled on purpose are not.
CUT_OFF = """() => {
  const screen = document.documentElement, scrolled = '.sd-table, .cell-output-display, math, svg, .atomrl-view, .atomrl-found, pre';
  const found = screen.scrollWidth > screen.clientWidth + 1 ? ['the page is wider than the window'] : [];
  const name = e => `${e.tagName} ${e.className}: ${e.textContent.trim().slice(0, 50)}`;
  for (const e of document.querySelectorAll('main *, #quarto-margin-sidebar *, #quarto-margin-sidebar')) {
    const style = getComputedStyle(e), wide = e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && style.display !== 'inline';
    if (wide && style.overflowX !== 'visible' && !e.matches('.sd-table, .cell-output-display, .atomrl-columns, .atomrl-columns *, math') && !e.closest('math, svg, .atomrl-view'))
      found.push(name(e));
    const right = e.getBoundingClientRect().right;
    if (right > screen.clientWidth + 1 && !e.closest(scrolled)) found.push('sticks out, ' + name(e));
  }
  return found;
}"""
FIRST = {"a_back": "glossary.html#a_back", "buffer_capacity": "glossary.html#buffer_capacity", "td3.gamma": "all_settings.html#td3.gamma",
         "Surrogate": "glossary.html#surrogate", "修正比例": "glossary.html#a_back", "hitting the wall": "glossary.html#hitting-the-wall",
         "bufer_capasity": "buffer_capacity", "atomrl-relax": "all_commands.html#atomrl-relax", "install": "install.html"}

# What readers type, and a place that is among the first three. The glossary has an entry for most, so it often comes first.
SOUGHT = {"POSCAR": "index.html#your-own-structure", "VASP": "glossary.html#dft-vasp", "GPAW": "glossary.html#dft-vasp", "cell": "optimizer.html#cells-and-constraints",
          "stress": "glossary.html#cell-stress", "pressure": "all_commands.html#atomrl-relax", "FixAtoms": "glossary.html#constraint", "constraint": "constraints.html",
          "slurm": "glossary.html#computer-cluster", "cluster": "glossary.html#computer-cluster", "many structures": "tutorials/many_structures.html",
          "GPU": "install.html#platforms", "charge": "glossary.html#charge-spin", "spin": "glossary.html#charge-spin", "xtb": "glossary.html#calculators",
          "CHGNet": "glossary.html#calculators", "molecule": "tutorials/dft.html", "license": "citation.html", "cite": "citation.html", "resume": "tutorials/resume.html",
          "loss oscillates": "guide/memory.html", "oscillation": "guide/memory.html", "hides": "glossary.html#the-agent-hides",
          "a_back high": "guide/constraints.html#the-symptom", "transition state": "glossary.html#transition-state", "中文": "zh/", "经验池": "zh/memory.html"}


def found_by(page, asked):
    """Type words into the search and return the addresses that it shows."""
    page.fill(".atomrl-search input", asked)
    page.wait_for_function("asked => document.querySelector('.atomrl-found').dataset.asked === asked", arg=asked)
    return [link.get_attribute("href") for link in page.locator(".atomrl-found a").all()]


def open_pages(browser, site, **options):
    """Open each page of the site in one window, without what draws 3-D views."""
    page = browser.new_page(**options)
    page.route("**/ngl.js", lambda route: route.fulfill(body=""))
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        yield path, page
    page.close()


@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_is_cut_off(chromium, site, width):
    cut = {path.relative_to(site).as_posix(): found for path, page in open_pages(chromium, site, viewport=dict(width=width, height=900))
           if (found := page.evaluate(CUT_OFF))}
    assert not cut


def test_on_a_desktop_tables_and_code_need_no_scrolling(chromium, site):
    wide = "() => [...document.querySelectorAll('.sd-table, .cell-output-display, pre')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))"
    cut = {path.name: found for path, page in open_pages(chromium, site, viewport=dict(width=1400, height=900)) if (found := page.evaluate(wide))}
    assert not cut


@pytest.mark.parametrize("start", ["index.html", "guide/constraints.html"])
def test_names_are_found_first(chromium, site, start):
    page = chromium.new_page()
    page.goto((site / start).as_uri())
    for asked, first in FIRST.items():
        assert first in found_by(page, asked)[0], asked
    found = {asked: found_by(page, asked)[:3] for asked in SOUGHT}
    assert not {asked: addresses for asked, addresses in found.items() if not any(SOUGHT[asked] in address for address in addresses)}
    found_by(page, "a_back")
    headings = [link.inner_text() for link in page.locator(".atomrl-found .atomrl-heading").all()]
    assert not any("fall_back" in heading for heading in headings)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/glossary.html#a_back*")
    page.close()


def test_on_a_phone_figures_and_columns_keep_their_size(chromium, site):
    page = chromium.new_page(viewport=dict(width=390, height=900))
    page.goto((site / "hessian.html").as_uri())
    assert page.locator("main .cell-output-display img").first.evaluate("e => e.clientWidth") > 500
    page.goto((site / "all_commands.html").as_uri())
    assert page.locator("pre.atomrl-columns").count() >= 5
    page.close()


def test_dark_pages_are_dark(chromium, site):
    page = chromium.new_page(color_scheme="dark")
    page.goto((site / "guide" / "constraints.html").as_uri())
    page.wait_for_function("document.querySelector('.quarto-dark')")
    for part in ("body", "#quarto-sidebar", "#quarto-header > .navbar", ".atomrl-search input"):
        colors = page.locator(part).evaluate("e => { const s = getComputedStyle(e); return [s.backgroundColor, s.color].map(c => c.match(/[0-9]+/g).slice(0, 3).map(Number)); }")
        assert sum(colors[0]) < 200 < sum(colors[1]), part
    assert page.evaluate("document.querySelector('.atomrl-view').atomrl.panels[0].stage.getParameters().backgroundColor") == "#1e1e1e"
    page.close()


def test_the_wheel_scrolls_the_page_until_a_click(chromium, site):
    page = chromium.new_page(viewport=dict(width=1280, height=900))
    page.goto((site / "guide" / "constraints.html").as_uri())
    stage = page.locator(".atomrl-stage").first
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    zoom = "document.querySelector('.atomrl-view').atomrl.panels[0].stage.viewerControls.getCameraDistance()"
    before, distance = page.evaluate("scrollY"), page.evaluate(zoom)
    page.mouse.wheel(0, 60)
    page.wait_for_function("before => scrollY > before + 20", arg=before)
    assert page.evaluate(zoom) == distance
    box = stage.bounding_box()
    page.mouse.click(box["x"] + 150, box["y"] + 150)
    here = page.evaluate("scrollY")
    page.mouse.wheel(0, 60)
    page.wait_for_timeout(300)
    assert page.evaluate("scrollY") == here and page.evaluate(zoom) != distance
    page.close()


def test_a_legend_names_the_elements_and_the_frame_line_the_runs(chromium, site):
    page = chromium.new_page(viewport=dict(width=1280, height=900))
    page.goto((site / "view.html").as_uri())
    view = page.locator(".atomrl-view").last
    assert "2 Cu" in view.locator(".atomrl-legend").inner_text()
    assert "BFGS fmax" in (line := view.locator(".atomrl-frame").inner_text()) and "FIRE fmax" in line
    names = "view => view.atomrl.panels[0].shape._primitiveData.sphereName"
    assert any("image of" in name for name in view.evaluate(names))
    view.locator("label", has_text="images").locator("input").uncheck()
    assert not any("image of" in name for name in view.evaluate(names))
    bonds = "view => view.atomrl.panels[0].shape._primitiveData.cylinderName.filter(name => name === 'bond').length"
    assert view.evaluate(bonds) == 0
    view.locator("label", has_text="bonds").locator("input").check()
    assert view.evaluate(bonds) > 0
    page.close()
