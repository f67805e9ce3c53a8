"""The command line: exit codes, refusals, and what it leaves on disk and on the streams."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from runs import CLASSES, LABEL, PLAIN, contents, gradaudit, pictures, small_net, write_case
from safetensors.torch import load_file
from torch import nn

import auditor
from auditor.attacks import ATTACKS
from auditor.inputs.gradients import load_gradients
from auditor.rules import RULES
from auditor.text.attacks import TEXT_ATTACKS
from auditor.zoo import LeNet

SCAN = ("scan", "model.pt", "grads.safetensors")
LABELS = (*SCAN, "--attacks", "labels")
SEARCH = ("--attacks", "labels,images.idlg")


@pytest.fixture
def case(tmp_path):
    write_case(tmp_path)
    return tmp_path


def audit_in(folder, out="gradaudit-report"):
    return json.loads((folder / out / "audit.json").read_text(encoding="utf-8"))


def refused(run, code, *words):
    """A refusal says why in one line, and nothing on stdout."""
    assert run.code == code, run.err
    assert run.out == ""
    for word in words:
        assert word in run.err
    assert "internal error" not in run.err
    assert "Traceback" not in run.err


# --------------------------------------------------------------------------- exit codes


def test_0_and_stdout_is_the_path_of_the_report_alone(case):
    run = gradaudit(*SCAN, cwd=case)
    assert (run.code, run.out) == (0, "gradaudit-report/report.html\n")
    assert "LEAK, CRITICAL" in run.err
    assert (case / "gradaudit-report" / "report.html").is_file()
    assert audit_in(case)["verdict"]["status"] == "leak"


@pytest.mark.parametrize(
    ("attacks", "fail_on", "code"),
    [
        ("labels", "high", 0),
        ("labels", "6.1", 0),
        ("labels", "medium", 1),
        ("labels", "6.0", 1),
        ("labels,images.idlg", "critical", 1),
    ],
)
def test_the_gate_decides_between_0_and_1(case, attacks, fail_on, code):
    run = gradaudit(*SCAN, "--attacks", attacks, "--fail-on", fail_on, cwd=case)
    assert (run.code, run.out) == (code, "gradaudit-report/report.html\n")
    assert audit_in(case)["gate"]["exit_code"] == code


def test_2_and_3_and_5_and_130(case, monkeypatch):
    assert gradaudit(*SCAN, "--fail-on", "purple", cwd=case).code == 2
    assert gradaudit("scan", "nowhere.pt", "grads.safetensors", cwd=case).code == 3
    for raised, code in (
        (RuntimeError("pixel 0.25"), 5),
        (MemoryError(), 5),
        (RecursionError(), 5),
        (KeyboardInterrupt(), 130),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("auditor.audit.run_audit", raising(raised))
            run = gradaudit(*SCAN, "--fail-on", "high", cwd=case)
        assert (run.code, run.out) == (code, ""), raised
        assert "0.25" not in run.err  # a message can hold what was recovered
    assert not (case / "gradaudit-report").exists()


def raising(error):
    def run(*_, **__):
        raise error

    return run


def test_debug_shows_the_traceback(case, monkeypatch):
    monkeypatch.setattr("auditor.audit.run_audit", raising(RuntimeError("why")))
    run = gradaudit(*SCAN, cwd=case, env={"GRADAUDIT_DEBUG": "1"})
    assert run.code == 5
    assert "RuntimeError: why" in run.err


@pytest.mark.parametrize("leaving", [SystemExit(0), SystemExit(1), SystemExit("bye")])
def test_code_that_leaves_the_process_is_no_pass_and_no_leak(case, monkeypatch, leaving):
    """A model's own forward pass may call sys.exit."""
    monkeypatch.setattr("auditor.audit.run_audit", raising(leaving))
    assert gradaudit(*SCAN, "--fail-on", "high", cwd=case).code == 5


@pytest.mark.parametrize("code", [0, 1])
def test_a_factory_that_leaves_the_process_is_refused(case, code):
    torch.save(small_net().state_dict(), case / "weights.pt")
    (case / "net.py").write_text(f"import sys\ndef make():\n    sys.exit({code})\n")
    run = gradaudit("scan", "weights.pt", "grads.safetensors", "--arch", "net.py:make", cwd=case)
    refused(run, 2, "SystemExit")


def test_4_when_no_attack_had_time(case):
    for gate in ((), ("--fail-on", "critical"), ("--fail-on", "low")):
        asked = (*SCAN, "--budget", "1e-3", "--attacks", "images.layers,images.lm", *gate)
        run = gradaudit(*asked, "--overwrite", cwd=case)
        assert run.code == 4, run.err
        assert "budget" in run.err
        assert audit_in(case)["verdict"]["status"] == "inconclusive"


def test_labels_are_proved_in_no_time_and_pass_no_gate_for_pictures(case):
    for gate, code in (((), 0), (("--fail-on", "critical"), 4), (("--fail-on", "low"), 1)):
        run = gradaudit(*SCAN, "--budget", "1e-3", *gate, "--overwrite", cwd=case)
        assert run.code == code, run.err
        assert "budget" in run.err
        assert [f["code"] for f in audit_in(case)["findings"]] == ["GA101"]


def noised(folder):
    net = small_net()
    tensors = load_gradients(folder / "grads.safetensors", net).tensors
    generator = torch.Generator().manual_seed(0)
    noise = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
    auditor.save_gradients(
        net, noise, folder / "noised.safetensors", batch_size=1, input_shape=(1, 8, 8)
    )
    return ("scan", "model.pt", "noised.safetensors", "--preset", "fast", *SEARCH)


@pytest.mark.parametrize("gate", [(), ("--fail-on", "low"), ("--fail-on", "critical")])
def test_4_for_a_dump_with_noise(case, gate):
    run = gradaudit(*noised(case), *gate, cwd=case)
    assert run.code == 4, run.err
    assert "GA301" in run.err
    assert "An attack that failed proves nothing." in run.err


def test_a_waived_inconclusive_audit_ends_with_0_and_says_so(case):
    run = gradaudit(*noised(case), "--fail-on", "high", "--allow-inconclusive", cwd=case)
    assert run.code == 0, run.err
    assert "waived by --allow-inconclusive" in audit_in(case)["gate"]["reason"]
    assert audit_in(case)["verdict"]["status"] == "inconclusive"


def test_a_waiver_does_not_waive_a_leak(case):
    run = gradaudit(*LABELS, "--fail-on", "medium", "--allow-inconclusive", cwd=case)
    assert run.code == 1


# --------------------------------------------------------------------------- a real process

AS_A_PROCESS = [sys.executable, "-m", "auditor"]


def start(*arguments, cwd, **streams):
    # A suite that was started in the background would hand on that Ctrl-C is ignored.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [*AS_A_PROCESS, *arguments]
    return subprocess.Popen(command, cwd=cwd, env=PLAIN, preexec_fn=heard, **streams)  # noqa: PLW1509


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path):
    write_case(tmp_path, LeNet(1, 28, 10).eval(), side=28)
    before = contents(tmp_path)
    # the papers' own settings crawl here: there is time to interrupt
    slow = (*SCAN, "--preset", "paper", "--evidence", "none")
    process = start(*slow, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    first = process.stderr.readline()
    assert "step 0" in first
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert contents(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grads.safetensors", "model.pt"]


@pytest.mark.parametrize(
    ("stream", "fail_on", "code"),
    [("stdout", "high", 0), ("stderr", "high", 0), ("stderr", "6", 1)],
)
def test_a_reader_that_has_gone_changes_neither_code_nor_report(case, stream, fail_on, code):
    """`gradaudit scan ... 2>&1 | head -1` must not look like a leak, nor like a pass."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: writer}
    process = start(*LABELS, "--fail-on", fail_on, cwd=case, **streams)
    os.close(writer)
    assert process.wait(timeout=60) == code
    assert (case / "gradaudit-report" / "report.html").is_file()


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_changes_neither_code_nor_report(case, closed):
    line = ["sh", "-c", f'exec "$0" "$@" {closed}', *AS_A_PROCESS, *LABELS, "--fail-on", "high"]
    assert subprocess.run(line, cwd=case, env=PLAIN, check=False, timeout=60).returncode == 0
    assert (case / "gradaudit-report" / "report.html").is_file()


# --------------------------------------------------------------------------- usage


NONSENSE = [
    (("--nonsense",), "--nonsense"),
    (("--preset", "thorough"), "'thorough'"),
    (("--attacks", "labels,magic"), "'magic'"),
    (("--attacks", ","), "--attacks"),
    (("--device", "abacus"), "'abacus'"),
    (("--fail-on", "awful"), "'awful'"),
    (("--fail-on", "0"), "--fail-on"),
    (("--fail-on", "11"), "--fail-on"),
    (("--fail-on", "nan"), "--fail-on"),
    (("--budget", "0"), "budget"),
    (("--budget", "nan"), "budget"),
    (("--budget", "soon"), "--budget"),
    (("--batch-size", "0"), "--batch-size"),
    (("--batch-size", "-1"), "--batch-size"),
    (("--batch-size", "1.5"), "--batch-size"),
    (("--attacks", "labels", "--batch-size", "70000"), "--batch-size"),  # no budget ends that
    (("--seed", "x"), "--seed"),
    (("--seed", "99999999999999999999"), "--seed"),
    (("--mode", "test"), "--mode"),
    (("--reduction", "max"), "--reduction"),
    (("--label-smoothing", "1"), "--label-smoothing"),
    (("--label-smoothing", "nan"), "--label-smoothing"),
    (("--mean", "a,b"), "--mean"),
    (("--mean", "inf"), "--mean"),
    (("--mean", "0.1,0.2"), "--mean"),
    (("--std", "-0.5"), "--std"),
    (("--std", "0"), "--std"),
    (("--std", "0.5,0.5,0.5"), "--std"),
    (("--input-shape", "8x8"), "--input-shape"),
    (("--input-shape", "1x8xwide"), "--input-shape"),
    (("--input-shape", "0x8x8"), "--input-shape"),
    (("--input-shape", "1x-8x8"), "--input-shape"),
    (("--input-shape", "1x1000000x1000000"), "--input-shape"),
    (("--evidence", "all"), "'all'"),
    (("--evidence", ""), "--evidence"),
    (("--arch", "lenet"), "--arch"),  # superfluous: the file is a whole model
]


@pytest.mark.parametrize(("arguments", "word"), NONSENSE, ids=[" ".join(a) for a, _ in NONSENSE])
def test_what_makes_no_sense_is_usage(case, arguments, word):
    refused(gradaudit(*SCAN, *arguments, cwd=case), 2, word)
    assert not (case / "gradaudit-report").exists()


@pytest.mark.parametrize("arguments", [("frobnicate",), ("scan",), ("scan", "model.pt"), ()])
def test_an_incomplete_command_is_usage(case, arguments):
    assert gradaudit(*arguments, cwd=case).code == 2


def test_two_means_for_three_channels(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(72, 4)).eval()
    loss = nn.functional.cross_entropy(net(pictures(channels=3)), torch.tensor([0]))
    torch.save(list(torch.autograd.grad(loss, list(net.parameters()))), tmp_path / "grads.pt")
    torch.save(net, tmp_path / "model.pt")
    run = gradaudit("scan", "model.pt", "grads.pt", "--mean", "0.4,0.5", cwd=tmp_path)
    refused(run, 2, "2 for mean", "--mean or --input-shape")


def test_a_shape_that_the_model_cannot_take_is_refused(case):
    run = gradaudit(*SCAN, "--input-shape", "3x8x8", cwd=case)
    assert run.code in {2, 3}
    assert "--input-shape" in run.err
    assert "internal error" not in run.err


def test_several_shapes_fit_and_none_was_said(tmp_path):
    """The LeNet of the papers takes 29 to 32 pixels a side with the same weights."""
    net = LeNet(1, 32, 4).eval()
    loss = nn.functional.cross_entropy(net(pictures(side=32)), torch.tensor([0]))
    torch.save(list(torch.autograd.grad(loss, list(net.parameters()))), tmp_path / "grads.pt")
    torch.save(net, tmp_path / "model.pt")
    scan = ("scan", "model.pt", "grads.pt", "--attacks", "labels")
    run = gradaudit(*scan, cwd=tmp_path)
    refused(run, 2, "1x29x29", "1x30x30", "--input-shape 3x32x32")
    assert gradaudit(*scan, "--input-shape", "1x32x32", cwd=tmp_path).code == 0


def test_the_only_shape_that_fits_is_deduced(case):
    tensors = load_gradients(case / "grads.safetensors", small_net()).tensors
    torch.save(dict(tensors), case / "bare.pt")
    run = gradaudit("scan", "model.pt", "bare.pt", "--attacks", "labels", cwd=case)
    assert run.code == 0, run.err
    found = {fact["what"]: fact for fact in audit_in(case)["assumptions"]}
    assert found["input shape"] == {"what": "input shape", "value": "1x8x8", "origin": "deduced"}
    assert found["batch size"] == {"what": "batch size", "value": "1", "origin": "deduced"}


def test_a_flag_wins_over_the_dump_and_that_is_told(case):
    run = gradaudit(*LABELS, "--batch-size", "2", cwd=case)
    assert run.code in {0, 4}
    assert "GA307" in run.err


# --------------------------------------------------------------------------- truth


def write_truth(folder, count, labels=None, side=8):
    labels = torch.full((count,), LABEL) if labels is None else torch.tensor(labels)
    truth = {"inputs": pictures(count, side=side), "labels": labels}
    torch.save(truth, folder / "truth.pt")
    return ("--truth", "truth.pt")


def test_truth_is_measured(case):
    run = gradaudit(*SCAN, *write_truth(case, 1), cwd=case)
    assert run.code == 0, run.err
    measured = [f for f in audit_in(case)["findings"] if f["certainty"] == "measured"]
    assert [f["code"] for f in measured] == ["GA203"]


@pytest.mark.parametrize("dump", ["grads.safetensors", "bare.pt"])
def test_truth_of_another_count_is_usage(case, dump):
    """Also where the dump does not say its batch size, and the audit deduces it later."""
    tensors = load_gradients(case / "grads.safetensors", small_net()).tensors
    torch.save(dict(tensors), case / "bare.pt")
    run = gradaudit("scan", "model.pt", dump, *write_truth(case, 2), cwd=case)
    refused(run, 2, "2 samples")


def test_truth_of_another_shape_is_usage(case):
    refused(gradaudit(*SCAN, *write_truth(case, 1, side=9), cwd=case), 2, "truth")


def test_truth_with_a_class_that_the_model_does_not_have_is_usage(case):
    refused(gradaudit(*SCAN, *write_truth(case, 1, labels=[CLASSES]), cwd=case), 2, "truth")


# --------------------------------------------------------------------------- input


def test_another_loss_is_refused(tmp_path):
    write_case(tmp_path, loss="mse_loss")
    refused(gradaudit(*SCAN, cwd=tmp_path), 3, "mse_loss", "cross_entropy")


def test_an_absurd_batch_size_in_the_dump_is_refused(tmp_path):
    write_case(tmp_path, batch_size=70_000)
    refused(gradaudit(*LABELS, cwd=tmp_path), 3, "70000")


def test_batch_norm_in_training_mode_on_one_sample_fails_by_name(tmp_path):
    """No client could have made this dump: the audit says why it cannot look."""
    flat, first, *rest = small_net()
    write_case(tmp_path, nn.Sequential(flat, first, nn.BatchNorm1d(12), *rest).eval())
    run = gradaudit(*SCAN, "--mode", "train", "--fail-on", "high", cwd=tmp_path)
    assert run.code == 4, run.err
    assert "batch norm" in run.err


def test_a_model_that_ends_in_softmax_is_refused(tmp_path):
    write_case(tmp_path, nn.Sequential(*small_net(), nn.Softmax(1)).eval())
    refused(gradaudit(*SCAN, cwd=tmp_path), 3, "softmax", "logits")


def test_swapped_files_are_refused(case):
    refused(gradaudit("scan", "grads.safetensors", "model.pt", cwd=case), 2, "--arch")


def test_a_class_of_ones_own_is_refused_by_name(case):
    class Mine(nn.Module):
        pass

    Mine.__qualname__, Mine.__module__ = "Mine", "__main__"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
        torch.save(Mine(), case / "mine.pt")
    refused(gradaudit("scan", "mine.pt", "grads.safetensors", cwd=case), 3, "__main__.Mine")


def test_a_state_dict_needs_arch(case):
    torch.save(LeNet(1, 8, CLASSES).state_dict(), case / "weights.pt")
    scan = ("scan", "weights.pt", "grads.safetensors")
    refused(gradaudit(*scan, cwd=case), 2, "--arch")
    refused(gradaudit(*scan, "--arch", "lenet:1x8x5", cwd=case), 3)  # the dump is another net's


def test_a_state_dict_with_arch(tmp_path):
    net = write_case(tmp_path, LeNet(1, 8, CLASSES).eval())
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    scan = ("scan", "weights.pt", "grads.safetensors", "--arch", "lenet:1x8x5", "--attacks")
    run = gradaudit(*scan, "labels", cwd=tmp_path)
    assert run.code == 0, run.err
    assert audit_in(tmp_path)["model"]["architecture"] == "LeNet"


# --------------------------------------------------------------------------- on disk


def test_an_older_audit_is_refused_and_replaced_whole_on_demand(case):
    assert gradaudit(*LABELS, cwd=case).code == 0
    before = contents(case)
    refused(gradaudit(*LABELS, cwd=case), 2, "--overwrite")
    assert contents(case) == before
    run = gradaudit(*LABELS, "--overwrite", "--evidence", "none", cwd=case)
    assert run.code == 0
    assert {p.name for p in (case / "gradaudit-report").iterdir()} == {"audit.json", "report.html"}
    assert {p.name for p in case.iterdir()} == {"model.pt", "grads.safetensors", "gradaudit-report"}


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_foreign_files_are_never_touched(case, flags):
    (case / "mine").mkdir()
    (case / "mine" / "thesis.tex").write_text("years of work")
    before = contents(case)
    refused(gradaudit(*LABELS, "--out", "mine", *flags, cwd=case), 2, "thesis.tex")
    refused(gradaudit(*LABELS, "--out", ".", *flags, cwd=case), 2)
    refused(gradaudit(*LABELS, "--out", "model.pt", *flags, cwd=case), 2, "model.pt")
    assert contents(case) == before


@pytest.mark.parametrize("out", ["model.pt/report", "model.pt/a/b"])
def test_an_impossible_directory_is_refused_before_the_audit(case, monkeypatch, out):
    monkeypatch.setattr("auditor.audit.run_audit", raising(AssertionError("too late")))
    refused(gradaudit(*SCAN, "--out", out, cwd=case), 2, "--out")


def test_out_may_be_the_directory_we_are_in(case):
    (case / "empty").mkdir()
    scan = ("scan", "../model.pt", "../grads.safetensors", "--attacks", "labels", "--out", ".")
    run = gradaudit(*scan, cwd=case / "empty")
    assert run.code == 0, run.err
    assert {p.name for p in (case / "empty").iterdir()} == {"audit.json", "evidence", "report.html"}


def test_a_run_that_fails_leaves_nothing(case, monkeypatch):
    before = contents(case)
    with monkeypatch.context() as patch:
        patch.setattr("auditor.outputs.to_html", raising(OSError(28, "disk full")))
        refused(gradaudit(*LABELS, "--out", "deep/down", "-q", cwd=case), 2, "disk full")
    assert contents(case) == before
    with monkeypatch.context() as patch:
        patch.setattr("auditor.outputs.png_of", raising(KeyboardInterrupt()))
        run = gradaudit(*SCAN, cwd=case)
    assert run.code == 130
    assert run.err.splitlines()[-1].endswith("the same command goes on from there.")
    shutil.rmtree(case / ".gradaudit-report-unfinished")
    assert contents(case) == before
    assert gradaudit(*LABELS, cwd=case).code == 0
    kept = contents(case)
    with monkeypatch.context() as patch:
        patch.setattr("auditor.outputs.to_html", raising(OSError(28, "disk full")))
        assert gradaudit(*LABELS, "--overwrite", cwd=case).code == 2
    assert contents(case) == kept  # the older audit is still there, whole


def test_the_users_files_stay_as_they_are(case, tmp_path_factory):
    write_truth(case, 1)
    before = contents(case)
    out = str(tmp_path_factory.mktemp("elsewhere") / "out")
    assert gradaudit(*SCAN, "--truth", "truth.pt", "--out", out, cwd=case).code == 0
    assert contents(case) == before


def test_nothing_recovered_is_written_in_a_pipeline(case):
    assert gradaudit(*SCAN, cwd=case, env={"CI": "true"}).code == 0
    assert {p.name for p in (case / "gradaudit-report").iterdir()} == {"audit.json", "report.html"}
    assert audit_in(case)["evidence"] == "none"
    run = gradaudit(*SCAN, "--evidence", "separate", "--out", "b", cwd=case, env={"CI": "true"})
    assert run.code == 0
    assert (case / "b" / "evidence").is_dir()  # whoever asks gets it there, too


def test_quiet_leaves_stderr_empty(case):
    run = gradaudit(*SCAN, "--quiet", cwd=case)
    assert (run.code, run.out, run.err) == (0, "gradaudit-report/report.html\n", "")


def test_the_same_seed_gives_the_same_audit(case):
    for out in ("a", "b"):
        assert gradaudit(*SCAN, "--out", out, cwd=case).code == 0
    one, two = audit_in(case, "a"), audit_in(case, "b")
    assert one["findings"] == two["findings"]
    one, two = (load_file(case / out / "evidence" / "evidence.safetensors") for out in "ab")
    assert one.keys() == two.keys() == {"inputs", "labels"}
    assert all(torch.equal(one[name], two[name]) for name in one)


# --------------------------------------------------------------------------- smaller commands


def test_render_gives_the_report_of_the_scan_byte_for_byte(case):
    assert gradaudit(*SCAN, "--evidence", "embed", cwd=case).code == 0
    folder = case / "gradaudit-report"
    run = gradaudit("render", folder / "audit.json", "--out", "page.html", cwd=case)
    assert run.code == 0, run.err
    assert (case / "page.html").read_bytes() == (folder / "report.html").read_bytes()


def test_render_refuses(case):
    assert gradaudit(*LABELS, cwd=case).code == 0
    audit = case / "gradaudit-report" / "audit.json"
    before = contents(case)
    refused(gradaudit("render", "model.pt", "--out", "page.html", cwd=case), 3)
    refused(gradaudit("render", "nowhere.json", "--out", "page.html", cwd=case), 3)
    refused(gradaudit("render", audit, "--out", case, cwd=case), 2)
    refused(gradaudit("render", audit, "--out", audit, cwd=case), 2)  # would destroy its source
    refused(gradaudit("render", audit, cwd=case), 2, "--out")
    (case / "broken.json").write_text("{}")
    refused(gradaudit("render", "broken.json", "--out", "page.html", cwd=case), 3)
    (case / "broken.json").unlink()
    assert contents(case) == before


def test_inspect(case):
    run = gradaudit("inspect", "grads.safetensors", cwd=case)
    assert (run.code, run.err) == (0, "")
    assert "1.weight  12x64  F32" in run.out
    assert "gradaudit" in run.out
    run = gradaudit("inspect", "model.pt", cwd=case)
    assert run.code == 0
    assert "needs: torch.nn.modules.linear.Linear" in run.out
    assert gradaudit("inspect", "nowhere.pt", cwd=case).code == 3


def test_attacks_lists_every_attack(tmp_path):
    run = gradaudit("attacks", cwd=tmp_path)
    assert run.code == 0
    every = (*ATTACKS, *TEXT_ATTACKS)
    assert [line.split()[0] for line in run.out.splitlines()] == [a.name for a in every]
    assert all(a.title in run.out for a in every)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_explain_says_what_a_code_means(tmp_path, rule):
    run = gradaudit("explain", rule.code.lower(), cwd=tmp_path)
    assert run.code == 0
    for text in (rule.code, rule.title, rule.meaning, rule.matters, rule.remedy, *rule.references):
        assert text in run.out


def test_explain_refuses_other_codes(tmp_path):
    refused(gradaudit("explain", "GA999", cwd=tmp_path), 2, "GA101", "'GA999'")


def test_version_and_help(tmp_path):
    assert gradaudit("--version", cwd=tmp_path).out == f"gradaudit {auditor.__version__}\n"
    for command in ("scan", "simulate", "demo", "inspect", "render", "attacks", "explain"):
        run = gradaudit(command, "--help", cwd=tmp_path)
        assert (run.code, run.err) == (0, "")
        assert "Usage:" in run.out
