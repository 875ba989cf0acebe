"""`t2i-align score`: every kind of input, resuming, broken pictures, and clear refusals."""

import json
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from t2i_align import cli
from t2i_align.errors import UserError
from t2i_align.rewards import scoring
from t2i_align.rewards.pictures import open_pictures
from t2i_align.shapes.oracle import Oracle
from tests.data_pkg.make import pickapic, picture, png, write_parquet


def run(*words):
    return CliRunner().invoke(cli.app, ["score", *map(str, words)])


@pytest.fixture
def folder(tmp_path):
    """Six pictures of mixed sizes; 2.png is empty, 4.png cut."""
    path = tmp_path / "pictures"
    (path / "more").mkdir(parents=True)
    for index in range(6):
        name = path / ("more" if index == 5 else ".") / f"{index}.png"
        picture(index, 20 + 7 * index, 33).save(name)
    (path / "2.png").write_bytes(b"")
    (path / "4.png").write_bytes((path / "4.png").read_bytes()[:100])
    return path


def test_a_folder_with_one_prompt_for_all(folder, head, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    out = tmp_path / "new" / "scores.parquet"
    result = run(
        "--scorer",
        f"oracle,pickscore={head}",
        "--images",
        folder,
        "--prompts",
        tmp_path / "prompts.txt",
        "--out",
        out,
        "--batch-size",
        3,
        "--workers",
        1,
    )
    assert result.exit_code == 0, result.output
    assert "4 pictures scored" in result.stdout and "2 pictures skipped" in result.stdout
    assert "2.png: the image is empty" in result.stdout
    rows = pq.read_table(out).to_pylist()
    assert [(row["id"], row["scorer"]) for row in rows[:3]] == [
        ("0.png", "oracle"),
        ("0.png", "pickscore"),
        ("1.png", "oracle"),
    ]
    assert {row["id"] for row in rows} == {"0.png", "1.png", "3.png", "more/5.png"}
    assert rows[0]["score"] == pytest.approx(
        float(Oracle().score(["a red circle"], [picture(0, 20, 33)])["overall"][0])
    )
    failures = (out.parent / "scores.parquet.failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in failures] == ["2.png", "4.png"]


def test_an_interrupted_run_goes_on(folder, head, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    monkeypatch.setattr(scoring, "score_files", partial(scoring.score_files, part_rows=2))
    arguments = (str(folder), ["oracle"], tmp_path / "scores.parquet")
    options = {"prompts": tmp_path / "prompts.txt", "batch_size": 2, "workers": 0}

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scoring.score(*arguments, **options, progress=stop)
    result = scoring.score(*arguments, **options)
    assert (result.report.scored, result.report.resumed) == (4, 2)
    assert "2 of them before this run" in result.render()
    with pytest.raises(UserError, match="exists already"):
        scoring.score(*arguments, **options)


def test_prompts_by_file_name_and_by_order(folder, tmp_path):
    names = [f"{index}.png" for index in range(5)] + ["more/5.png"]
    table = tmp_path / "prompts.csv"
    table.write_text("file_name,prompt\n" + "".join(f"{name},prompt of {name}\n" for name in reversed(names)))
    assert {item.id: item.prompt for item in open_pictures(str(folder), table)}["3.png"] == "prompt of 3.png"
    (tmp_path / "six.txt").write_text("".join(f"prompt {index}\n" for index in range(6)))
    items = open_pictures(str(folder), tmp_path / "six.txt")
    assert [item.id for item in items] == names and [item.prompt for item in items][4] == "prompt 4"
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": name, "text": name}) + "\n" for name in names)
    )
    assert [item.prompt for item in open_pictures(str(folder))] == names
    (folder / "manifest.jsonl").write_text(
        json.dumps({"index": 0, "prompt_index": 0, "draw": 0, "prompt": "generated", "seed": 1, "file": "0.png"}) + "\n"
    )
    assert [(item.id, item.prompt) for item in open_pictures(str(folder))] == [("0.png", "generated")]


def test_pictures_and_prompts_must_fit(folder, tmp_path):
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    (tmp_path / "few.csv").write_text("file,prompt\n0.png,zero\n")
    (tmp_path / "empty.jsonl").write_text('{"file": "0.png", "prompt": " "}\n')
    for prompts, message in [
        (None, "no prompts"),
        (tmp_path / "two.txt", "6 pictures .* 2 prompts"),
        (tmp_path / "few.csv", "5 pictures have no prompt"),
        (tmp_path / "empty.jsonl", "Prompt 1 is empty"),
        (tmp_path / "missing.txt", "does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            open_pictures(str(folder), prompts)


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_of_pictures(tmp_path, nested):
    pictures = [png(0), b"", png(2)]
    cells = [{"bytes": data, "path": None} for data in pictures] if nested else pictures
    path = write_parquet(tmp_path / "p.parquet", {"uid": ["x", "y", "z"], "image": cells, "prompt": ["a", "b", "c"]}, 2)
    result = scoring.score(str(path), ["oracle"], tmp_path / "out.parquet", workers=0)
    assert [row["id"] for row in pq.read_table(tmp_path / "out.parquet").to_pylist()] == ["x", "z"]
    assert result.report.failures[0][0] == "y" and "missing" in result.report.failures[0][1]


def test_a_parquet_of_something_else_is_explained(tmp_path):
    pq.write_table(pa.table({"number": [1]}), tmp_path / "n.parquet")
    with pytest.raises(UserError, match="neither pairs nor pictures"):
        open_pictures(str(tmp_path / "n.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        open_pictures(str(tmp_path / "broken.parquet"))


def test_pairs_are_scored_with_their_own_captions(tmp_path):
    path = write_parquet(tmp_path / "pairs.parquet", pickapic([1.0, 0.5], caption_1=[None, "other"]))
    items = open_pictures(str(path))
    assert [item.id for item in items] == ["0/a", "0/b", "1/a", "1/b"]
    assert [item.prompt for item in items] == ["prompt 0", "prompt 0", "prompt 1", "other"]
    assert items[3].image() == png(3)
    with pytest.raises(UserError, match="captions of their own"):
        open_pictures(str(path), tmp_path / "prompts.txt")


def test_bad_input_is_one_message_and_exit_code_2(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    (tmp_path / "weights.pt").write_bytes(b"not weights")
    usual = ["--images", folder, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "s.parquet", "--workers", 0]
    for words, message in [
        (["--scorer", "pickscor", *usual], "did you mean 'pickscore'"),
        (["--scorer", "pickscore=nobody/nothing", *usual], "neither a local path nor reachable"),
        (["--scorer", "pickscore", *usual], "neither a local path nor reachable"),
        (["--scorer", f"hpsv2={tmp_path / 'weights.pt'}", *usual], "weights.pt"),
        ([*usual], "No scorer"),
        (["--scorer", "oracle", *usual[:-4], "--out", tmp_path / "s.csv"], "must be a .parquet file"),
        (["--scorer", "oracle", "--images", tmp_path / "no", "--out", tmp_path / "s.parquet"], "does not exist"),
    ]:
        result = run(*words)
        assert result.exit_code == 2 and message in result.stderr, (words, result.output, result.exception)
        assert "Traceback" not in result.stderr


def test_nothing_but_broken_pictures_is_an_error(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    with pytest.raises(UserError, match="No picture could be scored"):
        scoring.score(
            str(tmp_path / "pictures"), ["oracle"], tmp_path / "s.parquet", prompts=tmp_path / "prompts.txt", workers=0
        )
    assert not (tmp_path / "s.parquet").exists()


def pictures_named(folder, *names):
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        picture(seed).save(folder / name)
    return str(folder)


def prompts_by_id(images, table, text):
    table.write_text(text, encoding="utf-8")
    return {item.id: item.prompt for item in open_pictures(images, table)}


@pytest.mark.parametrize("header", ["filename,prompt", "File_Name,Prompt", "IMAGE,text", "Path,Caption", "file name,x"])
def test_headers_in_any_spelling(tmp_path, header):
    images = pictures_named(tmp_path / "pictures", "a.png", "b.png", "c.png")
    text = f"{header.replace(',x', ',TEXT')}\nc.png,three\na.png,one\nb.png,two\n"
    found = prompts_by_id(images, tmp_path / "p.csv", text)
    assert found == {"a.png": "one", "b.png": "two", "c.png": "three"}


def test_paths_are_those_of_the_table_or_the_folder(tmp_path):
    images = pictures_named(tmp_path / "pictures", "a.png", "b.png")
    found = prompts_by_id(images, tmp_path / "p.csv", f"path,prompt\npictures/b.png,two\n{images}/a.png,one\n")
    assert found == {"a.png": "one", "b.png": "two"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bild,prompt\nb.png,two\na.png,one\n", "Column 'bild' .* seems to name pictures"),
        ("key,prompt\nb,two\na,one\n", "Column 'key' .* seems to name pictures"),
        ("file,second,prompt\na.png,b.png,one\nb.png,a.png,two\n", "Column 'second' .* seems to name pictures"),
        ("file,prompt\na.png,one\n,two\n", "Row 2 names no picture"),
        ("file_name,prompt\na.png,one, two\nb.png,three\n", "line 2 .* 3 fields, 2 columns"),
    ],
)
def test_names_that_would_not_be_read_are_refused(tmp_path, text, message):
    images = pictures_named(tmp_path / "pictures", "a.png", "b.png")
    with pytest.raises(UserError, match=message):
        prompts_by_id(images, tmp_path / "p.csv", text)


def test_columns_that_agree_are_no_doubt(tmp_path):
    images = pictures_named(tmp_path / "pictures", "a.png", "b.png")
    text = "file_name,source,key,prompt\nb.png,/data/b.png,1,two\na.png,/data/a.png,0,one\n"
    assert prompts_by_id(images, tmp_path / "p.csv", text) == {"a.png": "one", "b.png": "two"}
    assert prompts_by_id(images, tmp_path / "q.csv", "key,prompt\na,one\nb,two\n") == {"a.png": "one", "b.png": "two"}


def test_numbered_files_are_in_the_order_of_their_numbers(tmp_path, caplog):
    images = pictures_named(tmp_path / "pictures", *(f"{index}.png" for index in range(12)))
    (tmp_path / "p.txt").write_text("".join(f"prompt {index}\n" for index in range(12)))
    items = open_pictures(images, tmp_path / "p.txt")
    assert [(item.id, item.prompt) for item in items] == [(f"{i}.png", f"prompt {i}") for i in range(12)]
    assert "order of their numbers" in caplog.text


def test_a_picture_listed_twice_is_scored_twice(tmp_path):
    images = pictures_named(tmp_path / "pictures", "a.png")
    (tmp_path / "p.csv").write_text("file_name,prompt\na.png,a red circle\na.png,a blue square\n")
    scoring.score(images, ["oracle"], tmp_path / "s.parquet", prompts=tmp_path / "p.csv", workers=0)
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    prompts = ["a red circle", "a blue square"]
    expected = Oracle().score(prompts, [picture(0), picture(0)])["overall"]
    assert [(row["id"], row["prompt"]) for row in rows] == list(zip(["a.png", "a.png#2"], prompts, strict=True))
    assert [row["score"] for row in rows] == pytest.approx([float(value) for value in expected])


def test_prompts_that_a_scorer_does_not_read_whole_are_counted(tmp_path, head, caplog):
    images = pictures_named(tmp_path / "pictures", "a.png", "b.png", "c.png")
    (tmp_path / "p.csv").write_text(f"file,prompt\na.png,a red circle\nb.png,{'red ' * 200}\nc.png,a red circle\n")
    scoring.score(images, [f"oracle,pickscore={head}"], tmp_path / "s.parquet", prompts=tmp_path / "p.csv", workers=0)
    (said,) = [record.getMessage() for record in caplog.records if "are cut at" in record.getMessage()]
    assert said.startswith("1 of 2 prompts are cut at the ") and "tokens that pickscore reads" in said
