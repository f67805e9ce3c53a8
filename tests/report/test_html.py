"""The HTML report, read back with a parser."""

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import get_args, get_origin, get_type_hints

import pytest

from auditor.records import Curve, Measure
from auditor.report.audit_json import from_json, to_json
from auditor.report.html import to_html
from auditor.report.templates import sources

VOID = {"meta", "img", "br", "link", "input", "hr"}
LOADS = {"src", "srcset", "poster", "data", "background", "xlink:href", "action", "formaction"}
HOSTILE = (
    "\"><script>alert(1)</script><img src=x onerror='alert(1)' style='x'>"
    "{{ 7*7 }}{% raw %}</style></title><!-- & \x1b[31m\u202e\x00\udcff"
)


class Page(HTMLParser):
    """Tags with their attributes, text by tag, and whether every tag was closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.style, self.words = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), f"an attribute stands twice in {tag}"
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def filled(record, text):
    """The record with every free text in it replaced."""
    hints = get_type_hints(type(record))
    return type(record)(
        **{f.name: _filled(hints[f.name], getattr(record, f.name), text) for f in fields(record)}
    )


def _filled(hint, value, text):
    if is_dataclass(value):
        return filled(value, text)
    if isinstance(value, tuple):
        return tuple(_filled(get_args(hint)[0], each, text) for each in value)
    if get_origin(hint) is Mapping:
        return dict.fromkeys(value, text)
    return text if isinstance(value, str) and hint in (str, str | None) else value


def all_hostile(audit, text):
    """Every text but those that have a meaning: version of the schema, codes, pictures."""
    changed = filled(audit, text)
    exhibits = tuple(replace(exhibit, label=text) for exhibit in audit.exhibits)
    findings = tuple(
        replace(n, code=o.code) for n, o in zip(changed.findings, audit.findings, strict=True)
    )
    return replace(
        changed, schema_version=audit.schema_version, exhibits=exhibits, findings=findings
    )


# --------------------------------------------------------------------------- form


def test_one_file_without_script_or_remote_reference(audit):
    page = Page(to_html(audit))
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style"
            if name in LOADS:
                assert (tag, name) == ("img", "src")
                assert value.startswith("data:image/png;base64,")
            if name == "href":
                assert value.startswith("#")
    assert "@import" not in page.style
    assert "url(" not in page.style
    assert "http" not in page.style


def test_policy_carries_the_hash_of_the_style(audit):
    text = to_html(audit)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    metas = [meta for meta in Page(text).all("meta") if "http-equiv" in meta]
    (policy,) = [m["content"] for m in metas if m["http-equiv"] == "Content-Security-Policy"]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert "\r" not in style


def test_page_is_whole(audit):
    page = Page(to_html(audit))
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "referrer", "content": "no-referrer"} in page.all("meta")
    assert page.all("a")[0] == {"class": "skip", "href": "#verdict"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(attributes.get(name, "").split()) <= set(ids)
        if attributes.get("href", "#") != "#":
            assert attributes["href"][1:] in ids


def test_headings_go_down_one_level_at_a_time(audit):
    levels = [int(tag[1]) for tag, _ in Page(to_html(audit)).tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_pictures_and_charts_have_words(audit):
    page = Page(to_html(audit))
    alts = [image["alt"] for image in page.all("img")]
    assert all(alts)
    assert len(set(alts)) == len(alts)
    for svg in page.all("svg"):
        if svg.get("aria-hidden") != "true":
            assert svg["role"] == "img"
            ids = svg["aria-labelledby"].split()
            assert [i.rsplit("-", 1)[1] for i in ids] == ["title", "desc"]
    titles = [attributes["id"] for attributes in page.all("title") if "id" in attributes]
    assert len(titles) == len([svg for svg in page.all("svg") if svg.get("role") == "img"])


def test_same_audit_same_text(audit):
    assert to_html(audit) == to_html(audit)
    assert to_html(from_json(to_json(audit))) == to_html(audit)


# --------------------------------------------------------------------------- content


def test_sections_in_order(audit):
    ids = [section["id"] for section in Page(to_html(audit)).all("section")]
    order = ["verdict", "findings", "exhibits", "attacks", "trust", "what-if"]
    assert ids == [*order, "limits", "remedies", "threat", "provenance"]


def test_leak_says_what_how_sure_and_what_helps(audits):
    text = Page(to_html(audits["leak"])).text
    for words in (
        "Leak, critical",
        "9.8 of 10",
        "failed (--fail-on high, exit code 1)",
        "critical 9.8",
        "relative residual 3.1×10⁻⁹",
        "restart agreement 61.2 dB",
        "Verified The gradient of the claim was computed anew",
        "The loss is softmax cross-entropy.",
        "Send only sums over many clients",
        "skipped Images from the first linear layer",
        "The first layer is a convolution.",
        "not selected Images by matching with a prior",
        "Matching(restarts=4, steps=300, history=100)",
        "4812",
        "assumed, nobody said so",
        "Something had to be assumed GA302",
        "an honest but curious server",
        "An attack that failed proves nothing; this report never says safe.",
        "NISTAML.032 NIST AI 100-2 E2025",
        "a1" * 32,
        "gradaudit scan lenet.pt grads.pt --fail-on high",
        "torch 2.15.0",
        "2026-11-21T05:40:42Z",
        hashlib.sha256(to_json(audits["leak"]).encode()).hexdigest(),
    ):
        assert words in text, words


def test_charts_have_tables(audits):
    text = Page(to_html(audits["leak"])).text
    assert "Restart Ended Steps First Lowest Last 1 converged 295 1 3.2×10⁻⁹ 3.2×10⁻⁹" in text
    assert "fc.bias 4.6×10⁻⁸" in text


def test_layers_stand_in_a_table_from_the_classifier_down(audits):
    text = Page(to_html(audits["leak"])).text
    heads = "Layer Unknowns Equations Left open Condition Residual Disagreement Status"
    rows = (
        "fc.weight 768 7680 0 at least 1 2.2×10⁻⁹ 3.1×10⁻⁸ solved (closed form)",
        "body.2.weight 3072 3500 41 at least 8123 6.0×10⁻⁶ 7.0×10⁻⁴ "
        "solved (reached the goal; inequalities helped)",
        "body.0.weight 3072 2868 204 at least 96 5.0×10⁻⁷ 0.31 "
        "not solved (reached the goal; inequalities did not suffice)",
    )
    assert " ".join((heads, *rows)) in text
    # one sentence, for the one layer that was not solved
    told = "body.0.weight This layer hides its input: about 204 of 3072 numbers are left open"
    assert text.count("This layer") == text.count(told) == 1
    assert "What each layer says" not in Page(to_html(audits["nothing shown"])).text


def test_a_layer_that_went_wrong_is_shown(audits):
    link = replace(audits["leak"].attacks[-1].links[0], gap=math.nan, condition=math.inf)
    attack = replace(audits["leak"].attacks[-1], links=(link,))
    text = Page(to_html(replace(audits["leak"], attacks=(attack,)))).text
    assert "fc.weight 768 7680 0 not finite 2.2×10⁻⁹ not finite solved" in text


def test_long_tables_of_layers_are_cut_but_not_what_is_hidden(audits):
    first, *_, last = audits["leak"].attacks[-1].links
    links = (*(replace(first, layer=f"l{i}.weight") for i in range(2000)), last)
    attack = replace(audits["leak"].attacks[-1], links=links)
    html = to_html(replace(audits["leak"], attacks=(attack,)))
    assert len(html.encode()) < 150_000
    text = Page(html).text
    assert "l199.weight" in text
    assert "l200.weight" not in text
    assert "And 1801 more, all in audit.json." in text
    assert "body.0.weight This layer hides its input" in text


def test_no_leak_shown_is_not_good_news(audits):
    page = Page(to_html(audits["nothing shown"]))
    assert "This does not say that the gradient is safe." in page.text
    assert any("band-none" in panel.get("class", "") for panel in page.all("div"))


def test_inconclusive_has_no_score_and_is_no_pass(audits):
    page = Page(to_html(audits["inconclusive"]))
    assert "no score" in page.text
    assert "This is not a pass." in page.text
    assert "voids the verdict" in page.text
    assert "0.0 of 10" not in page.text
    assert "scale-title" not in to_html(audits["inconclusive"])


def test_exhibits_only_when_asked_for(audits):
    page = Page(to_html(audits["embedded"]))
    assert page.text.count("TLP:RED") == 2 + 1  # banners, title
    assert {"class": "red"} in page.all("body")
    assert len(page.all("img")) == 6 + 1 + 1 + 6 + 1
    sources_shown = {image["src"] for image in page.all("img")}
    for exhibit in audits["embedded"].exhibits:
        assert {f"data:image/png;base64,{picture}" for picture in exhibit.strip} <= sources_shown
    assert "Sample 1 after step 295" in {image["alt"] for image in page.all("img")}
    for name in ("leak", "nothing shown", "inconclusive"):
        other = Page(to_html(audits[name]))
        assert other.all("img") == []
        assert "TLP:RED" not in other.text
        assert "TLP:AMBER" in other.text
    assert "evidence/" in Page(to_html(audits["leak"])).text
    with pytest.raises(ValueError, match="exhibits"):
        to_html(replace(audits["embedded"], evidence="none"))


# --------------------------------------------------------------------------- hostile, large


@pytest.mark.parametrize("name", ["leak", "embedded", "inconclusive"])
def test_hostile_text_changes_no_tag(audits, name):
    hostile = to_html(all_hostile(audits[name], HOSTILE))
    harmless = Page(to_html(all_hostile(audits[name], "x")))
    page = Page(hostile)

    def shape(of):
        return Counter((tag, tuple(attributes)) for tag, attributes in of.tags)

    assert shape(page) == shape(harmless)
    assert "7*7" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert "\\x1b[31m\\u202e\\x00\\udcff" in page.text
    assert not set("\x1b\u202e\x00\udcff") & set(hostile)
    assert hostile.encode("utf-8")


def test_numbers_that_are_not_finite_are_named(audits):
    measures = (Measure("PSNR", math.inf, "dB"),)
    finding = replace(audits["leak"].findings[0], measures=measures)
    attack = replace(audits["leak"].attacks[1], curves=(Curve(0, "x", (0, 1), (1.0, math.nan)),))
    text = Page(to_html(replace(audits["leak"], findings=(finding,), attacks=(attack,)))).text
    assert "PSNR not finite dB" in text
    assert "nan" not in text.lower().split()


def test_unknown_codes_are_shown_as_they_are(audits):
    caveat = replace(audits["leak"].caveats[0], code="GA999", message="From the future.")
    finding = replace(audits["leak"].findings[0], code="GA998")
    text = Page(to_html(replace(audits["leak"], caveats=(caveat,), findings=(finding,)))).text
    assert "GA999" in text
    assert "From the future." in text
    assert "GA998" in text


def test_small_even_for_a_large_network(audits):
    curves = tuple(
        Curve(i, "stalled", tuple(range(3000)), tuple(0.999**s for s in range(3000)))
        for i in range(16)
    )
    names = [f"module.layer{i}.0.downsample.1.running.weight" for i in range(400)]
    layers = tuple(Measure(name, 0.1, "") for name in names)
    attack = replace(audits["leak"].attacks[1], curves=curves, layers=layers)
    audit = replace(
        audits["leak"],
        attacks=(attack,) * 4,
        dump=replace(audits["leak"].dump, missing=tuple(names) * 5),
    )
    text = to_html(audit)
    assert len(text.encode()) < 300_000
    assert "and 1800 more, all in audit.json" in text


# --------------------------------------------------------------------------- colours

# text, what it stands on, the ratio that WCAG AA asks for: 4.5 for text, 3 for graphics
PAIRS = (
    ("ink", "page", 4.5),
    ("ink", "card", 4.5),
    ("ink", "soft", 4.5),
    ("card", "ink", 4.5),
    ("muted", "page", 4.5),
    ("muted", "card", 4.5),
    ("muted", "soft", 4.5),
    ("accent", "page", 4.5),
    ("accent", "card", 4.5),
    ("accent", "soft", 3.0),
    ("on-tlp", "tlp", 4.5),
    *(("on-band", band, 4.5) for band in ("critical", "high", "medium", "low", "none")),
    ("on-band", "inconclusive", 4.5),
    *((band, "card", 3.0) for band in ("critical", "high", "medium", "low", "none")),
    *(("on-deep", f"deep-{band}", 4.5) for band in ("critical", "high", "medium", "low", "none")),
    ("on-deep", "deep-inconclusive", 4.5),
)


def palettes():
    """The colours of both themes by name, as (r, g, b) from 0 to 1."""
    style = sources()["style.html"]
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    named = dict(re.findall(r"--([\w-]+): ([^;]+);", light))
    for values in (named, named | dict(re.findall(r"--([\w-]+): ([^;]+);", dark))):
        yield {
            name: _rgb(values[value[6:-1]] if value.startswith("var(") else value)
            for name, value in values.items()
        }


def _rgb(text):
    assert re.fullmatch(r"#[0-9a-f]{6}", text), text
    return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))


def contrast(one, other):
    def luminance(colour):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_known_pairs():
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast(_rgb("#777777"), (1, 1, 1)) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_in_both_themes(theme):
    palette = list(palettes())[theme]
    for front, back, least in PAIRS:
        assert contrast(palette[front], palette[back]) >= least, (front, back)
    # a new colour needs a pair; lines between rows carry no meaning
    assert set(palette) - {name for pair in PAIRS for name in pair[:2]} == {"line"}
    opacity = float(re.search(r"stroke-opacity: (\.\d+)", sources()["style.html"])[1])
    blend = [
        opacity * f + (1 - opacity) * b
        for f, b in zip(palette["muted"], palette["card"], strict=True)
    ]
    assert contrast(blend, palette["card"]) >= 3


def test_colours_stand_in_the_palette_only():
    style = sources()["style.html"]
    rest = re.sub(r"--[\w-]+: [^;]+;|@page red \{.*?\n  \}", "", style, flags=re.DOTALL)
    assert not re.findall(r"#[0-9a-f]{3,8}\b|rgb|hsl", rest)
