"""The data report: every defect is found, named and judged."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from t2i_align.cli import app
from t2i_align.data.check import check
from t2i_align.errors import UserError

from .make import data_config, pickapic, png, write_jsonl, write_parquet


def test_clean_data(tmp_path: Path) -> None:
    columns = pickapic([1.0, 0.0, 0.5, 0.7], user_id=[1, 1, 2, None], caption=["a", "A", "b", "c"])
    columns["jpg_0"][0] = png(100, 32, 16)
    file = write_parquet(tmp_path / "p.parquet", columns)
    report = check(data_config(file, resolution=24))
    assert (report.rows, report.usable, report.left_out, report.prompts) == (4, 3, {"tie": 1}, 3)
    assert report.labels == {
        "picture 0 preferred": 1,
        "picture 1 preferred": 1,
        "tie": 1,
        "other probability": 1,
        "missing or outside 0 to 1": 0,
    }
    assert report.pairs_per_user == [2, 1]
    pictures = report.pictures
    assert pictures.sizes == [((16, 16), 5), ((32, 16), 1)]
    assert pictures.aspect_ratios == (1.0, 1.0, 2.0)
    assert (pictures.smaller_than_resolution, pictures.pairs_of_unequal_size) == (6, 1)
    # five squares and one picture twice as wide as high: half of it, a twelfth of all shares
    assert (pictures.seen, pictures.cropped, pictures.most_lost) == (6, 1, 0.5)
    assert pictures.lost == pytest.approx(0.5 / 6)
    assert report.is_trainable
    report.require_trainable()
    text = report.render()
    assert "8.3% of the pixels: 1 of 6 pictures are no squares, the longest loses 50%" in text
    assert "not counted: no tokenizer" in text
    assert "4 in " in text and "left out: 1 tie" in text and text.endswith("This data can train.")


class Words:
    """A tokenizer of words with a start and an end."""

    name, limit = "words", 4

    def lengths(self, texts: list[str]) -> list[int]:
        return [len(text.split()) + 2 for text in texts]


def test_captions_that_are_cut(tmp_path: Path) -> None:
    columns = pickapic([1.0] * 4, caption=["one two", "one two three", "one two three", "one"])
    columns["caption_1"] = [None, None, None, "one two three four five"]
    report = check(data_config(write_parquet(tmp_path / "p.parquet", columns)), tokenizers=[Words()])
    assert "2 of 4 cut at 4 tokens (words); longest 7" in report.render()


def test_the_tokenizer_of_a_model_counts_for_the_command(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    from t2i_align.backbones.tokenizers import prompt_lengths
    from t2i_align.shapes.assets import resolve

    first, second = prompt_lengths("shapes:base")
    assert (first.name, second.name) == ("tokenizer", "tokenizer_2")
    whole = CLIPTokenizer.from_pretrained(resolve("shapes:base"), subfolder="tokenizer")
    long = "a small red circle " * 40
    assert first.lengths(["a red circle", long]) == [len(whole(text)["input_ids"]) for text in ("a red circle", long)]
    assert first.lengths([long])[0] > first.limit
    file = write_parquet(tmp_path / "p.parquet", pickapic([1.0, 1.0], caption=["a red circle", long]))
    words = ["data", "check", str(file), "data.resolution=16"]
    said = f"1 of 2 cut at {first.limit} tokens (tokenizer)"
    result = CliRunner().invoke(app, [*words, "--model", "shapes:base"])
    assert result.exit_code == 0 and said in result.output, result.output
    result = CliRunner().invoke(app, [*words, "--model", str(tmp_path)])
    assert result.exit_code == 2 and "The tokenizer of" in result.output


def test_duplicates_and_contradictions(tmp_path: Path) -> None:
    a, b, c = png(1), png(2), png(3)
    columns = pickapic([1.0, 0.0, 1.0, 1.0, 1.0], caption=["x", "x", "x", "y", "z"])
    columns["jpg_0"] = [a, b, a, a, c]
    columns["jpg_1"] = [b, a, c, b, c]
    # rows 0 and 1 agree the other way round; row 2 is another pair, row 3 another caption; row 4 compares c with c
    pictures = check(data_config(write_parquet(tmp_path / "p.parquet", columns))).pictures
    assert (pictures.different, pictures.in_several_pairs, pictures.most_pairs) == (3, 3, 4)
    assert (pictures.identical_pairs, pictures.repeated_pairs, pictures.contradictory_pairs) == (1, 1, 0)
    columns["label_0"][1] = 1.0
    pictures = check(data_config(write_parquet(tmp_path / "q.parquet", columns))).pictures
    assert (pictures.repeated_pairs, pictures.contradictory_pairs) == (1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_pictures(tmp_path: Path, workers: int) -> None:
    columns = pickapic([1.0] * 3)
    columns["jpg_0"][1] = png(0)[:50]
    columns["jpg_1"][2] = None
    file = write_parquet(tmp_path / "p.parquet", columns)
    report = check(data_config(file, dataloader_num_workers=workers))
    assert [text.split(":")[0] for text in report.undecodable] == ["p.parquet row 1 picture 0", "p.parquet row 2"]
    assert "2 pairs that cannot be decoded:\n  p.parquet row 1 picture 0: " in report.render()
    with pytest.raises(UserError, match="2 pairs of .* cannot be decoded"):
        report.require_trainable()
    cached = check(data_config(file, cache_dir=str(tmp_path / "cache")))
    cached.require_trainable()
    assert "2 pairs will be left out" in cached.render()


@pytest.mark.parametrize("label", [1.5, -1.0, None])
def test_labels_out_of_range(tmp_path: Path, label: float | None) -> None:
    report = check(data_config(write_parquet(tmp_path / "p.parquet", pickapic([1.0, label]))))
    assert report.usable == 0 and report.labels["missing or outside 0 to 1"] == 1
    assert report.row_problems[0].startswith("p.parquet row 1: label_0 is")
    assert "This data cannot train." in report.render()
    with pytest.raises(UserError, match="1 of 2 pairs .* cannot be trained on"):
        report.require_trainable()


def test_nothing_usable(tmp_path: Path) -> None:
    report = check(data_config(write_parquet(tmp_path / "p.parquet", pickapic([0.5, 0.5]))))
    assert report.rows == 2 and not report.is_trainable and "cannot train" in report.render()
    with pytest.raises(UserError, match="no usable training pairs"):
        report.require_trainable()


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("")
    report = check(data_config(tmp_path / "p.jsonl"))
    assert report.rows == 0 and not report.is_trainable and report.render()


def test_leaks_into_the_held_out_data(tmp_path: Path) -> None:
    training = write_parquet(tmp_path / "a.parquet", pickapic([1.0, 0.0]))
    columns = pickapic([1.0, 1.0, 0.5], caption=["Prompt 1", "new", "newer"])
    held_out = write_parquet(tmp_path / "b.parquet", columns)
    report = check(data_config(training, heldout_source=str(held_out)))
    assert (report.heldout_pairs, report.shared_prompts, report.shared_pictures) == (1, 1, 2)
    assert report.heldout_left_out == {"prompt is in the training set": 1, "tie": 1}
    assert "1 prompt (their held-out pairs are left out), 2 pictures" in report.render()


def test_missing_picture_files(tmp_path: Path) -> None:
    row = {"caption": "a", "image_0": "0.png", "image_1": "1.png", "preferred": 0}
    file = write_jsonl(tmp_path / "p.jsonl", [row])
    (tmp_path / "1.png").unlink()
    assert "p.jsonl line 1: cannot read" in check(data_config(file)).undecodable[0]


def test_progress_and_undecided_rows(tmp_path: Path) -> None:
    calls: list[tuple] = []
    file = write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.0, 1.0], has_label=[True, False, True]))
    report = check(data_config(file), progress=lambda *call: calls.append(call))
    assert (report.rows, report.usable) == (3, 2)
    assert calls[-1] == ("training pictures", 2, 2)
