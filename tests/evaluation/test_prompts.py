"""Every kind of prompt file, and what is said about broken ones."""

import pytest

from t2i_align.errors import UserError
from t2i_align.evaluation.prompts import PromptSet, load_prompts


def test_text_file_skips_blank_lines_and_strips(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a red circle \n\n  two blue squares\n", encoding="utf-8")
    assert load_prompts(path) == PromptSet("mine", ("a red circle", "two blue squares"))


def test_json_lines_of_strings_and_objects(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"Prompt": "a", "category": "x"}\n\n{"prompt": "b"}\n', encoding="utf-8")
    prompts = load_prompts(path)
    assert prompts.prompts == ("a", "b")
    assert prompts.groups == {"category": ("x", "")}
    path.write_text('"plain"\n', encoding="utf-8")
    assert load_prompts(path).prompts == ("plain",)


def test_partiprompts_columns_with_bare_quotation_marks(tmp_path):
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text(
        'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tnone\na sign that says "hi\tArts\tWriting\t\n',
        encoding="utf-8",
    )
    prompts = load_prompts(path)
    assert prompts.prompts == ("bond", 'a sign that says "hi')
    assert prompts.groups == {"category": ("Abstract", "Arts"), "challenge": ("Basic", "Writing")}


def test_csv_with_a_caption_column(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('id,caption\n1,"a, b"\n', encoding="utf-8")
    assert load_prompts(path).prompts == ("a, b",)


def test_limit_cuts_prompts_and_groups():
    prompts = PromptSet("p", ("a", "b", "c"), {"style": ("x", "y", "z")})
    assert load_prompts(prompts, limit=2) == PromptSet("p", ("a", "b"), {"style": ("x", "y")})
    assert len(load_prompts(["a", "b"])) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.txt", None, "does not exist"),
        ("p.pdf", "x", "kind of prompt file"),
        ("p.txt", "\n\n", "empty"),
        ("p.jsonl", "{broken\n", "line 1"),
        ("p.jsonl", "17\n", "neither a string nor an object"),
        ("p.tsv", "Title\tNote\nx\ty\n", "no prompt column"),
        ("p.csv", "prompt,n\n,1\n", "Prompt 1 is empty"),
    ],
)
def test_broken_files_are_explained(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(path)
    assert caught.value.found and caught.value.fix


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        load_prompts(path)


def test_whose_prompts_they_are(tmp_path):
    file = tmp_path / "asked.csv"
    file.write_text("prompt,user_id,style\na,7,x\nb,7,y\nc,9,x\n")
    prompts = load_prompts(file)
    assert prompts.users == ("7", "7", "9") and prompts.first(2).users == ("7", "7")
    shuffled = load_prompts(file, shuffle=True)
    assert dict(zip(shuffled.prompts, shuffled.users, strict=True)) == {"a": "7", "b": "7", "c": "9"}
    file.write_text("prompt,user_id\na,7\nb,\n")
    with pytest.raises(UserError, match="belong to nobody"):
        load_prompts(file)
    assert load_prompts(["a", "b"]).first(1).users == ()
