"""The report in headless Chromium, driven by Playwright: seen with scripts off, and by axe-core.

axe-core is Deque's checker of the Web Content Accessibility Guidelines.
"""

import importlib.util
import shutil
from pathlib import Path

import pytest

from auditor.report.html import to_html

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser")) if p), None)
LIBRARIES = ("playwright", "axe_playwright_python")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in LIBRARIES),
        reason="playwright or axe-playwright-python is not installed",
    ),
]

SCHEMES = ("light", "dark")
NAMES = ("leak", "embedded", "nothing shown", "inconclusive")
OPEN = "document.querySelectorAll('details').forEach(each => { each.open = true })"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, audits, tmp_path):
    """Opens the report of an audit; gives the page and what it said and asked for."""
    contexts = []

    def open_(name, *, width=1200, scripts=False, **settings):
        file = tmp_path / "report.html"
        file.write_text(to_html(audits[name]), encoding="utf-8")
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, java_script_enabled=scripts, **settings
        )
        contexts.append(context)
        page, told, asked = context.new_page(), [], []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page, told, [url for url in asked if url != file.as_uri()]

    yield open_
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
def test_renders_without_scripts_complaints_or_requests(opened, name, scheme):
    page, told, asked = opened(name, color_scheme=scheme)
    assert page.locator("h1").is_visible()
    assert page.locator("#verdict").is_visible()
    assert told == []
    assert [url for url in asked if not url.startswith("data:image/png;base64,")] == []
    if name == "embedded":
        images = page.locator("img")
        widths = [images.nth(i).evaluate("image => image.naturalWidth") for i in range(3)]
        assert all(width > 0 for width in widths)


def test_a_remote_picture_would_be_seen_and_refused(opened, audits, tmp_path, chromium):
    """The test above can fail."""
    text = to_html(audits["leak"]).replace(
        "</main>", '<img src="https://example.invalid/a.png" alt="x"></main>'
    )
    file = tmp_path / "other.html"
    file.write_text(text, encoding="utf-8")
    page, told = chromium.new_page(), []
    page.on("console", lambda message: told.append(message.text))
    page.goto(file.as_uri())
    page.close()
    assert any("Content Security Policy" in line for line in told)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [360, 768])
def test_nothing_scrolls_sideways(opened, name, width):
    page, _, _ = opened(name, width=width)
    page.evaluate(OPEN)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width


@pytest.mark.parametrize(
    ("name", "scheme"), [*((name, "light") for name in NAMES), ("embedded", "dark")]
)
def test_axe_finds_nothing(opened, name, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page, _, _ = opened(name, scripts=True, color_scheme=scheme)
    page.evaluate(OPEN)
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": RULES}})
    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["passes"]) > 15  # it did look


def test_every_detail_is_open_in_print(opened):
    page, _, _ = opened("leak")
    page.emulate_media(media="print")
    hidden = page.evaluate(
        """[...document.querySelectorAll('details > :not(summary)')]
            .filter(each => each.getBoundingClientRect().height === 0)
            .map(each => each.outerHTML.slice(0, 80))"""
    )
    assert page.locator("details").count() > 0
    assert hidden == []


def test_prints_to_paper(opened):
    page, _, _ = opened("leak")
    assert page.pdf(format="A4").startswith(b"%PDF-")


def test_templates_have_one_main_landmark():
    pages = Path(__file__).parents[2] / "reports" / "templates"
    assert (pages / "report.html").read_text(encoding="utf-8").count("<main") == 1
