"""The report in a real browser: the policy lets the style through and nothing else."""

import re
import shutil
import subprocess

import pytest
from PIL import Image

from auditor.report import html, templates
from auditor.report.html import to_html

CHROMIUM = next(
    (p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]

LIGHT, DARK, WHITE = (0xF3, 0xF5, 0xF7), (0x0F, 0x14, 0x1A), (255, 255, 255)
PANEL = (0x8B, 0, 0)


def browse(folder, text, *arguments):
    """Opens the text as a file with these arguments."""
    (folder / "report.html").write_text(text, "utf-8")
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
    offline = ("--disable-background-networking", "--hide-scrollbars", "--no-pdf-header-footer")
    subprocess.run(
        [
            CHROMIUM,
            *quiet,
            *offline,
            f"--user-data-dir={folder / 'profile'}",
            *arguments,
            (folder / "report.html").as_uri(),
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )


def shown(folder, text, *, scheme):
    """Colour of the page's corner, and the pixels in the colour of the verdict's panel.

    Scheme 0 is dark, 1 is light.
    """
    picture = folder / "shot.png"
    browse(
        folder,
        text,
        f"--blink-settings=preferredColorScheme={scheme}",
        "--window-size=1000,900",
        f"--screenshot={picture}",
    )
    with Image.open(picture) as image:
        pixels = image.convert("RGB")
    colours = {colour: count for count, colour in pixels.getcolors(1 << 24)}
    return pixels.getpixel((2, 2)), colours.get(PANEL, 0)


def pdf(folder, text):
    target = folder / "report.pdf"
    browse(folder, text, f"--print-to-pdf={target}")
    return target.read_bytes()


@pytest.mark.parametrize(("scheme", "page"), [(1, LIGHT), (0, DARK)], ids=["light", "dark"])
def test_style_applies_under_the_policy(audits, tmp_path, scheme, page):
    corner, panel = shown(tmp_path, to_html(audits["leak"]), scheme=scheme)
    assert corner == page
    assert panel > 5000


def test_policy_blocks_a_style_that_was_changed(audits, tmp_path):
    text = to_html(audits["leak"]).replace("--page: #f3f5f7", "--page: #f3f5f8")
    assert shown(tmp_path, text, scheme=1) == (WHITE, 0)


def test_prints_with_details_open(audits, tmp_path, monkeypatch):
    opened = pdf(tmp_path, to_html(audits["leak"]))
    assert opened.startswith(b"%PDF-")
    rule = re.compile(r"details::details-content \{[^}]*\}")
    closed = {name: rule.sub("", text) for name, text in templates.sources().items()}
    monkeypatch.setattr(templates, "sources", lambda: closed)
    assert len(pdf(tmp_path, html.to_html(audits["leak"]))) < len(opened) - 2000
