"""The heads that ship with the world are what docs/reward-models.md says of them."""

import numpy as np
import pytest

from reward_models import load
from reward_models.images import decode_image
from t2i_align.data.sources import open_table
from t2i_align.rewards.fusion_start import named_words
from t2i_align.rewards.pairs import everything
from t2i_align.rewards.rendered import draw
from t2i_align.rewards.scorers import resolved
from t2i_align.shapes.assets import prompts
from t2i_align.shapes.oracle import DIMENSIONS, Oracle


@pytest.mark.parametrize(("name", "at_least"), [("pickscore", 0.80), ("hpsv2.1", 0.62)])
def test_accuracy_on_held_out_pairs(name, at_least):
    pairs = everything(open_table("shapes:pairs/heldout"))
    captions = [caption for caption in pairs.captions() for _ in range(2)]
    pictures = [decode_image(data) for index in range(len(pairs)) for data in pairs.images(index)]
    scores = load(name, resolved(f"shapes:{name}"), "cpu").score(captions, pictures).numpy()
    decided = pairs.labels() != 0.5
    right = (scores[::2] > scores[1::2])[decided] == (pairs.labels()[decided] == 1.0)
    assert right.mean() >= at_least


def test_mps_masks_let_through_what_a_condition_names():
    scorer = load("mps", resolved("shapes:mps"), "cpu")
    ids = scorer.tokenise(prompts("heldout")[:40])
    tokens = scorer.model.tower.encode_text_tokens(ids)[0]
    for text in scorer.model.conditions.values():
        named = named_words(ids, scorer.tokenise([text])[0], 652, 653)
        assert (scorer.model.keep_tokens(tokens, scorer.condition_tokens(text)) == named).float().mean() > 0.99


def test_each_dimension_of_mps_ranks_its_own_best():
    drawn = [draw(np.random.default_rng([9, row])) for row in range(160)]
    captions = [text for text, *_ in drawn for _ in range(2)]
    pictures = [decode_image(data) for _, *sides in drawn for data in sides]
    judged, margins = Oracle().score(captions, pictures), {}
    for name in DIMENSIONS:
        scores = load("mps", resolved("shapes:mps"), "cpu", condition=name).score(captions, pictures).numpy()
        margins[name] = scores[::2] - scores[1::2]
    for name in DIMENSIONS:
        gaps = judged[name][::2] - judged[name][1::2]
        decided = np.abs(gaps) > 0.01
        right = {other: ((margin > 0) == (gaps > 0))[decided].mean() for other, margin in margins.items()}
        assert max(right, key=right.get) == name, right
