"""Words to scorers, and the oracle among them."""

import numpy as np
import pytest
import torch
from PIL import Image

from reward_models import RewardModelError
from t2i_align.errors import UserError
from t2i_align.rewards.oracle import OracleScorer
from t2i_align.rewards.scorers import ScorerSpec, check_scorer_words, load_scorer, load_scorers, parse
from t2i_align.shapes.oracle import Oracle
from t2i_align.shapes.render import render
from t2i_align.shapes.world import caption

from .conftest import scenes


def test_words_are_read():
    assert parse("shapes:pickscore, shapes:mps:aesthetic") == parse(
        "pickscore=shapes:pickscore,mps:aesthetic=shapes:mps"
    )
    assert parse("pickscore, mps:aesthetic=a/b=c") == [
        ScorerSpec("pickscore"),
        ScorerSpec("mps:aesthetic", {"checkpoint": "a/b=c"}),
    ]


@pytest.mark.parametrize("word", ["", "pickscore,", "=weights", "pickscore="])
def test_broken_words_are_explained(word):
    with pytest.raises(UserError, match="NAME=CHECKPOINT"):
        parse(word)


def test_a_file_gives_labels_and_options(tmp_path, head):
    path = tmp_path / "scorers.yaml"
    keys = f"name: pickscore, checkpoint: {head}"
    path.write_text(f"one: {{{keys}}}\ncosine: {{{keys}, scale: cosine}}\n")
    one, cosine = load_scorers([str(path)])
    assert (one.name, cosine.name) == ("one", "cosine") and cosine.version.endswith("+scale=cosine")


@pytest.mark.parametrize("content", ["- pickscore", "pickscore: 3", "a: [", "\xff"])
def test_a_broken_file_is_explained(tmp_path, content):
    path = tmp_path / "scorers.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="file of scorers"):
        parse(str(path))


def test_refusals(head, tmp_path):
    for words, message in [
        ([], "No scorer"),
        (["oracle,oracle"], "same name"),
        (["oracle=weights"], "no checkpoint"),
        (["pickscore,pickscor"], "did you mean 'pickscore'"),
        (["oracle:semntic"], "did you mean 'semantic'"),
        (["taste:anna"], "numbered user"),
        (["pickscore:aesthetic"], "unknown option of pickscore 'condition'"),
        ([str(tmp_path / "none.yaml")], "does not exist"),
        (["pickscore=shapes:nonsense"], "no such part of the shapes world"),
    ]:
        with pytest.raises(UserError, match=message):
            load_scorers(words)
        if words and "same name" not in message:
            with pytest.raises(UserError, match=message):
                check_scorer_words(words)
    with pytest.raises(UserError, match="One scorer"):
        load_scorer("oracle,pickscore")


@pytest.mark.parametrize("dimension", ["overall", "semantic", "aesthetic", "detail"])
def test_the_oracle_scores_as_itself(dimension):
    asked, pictures = [], []
    for number, pair in enumerate(scenes(3)):
        for scene in pair:
            picture = render(scene)
            asked.append(caption(scene))
            pictures.append(picture.resize((90, 90)).convert("RGBA") if number == 1 else picture)
    scorer = OracleScorer(dimension)
    scores = scorer.score(asked, pictures, batch_size=4)
    np.testing.assert_allclose(scores, Oracle().score(asked, pictures)[dimension], atol=1e-6)
    assert scorer.preprocessing == "shapes_oracle+shown@64"
    torch.testing.assert_close(scorer.compare(asked[0], pictures[:2]).sum(), torch.tensor(1.0))


def test_the_oracle_has_no_gradient():
    with pytest.raises(RewardModelError, match="not differentiable"):
        OracleScorer().score_tensor("a red circle", torch.zeros(1, 3, 64, 64))
    assert OracleScorer().score("a red circle", [Image.new("RGB", (8, 8))]).shape == (1,)
