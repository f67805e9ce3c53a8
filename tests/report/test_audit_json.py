"""audit.json: there and back, and what is refused."""

import copy
import json
import math
from dataclasses import fields, replace
from importlib.resources import files

import pytest
from jsonschema import Draft202012Validator

from auditor import records
from auditor.errors import InputError
from auditor.records import Curve, FileRef, Measure, Severity
from auditor.report.audit_json import from_json, to_json

SCHEMA = json.loads((files("auditor") / "schema" / "audit.schema.json").read_text("utf-8"))
RECORDS = {
    "file": records.FileRef,
    "severity": records.Severity,
    "measure": records.Measure,
    "verdict": records.Verdict,
    "gate": records.GateResult,
    "limit": records.Limit,
    "suppression": records.Suppression,
    "baseline": records.Baseline,
    "finding": records.Finding,
    "curve": records.Curve,
    "link": records.LinkReport,
    "attack": records.AttackReport,
    "caveat": records.Caveat,
    "assumption": records.Assumption,
    "model": records.ModelSummary,
    "dump": records.DumpSummary,
    "exhibit": records.Exhibit,
    "provenance": records.Provenance,
    "trust": records.Trust,
    "defence_seen": records.DefenceSeen,
    "bound": records.Bound,
    "control": records.ControlReport,
    "canaries": records.CanaryReport,
    "what_if_row": records.WhatIfRow,
    "what_if": records.WhatIf,
}


def errors(document):
    return list(Draft202012Validator(SCHEMA).iter_errors(document))


def test_round_trip_is_exact(audit):
    text = to_json(audit)
    assert from_json(text) == audit
    assert to_json(from_json(text)) == text


def test_schema_accepts_every_audit(audit):
    Draft202012Validator.check_schema(SCHEMA)
    assert errors(json.loads(to_json(audit))) == []


def test_schema_and_records_name_the_same_fields():
    pairs = [(SCHEMA, records.Audit), *((SCHEMA["$defs"][n], r) for n, r in RECORDS.items())]
    for part, record in pairs:
        names = [field.name for field in fields(record)]
        assert list(part["properties"]) == names
        assert part["required"] == names
        assert part["additionalProperties"] is False
    objects = {name for name, part in SCHEMA["$defs"].items() if part.get("type") == "object"}
    assert objects == set(RECORDS)
    assert SCHEMA["properties"]["schema_version"]["const"] == records.SCHEMA_VERSION


def test_text_is_stable_and_ends_with_one_newline(audits):
    text = to_json(audits["leak"])
    assert text == to_json(audits["leak"])
    assert text.endswith("}\n")
    assert not text.endswith("\n\n")
    assert text.startswith('{\n  "schema_version": "1.0",\n  "verdict": {')
    versions = replace(audits["leak"].provenance, versions={"b": "2", "a": "1"})
    assert '"a": "1",\n      "b": "2"' in to_json(replace(audits["leak"], provenance=versions))


def drop_key(document):
    del document["gate"]


def add_key(document):
    document["verdict"]["note"] = "x"


def add_key_deep(document):
    document["model"]["file"]["path"] = "/home/someone/lenet.pt"


def text_for_number(document):
    document["findings"][0]["severity"]["score"] = "9.8"


def truth_for_number(document):
    document["provenance"]["seed"] = True


def score_too_high(document):
    document["verdict"]["severity"]["score"] = 11


def unknown_word(document):
    document["verdict"]["status"] = "safe"


def list_for_word(document):
    document["verdict"]["status"] = ["leak"]


def null_for_text(document):
    document["verdict"]["sentence"] = None


def null_score(document):
    document["verdict"]["severity"]["score"] = None


def object_for_list(document):
    document["findings"] = {}


def text_for_list(document):
    document["verdict"]["reasons"] = "none"


def other_version(document):
    document["schema_version"] = "2.0"


def null_count(document):
    document["attacks"][-1]["links"][0]["undetermined"] = None


def word_for_truth(document):
    document["attacks"][-1]["links"][0]["solved"] = "yes"


def picture_in_a_layer(document):
    document["attacks"][-1]["links"][0]["input"] = [0.1, 0.2]


def hidden_exhibits(document):
    document["evidence"] = "none"


def no_picture(document):
    document["exhibits"][0]["truth"] = "PHN2Zz48L3N2Zz4="


MUTILATIONS = (
    drop_key,
    add_key,
    add_key_deep,
    text_for_number,
    truth_for_number,
    score_too_high,
    unknown_word,
    list_for_word,
    null_for_text,
    null_score,
    object_for_list,
    text_for_list,
    other_version,
    null_count,
    word_for_truth,
    picture_in_a_layer,
    hidden_exhibits,
    no_picture,
)


@pytest.mark.parametrize("mutilate", MUTILATIONS, ids=lambda function: function.__name__)
def test_both_refuse_a_mutilated_document(audits, mutilate):
    document = json.loads(to_json(audits["embedded"]))
    whole = copy.deepcopy(document)
    mutilate(document)
    assert document != whole
    assert errors(document)
    with pytest.raises(InputError):
        from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("mutilate", "where"),
    [
        (drop_key, "gate"),
        (text_for_number, "findings[0].severity.score"),
        (other_version, "version 1.0"),
        (object_for_list, "findings"),
        (null_count, "attacks[4].links[0].undetermined"),
    ],
)
def test_the_message_says_where(audits, mutilate, where):
    document = json.loads(to_json(audits["embedded"]))
    mutilate(document)
    with pytest.raises(InputError) as caught:
        from_json(json.dumps(document))
    assert where in str(caught.value)


def test_steps_and_values_must_pair(audits):
    document = json.loads(to_json(audits["leak"]))
    document["attacks"][1]["curves"][0]["steps"].pop()
    with pytest.raises(InputError, match="curves"):
        from_json(json.dumps(document))


NO_AUDIT = (
    "",
    "[]",
    "null",
    '{"a": 1}',
    "{",
    "[" * 100_000,
    '{"a": NaN}',
    '{"a": 1, "a": 1}',
    "9" * 5000,
)


@pytest.mark.parametrize("text", NO_AUDIT, ids=lambda text: text[:10])
def test_no_audit_at_all(text):
    with pytest.raises(InputError):
        from_json(text)


def test_a_key_that_stands_twice_is_refused(audits):
    text = to_json(audits["leak"]).replace('"seed": 0,', '"seed": 0, "seed": 0,')
    with pytest.raises(InputError, match="twice"):
        from_json(text)


@pytest.mark.parametrize("word", ["1e999", "NaN", "-Infinity"])
def test_a_number_that_is_not_finite_is_refused(audits, word):
    text = to_json(audits["leak"]).replace('"value": 61.23', f'"value": {word}')
    with pytest.raises(InputError, match=r"measures\[2\]\.value"):
        from_json(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_becomes_null_and_comes_back_as_nan(audits, value):
    attack = replace(
        audits["leak"].attacks[1],
        curves=(Curve(0, "diverged", (0, 1), (1.0, value)),),
        layers=(Measure("fc.weight", value, ""),),
    )
    document = json.loads(to_json(replace(audits["leak"], attacks=(attack,))))
    assert document["attacks"][0]["curves"][0]["values"] == [1.0, None]
    assert errors(document) == []
    back = from_json(json.dumps(document)).attacks[0]
    assert math.isnan(back.curves[0].values[1])
    assert math.isnan(back.layers[0].value)


@pytest.mark.parametrize("name", ["gap", "residual", "condition"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_layer_that_went_wrong_can_be_stored(audits, name, value):
    attack = audits["leak"].attacks[-1]
    links = (replace(attack.links[0], **{name: value}), *attack.links[1:])
    audit = replace(audits["leak"], attacks=(replace(attack, links=links),))
    document = json.loads(to_json(audit))
    assert document["attacks"][0]["links"][0][name] is None
    assert errors(document) == []
    back = from_json(json.dumps(document)).attacks[0].links
    assert math.isnan(getattr(back[0], name))
    assert replace(back[0], **{name: 0.0}) == replace(attack.links[0], **{name: 0.0})
    assert back[1:] == attack.links[1:]


def test_not_finite_elsewhere_is_our_mistake(audits):
    verdict = replace(audits["leak"].verdict, severity=Severity(math.nan, "none"))
    with pytest.raises(ValueError, match=r"verdict\.severity\.score"):
        to_json(replace(audits["leak"], verdict=verdict))


def test_exhibits_are_not_written_without_embed(audits):
    with pytest.raises(ValueError, match="exhibits"):
        to_json(replace(audits["embedded"], evidence="separate"))


def test_hostile_names_survive_without_reaching_the_terminal(audits):
    name = "a\x1b[31m\x9b2J\u202egnp.\u2028é"
    model = replace(audits["leak"].model, file=FileRef(name, "", 0, "00" * 32))
    text = to_json(replace(audits["leak"], model=model))
    assert "é" in text
    assert not set("\x1b\x9b\u202e\u2028") & set(text)
    assert from_json(text).model.file.name == name


def test_hostile_layer_names_survive_without_reaching_the_terminal(audits):
    name = "a\x1b[31m\x9b2J\u202egnp.\u2028\udcff"
    attack = audits["leak"].attacks[-1]
    attack = replace(attack, links=(replace(attack.links[0], layer=name),))
    text = to_json(replace(audits["leak"], attacks=(attack,)))
    assert not set("\x1b\x9b\u202e\u2028\udcff") & set(text)
    assert from_json(text).attacks[0].links[0].layer == name.replace("\udcff", "\ufffd")


def test_half_characters_can_be_stored(audits):
    model = replace(audits["leak"].model, architecture="a\udcffb")
    text = to_json(replace(audits["leak"], model=model))
    assert text.encode("utf-8")
    assert from_json(text).model.architecture == "a\ufffdb"
