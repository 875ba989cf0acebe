"""Opening every format, and every way in which opening can fail."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from t2i_align.data.pictures import UndecodableImage
from t2i_align.data.sources import open_source, open_table, ranked_source
from t2i_align.errors import UserError

from .make import data_config, pickapic, png, write_jsonl, write_parquet


class TestParquet:
    def test_only_four_columns_are_needed(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.0], ranking_id=[]))
        source = open_source(data_config(file))
        assert source.captions() == ["prompt 0", "prompt 1"]
        assert source.labels().tolist() == [1.0, 0.0]
        assert source[1].image_0 == png(2) and source[1].image_1 == png(3)
        assert len(set(source.pair_ids())) == 2

    def test_rows_of_all_row_groups_and_files(self, tmp_path: Path) -> None:
        labels = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
        columns = pickapic(labels)
        for name, part in (("a", slice(0, 4)), ("b", slice(4, 7))):
            write_parquet(tmp_path / f"{name}.parquet", {k: v[part] for k, v in columns.items()}, rows_per_group=2)
        source = open_source(data_config(tmp_path))
        assert [source[i].image_1 for i in range(7)] == columns["jpg_1"]
        assert source.location(5) == "b.parquet row 1"

    def test_optional_columns(self, tmp_path: Path) -> None:
        columns = pickapic(
            [1.0, 0.0],
            label_1=[0.0, 1.0],
            user_id=[7, None],
            caption_1=["other", None],
            weight=[2.0, None],
            margins=[{"hps": 0.5}, {"hps": 0.25}],
            model_0=["x", "y"],
        )
        source = open_source(data_config(write_parquet(tmp_path / "p.parquet", columns)))
        first, second = source[0], source[1]
        assert (first.pair_id, first.user_id, first.caption_1, first.weight) == ("0", "7", "other", 2.0)
        assert (second.user_id, second.caption_1, second.weight) == (None, None, 1.0)
        assert (first.margins, second.margins) == ({"hps": 0.5}, {"hps": 0.25})

    def test_pictures_in_structs(self, tmp_path: Path) -> None:
        (tmp_path / "one.png").write_bytes(png(9))
        columns = pickapic([1.0])
        columns["jpg_0"] = [{"bytes": png(5), "path": None}]
        columns["jpg_1"] = [{"bytes": None, "path": "one.png"}]
        record = open_source(data_config(write_parquet(tmp_path / "p.parquet", columns)))[0]
        assert (record.image_0, record.image_1) == (png(5), png(9))

    def test_undecided_rows_are_dropped_and_counted(self, tmp_path: Path) -> None:
        columns = pickapic(
            [1.0, 7.0, 0.0, 0.0], has_label=[True, False, None, True]
        )  # an undecided label is not looked at
        source = open_source(data_config(write_parquet(tmp_path / "p.parquet", columns)))
        assert source.pair_ids() == ["0", "3"]
        assert source.left_out == {"has_label is false": 1, "has_label is empty": 1}
        assert source[1].image_0 == png(6)

    def test_repeated_ranking_ids_stay_unique(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.0, 1.0], ranking_id=[5, 5, 6]))
        assert open_source(data_config(file)).pair_ids() == ["5", "5#2", "6"]

    def test_splits_by_file_name(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "data/train-00000-of-00002.parquet", pickapic([1.0]))
        write_parquet(tmp_path / "data/train-00001-of-00002.parquet", pickapic([1.0]))
        write_parquet(tmp_path / "data/test-00000-of-00001.parquet", pickapic([0.0]))
        assert len(open_source(data_config(tmp_path))) == 2
        assert len(open_source(data_config(tmp_path, split="test"))) == 1
        with pytest.raises(UserError, match="no split 'validation'") as error:
            open_source(data_config(tmp_path, split="validation"))
        assert "test, train" in error.value.found

    def test_no_picture_is_read_at_opening(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from t2i_align.data import parquet

        def refuse(*args: object) -> None:
            raise AssertionError("a picture was read")

        monkeypatch.setattr(parquet.ParquetPairs, "_row_group", refuse)
        source = open_source(data_config(write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.0]))))
        assert source.fingerprint and source.labels().size and source.describe(0).caption == "prompt 0"

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"label_0": [1.5, 0.0]}, "row 0: label_0 is 1.5, outside 0 to 1"),
            ({"label_0": [-0.1, 0.0]}, "row 0: label_0 is -0.1"),
            ({"label_0": [None, 0.0]}, "row 0: label_0 is missing"),
            ({"label_1": [0.0, 0.0]}, "row 1: label_0 0 and label_1 0 do not add up to 1"),
            ({"caption": [None, "b"]}, "row 0: the caption is missing"),
            ({"weight": [1.0, -1.0]}, "row 1: weight is -1"),
            ({"margins": [{"a": 1.0}, {"a": None}]}, "row 1: margin 'a' is missing"),
        ],
    )
    def test_rows_that_cannot_be_trained_on(self, tmp_path: Path, columns: dict, message: str) -> None:
        table = pickapic([1.0, 0.0])
        table.update(columns)
        with pytest.raises(UserError) as error:
            open_source(data_config(write_parquet(tmp_path / "p.parquet", table)))
        assert message in error.value.found

    def test_missing_column(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no two columns of pictures are recognised"):
            open_table(str(write_parquet(tmp_path / "p.parquet", pickapic([1.0], jpg_1=[]))))

    def test_labels_that_are_no_numbers(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="label_0 .* does not hold numbers"):
            open_table(str(write_parquet(tmp_path / "p.parquet", pickapic([1.0], label_0=["yes"]))))

    def test_empty(self, tmp_path: Path) -> None:
        empty = pa.table({"caption": pa.array([], pa.string()), "jpg_0": pa.array([], pa.binary()),
                          "jpg_1": pa.array([], pa.binary()), "label_0": pa.array([], pa.float64())})  # fmt: skip
        pa.parquet.write_table(empty, tmp_path / "p.parquet")
        with pytest.raises(UserError, match="no usable training pairs"):
            open_source(data_config(tmp_path / "p.parquet"))

    def test_damaged_file(self, tmp_path: Path) -> None:
        (tmp_path / "p.parquet").write_bytes(b"nothing")
        with pytest.raises(UserError, match="cannot be read as parquet"):
            open_source(data_config(tmp_path / "p.parquet"))

    def test_empty_cell_is_found_when_it_is_read(self, tmp_path: Path) -> None:
        source = open_source(data_config(write_parquet(tmp_path / "p.parquet", pickapic([1.0], jpg_0=[b""]))))
        with pytest.raises(UndecodableImage, match="empty cell"):
            source.images(0)

    def test_cell_that_is_no_picture(self, tmp_path: Path) -> None:
        source = open_source(data_config(write_parquet(tmp_path / "p.parquet", pickapic([1.0], jpg_0=["a.jpg"]))))
        with pytest.raises(UndecodableImage, match="a.jpg: No such file"):
            source.images(0)

    def test_fingerprint_changes_with_pictures_and_captions_only(self, tmp_path: Path) -> None:
        def fingerprint(name: str, columns: dict) -> str:
            return open_table(str(write_parquet(tmp_path / name, columns))).fingerprint

        same = fingerprint("a.parquet", pickapic([1.0, 0.0]))
        assert fingerprint("b.parquet", pickapic([0.0, 0.5])) == same
        assert fingerprint("c.parquet", pickapic([1.0, 0.0], caption=["prompt 0", "x"])) != same
        assert fingerprint("d.parquet", pickapic([1.0, 0.0], jpg_0=[png(0), png(2, 12, 12)])) != same


class TestDatasets:
    def test_saved_folder_with_image_columns(self, tmp_path: Path) -> None:
        import datasets

        columns = pickapic([1.0, 0.0, 0.5])
        whole = datasets.Dataset.from_dict(columns)
        whole = whole.cast_column("jpg_0", datasets.Image()).cast_column("jpg_1", datasets.Image())
        datasets.DatasetDict({"train": whole.select([2, 0, 1]), "test": whole}).save_to_disk(tmp_path / "saved")
        source = open_source(data_config(tmp_path / "saved", ties="soft"))
        assert source.labels().tolist() == [0.5, 1.0, 0.0]
        assert source[0].image_0 == png(4)
        assert source.fingerprint != open_source(data_config(tmp_path / "saved", split="test", ties="soft")).fingerprint
        with pytest.raises(UserError, match="no split 'validation'"):
            open_source(data_config(tmp_path / "saved", split="validation"))

    def test_single_saved_split_with_bytes(self, tmp_path: Path) -> None:
        import datasets

        datasets.Dataset.from_dict(pickapic([1.0, 0.0])).save_to_disk(tmp_path / "saved")
        assert open_source(data_config(tmp_path / "saved"))[1].image_1 == png(3)

    def test_unknown_hub_id(self) -> None:
        with pytest.raises(UserError, match="neither a local path nor a hub dataset"):
            open_source(data_config("no-such-owner/no-such-dataset"))


class TestJsonl:
    ROWS = (
        {"caption": "a", "image_0": "i/0.png", "image_1": "i/1.png", "preferred": 0, "id": "first"},
        {"prompt": "b", "image_0": "i/2.png", "image_1": "i/3.png", "preferred": 1, "user_id": 4},
        {"caption": "c", "image_0": "i/0.png", "image_1": "i/3.png", "preferred": "tie"},
        {"caption": "d", "image_0": "i/0.png", "image_1": "i/1.png", "label_0": 0.8, "weight": 2,
         "caption_1": "e", "margins": None},
    )  # fmt: skip

    def test_labels_and_pictures(self, tmp_path: Path) -> None:
        file = write_jsonl(tmp_path / "pairs.jsonl", list(self.ROWS))
        source = open_source(data_config(file, ties="soft"))
        assert source.labels().tolist() == [1.0, 0.0, 0.5, 0.8]
        assert source.captions() == ["a", "b", "c", "d"]
        assert source.pair_ids()[0] == "first" and source.users() == [None, "4", None, None]
        assert (source[3].caption_1, source[3].weight) == ("e", 2.0)
        assert source[1].image_1 == (tmp_path / "i/3.png").read_bytes()
        assert source.location(2) == "pairs.jsonl line 3"

    def test_folder_with_one_file(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "pairs.jsonl", list(self.ROWS))
        assert len(open_source(data_config(tmp_path))) == 3

    def test_margins(self, tmp_path: Path) -> None:
        row = {"caption": "a", "image_0": "0.png", "image_1": "1.png", "preferred": 1, "margins": {"hps": 0.3}}
        source = open_source(data_config(write_jsonl(tmp_path / "p.jsonl", [row])))
        assert source[0].margins == {"hps": 0.3}

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 1 is not JSON"),
            ("[1]", "is not a JSON object"),
            ('{"caption": "a", "image_0": "x"}', "no two columns of pictures are recognised"),
            ('{"caption": "a", "image_0": "x", "image_1": null, "preferred": 0}', "line 1 has no image_1"),
            ('{"caption": "a", "image_0": "x", "image_1": "y"}', "no column that says who won is recognised"),
            ('{"caption": "a", "image_0": "x", "image_1": "y", "preferred": 2}', "names neither picture"),
            ('{"caption": "a", "image_0": "x", "image_1": "y", "preferred": true}', "names neither picture"),
            ('{"caption": "a", "image_0": "x", "image_1": "y", "label_0": "1"}', "label_0 that is not a number"),
            ('{"caption": "a", "image_0": "x", "image_1": "y", "label_0": 1, "preferred": 0}', "has both"),
            ('{"caption": "a", "image_0": "x", "image_1": "y", "label_0": 1, "margins": {"a": "b"}}', "margins"),
            ('{"image_0": "x", "image_1": "y", "label_0": 1}', "no column of captions is recognised"),
            ('{"image_0": "x", "image_1": "y", "label_0": 1, "caption": null}', "cannot be trained on"),
        ],
    )
    def test_bad_lines(self, tmp_path: Path, line: str, message: str) -> None:
        (tmp_path / "p.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=message):
            open_source(data_config(tmp_path / "p.jsonl"))

    def test_missing_picture_names_the_file(self, tmp_path: Path) -> None:
        file = write_jsonl(tmp_path / "p.jsonl", list(self.ROWS))
        (tmp_path / "i/2.png").unlink()
        with pytest.raises(UndecodableImage, match=r"i/2.png: No such file"):
            open_source(data_config(file)).images(1)


class TestRanked:
    LISTS = (
        {"id": "L", "prompt": "a", "images": ["0.png", "1.png", "2.png"], "ranks": [2, 1, 2]},
        {"prompt": "b", "images": ["3.png", "4.png"], "scores": [0.1, 0.7], "user_id": "u", "weight": 2.0},
    )

    def test_expansion(self, tmp_path: Path) -> None:
        source = open_source(data_config(write_jsonl(tmp_path / "r.jsonl", list(self.LISTS)), ties="soft"))
        assert source.pair_ids()[:3] == ["L/0-1", "L/0-2", "L/1-2"]
        assert source.labels().tolist() == [0.0, 0.5, 1.0, 0.0]
        assert source.captions() == ["a", "a", "a", "b"]
        assert source[2].image_0 == (tmp_path / "1.png").read_bytes()

    def test_a_list_counts_once(self, tmp_path: Path) -> None:
        lists = [
            {"prompt": "a", "images": ["0.png", "1.png", "2.png"], "ranks": [1, 2, 3]},
            {"prompt": "b", "images": ["3.png", "4.png"], "ranks": [1, 2]},
            {"prompt": "c", "images": ["0.png", "1.png", "2.png"], "ranks": [1, 1, 2]},
        ]
        source = open_source(data_config(write_jsonl(tmp_path / "r.jsonl", lists)))
        weights = source.weights()
        # 3, 1 and (a tie dropped) 2 pairs of equal sums, mean weight 1 over the 6
        assert weights.tolist() == pytest.approx([2 / 3] * 3 + [2.0] + [1.0] * 2)
        soft = open_source(data_config(tmp_path / "r.jsonl", ties="zero_weight")).weights()
        assert soft.tolist() == pytest.approx([2 / 3] * 3 + [2.0] + [0.0, 1.0, 1.0])

    def test_scores_give_margins(self, tmp_path: Path) -> None:
        source = open_source(data_config(write_jsonl(tmp_path / "r.jsonl", [self.LISTS[1]])))
        assert source[0].label_0 == 0.0
        assert source[0].margins == {"score": pytest.approx(0.6)}
        assert source.margin_names == ["score"]

    def test_kept_as_lists(self, tmp_path: Path) -> None:
        lists = ranked_source(data_config(write_jsonl(tmp_path / "r.jsonl", list(self.LISTS))))
        first, second = lists[0], lists[1]
        assert (first.list_id, first.ranks, len(first.images)) == ("L", (2.0, 1.0, 2.0), 3)
        assert (second.ranks, second.user_id, second.weight) == ((2.0, 1.0), "u", 2.0)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"images": ["a", "b"], "ranks": [1, 2]}, "has no prompt"),
            ({"prompt": "x", "images": ["a"], "ranks": [1]}, "at least two paths"),
            ({"prompt": "x", "images": ["a", "b"], "ranks": [1]}, "one number in ranks per picture"),
            ({"prompt": "x", "images": ["a", "b"], "ranks": [1, 2], "scores": [1, 2]}, "either ranks or scores"),
            ({"prompt": "x", "images": ["a", "b"], "scores": [1, None]}, "one number in scores per picture"),
        ],
    )
    def test_bad_lists(self, tmp_path: Path, row: dict, message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_source(data_config(write_jsonl(tmp_path / "r.jsonl", [row])))

    def test_pairs_are_not_lists(self, tmp_path: Path) -> None:
        file = write_jsonl(tmp_path / "p.jsonl", [TestJsonl.ROWS[0]])
        with pytest.raises(UserError, match="does not hold ranked lists"):
            ranked_source(data_config(file))


class TestAddresses:
    def test_missing_path(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="does not exist"):
            open_source(data_config(tmp_path / "nowhere" / "p.parquet"))

    def test_folder_without_pairs(self, tmp_path: Path) -> None:
        (tmp_path / "readme.txt").write_text("hello")
        with pytest.raises(UserError, match="no pairs in a known layout") as error:
            open_source(data_config(tmp_path))
        assert "readme.txt" in error.value.found

    def test_several_jsonl_files_need_a_choice(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write_jsonl(tmp_path / f"{name}.jsonl", [TestJsonl.ROWS[0]])
        with pytest.raises(UserError, match="several tables"):
            open_source(data_config(tmp_path))
        assert len(open_source(data_config(tmp_path, split="b"))) == 1

    def test_format_that_contradicts_the_file(self, tmp_path: Path) -> None:
        file = write_jsonl(tmp_path / "p.jsonl", [TestJsonl.ROWS[0]])
        with pytest.raises(UserError, match="cannot be read as format 'pickapic'"):
            open_source(data_config(file, format="pickapic"))
