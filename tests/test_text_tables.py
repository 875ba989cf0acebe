"""The one reader: quotes, line ends, encodings and spellings, with values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_align.errors import UserError
from t2i_align.evaluation.manifest import Picture, read_manifest, write_manifest
from t2i_align.evaluation.prompts import load_prompts
from t2i_align.processes import join_lines
from t2i_align.text_tables import find_column, json_lines, read_table, split_lines, text_lines


def cells(path: Path) -> list[dict]:
    return [row.cells for row in read_table(path).rows]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class TestLines:
    def test_only_a_line_feed_ends_a_line(self, tmp_path):
        text = "one\u2028still one\r\ntwo\x85still two\x0bhere\n\nfour\u2029"
        expected = ["one\u2028still one", "two\x85still two\x0bhere", "", "four\u2029"]
        path = written(tmp_path, "p.txt", text)
        assert list(text_lines(path)) == list(enumerate(expected, start=1))
        assert split_lines(text.replace("\r", "")) == expected
        assert split_lines("") == [] and split_lines("a\n") == ["a"] and split_lines("\n") == [""]

    def test_a_byte_order_mark_is_read(self, tmp_path):
        assert list(json_lines(written(tmp_path, "p.jsonl", b'\xef\xbb\xbf{"a": 1}\n'))) == [(1, {"a": 1})]
        assert read_table(written(tmp_path, "p.csv", b"\xef\xbb\xbfprompt\na\n")).columns == ("prompt",)

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ('"first"\n"the painter\u2019s"\n'.encode("cp1252"), r"line 2, byte 20 of the file: 0x92"),  # 8 + 12
            (b"\xef\xbb\xbf\x92", r"line 1, byte 3 of the file: 0x92"),
            ("prompt\n".encode("utf-16"), r"line 1, byte 0 of the file: ff fe, the mark of UTF-16"),
            ("prompt\n".encode("utf-16-le"), r"line 1 holds a zero byte"),
            (b"one\rtwo\n", r"line 1 holds a carriage return"),
        ],
    )
    @pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.tsv", "p.jsonl"])
    def test_other_text_is_refused_with_its_place(self, tmp_path, name, content, found):
        path = written(tmp_path, name, content)
        with pytest.raises(UserError, match=found) as caught:
            load_prompts(path)
        assert str(path) in str(caught.value) and caught.value.fix

    def test_broken_json_names_the_line(self, tmp_path):
        path = written(tmp_path, "p.jsonl", '{"a": 1}\n\n{"a": \n')
        with pytest.raises(UserError, match=r"p\.jsonl line 3 is not JSON"):
            list(json_lines(path))


class TestCsv:
    def test_quotes_hold_commas_quotes_and_line_breaks(self, tmp_path):
        path = written(tmp_path, "p.csv", 'prompt,style\r\n"a, ""b""\r\nc\u2028d",x\r\n\r\n e ,\r\n')
        table = read_table(path)
        assert [row.cells for row in table.rows] == [
            {"prompt": 'a, "b"\nc\u2028d', "style": "x"},
            {"prompt": " e ", "style": ""},
        ]
        assert [row.line for row in table.rows] == [2, 5]

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("file_name,prompt\na.png,ok\nb.png,a red circle, on white\n", r"line 3 .* 3 fields, 2 columns"),
            ("prompt\na red circle, on white\n", r"line 2 .* 2 fields, 1 column\."),
            ("prompt,style\na red\ncircle,x\n", r"line 2 .* 1 field, 2 columns"),
            ('prompt,style\n"a","x"\n"a sign "hi"",x\n', r"line 3 is not CSV"),
            ('prompt,style\n"a,x\n', r"line 2 is not CSV"),
            ("Prompt,prompt\na,b\n", r"two columns of one name"),
        ],
    )
    def test_rows_that_do_not_fit_are_refused_with_their_line(self, tmp_path, text, found):
        with pytest.raises(UserError, match=found):
            load_prompts(written(tmp_path, "p.csv", text))

    def test_semicolons_separate_where_the_header_has_them(self, tmp_path):
        path = written(tmp_path, "p.csv", "file_name;prompt\na.png;a circle, red\n")
        assert cells(path) == [{"file_name": "a.png", "prompt": "a circle, red"}]

    def test_a_column_without_a_name_keeps_its_place(self, tmp_path):
        assert read_table(written(tmp_path, "p.csv", ",prompt\n0,a\n")).columns == ("column 1", "prompt")


class TestTsv:
    def test_with_quotes_throughout(self, tmp_path):
        path = written(tmp_path, "p.tsv", 'prompt\tstyle\n"a ""red""\tcircle"\tx\n"two\nlines"\ty\n')
        assert [row["prompt"] for row in cells(path)] == ['a "red"\tcircle', "two\nlines"]

    def test_bare_quotes_are_text(self, tmp_path):
        path = written(tmp_path, "p.tsv", 'prompt\tstyle\n"G I G" painted\tx\na sign "hi\ty\n')
        assert [row["prompt"] for row in cells(path)] == ['"G I G" painted', 'a sign "hi']

    def test_a_mixture_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="line 3"):
            read_table(written(tmp_path, "p.tsv", 'prompt\tstyle\n"whole"\tx\n"G I G" painted\ty\n'))

    def test_rows_must_fit(self, tmp_path):
        with pytest.raises(UserError, match="line 2 .* 3 fields, 2 columns"):
            read_table(written(tmp_path, "p.tsv", "prompt\tstyle\na\tb\tc\n"))


def test_names_match_in_any_spelling(tmp_path):
    columns = ("File Name", "PROMPT", "image-0")
    assert find_column(columns, ["file_name"]) == "File Name"
    assert find_column(columns, ["caption", "prompt"]) == "PROMPT"
    assert find_column(columns, ["image_0"]) == "image-0" and find_column(columns, ["image_1"]) is None
    rows = cells(written(tmp_path, "p.jsonl", '{"Prompt": "a"}\n"b"\n{"prompt": "c"}\n'))
    assert rows == [{"Prompt": "a"}, {"Prompt": "b"}, {"Prompt": "c"}]
    with pytest.raises(UserError, match="two columns of one name"):
        read_table(written(tmp_path, "q.jsonl", '{"Prompt": "a", "prompt": "b"}\n'))


def test_a_prompt_of_another_type_names_line_and_type(tmp_path):
    with pytest.raises(UserError, match="Prompt 2 is no text but list.*\n.*line 3"):
        load_prompts(written(tmp_path, "p.jsonl", '"a"\n\n{"prompt": ["b", "c"]}\n'))


def test_prompts_with_line_separators_stay_whole(tmp_path):
    prompt = "a red circle\u2028on a white background"
    assert load_prompts(written(tmp_path, "p.txt", f"{prompt}\na blue square\n")).prompts == (prompt, "a blue square")
    assert len(load_prompts(written(tmp_path, "p.jsonl", f'{{"prompt": "{prompt}"}}\n"b"\n'))) == 2


class TestManifest:
    PICTURES = tuple(Picture(i, i, 0, f"a\u2028{i}\x85b", i, f"images/{i}.png") for i in range(3))

    def test_prompts_with_line_separators_come_back(self, tmp_path):
        write_manifest(tmp_path, self.PICTURES)
        assert read_manifest(tmp_path) == list(self.PICTURES)

    def test_only_a_cut_last_line_is_left_out(self, tmp_path):
        write_manifest(tmp_path, self.PICTURES)
        path = tmp_path / "manifest.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rindex("\u2028".encode()) + 2])  # within a character
        assert read_manifest(tmp_path) == list(self.PICTURES[:2])
        path.write_bytes(b"{broken\n" + whole)
        with pytest.raises(UserError, match="line 1 does not describe a picture"):
            read_manifest(tmp_path)

    def test_parts_of_processes_are_joined_whole(self, tmp_path):
        (tmp_path / "m.jsonl.rank1").write_text("a\u2028b\nc\u2028d", encoding="utf-8")
        join_lines(tmp_path / "m.jsonl")
        assert (tmp_path / "m.jsonl").read_text(encoding="utf-8") == "a\u2028b\n"
