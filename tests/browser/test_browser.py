"""3-D views in a real browser: the built site without a network, and JupyterLab. Run by `make test-browser`.

Screenshots are kept in `_screenshots/`. Needs Debian's Chromium and the extra `browser`; skips where one is absent.
"""
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOTS, TUTORIAL = ROOT / "_screenshots", "01_first_structure.ipynb"
BOUNDED = 60_000  # ms, for any single wait

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'atomrl_nb[browser]'")


def viewed():
    """Count the 3-D views in the saved outputs of each notebook that has any, by the page that the site makes of it."""
    found = {}
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        htmls = ["".join(out.get("data", {}).get("text/html", "")) for cell in cells for out in cell.get("outputs", [])]
        page = path.relative_to(ROOT / "nbs").with_name(re.sub(r"^\d+[a-z]?_", "", path.stem) + ".html")
        found[page.as_posix()] = sum(html.count('<div class="atomrl-view">') for html in htmls)
    return {page: n for page, n in found.items() if n}


VIEWED = viewed()


def test_the_pages_that_are_visited_are_all_that_have_a_view(site):
    assert {path.relative_to(site).as_posix() for path in site.rglob("*.html") if '<div class="atomrl-view">' in path.read_text(encoding="utf-8")} == VIEWED.keys()
    assert {"monitor.html", "view.html", f"tutorials/{TUTORIAL[3:-6]}.html"} <= VIEWED.keys()


def watched(browser, allowed, **options):
    """Open a page; return it and the list of its troubles: errors, and requests for anything not `allowed`."""
    page, troubles = browser.new_page(viewport=dict(width=1280, height=1000), **options), []
    page.set_default_timeout(BOUNDED)
    page.on("request", lambda request: None if request.url.startswith((allowed, "data:", "blob:")) else troubles.append(f"asked for {request.url}"))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    return page, troubles


def look(view, name):
    """Keep a screenshot of a view; return the pixels of its first canvas (height, width, 3)."""
    from matplotlib.image import imread

    SHOTS.mkdir(exist_ok=True)
    view.scroll_into_view_if_needed()
    view.page.wait_for_timeout(300)
    view.screenshot(path=SHOTS / f"{name}.png")
    view.locator("canvas").first.screenshot(path=SHOTS / f"{name}_canvas.png")
    return imread(SHOTS / f"{name}_canvas.png")[..., :3]


def drawn(pixels):
    """Return the share of the pixels that are not of the background's colour."""
    return float((np.abs(pixels - pixels[2, 2]).max(axis=2) > 0.1).mean())


def slide(view, frame):
    """Move the slider of a view as a hand does."""
    view.locator(".atomrl-slider").evaluate("(slider, frame) => { slider.value = frame; slider.dispatchEvent(new Event('input', {bubbles: true})); }", frame)
    view.page.wait_for_timeout(300)


def moved(before, after):
    """Return the share of the pixels that changed."""
    return float((np.abs(before - after).max(axis=2) > 0.1).mean())


# What NGL was given, read back from the shape that it drew.
GEOMETRY = """view => view.atomrl.panels.map(panel => { const d = panel.shape._primitiveData, list = name => Array.from(d[name]);
    return {from: list('arrowPosition1'), to: list('arrowPosition2'), name: d.arrowName, spheres: list('spherePosition'),
            edges: d.cylinderName.filter(name => name === 'cell').length, cell: [list('cylinderPosition1'), list('cylinderPosition2')]}; })"""


@pytest.mark.parametrize("page_name", VIEWED)
def test_a_page_draws_offline_and_answers_its_sliders(chromium, site, page_name):
    page, troubles = watched(chromium, "file://", offline=True)
    page.goto((site / page_name).as_uri())
    views = page.locator(".atomrl-view").all()
    assert len(views) == VIEWED[page_name]
    for k, view in enumerate(views):
        name = f"{Path(page_name).stem}_{k}"
        first = look(view, name)
        assert drawn(first) > 0.01, f"{name} is blank"
        slider = view.locator(".atomrl-slider")
        if slider.is_visible():
            frame = min(2, int(slider.get_attribute("max")))
            slide(view, frame)
            sync_api.expect(view).to_contain_text(f"frame {frame} of", timeout=BOUNDED)
            assert moved(first, look(view, f"{name}_frame{frame}")) > 0.002, f"{name} does not answer the slider"
    assert not troubles
    page.close()


def test_the_arrows_that_are_drawn_agree_with_the_forces_in_a_skewed_cell(chromium, site, tmp_path):
    from ase.build import bulk

    from atomrl_nb.structures import calculator
    from atomrl_nb.view import show

    frames = []
    for k in range(2):
        atoms = bulk("Cu").repeat((2, 2, 1))
        atoms.rotate(40, (1, 2, 3), rotate_cell=True)
        atoms.set_cell(np.array(atoms.cell) * (1 - 0.02 * k), scale_atoms=True)
        atoms.rattle(0.2, seed=k)
        atoms.calc = calculator("emt")
        atoms.get_forces()
        frames.append(atoms)
    page, troubles = watched(chromium, "file://")
    scripts = "".join(f'<script src="{(site / "ngl" / name).as_uri()}"></script>' for name in ("ngl.js", "view.js"))
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset='utf-8'><body>{show(frames, arrows=('force',), force_scale=0.7).html()}{scripts}", encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    view = page.locator(".atomrl-view")
    for k, atoms in enumerate(frames):
        slide(view, k)
        got = view.evaluate(GEOMETRY)[0]
        spheres, n = np.reshape(got["spheres"], (-1, 3)), len(atoms)  # the atoms, then their images on opposite faces
        np.testing.assert_allclose(spheres[:n], atoms.positions, atol=1e-3)
        apart = atoms.cell.scaled_positions((spheres[n:, None] - atoms.positions).reshape(-1, 3)).reshape(-1, n, 3)
        assert len(apart) and (np.abs(apart - np.round(apart)).max(axis=2).min(axis=1) < 1e-3).all()
        np.testing.assert_allclose(np.reshape(got["from"], (-1, 3)), atoms.positions, atol=1e-3)
        np.testing.assert_allclose(np.reshape(got["to"], (-1, 3)), atoms.positions + 0.7 * atoms.get_forces(), atol=2e-3)
        ends = np.reshape(got["cell"], (2, -1, 3))
        edges = np.linalg.norm(ends[1] - ends[0], axis=1).reshape(3, 4)
        assert got["edges"] == 12
        np.testing.assert_allclose(edges, np.repeat(atoms.cell.lengths()[:, None], 4, axis=1), atol=5e-3)
        assert len(np.unique(np.round(ends, 2).reshape(-1, 3), axis=0)) == 8
    assert not troubles
    page.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that serves a copy of the tutorial."""
    home = tmp_path_factory.mktemp("lab")
    (home / "work").mkdir()
    nb = json.loads((ROOT / "nbs" / "tutorials" / TUTORIAL).read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        cell |= {"outputs": []} if cell["cell_type"] == "code" else {}
    (home / "work" / TUTORIAL).write_text(json.dumps(nb), encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")} | {
        "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_DATA_DIR": str(home / "data"), "IPYTHONDIR": str(home / "ipython"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = (home / "log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--IdentityProvider.token=",
                               "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                               str(home / "work")], env=env, stdout=log, stderr=log, cwd=home)
    try:
        yield _address(server, home)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


def _address(server, home):
    """Wait until a server that was just started answers."""
    for _ in range(300):
        for file in home.glob("runtime/jpserver-*.json"):
            url = json.loads(file.read_text())["url"]
            try:
                urllib.request.urlopen(url + "api", timeout=5).close()
                return url
            except OSError:
                pass
        if server.poll() is not None:
            break
        time.sleep(0.2)
    pytest.fail("JupyterLab did not start:\n" + (home / "log").read_text()[-2000:])


def test_jupyterlab_runs_the_tutorial_and_its_widgets_draw(chromium, lab):
    page, troubles = watched(chromium, lab)
    page.goto(f"{lab}lab/tree/{TUTORIAL}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Notebook")
    page.wait_for_function("window.jupyterapp && jupyterapp.shell.currentWidget && jupyterapp.shell.currentWidget.context && jupyterapp.shell.currentWidget.context.isReady"
                           " && jupyterapp.shell.currentWidget.sessionContext.session && jupyterapp.shell.currentWidget.sessionContext.session.kernel"
                           " && jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")
    panel = page.locator(".jp-NotebookPanel")
    code = sum(cell["cell_type"] == "code" for cell in json.loads((ROOT / "nbs" / "tutorials" / TUTORIAL).read_text())["cells"])
    page.wait_for_function("code => { const cells = jupyterapp.shell.currentWidget.content.widgets.filter(cell => cell.model.type === 'code');"
                           " return cells.length === code && cells.every(cell => cell.model.executionCount); }", arg=code)
    assert panel.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    for k, title in enumerate(("start", "agent", "compare")):  # widgets are put on the page as they come into sight
        cell = page.locator(".jp-CodeCell", has_text=("show(start", 'show(folder/"agent', "compare(folder")[k]).last
        cell.scroll_into_view_if_needed()
        view = cell.locator(".jp-OutputArea .atomrl-view")
        view.locator("canvas").first.wait_for()
        first = look(view, f"lab_{title}")
        assert drawn(first) > 0.01, f"{title} is blank"
        if k:
            slide(view, 2)
            sync_api.expect(view).to_contain_text("frame 2 of", timeout=BOUNDED)
            assert moved(first, look(view, f"lab_{title}_frame2")) > 0.002, f"{title} does not answer the slider"
    assert not [trouble for trouble in troubles if "asked for" in trouble or "nglview" in trouble.lower() or "atomrl" in trouble]
    page.close()
