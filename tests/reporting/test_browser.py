"""The page in a headless browser: at two widths, light and dark; skipped where there is no Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import anndata
import pytest

from anncoder import CountAutoencoder
from anncoder.reporting.page import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
POLICY = "default-src 'none'"
# runs first, so that it sees all that the policy of the page blocks
PROBE = """<script>
const blocked = [];
document.addEventListener("securitypolicyviolation", e => blocked.push(e.blockedURI));
addEventListener("load", () => {
  const root = document.documentElement, images = [...document.images];
  const wide = [...document.querySelectorAll("body *")].filter(e =>
    !e.closest(".wide") && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 80));
  document.body.dataset.found = JSON.stringify({
    blocked, wide, inner: innerWidth, overflow: root.scrollWidth - root.clientWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, ground: getComputedStyle(document.body).backgroundColor,
    images: images.map(i => [i.complete && i.naturalWidth > 0, i.currentSrc.slice(0, 10)]),
    fetched: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"))});
});
</script>"""


@pytest.fixture(scope="module")
def page(fitted: CountAutoencoder, simulated: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page with every section, and a script in it that measures it."""
    cells = simulated.copy()
    cells.obs["a_label_of_a_very_long_name_without_any_space"] = [f"{g}{'_and_so_on' * 6}" for g in cells.obs["group"]]
    found = report(
        cells, fitted, labels="a_label_of_a_very_long_name_without_any_space", seeds=2, root=cells.obs_names[0]
    )
    probed = found.html.replace("<head>", f"<head>{PROBE}").replace(POLICY, f"{POLICY}; script-src 'unsafe-inline'")
    # the policy stands before the probe, so that it holds for all that follows
    meta = re.search(r"<meta http-equiv[^>]*>", probed)
    assert meta is not None
    probed = probed.replace(meta[0], "").replace("<head>", f"<head>{meta[0]}")
    path = tmp_path_factory.mktemp("browser") / "page.html"
    path.write_text(probed, encoding="utf-8")
    return path


# windows have a least width, frames have none
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark">
<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe><script>
document.querySelector("iframe").onload = e => {{
  document.body.dataset.found = e.target.contentDocument.body.dataset.found; }};</script>"""


def measured(page: Path, width: int, *, dark: bool, profile: Path) -> dict[str, Any]:
    path = profile.with_suffix(".html")
    path.write_text(FRAME.format(width=width, page=html.escape(page.read_text(encoding="utf-8"))), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={profile}", "--window-size=1300,1000", "--dump-dom", "--virtual-time-budget=3000"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    try:
        done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the browser does not answer here")
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    if found is None and "<iframe" not in done.stdout:
        pytest.skip(f"the browser does not start here: {done.stderr[-200:]}")
    assert found is not None
    values: dict[str, Any] = json.loads(html.unescape(found[1]))
    return values


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_sticks_out_and_nothing_is_fetched(page: Path, width: int, *, dark: bool, tmp_path: Path) -> None:
    found = measured(page, width, dark=dark, profile=tmp_path / "profile")
    assert found["inner"] == width
    assert found["overflow"] == 0
    assert found["wide"] == []
    assert found["images"] == [[True, "data:image"]] * 3
    assert found["blocked"] == found["fetched"] == []
    assert found["dark"] is dark
    assert found["ground"] == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
