"""Published suites: read from where they lie, sorted into kinds, and missing in a way that says what to get."""

import json
import logging

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t2i_align.errors import UserError
from t2i_align.evaluation.prompts import PromptSet, load_prompts
from t2i_align.evaluation.suites import SUITES

STYLES = ("anime", "concept-art", "paintings", "photo")


def write_hpdv2(folder, per_style=3):
    folder.mkdir(parents=True)
    for style in STYLES:
        (folder / f"{style}.json").write_text(json.dumps([f"{style} {i}" for i in range(per_style)]))
    return folder


def test_a_file_per_style_is_found_at_any_depth(tmp_path):
    write_hpdv2(tmp_path / "HPDv2" / "benchmark", 800)
    prompts = load_prompts(f"hpdv2={tmp_path}")
    assert len(prompts) == 3200 and prompts.name == "hpdv2"
    assert prompts.prompts[800] == "concept-art 0"
    assert [prompts.groups["style"].count(style) for style in STYLES] == [800] * 4


def test_a_part_is_a_label_of_any_group(tmp_path):
    write_hpdv2(tmp_path / "b")
    photo = load_prompts(f"hpdv2:photo={tmp_path}")
    assert (photo.name, photo.prompts) == ("hpdv2:photo", ("photo 0", "photo 1", "photo 2"))
    with pytest.raises(UserError, match="no such part") as caught:
        load_prompts(f"hpdv2:cartoon={tmp_path}")
    assert "anime, concept-art" in caught.value.fix


def test_partiprompts_by_category_and_challenge(tmp_path):
    rows = "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tx\na dog\tAnimals\tBasic\t\n"
    (tmp_path / "PartiPrompts.tsv").write_text(rows)
    prompts = load_prompts(f"partiprompts={tmp_path / 'PartiPrompts.tsv'}")
    assert prompts.groups == {"category": ("Abstract", "Animals"), "challenge": ("Basic", "Basic")}
    assert load_prompts(f"partiprompts:animals={tmp_path}").prompts == ("a dog",)


def test_pickapic_reads_distinct_captions_of_the_split(tmp_path):
    (tmp_path / "data").mkdir()
    for split, captions in {"test_unique": ["a", "b", "a"], "validation_unique": ["c"]}.items():
        table = pa.table({"caption": captions, "jpg_0": [b"x"] * len(captions)})
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert load_prompts(f"pickapic={tmp_path}").prompts == ("a", "b")
    assert load_prompts(f"pickapic:validation_unique={tmp_path}").prompts == ("c",)
    with pytest.raises(UserError, match="no such part"):
        load_prompts(f"pickapic:train={tmp_path}")


def test_geneval_dpg_and_compbench(tmp_path):
    metadata = [{"tag": "counting", "prompt": "two dogs", "include": []}, {"tag": "colors", "prompt": "a red dog"}]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, metadata)) + "\n")
    assert load_prompts(f"geneval={tmp_path}").groups == {"task": ("counting", "colors")}
    (tmp_path / "dpg_bench.csv").write_text(
        'item_id,text,proposition_id\nwhoops12,"a, long one",1\nwhoops12,"a, long one",2\nvrd3,another,1\n'
    )
    dpg = load_prompts(f"dpg={tmp_path}")
    assert dpg.prompts == ("a, long one", "another") and dpg.groups == {"source": ("whoops", "vrd")}
    for file in SUITES["compbench"].files:
        (tmp_path / file).write_text(f"first of {file}\nsecond\n")
    (tmp_path / "color_train.txt").write_text("not this one\n")
    compbench = load_prompts(f"compbench={tmp_path}")
    assert len(compbench) == 16 and compbench.groups["category"][:3] == ("color", "color", "shape")


def test_another_size_than_the_published_one_is_remarked(tmp_path, caplog):
    write_hpdv2(tmp_path / "b")
    with caplog.at_level(logging.WARNING):
        load_prompts(f"hpdv2={tmp_path}")
    assert "hpdv2 has 3200 prompts as published, here are 12" in caplog.text


@pytest.mark.parametrize(
    ("spec", "found", "fix"),
    [
        ("geneval", "no path was given", "evaluation_metadata.jsonl from the folder prompts of github.com/djghosh13"),
        ("hpdv2={}", "holds no concept-art.json", "--prompts hpdv2=PATH"),
        ("hpdv2={}/nowhere", "no folder", "a folder that holds them"),
        ("dpg={}/x.csv", "no file or folder", "dpg_bench.csv"),
        ("pickapic", "no path was given", "withdrawn"),
    ],
)
def test_what_a_missing_suite_needs_is_said(tmp_path, spec, found, fix):
    write_hpdv2(tmp_path / "b")
    (tmp_path / "b" / "concept-art.json").unlink()
    with pytest.raises(UserError, match="are not here") as caught:
        load_prompts(spec.format(tmp_path))
    assert found in caught.value.found and fix in caught.value.fix


def test_a_name_alone_asks_the_hub(tmp_path, monkeypatch):
    write_hpdv2(tmp_path / "benchmark")
    asked = []

    def download(repo, file, subfolder, repo_type):
        asked.append((repo, repo_type))
        return str(tmp_path / subfolder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert len(load_prompts("hpdv2")) == 12 and asked == [("zhwang/HPDv2", "dataset")] * 4

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match="are not here") as caught:
        load_prompts("partiprompts")
    assert "no network" in caught.value.found and "PartiPrompts.tsv from github.com" in caught.value.fix


@pytest.mark.parametrize(
    ("file", "text", "suite"),
    [
        ("evaluation_metadata.jsonl", '{"prompt": "x"}\n', "geneval"),
        ("dpg_bench.csv", "id,prompt\n1,x\n", "dpg"),
    ],
)
def test_another_file_of_that_name_is_refused(tmp_path, file, text, suite):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError):
        load_prompts(f"{suite}={tmp_path}")


def test_a_limited_set_in_random_order_grows_without_changing():
    prompts = PromptSet(
        "p", tuple(f"prompt {i}" for i in range(50)), {"style": tuple("ab"[i >= 25] for i in range(50))}
    )
    few, more = load_prompts(prompts, 10, shuffle=True), load_prompts(prompts, 20, shuffle=True)
    assert more.prompts[:10] == few.prompts and set(few.groups["style"]) == {"a", "b"}
    assert all(("a", "b")[int(text.split()[1]) >= 25] == label for text, label in zip(*more_of(more), strict=True))
    assert set(load_prompts(prompts, shuffle=True).prompts) == set(prompts.prompts)


def more_of(prompts):
    return prompts.prompts, prompts.groups["style"]
