"""Rows of a table from files: what is taken, and what is refused without telling what it holds."""

import re

import numpy
import pytest
import torch
from runs import gradaudit
from tables import COLUMNS, labels_for, perceptron, table, write_csv

from auditor.errors import InputError, UsageError
from auditor.inputs.tables import load_table
from auditor.inputs.truth import load_truth

SECRET = "31.4159265"


def written(folder, text, name="rows.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_with_a_header_is_read(tmp_path):
    rows, labels = table(5), labels_for(5)
    found = load_table(write_csv(tmp_path / "rows.csv", rows, labels), label_column="diagnosis")
    assert torch.equal(found.rows, rows)
    assert torch.equal(found.labels, labels)
    assert found.columns == tuple(f"lab_{number}" for number in range(COLUMNS))


@pytest.mark.parametrize(
    "text",
    [
        "age,class,dose\n50,1,2.5\n60,0,1e-3\n",
        "age;class;dose\n50;1;2.5\n60;0;1e-3\n",
        "age\tclass\tdose\n50\t1\t2.5\n60\t0\t1e-3\n",
        "\ufeffage,class,dose\r\n50,1,2.5\r\n60,0,1e-3\r\n",
        '"age","class","dose"\n"50","1","2.5"\n"60","0.0","1e-3"\n\n',
        "age , class , dose\n 50 , 1 , 2.5 \n 60 , 0 , 1e-3 \n , , \n",
    ],
    ids=["commas", "semicolons", "tabs", "windows", "quotes", "spaces"],
)
def test_the_ways_in_which_people_write_them(tmp_path, text):
    found = load_table(written(tmp_path, text), label_column="class")
    assert found.rows.tolist() == [[50.0, 2.5], [60.0, 1e-3]]
    assert found.labels.tolist() == [1, 0]
    assert found.columns == ("age", "dose")


def test_rows_are_chosen_by_number_in_the_order_given(tmp_path):
    rows, labels = table(5), labels_for(5)
    every = load_table(write_csv(tmp_path / "rows.csv", rows, labels), label_column="diagnosis")
    found = every.chosen([4, 0])
    assert torch.equal(found.rows, rows[[4, 0]])
    assert torch.equal(found.labels, labels[[4, 0]])
    assert torch.equal(every.chosen([]).rows, rows)
    with pytest.raises(InputError, match="rows from 0 to 4"):
        every.chosen([0, 5])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"1,2\n3,{SECRET}\n", "a header, the names of the columns in line 1"),
        (f"age,age\n3,{SECRET}\n", "'age' more than once"),
        (f"age,\n3,{SECRET}\n", "a column without one"),
        (f"age,dose\n3\n4,{SECRET}\n", "2 cells in line 2 of 'rows.csv'"),
        (f"age,dose\n{SECRET},\n", "a number in column 'dose' in line 2"),
        (f"age,dose\n{SECRET},many\n", "a finite number in column 'dose' in line 2"),
        (f"age,dose\n3,{SECRET}\n4,nan\n", "a finite number in column 'dose' in line 3"),
        (f"age,dose\n3,{SECRET}mg\n", "one column of 0 and 1 for each category"),
        ("age,dose\n", "at least one row below the header"),
        (f'age,dose\n3,"{SECRET}\n', "Check its quotation marks"),
    ],
    ids=[
        "no header",
        "twins",
        "nameless",
        "short",
        "empty",
        "word",
        "nan",
        "unit",
        "bare",
        "quote",
    ],
)
def test_what_is_wrong_is_named_by_its_place_and_not_told(tmp_path, text, wanted):
    with pytest.raises(InputError) as caught:
        load_table(written(tmp_path, text))
    assert wanted in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "many" not in str(caught.value)


@pytest.mark.parametrize("cell", ["1.5", "-1", "malignant", "", "inf"])
def test_a_class_is_a_whole_number(tmp_path, cell):
    path = written(tmp_path, f"age,class\n{SECRET},{cell}\n")
    with pytest.raises(
        InputError, match="a class number of at least 0 in column 'class'"
    ) as caught:
        load_table(path, label_column="class")
    assert SECRET not in str(caught.value)
    assert cell == "" or re.search(rf"\b{re.escape(cell)}\b", str(caught.value)) is None


def test_a_column_that_is_not_there_is_a_mistake_of_the_command(tmp_path):
    path = written(tmp_path, "age,class\n3,1\n")
    with pytest.raises(UsageError, match="no column 'klass' among 'age', 'class'"):
        load_table(path, label_column="klass")
    numpy.savez(tmp_path / "rows.npz", inputs=numpy.zeros((2, 3)))
    with pytest.raises(UsageError, match="--label-column with a CSV"):
        load_table(tmp_path / "rows.npz", label_column="class")


def test_another_encoding_is_named(tmp_path):
    with pytest.raises(InputError, match="Save it as CSV UTF-8"):
        load_table(written(tmp_path, "größe\n1\n", encoding="latin-1"))


def test_an_npz_holds_inputs_and_perhaps_labels(tmp_path):
    rows = table(3).numpy()
    numpy.savez(tmp_path / "rows.npz", inputs=rows)
    assert load_table(tmp_path / "rows.npz").labels is None
    numpy.savez(tmp_path / "both.npz", inputs=rows, labels=numpy.array([0, 1, 1]))
    assert load_table(tmp_path / "both.npz").labels.tolist() == [0, 1, 1]
    numpy.savez(tmp_path / "less.npz", inputs=rows, labels=numpy.array([0, 1]))
    with pytest.raises(InputError, match="3 rows and 2 labels"):
        load_table(tmp_path / "less.npz")
    numpy.savez(tmp_path / "other.npz", rows=rows)
    with pytest.raises(InputError, match="a tensor 'inputs'"):
        load_table(tmp_path / "other.npz")


@pytest.mark.parametrize("bad", [numpy.nan, numpy.inf])
def test_rows_of_a_truth_are_finite(tmp_path, bad):
    rows = table(2).numpy()
    rows[0, 0] = bad
    numpy.savez(tmp_path / "truth.npz", inputs=rows, labels=numpy.array([0, 1]))
    with pytest.raises(InputError, match="finite numbers in every column"):
        load_truth(tmp_path / "truth.npz")


def test_rows_of_a_truth_keep_their_units(tmp_path):
    rows = table(2)
    numpy.savez(tmp_path / "truth.npz", inputs=rows.numpy(), labels=numpy.array([0, 1]))
    assert torch.equal(load_truth(tmp_path / "truth.npz").inputs, rows)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--input", "rows.csv"], f"{COLUMNS} columns, as the model takes them"),
        (["--input", "bare.csv"], "a label for each row"),
        (["--input", "bare.csv", "--label", "1"], "one --label for each row"),
        (["--input", "rows.csv", "--input", "rows.csv"], "one file with rows"),
        (["--data", ".", "--dataset", "mnist", "--index", "0"], "a data set of pictures"),
        (["--input", "rows.csv", "--label-column", "diagnosis", "--label", "1"], "Leave --label"),
    ],
    ids=["label as column", "no labels", "too few", "two files", "data set", "both"],
)
def test_simulate_says_what_is_missing(tmp_path, words, wanted):
    torch.save(perceptron(), tmp_path / "model.pt")
    rows, labels = table(2), labels_for(2)
    write_csv(tmp_path / "rows.csv", rows, labels)
    text = (tmp_path / "rows.csv").read_text()
    bare = [line.rpartition(",")[0] for line in text.splitlines()]
    (tmp_path / "bare.csv").write_text("\n".join(bare))
    run = gradaudit("simulate", "model.pt", *words, cwd=tmp_path)
    assert run.code == 2
    assert wanted in " ".join(run.err.split())
    assert repr(rows[0, 0].item()) not in run.err


def test_rows_without_a_label_column_may_have_their_labels_said(tmp_path):
    torch.save(perceptron(), tmp_path / "model.pt")
    numpy.savez(tmp_path / "rows.npz", inputs=table(1).numpy())
    words = ("--input", "rows.npz", "--label", "1", "--attacks", "labels")
    assert gradaudit("simulate", "model.pt", *words, cwd=tmp_path).code == 0


def test_a_model_of_pictures_has_no_label_column(tmp_path):
    layers = [torch.nn.Flatten(), torch.nn.Linear(16, 3)]
    torch.save(torch.nn.Sequential(*layers), tmp_path / "model.pt")
    words = ("--input", "rows.csv", "--label-column", "diagnosis")
    run = gradaudit("simulate", "model.pt", *words, cwd=tmp_path)
    assert run.code == 2
    assert "pictures of shape 1x4x4" in " ".join(run.err.split())
