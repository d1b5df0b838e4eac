"""What the tests in a browser share; a module that imports it is skipped where something lacks.

They want playwright (extra `browser`) and Debian's `chromium`; axe-core, an npm package, where `AXE_CORE`
names its axe.min.js or node_modules beside the checkout's files has it.
"""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason='pip install "hfgd_jax[browser]"')
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium: apt-get install chromium", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
AXE = Path(os.environ.get("AXE_CORE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))


@contextlib.contextmanager
def chromium():
    """A headless browser for the time of the block."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
