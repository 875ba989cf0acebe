"""Other people's tables and folders: what is recognised, what has to be said, and what is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from t2i_align.cli import app
from t2i_align.data.check import check
from t2i_align.data.layout import is_pair_table, recognise
from t2i_align.data.sources import open_source, open_table
from t2i_align.errors import UserError
from tests.data_pkg.make import FakeBackbone, data_config, png, write_parquet


def pictures(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(seed))


def table(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    """A table whose pictures p0.png ... p5.png are there."""
    pictures(folder, *(f"p{index}.png" for index in range(6)))
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


class TestLayout:
    @pytest.mark.parametrize(
        ("columns", "found", "decided"),
        [
            ("prompt image_a image_b winner", "image_a image_b", False),
            ("Prompt Image-A Image-B Winner seed", "Image-A Image-B", False),
            ("text image1 image2 choice", "image1 image2", False),
            ("caption left_image right_image preference", "left_image right_image", False),
            ("caption img_left img_right label_0", "img_left img_right", False),
            ("prompt chosen rejected", "chosen rejected", True),
            ("prompt rejected_image chosen_image", "chosen_image rejected_image", True),
            ("prompt image_w image_l", "image_w image_l", True),
            ("prompt winner loser", "winner loser", True),
            ("caption jpg_0 jpg_1 label_0 chosen rejected", "jpg_0 jpg_1", False),
            ("caption image_0 image_1 path_0 path_1 preferred", "image_0 image_1", False),
        ],
    )
    def test_common_names_are_recognised(self, columns, found, decided):
        layout = recognise(columns.split(), {}, "here")
        assert (layout.pictures, layout.decided) == (tuple(found.split()), decided)

    @pytest.mark.parametrize(
        ("columns", "chosen", "message"),
        [
            ("prompt image_0 image_1 image_2 winner", {}, "more than one way"),
            ("prompt chosen rejected label_0", {}, "twice who won"),
            ("prompt image_a image_b label", {}, "no column that says who won is recognised"),
            ("image_a image_b winner", {}, "no column of captions is recognised"),
            ("prompt picture winner", {}, "no two columns of pictures are recognised"),
            ("prompt image_a image_b", {"winner": "who"}, "no column 'who', which data.columns.winner names"),
            ("prompt x y", {"image_0": "x"}, "names one picture of two"),
            ("prompt x y", {"image_0": "x", "image_1": "y", "chosen": "x", "rejected": "y"}, "pictures twice"),
        ],
    )
    def test_what_is_not_clear_is_refused(self, columns, chosen, message):
        with pytest.raises(UserError, match=message) as caught:
            recognise(columns.split(), chosen, "here")
        assert caught.value.found and caught.value.fix
        assert not is_pair_table(columns.split(), chosen)

    def test_columns_that_are_named_win(self):
        chosen = {"image_0": "x", "image_1": "Y", "winner": "label", "caption": "other"}
        layout = recognise(["prompt", "other", "x", "y", "label", "image_a", "image_b", "winner"], chosen, "here")
        assert layout.pictures == ("x", "y") and layout.fields["winner"] == ("label",)
        assert layout.fields["caption"] == ("other",) and set(layout.unread) == {
            "prompt",
            "image_a",
            "image_b",
            "winner",
        }


WINNERS = [
    ("image_a,image_b", "a A b tie", [1, 1, 0, 0.5]),
    ("image_a,image_b", "image_a image_b both neither", [1, 0, 0.5, 0.5]),
    ("image_a,image_b", "model_a model_b tie(bothbad) Draw", [1, 0, 0.5, 0.5]),
    ("image_a,image_b", "p0.png p1.png p0.png tie", [1, 0, 1, 0.5]),
    ("image_a,image_b", "0 1 1 0", [1, 0, 0, 1]),
    ("image_a,image_b", "1 2 2 1", [1, 0, 0, 1]),
    ("image_0,image_1", "0 1 1.0 0.5", [1, 0, 0, 0.5]),
    ("image_1,image_2", "1 2 1.0 tie", [1, 0, 1, 0.5]),
    ("image_1,image_2", "1 1 1 1", [1, 1, 1, 1]),
    ("left_image,right_image", "left Right first second", [1, 0, 1, 0]),
    ("image_0,image_1", "A B a b", [1, 0, 1, 0]),
]


@pytest.mark.parametrize(("header", "words", "labels"), WINNERS)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_who_won_in_many_words(tmp_path, header, words, labels, suffix):
    names = ["prompt", *header.split(","), "winner"]
    rows = [[f"prompt {index}", "p0.png", "p1.png", word] for index, word in enumerate(words.split())]
    mark = {".csv": ",", ".tsv": "\t"}.get(suffix)
    if mark:
        text = "".join(mark.join(row) + "\n" for row in [names, *rows])
    else:
        text = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    file = table(tmp_path, text, f"pairs{suffix}")
    if suffix == ".parquet":
        write_parquet(file, {name: [row[place] for row in rows] for place, name in enumerate(names)})
    source = open_source(data_config(file, ties="soft"))
    assert source.labels().tolist() == labels
    assert source[1].image_0 == png(0) and source[1].image_1 == png(1)


@pytest.mark.parametrize(
    ("header", "words", "message"),
    [
        ("image_a,image_b", "a b c", "1 of 3 rows .* a winner that names neither picture"),
        ("image_0,image_1", "0 1 2", "1 of 3 rows .* names neither picture"),
        ("image_1,image_2", "1 0 2", "1 of 3 rows .* names neither picture"),
        ("image_a,image_b", "1 1 1", "may count from 0 or from 1"),
        ("image_a,image_b", "0 1 2", "may count from 0 or from 1"),
        ("image_a,image_b", "-1 1 -1", "may count from 0 or from 1"),
        ("image_a,image_b", "true false true", "3 of 3 rows"),
        ("image_a,image_b", "0.8 0.2 0.5", "2 of 3 rows"),
        ("image_a,image_b", "a  b", "1 of 3 rows"),
    ],
)
def test_words_that_name_neither_are_refused_together(tmp_path, header, words, message):
    text = f"prompt,{header},winner\n" + "".join(f"a,p0.png,p1.png,{word}\n" for word in words.split(" "))
    with pytest.raises(UserError, match=message) as caught:
        open_table(str(table(tmp_path, text)))
    assert "values" in caught.value.found


def test_a_wrong_winner_names_row_and_values(tmp_path):
    text = "prompt,image_a,image_b,winner\n" + "".join(f"a,p0.png,p1.png,{word}\n" for word in "abaxa")
    with pytest.raises(UserError) as caught:
        open_table(str(table(tmp_path, text)))
    assert caught.value.found == "pairs.csv line 5: 'x'; values seen: 'a' (3), 'b' (1), 'x' (1)"


class TestTables:
    TEXT = (
        "prompt,image_a,image_b,winner,annotator,weight,has_label,note\n"
        '"a red circle, on white",p0.png,p1.png,a,anna,2,yes,x\n'
        "two cats,p2.png,p3.png,b,,,1,y\n"
        "a house,p4.png,p5.png,,,,no,z\n"
    )

    def test_all_fields_of_a_csv(self, tmp_path):
        report = check(data_config(table(tmp_path, self.TEXT)))
        source = open_source(data_config(tmp_path / "pairs.csv"))
        assert [source[0].caption, source[1].caption] == ["a red circle, on white", "two cats"]
        assert source.users() == ["anna", None] and source.weights().tolist() == [2.0, 1.0]
        assert source.left_out == {"has_label is false": 1} and source.location(1) == "pairs.csv line 3"
        assert report.is_trainable and "winner: winner" in report.read_as and report.not_read == "note"
        assert "pictures: image_a, image_b" in report.render()

    def test_a_folder_with_one_table(self, tmp_path):
        table(tmp_path, self.TEXT)
        assert len(open_table(str(tmp_path))) == 2

    def test_columns_by_name(self, tmp_path):
        text = "description,one,other,verdict\na,p0.png,p1.png,other\nb,p2.png,p3.png,p2.png\n"
        columns = {"caption": "description", "image_0": "one", "image_1": "other", "winner": "verdict"}
        config = data_config(table(tmp_path, text), columns=columns)
        assert open_source(config).labels().tolist() == [0.0, 1.0]
        with pytest.raises(UserError, match="no column of captions|no two columns"):
            open_source(data_config(tmp_path / "pairs.csv"))

    def test_numbers_must_be_numbers(self, tmp_path):
        text = "prompt,image_0,image_1,label_0\na,p0.png,p1.png,high\n"
        with pytest.raises(UserError, match="line 2 has a label_0 that is not a number"):
            open_table(str(table(tmp_path, text)))

    def test_held_out_pairs_may_have_another_layout(self, tmp_path):
        config = data_config(
            table(tmp_path, "what,image_a,image_b,winner\na,p0.png,p1.png,a\n"),
            columns={"caption": "what"},
            heldout_source=str(table(tmp_path, "prompt,chosen,rejected\nb,p2.png,p3.png\n", "held.csv")),
        )
        assert open_source(config, "heldout").captions() == ["b"]

    def test_an_unquoted_comma_is_refused(self, tmp_path):
        text = "prompt,chosen,rejected\na circle, red,p0.png,p1.png\n"
        with pytest.raises(UserError, match="line 2 does not fit its header: 4 fields, 3 columns"):
            open_table(str(table(tmp_path, text)))


class TestChosenAndRejected:
    def test_parquet_of_bytes_structs_or_paths(self, tmp_path):
        pictures(tmp_path, "x.png", "y.png")
        for name, cells in {
            "bytes": (png(0), png(1)),
            "structs": ({"bytes": png(0), "path": None}, {"bytes": None, "path": "y.png"}),
            "paths": ("x.png", "y.png"),
        }.items():
            columns = {"prompt": ["a"], "chosen": [cells[0]], "rejected": [cells[1]]}
            source = open_source(data_config(write_parquet(tmp_path / f"{name}.parquet", columns)))
            record = source[0]
            assert (record.caption, record.label_0) == ("a", 1.0), name
            assert (record.image_0, record.image_1) == (png(0), png(1)), name

    def test_json_of_paths_structs_or_base64(self, tmp_path):
        pictures(tmp_path, "x.png", "y.png")
        rows = [
            {"prompt": "a", "chosen": "x.png", "rejected": "y.png"},
            {"prompt": "b", "chosen": {"path": "x.png"}, "rejected": {"bytes": base64.b64encode(png(1)).decode()}},
        ]
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = open_source(data_config(tmp_path / "p.jsonl"))
        for record in (source[0], source[1]):
            assert (record.image_0, record.image_1, record.label_0) == (png(0), png(1), 1.0)

    def test_two_folders_with_captions_in_files(self, tmp_path):
        pictures(tmp_path, "chosen/2.png", "chosen/10.png", "rejected/2.jpg", "rejected/10.png")
        (tmp_path / "chosen/2.txt").write_text("two\ncats \n")
        (tmp_path / "10.txt").write_text("ten")
        source = open_source(data_config(tmp_path))
        assert source.captions() == ["two cats", "ten"] and source.labels().tolist() == [1.0, 1.0]
        assert (source[0].image_0, source[0].image_1) == (png(0), png(2))
        assert source.location(1) == "pair 10"

    @pytest.mark.parametrize("names", [("a.png", "b"), ("chosen/a.png", "rejected/b.png")])
    def test_two_folders_with_a_table_of_captions(self, tmp_path, names):
        pictures(tmp_path, "Chosen/a.png", "Chosen/b.png", "Rejected/a.png", "Rejected/b.png")
        names = [name.replace("chosen", "Chosen") for name in names]
        (tmp_path / "captions.csv").write_text(f"File Name,Prompt\n{names[1]},two\n{names[0]},one\n")
        assert open_source(data_config(tmp_path)).captions() == ["one", "two"]

    def test_a_table_of_pairs_beside_the_folders_speaks_for_itself(self, tmp_path):
        pictures(tmp_path, "chosen/a.png", "rejected/b.png")
        (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\none,chosen/a.png,rejected/b.png\n")
        assert open_source(data_config(tmp_path)).captions() == ["one"]

    @pytest.mark.parametrize(
        ("files", "text", "message"),
        [
            (["chosen/a.png", "chosen/b.png", "rejected/a.png"], None, "1 pictures of chosen/ have no partner"),
            (["chosen/a.png", "rejected/a.png", "rejected/b.png"], None, "1 pictures of rejected/ have no partner"),
            (["chosen/a.png", "chosen/a.jpg", "rejected/a.png"], None, "have one name"),
            (["chosen/a.png", "rejected/a.png"], None, "1 pairs of .* have no caption"),
            (["chosen/a.png", "rejected/a.png"], "file_name,prompt\nb.png,x\n", "line 2 names no picture"),
            (["chosen/a.png", "rejected/a.png"], "a,b\nb.png,x\n", "no captions of pictures"),
            (["chosen/a.png", "rejected/a.png"], "file,text\na.png,x\na.png,y\n", "contradict each other"),
        ],
    )
    def test_folders_that_do_not_fit(self, tmp_path, files, text, message):
        pictures(tmp_path, *files)
        if text is not None:
            (tmp_path / "captions.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            open_table(str(tmp_path))

    def test_captions_that_contradict_each_other(self, tmp_path):
        pictures(tmp_path, "chosen/a.png", "rejected/a.png")
        (tmp_path / "chosen/a.txt").write_text("one")
        (tmp_path / "rejected/a.txt").write_text("one\n")
        assert open_source(data_config(tmp_path)).captions() == ["one"]
        (tmp_path / "rejected/a.txt").write_text("another")
        with pytest.raises(UserError, match="contradict each other"):
            open_table(str(tmp_path))


class TestCells:
    @pytest.mark.parametrize(
        ("values", "said"),
        [([["a", "b"], ["c"]], "row 0: list"), ([1, 2], "row 0: int"), ([b"a", b"b"], "row 0: bytes")],
    )
    def test_captions_of_another_type(self, tmp_path, values, said):
        columns = {"caption": values, "jpg_0": [png(0)] * 2, "jpg_1": [png(1)] * 2, "label_0": [1.0, 0.0]}
        with pytest.raises(UserError, match=f"2 of 2 are not.*\n.*p.parquet {said}"):
            open_table(str(write_parquet(tmp_path / "p.parquet", columns)))

    def test_a_caption_of_another_type_in_one_line(self, tmp_path):
        row = {"caption": "a", "image_0": "x", "image_1": "y", "preferred": 0}
        (tmp_path / "p.jsonl").write_text("".join(json.dumps({**row, "caption": c}) + "\n" for c in ("a", ["b"])))
        with pytest.raises(UserError, match="1 of 2 are not.*\n.*line 2: list"):
            open_table(str(tmp_path / "p.jsonl"))

    @pytest.mark.parametrize(
        "flags",
        [
            [1, 0, None],
            [1.0, 0.0, None],
            ["True", "False", ""],
            ["yes", "NO", None],
            ["1", "0", None],
            [True, False, None],
        ],
    )
    def test_undecided_in_any_type(self, tmp_path, flags):
        columns = {
            "caption": ["a", "b", "c"],
            "jpg_0": [png(0)] * 3,
            "jpg_1": [png(1)] * 3,
            "label_0": [1.0, 0.0, 1.0],
            "has_label": flags,
        }
        found = open_table(str(write_parquet(tmp_path / "p.parquet", columns)))
        assert found.columns.captions == ["a"]
        assert found.columns.skipped == {"has_label is false": 1, "has_label is empty": 1}
        columns["has_label"] = ["True", "maybe", "False"]
        with pytest.raises(UserError, match="1 of 3 rows.*\n.*row 1: 'maybe'"):
            open_table(str(write_parquet(tmp_path / "q.parquet", columns)))


class TestSplits:
    ROW = {"caption": ["a"], "jpg_0": [png(0)], "jpg_1": [png(1)], "label_0": [1.0]}

    def folder(self, root: Path, *names: str) -> str:
        for name in names:
            write_parquet(root / name, {**self.ROW, "caption": [name]})
        return str(root)

    @pytest.mark.parametrize(
        ("names", "split", "found"),
        [
            (("partial-train/0.parquet", "partial-validation/0.parquet"), "train", [0]),
            (("partial-train/0.parquet", "partial-validation/0.parquet"), "validation", [1]),
            (("train/0.parquet", "validation_unique/0.parquet"), "validation", [1]),
            (("train/0.parquet", "validation_unique/0.parquet"), "validation_unique", [1]),
            (("train-00000-of-00001.parquet", "test_unique-00000-of-00001.parquet"), "test", [1]),
            (("train/0.parquet", "val/0.parquet", "val/1.parquet"), "validation", [1, 2]),
            (("train_0.parquet", "train_1.parquet", "dev.parquet"), "train", [0, 1]),
            (("mine/0.parquet", "theirs/0.parquet"), "theirs", [1]),
            (("0000.parquet", "0001.parquet"), "train", [0, 1]),
            (("data-00000-of-00002.parquet", "data-00001-of-00002.parquet"), "train", [0, 1]),
        ],
    )
    def test_names_with_more_words_are_found(self, tmp_path, names, split, found):
        opened = open_table(self.folder(tmp_path, *names), split=split)
        assert sorted(opened.columns.captions) == sorted(names[place] for place in found)

    @pytest.mark.parametrize(
        ("names", "split", "listed"),
        [
            (("train/0.parquet", "validation_a/0.parquet", "validation_b/0.parquet"), "validation", "validation_a"),
            (("train/0.parquet", "test/0.parquet"), "validation", "test, train"),
            (("0000.parquet", "0001.parquet"), "validation", "0000.parquet, 0001.parquet"),
            (("a-00000-of-00001.parquet", "b-00000-of-00001.parquet"), "train", "a, b"),
            (("partial-train/0.parquet",), "theirs", "partial-train"),
        ],
    )
    def test_others_are_listed(self, tmp_path, names, split, listed):
        with pytest.raises(UserError, match=f"no split '{split}'") as caught:
            open_table(self.folder(tmp_path, *names), split=split)
        assert listed in caught.value.found

    def test_a_table_of_another_split_is_not_read(self, tmp_path):
        pictures(tmp_path, "p0.png", "p1.png")
        (tmp_path / "train.csv").write_text("prompt,chosen,rejected\na,p0.png,p1.png\n")
        assert len(open_table(str(tmp_path))) == 1
        with pytest.raises(UserError, match="no split 'validation'"):
            open_table(str(tmp_path), split="validation")

    def test_a_saved_split_is_no_other(self, tmp_path):
        import datasets

        datasets.Dataset.from_dict(self.ROW, split="train").save_to_disk(tmp_path / "saved")
        assert len(open_table(str(tmp_path / "saved"))) == 1
        with pytest.raises(UserError, match="no split 'validation'"):
            open_table(str(tmp_path / "saved"), split="validation")


def test_one_command_converts_caches_and_checks_them(tmp_path):
    from t2i_align.data.cache import open_readers
    from tests.data_pkg.test_cache import build_cache

    file = table(tmp_path, "what,image_a,image_b,best_one\na,p0.png,p1.png,b\nc,p2.png,p3.png,tie\n")
    words = ["--column", "caption=what", "--column", "winner=best_one"]
    result = CliRunner().invoke(app, ["data", "convert", str(file), str(tmp_path / "out.parquet"), *words])
    assert result.exit_code == 0, result.output
    rows = pq.read_table(tmp_path / "out.parquet", columns=["caption", "label_0"]).to_pylist()
    assert rows == [{"caption": "a", "label_0": 0.0}, {"caption": "c", "label_0": 0.5}]
    overrides = ["data.columns.caption=what", "data.columns.winner=best_one", "data.resolution=16"]
    result = CliRunner().invoke(app, ["data", "check", str(file), *overrides])
    assert result.exit_code == 0 and "caption: what" in result.output, result.output
    result = CliRunner().invoke(app, ["data", "check", str(file), "data.columns.captain=what"])
    assert result.exit_code == 2 and "Traceback" not in result.output and "caption" in result.output
    columns = {"caption": "what", "winner": "best_one"}
    config = data_config(file, columns=columns, cache_dir=str(tmp_path / "cache"))
    build_cache(config, FakeBackbone())
    (reader,) = open_readers(config, FakeBackbone(), seed=0)
    assert reader.source.captions() == ["a"]
