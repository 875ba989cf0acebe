"""Captions that are cut: counted, said once, and not listed by a library at every batch."""

import logging
from types import SimpleNamespace

import pytest
import torch

from t2i_align.backbones import load_backbone
from t2i_align.backbones.captions import count_cut, tell_cut, token_limit
from t2i_align.config.schema import ModelConfig

LONG = " ".join(["a small red circle beside a large blue square"] * 20)


class Words:
    """A tokenizer of words, with a begin and an end."""

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length

    def __call__(self, captions, truncation):
        assert not truncation
        return SimpleNamespace(input_ids=[[0, *range(len(caption.split())), 1] for caption in captions])


CAPTIONS = ["one", "one two", "one two three", "one two three four"]  # 3, 4, 5, 6 tokens


@pytest.mark.parametrize(("limits", "cut"), [((6,), 0), ((5,), 1), ((4,), 2), ((6, 4), 2), ((5, 6), 1)])
def test_a_caption_counts_once_if_any_encoder_cuts_it(limits, cut):
    tokenizers = [Words(limit) for limit in limits]
    assert count_cut(tokenizers, CAPTIONS) == cut
    assert token_limit(tokenizers) == min(limits)


def test_it_is_said_once(caplog):
    backbone = SimpleNamespace(tokenizers=[Words(4)], told_of_cut_captions=False)
    with caplog.at_level(logging.INFO):
        tell_cut(backbone, CAPTIONS[:2])
        tell_cut(backbone, CAPTIONS)
        tell_cut(backbone, CAPTIONS)
    assert caplog.messages == ["2 of 4 captions are cut at 4 tokens: the model does not read their ends"]


@pytest.mark.parametrize("folder", ["tiny_sd", "tiny_sdxl"])
def test_the_library_does_not_list_what_it_cuts(folder, request, caplog, monkeypatch):
    model = ModelConfig(pretrained_model_name_or_path=str(request.getfixturevalue(folder)))
    backbone = load_backbone(model, "cpu", torch.float32, needs_reference=False)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.INFO):
        backbone.encode_prompt([LONG, "a red circle"])
        assert not caplog.messages
        tell_cut(backbone, [LONG, "a red circle"])
    limit = backbone.tokenizers[0].model_max_length
    assert caplog.messages == [f"1 of 2 captions are cut at {limit} tokens: the model does not read their ends"]
    caplog.clear()
    with caplog.at_level(logging.INFO):  # a prompt of the user's own is still listed
        backbone.pipeline().encode_prompt(
            LONG, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    assert any("truncated" in message for message in caplog.messages)
