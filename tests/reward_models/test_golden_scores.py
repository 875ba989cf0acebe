"""Scores, probabilities and gradients of the official code, through the public API."""

import numpy as np
import pytest
import torch

from reward_models import load
from tests.reward_models.golden import GOLDEN, TOKENIZER, arrays, expected, image_path, image_paths, table


def close(actual, reference, tolerance):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(reference), rtol=0, atol=tolerance)


def test_pickscore_scores_and_probabilities(pickscore):
    golden = expected("pickscore")
    close(table(pickscore, "pickscore"), golden["scores"], 5e-5)
    paths = image_paths("pickscore")
    # Scores within 5e-5 move a probability by 2 p (1 - p) 5e-5 at most.
    close([pickscore.compare(p, paths) for p in golden["prompts"]], golden["probs_softmax_over_images"], 2.5e-5)
    pairs = [pickscore.compare(p, paths[:2]) for p in golden["prompts"]]
    close(pairs, golden["pair_probs_first_two_images"], 2.5e-5)


def test_pickscore_cosine_scale_is_recorded(pickscore):
    raw = load(
        "pickscore", GOLDEN / "pickscore", tokenizer=TOKENIZER, device="cpu", scale="cosine", decoding="published"
    )
    close(table(raw, "pickscore"), expected("pickscore")["cosine"], 2e-6)
    assert raw.version == pickscore.version.replace("+", "+scale=cosine+")
    paths = image_paths("pickscore")[:2]
    close(raw.compare("a fox", paths), pickscore.compare("a fox", paths), 2e-6)


def test_pickscore_embeddings_and_token_ids(pickscore):
    golden = expected("pickscore")
    ids = pickscore.tokenise(golden["prompts"])
    np.testing.assert_array_equal(ids, arrays("pickscore")["input_ids_max_length"])
    close(pickscore.encode_prompts(golden["prompts"])[0], arrays("pickscore")["text_embeds"], 2e-6)


def test_pickscore_pixel_gradient(pickscore):
    golden = expected("pickscore")
    inputs = torch.stack([pickscore.preprocessor(path) for path in image_paths("pickscore")]).requires_grad_()
    pickscore.score_inputs(golden["prompts"][0], inputs).sum().backward()
    close(inputs.grad, arrays("pickscore")["grad_scores_prompt0_wrt_pixel_values"], 1e-4)


@pytest.mark.parametrize(("weight", "key"), [(2.5, "clipscore_2p5_max0"), (100.0, "clipscore_100_max0")])
def test_clip_score(weight, key):
    scorer = load(
        "clip_score",
        checkpoint=GOLDEN / "pickscore",
        tokenizer=TOKENIZER,
        device="cpu",
        prefix="",
        weight=weight,
        preprocessing="clip_pil",
        decoding="published",
    )
    close(table(scorer, "pickscore"), expected("pickscore")[key], weight * 2e-6)


def test_clip_score_prefix_is_part_of_the_prompt(clip_score, pickscore):
    close(clip_score.encode_prompts(["a fox"])[0], pickscore.encode_prompts(["A photo depicts a fox"])[0], 1e-7)


def test_hpsv2_scores(hpsv2):
    golden = expected("hpsv2")
    close(table(hpsv2, "hpsv2"), golden["scores_cosine"], 2e-6)
    np.testing.assert_array_equal(hpsv2.tokenise(golden["prompts"]), arrays("hpsv2")["input_ids"])
    rgba = golden["rgba_converted_to_rgb_first"]
    score = hpsv2.score(golden["prompts"][rgba["prompt_index"]], [image_path(rgba["image"])])
    close(score, [rgba["score"]], 2e-6)


def test_hpsv2_logit_scale(hpsv2):
    folder = GOLDEN / "hpsv2"
    config = folder / "tiny_model_cfg.json"
    logits = load(
        "hpsv2", folder / "model.safetensors", "cpu", model_config=config, scale="logit_scale", decoding="published"
    )
    close(table(logits, "hpsv2"), expected("hpsv2")["ranking_logits_logit_scale_times_cosine"], 5e-5)
    close(hpsv2.preference_scale, expected("hpsv2")["logit_scale_exp"], 1e-4)


def test_hpsv2_pixel_gradient(hpsv2):
    golden = expected("hpsv2")
    inputs = torch.stack([hpsv2.preprocessor(path) for path in image_paths("hpsv2")]).requires_grad_()
    hpsv2.score_inputs(golden["prompts"][0], inputs).sum().backward()
    close(inputs.grad, arrays("hpsv2")["grad_scores_prompt0_wrt_pixel_values"], 1e-4)


CONDITIONS = {"overall": "overall", "aesthetic": "aesthetics", "detail": "detail", "semantic": "semantic"}


def load_mps(**options):
    return load("mps", checkpoint=GOLDEN / "mps", tokenizer=TOKENIZER, device="cpu", decoding="published", **options)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_mps_evaluation_scores(condition):
    golden = expected("mps")["eval_fp32"][CONDITIONS[condition]]
    scorer = load_mps(condition=condition)
    assert scorer.condition == expected("mps")["conditions"][CONDITIONS[condition]]
    close(table(scorer, "mps"), golden["scores"], 5e-5)
    paths = image_paths("mps")
    rows = [scorer.compare(prompt, paths) for prompt in expected("mps")["prompts"]]
    close(rows, golden["softmax_over_images"], 2e-5)
    kept = scorer.encode_prompts(expected("mps")["prompts"])[2]
    np.testing.assert_array_equal(kept, arrays("mps")[f"kept_{CONDITIONS[condition]}"].astype(bool))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_mps_forward_threshold(condition):
    golden = expected("mps")["forward_fp32"][CONDITIONS[condition]]
    close(table(load_mps(condition=condition, mask_threshold=0.01), "mps", 2), golden["scores_first_pair"], 5e-5)


def test_mps_score_does_not_depend_on_the_batch():
    """The official batched forward takes the mask's maximum over the batch; one by one is the reference here."""
    golden = expected("mps")["batched_forward_fp32"]
    scorer = load_mps(condition="semantic", mask_threshold=0.01)
    prompts = [expected("mps")["prompts"][index] for index in golden["prompt_indices"]]
    first = [image_paths("mps")[index] for index in golden["image_0_indices"]]
    second = [image_paths("mps")[index] for index in golden["image_1_indices"]]
    scores = torch.stack([scorer.score(prompts, first), scorer.score(prompts, second)], dim=1)
    close(scores, golden["same_pairs_scored_one_by_one"], 5e-5)


def test_mps_pixel_gradient():
    scorer = load_mps(condition=expected("mps")["conditions"]["semantic"], mask_threshold=0.01)
    inputs = torch.stack([scorer.preprocessor(path) for path in image_paths("mps")[:2]]).requires_grad_()
    scores = scorer.score_inputs(expected("mps")["prompts"][1], inputs)
    (scores[0] - scores[1]).backward()
    reference = arrays("mps")["grad_forward_score0_minus_score1_prompt1_semantic_wrt_pixel_values"]
    close(inputs.grad, reference, 1e-4)


@pytest.mark.parametrize("condition", ["overall", "semantic"])
def test_mps_half_precision(condition):
    golden = expected("mps")["eval_fp16_cpu"][condition]["scores"]
    close(table(load_mps(condition=condition, dtype="float16"), "mps"), golden, 0.15)


def test_aesthetic_head(aesthetic):
    golden = expected("mlp_head")
    scores = aesthetic.score_embeddings(torch.tensor(golden["input"]))
    close(scores, golden["aesthetic_of_l2_normalised_input"], 2e-6)
