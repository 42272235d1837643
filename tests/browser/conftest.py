"""A headless browser and the built site. Skips where there is no Chromium or no playwright."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "_docs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
         "--ignore-gpu-blocklist", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


@pytest.fixture(scope="session")
def chromium():
    """A headless browser that draws in software."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'atomrl_nb[browser]'")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site():
    """The built site, built anew unless one is there that is newer than every notebook."""
    built, newest = DOCS / "ngl" / "view.js", max(path.stat().st_mtime for path in (ROOT / "nbs").rglob("*.ipynb"))
    if not built.exists() or built.stat().st_mtime < newest:
        subprocess.run([sys.executable, "tools/docs.py"], cwd=ROOT, check=True, timeout=600, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return DOCS
