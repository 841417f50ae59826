"""Our pages in a browser: they open without a word on the console, ask nothing of the network, and escape names."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_runs import tiny

from vitrail.comparison.report import write_report
from vitrail.training import loop

DOCS = Path(__file__).parent.parent / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open pages with")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
]


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The document as the browser has it, and the lines of its console."""
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return said.stdout, [line for line in said.stderr.splitlines() if "CONSOLE" in line]


@needs_chromium
def test_the_browser_would_tell(tmp_path: Path) -> None:
    """What the other tests rely on: a mistake in a page is seen."""
    page = tmp_path / "page.html"
    page.write_text("<title>t</title><script>console.error('seen'); nothing()</script>")
    _, console = opened(page, tmp_path / "profile")
    assert any("seen" in line for line in console)
    assert any("nothing is not defined" in line for line in console)


@needs_chromium
def test_report(tmp_path: Path) -> None:
    folder = loop.fit(tiny(), tmp_path / "run")
    check(write_report(folder), tmp_path / "profile", "training report")


@needs_chromium
@pytest.mark.parametrize("page", sorted(DOCS.glob("*.html")), ids=lambda page: page.stem)
def test_the_examples_that_we_show(page: Path, tmp_path: Path) -> None:
    check(page, tmp_path / "profile", "</html>")


def check(page: Path, profile: Path, words: str) -> None:
    """A page is whole: nothing on the console, nothing from elsewhere, small, and it says `words`."""
    assert page.stat().st_size < 10e6
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=.?(https?:|//|file:)", text), "a page needs nothing from elsewhere"
    document, console = opened(page, profile)
    assert console == []
    assert words in document
