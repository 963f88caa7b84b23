"""Tables as people and programs write them: read with a remark, or refused with the row."""

import codecs

import numpy as np
import pytest

from stf2m_core.data.tables import check_labels, check_numeric, read_columns, read_table
from stf2m_core.errors import ManifestError

PLAIN = 'clip,label,size\na,joy,1.5\nb,"anger, cold",\n'
WANTED = [["a", "joy", "1.5"], ["b", "anger, cold", ""]]


def table(tmp_path, content, columns=("clip",)):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, columns)


WRITTEN = {
    "plain": (PLAIN, []),
    "byte-order mark": (codecs.BOM_UTF8 + PLAIN.encode(), []),
    "utf-16": (PLAIN.encode("utf-16"), []),
    "windows line ends": (PLAIN.replace("\n", "\r\n"), []),
    "old mac line ends": (PLAIN.replace("\n", "\r"), []),
    "blanks in the header": (PLAIN.replace("clip,label,size", " clip , label,size "), []),
    "blanks after commas": (PLAIN.replace(",joy", ", joy").replace(',"', ', "'), []),
    "empty rows and columns": (PLAIN.replace("size\n", "size,,\n").replace("1.5\n", "1.5,,\n") + ",,,\n\n", []),
    "short row": (PLAIN.replace('cold",', 'cold"'), []),
    "semicolons": ('clip;label;size\na;joy;1.5\nb;"anger, cold";\n', ["cells are separated by semicolons"]),
    "tabs": ("clip\tlabel\tsize\na\tjoy\t1.5\nb\tanger, cold\t\n", ["cells are separated by tabs"]),
    "stated": ('sep=;\nclip;label;size\na;joy;1.5\nb;"anger, cold";\n', ["cells are separated by semicolons"]),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_table_is_read_however_it_was_written(tmp_path, how):
    content, remarks = WRITTEN[how]
    found = table(tmp_path, content, ("clip", "label", "size"))
    assert list(found.rows) == ["clip", "label", "size"]
    assert found.rows.values.tolist() == WANTED
    assert [remark.split(": ")[-1] for remark in found.remarks] == remarks


@pytest.mark.parametrize(("encoding", "word"), [("cp1252", "café “naïve”"), ("latin1", "caf\xe9 \x81")])
def test_text_that_is_not_utf8_is_read_with_a_remark_that_names_the_line(tmp_path, encoding, word):
    found = table(tmp_path, f"clip\nplain\n{word}\n".encode(encoding))
    assert found.rows["clip"].tolist() == ["plain", word]
    assert found.remarks == ("table.csv is not UTF-8 from line 3 on; it was read as Windows-1252, check its accents",)


BAD = {
    "table.csv is empty; expected a header and rows": b"",
    "table.csv is empty; expected": b"\n,,\n  \n",
    "table.csv holds zero bytes": b"clip\na\0b\n",
    "table.csv is not utf-16: ": codecs.BOM_UTF16_LE + b"\x00\xd8\x00",
    "column 'clip' is missing; expected clip .*Did you mean 'clips'": b"clips,label\na,b\n",
    "column 'a' is there twice": b"clip,a,a\n1,2,3\n",
    "row 3 has 3 cells; expected 2, as the header .*Quote cells": b"clip,text\na,b\nc,well, no\n",
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_table_is_refused(tmp_path, message):
    with pytest.raises(ManifestError, match=message):
        table(tmp_path, BAD[message])


def test_a_table_that_is_not_there_or_is_a_folder_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="nowhere.csv cannot be read: No such file"):
        read_table(tmp_path / "nowhere.csv", ())
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        read_table(tmp_path, ())


def test_numbers_are_read_and_the_first_cell_that_is_none_is_named(tmp_path):
    found = table(tmp_path, "clip,size\na,1e3\nb,\nc, -2 \nd,NaN\n").numbers("size")
    np.testing.assert_array_equal(found, [1000, np.nan, -2, np.nan])
    with pytest.raises(ManifestError, match=r"size is '1,5' at row 3; expected a number \(in .*table.csv"):
        table(tmp_path, 'clip,size\na,1\nb,"1,5"\n').numbers("size")


def test_a_decimal_comma_is_read_where_commas_do_not_separate_cells(tmp_path):
    assert table(tmp_path, "clip;size\na;1,5\n").numbers("size").tolist() == [1.5]


def test_a_row_that_repeats_another_is_dropped_and_one_that_contradicts_it_is_refused(tmp_path):
    found = table(tmp_path, "clip,label\na,joy\na,joy\nb,joy\n").without_repeats("clip")
    assert found.rows["clip"].tolist() == ["a", "b"]
    assert found.remarks == ("table.csv: 1 repeated rows were dropped",)
    clash = table(tmp_path, "clip,label\na,joy\na,joy\nb,joy\na,anger\n")
    with pytest.raises(ManifestError, match="rows 2 and 5 are both 'a' and differ; .*Correct one of them or remove it"):
        clash.without_repeats("clip")
    assert len(clash.without_repeats(["clip", "label"]).rows) == 3


def test_an_unknown_label_is_named_with_its_row_and_the_nearest(tmp_path):
    rows = table(tmp_path, "clip,label\na,joy\nb,joyy\n").rows
    with pytest.raises(ManifestError, match="label is 'joyy' at row 3; expected anger or joy .*Did you mean 'joy'"):
        check_labels(rows["label"], ("anger", "joy"), "table.csv")
    check_labels(rows["label"][:1], ("anger", "joy"), "table.csv")


# Tables that programs wrote


def test_a_table_of_a_program_keeps_its_numbers_and_blanks_in_its_header_do_not_count(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("frame, x\n1, 0.5\n2, 1.5\n")
    table = read_columns(path, ["frame", "x"], skipinitialspace=True)
    check_numeric(table, ["frame", "x"], str(path))
    assert table["x"].tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.csv cannot be read: .*No such file.*; expected a CSV table"),
        (b"", "a.csv cannot be read: No columns"),
        (b"x\n\xff\xfe\n", "a.csv cannot be read: .*utf-8"),
        (b"x\n1\n", "column 'frame' is missing; expected frame, x"),
    ],
)
def test_what_is_no_table_of_a_program_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read_columns(tmp_path / "a.csv", ["frame", "x"])


def test_a_missing_column_may_be_told_by_the_program_that_should_have_written_it(tmp_path):
    (tmp_path / "a.csv").write_text("x\nhigh\n")
    with pytest.raises(ManifestError, match="column 'frame' is missing; expected the columns of OpenFace 2"):
        read_columns(tmp_path / "a.csv", ["frame"], expected="the columns of OpenFace 2")
    with pytest.raises(ManifestError, match="x holds a cell that is no number; expected numbers .*a.csv"):
        check_numeric(read_columns(tmp_path / "a.csv", ["x"]), ["x"], "a.csv")
