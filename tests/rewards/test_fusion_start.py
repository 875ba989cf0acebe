"""The start of a small MPS: masks let through what a condition names, and every condition follows its dimension."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reward_models.training.loop import starting_scorer
from t2i_align.errors import UserError
from t2i_align.rewards import fusion_start
from t2i_align.rewards.pretraining import render, run
from t2i_align.rewards.training import PretrainingConfig, load_config
from t2i_align.shapes.oracle import Oracle

RECIPE = Path(__file__).parents[2] / "configs" / "shapes" / "rewards" / "mps.yaml"
CONDITIONS = {"overall": "everything", "semantic": "red green blue small large", "detail": "circle square star"}


TRAINING = load_config(RECIPE).training.model_copy(
    update={"checkpoint": None, "conditions": CONDITIONS, "mask_threshold": 0.7}
)


@pytest.fixture
def scorer():
    return starting_scorer(TRAINING)


def test_words_that_a_condition_names(scorer):
    ids = scorer.tokenise(["a small red star", "a large blue ring"])
    named, every, none = (
        fusion_start.named_words(ids, scorer.tokenise([text])[0], 652, 653)
        for text in ("red blue, small", "everything", "star")
    )
    assert named.nonzero().tolist() == [[0, 2], [0, 3], [1, 3]]  # 0 is the start token
    assert every.all() and none.nonzero().tolist() == [[0, 4]]


def test_gaps_are_the_oracles(scorer):
    pictures, captions = render(8, seed=3)
    pairs = fusion_start.encoded(scorer, captions[::2], pictures)
    names = ["detail", "overall", "aesthetic", "semantic"]
    scores = Oracle().score([text for text in captions[::2] for _ in range(2)], pictures)
    expected = np.stack([scores[name][::2] - scores[name][1::2] for name in names], axis=1)
    np.testing.assert_allclose(fusion_start.gaps(names, pairs), expected, atol=1e-5)


def test_masks_and_fusion_are_learnt(scorer, shapes_pairs, monkeypatch):
    monkeypatch.setattr(fusion_start, "WORD_STEPS", 100)
    config = PretrainingConfig(pictures=48, samples=[str(shapes_pairs)], fusion_steps=12, learning_rate=3e-3)
    before = {name: value.clone() for name, value in scorer.model.tower.clip.vision_model.state_dict().items()}
    right = fusion_start.teach(scorer, TRAINING, config)
    assert right > 0.95 and scorer.model.mask_threshold == 0.7 and scorer.model.conditions == CONDITIONS
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())
    for name, value in scorer.model.tower.clip.vision_model.state_dict().items():
        assert torch.equal(value, before[name])  # the image tower is held
    pictures, captions = render(16, seed=1)
    pairs = fusion_start.encoded(scorer, captions[::2], pictures)
    with torch.no_grad():
        texts = scorer.model.tower.encode_text_tokens(scorer.tokenise(list(CONDITIONS.values())))[0]
        margins = fusion_start.margins(scorer.model, texts, pairs)
    assert (margins.std(0) > 0).all() and not torch.allclose(margins[:, 1], margins[:, 2], atol=1e-3)


def test_refusals(scorer, tmp_path):
    config = PretrainingConfig(fusion_steps=1, pictures=2)
    with pytest.raises(UserError, match="no such dimension"):
        fusion_start.teach(scorer, TRAINING.model_copy(update={"conditions": {"beauty": "light"}}), config)
    recipe = load_config(RECIPE.with_name("pickscore.yaml"))
    with pytest.raises(UserError, match="fusion module of an MPS"):
        run(recipe.training, config, tmp_path / "start")
