"""The what-if as a part of an audit, without a truth."""

from dataclasses import replace

import pytest
from problems import case_of, lenet_client, options_of

from auditor.audit import run_audit
from auditor.report.audit_json import from_json, to_json
from auditor.report.html import to_html
from auditor.unfinished import Unfinished
from auditor.what_if import what_if
from auditor.what_if.settings import NO_DEFENCE, Setting

FEW = (
    NO_DEFENCE,
    Setting("noise", 1e-6, "noise, sigma 1e-6"),
    Setting("noise", 1.0, "noise, sigma 1"),
    Setting("frozen layer", 1.0, "classifier frozen"),
)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setitem(what_if.__kwdefaults__, "settings", FEW)


def options():
    quick = options_of(attacks=["labels", "images.layers"])
    attacks = tuple(attack for attack in quick.attacks if attack.name in quick.selected)
    return replace(quick, attacks=attacks, what_if=True)


@pytest.mark.usefixtures("few")
def test_the_rebuilt_step_is_attacked_again(tmp_path):
    unfinished = Unfinished.beside(tmp_path / "report", "k", recovered=True)
    case = case_of(lenet_client())
    audit = run_audit(case, options(), fail_on="high", unfinished=unfinished).audit
    found = audit.trust.what_if
    rows = {row.setting: row for row in found.rows}
    assert "images.layers rebuilt it (proved)" in found.reference
    assert rows["no defence"].passes is False
    assert rows["no defence"].psnr > 59
    assert rows["noise, sigma 1"].passes
    assert rows["noise, sigma 1"].bound_psnr < 20 < rows["noise, sigma 1e-6"].bound_psnr
    assert rows["classifier frozen"].passes is None  # neither attack looks without it
    assert rows["classifier frozen"].labels is None
    assert unfinished.rows == {row.setting: row for row in found.rows}
    assert from_json(to_json(audit)) == audit
    assert '<h2 id="what-if-title">' in to_html(audit)


@pytest.mark.usefixtures("few")
def test_it_is_not_done_unless_asked_for():
    audit = run_audit(case_of(lenet_client()), options_of(attacks=["labels"])).audit
    assert audit.trust.what_if is None
