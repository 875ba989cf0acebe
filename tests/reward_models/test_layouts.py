"""Random small models written in the layouts of the published checkpoints, read by `load`."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reward_models import SCORERS, RewardModelError, load
from reward_models.checkpoints import save_scorer, write_random
from tests.reward_models.golden import GOLDEN, TOKENIZER, noise_image
from tests.reward_models.layouts import HPS_CONFIG, SMALL_HPS_CONFIG, aesthetic_head, clip_config, mps_config

IMAGES = [noise_image(seed) for seed in range(3)]


def golden_weights(folder):
    return load_file(GOLDEN / folder / "model.safetensors")


def test_every_scorer_is_listed():
    names = "clip_score aesthetic pickscore hps_v1 hpsv2 hpsv2.1 mps image_reward ensemble"
    assert list(SCORERS) == names.split()


def test_pickscore_folder_with_its_own_tokenizer(tmp_path, pickscore):
    shutil.copytree(TOKENIZER, tmp_path / "PickScore_v1")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "pickscore" / name, tmp_path / "PickScore_v1")
    scorer = load("pickscore", tmp_path / "PickScore_v1", "cpu", decoding="published")
    assert scorer.version == pickscore.version
    torch.testing.assert_close(scorer.score("a fox", IMAGES), pickscore.score("a fox", IMAGES))


def test_pickscore_bin_of_an_old_transformers(tmp_path, pickscore):
    """pytorch_model.bin with the position_ids buffers that transformers 4 stored."""
    state = golden_weights("pickscore")
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    shutil.copy(GOLDEN / "pickscore" / "config.json", tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    scorer = load("pickscore", tmp_path, "cpu", tokenizer=TOKENIZER)
    torch.testing.assert_close(scorer.score("a fox", IMAGES), pickscore.score("a fox", IMAGES))


@pytest.mark.parametrize("name", ["hpsv2", "hpsv2.1"])
def test_hps_pt_with_state_dict_key(tmp_path, hpsv2, name):
    torch.save({"epoch": 3, "state_dict": golden_weights("hpsv2")}, tmp_path / "HPS.pt")
    scorer = load(name, tmp_path / "HPS.pt", "cpu", model_config=HPS_CONFIG)
    assert (scorer.name, scorer.preprocessing) == (name, "hpsv2_rgb_first+shown@64")
    torch.testing.assert_close(scorer.score("a fox", IMAGES), hpsv2.score("a fox", IMAGES))


def test_hps_compressed_is_half_precision_on_disk_only(tmp_path, hpsv2):
    half = {name: value.half() for name, value in golden_weights("hpsv2").items()}
    torch.save({"state_dict": half}, tmp_path / "HPS_v2.1_compressed.pt")
    scorer = load("hpsv2.1", tmp_path / "HPS_v2.1_compressed.pt", "cpu", model_config=HPS_CONFIG)
    assert {p.dtype for p in scorer.model.parameters()} == {torch.float32}
    torch.testing.assert_close(scorer.score("a fox", IMAGES), hpsv2.score("a fox", IMAGES), rtol=0, atol=2e-3)


def test_hps_training_checkpoint_with_numpy_numbers(tmp_path, hpsv2):
    """HPS_v2.pt holds numpy scalars beside its weights, which weights_only=True refuses."""
    state = {f"module.{name}": value for name, value in golden_weights("hpsv2").items()}
    best = {"loss": np.float64(0.25), "step": np.int64(7)}
    torch.save({"state_dict": state, "optimizer": {"best": best}}, tmp_path / "HPS_v2.pt")
    with pytest.raises(Exception, match="numpy"):
        torch.load(tmp_path / "HPS_v2.pt", weights_only=True)
    scorer = load("hpsv2", tmp_path / "HPS_v2.pt", "cpu", model_config=HPS_CONFIG)
    torch.testing.assert_close(scorer.score("a fox", IMAGES), hpsv2.score("a fox", IMAGES))


def test_hps_v1_with_openai_extras(tmp_path, hpsv2):
    """OpenAI's archives store three numbers beside the weights; v1 is scored with OpenAI's preprocessing."""
    state = golden_weights("hpsv2")
    state |= {"input_resolution": torch.tensor(64), "context_length": torch.tensor(77)}
    state |= {"vocab_size": torch.tensor(49408)}
    torch.save({"state_dict": state}, tmp_path / "hpc.pth")
    scorer = load("hps_v1", tmp_path / "hpc.pth", "cpu", model_config=HPS_CONFIG)
    assert (scorer.name, scorer.preprocessing) == ("hps_v1", "openai+shown@64")
    square = [noise_image(4, 64, 64)]  # where the two preprocessings coincide
    torch.testing.assert_close(scorer.score("a fox", square), hpsv2.score("a fox", square), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "mps."])
def test_mps_single_file(tmp_path, mps, prefix):
    """One safetensors file; one conversion on the hub adds a prefix, both keep the position_ids buffers."""
    state = {f"{prefix}{name}": value for name, value in golden_weights("mps").items()}
    state[f"{prefix}model.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, tmp_path / "mps.safetensors")
    scorer = load("mps", tmp_path / "mps.safetensors", "cpu", tokenizer=TOKENIZER, model_config=mps_config())
    torch.testing.assert_close(scorer.score("a fox", IMAGES), mps.score("a fox", IMAGES))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("positions", [(0, 2, 4, 6, 7), (0, 3, 6, 9, 11)])
def test_aesthetic_heads(tmp_path, positions, suffix):
    """Linear and ReLU variants; the reference multiplies the layers out by hand."""
    state = aesthetic_head(32, positions)
    path = tmp_path / f"head{suffix}"
    (torch.save if suffix == ".pth" else save_file)(state, path)
    scorer = load("aesthetic", path, "cpu", tower=GOLDEN / "pickscore")
    embeddings = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    x = embeddings / embeddings.norm(dim=1, keepdim=True)
    for index, position in enumerate(positions):
        x = x @ state[f"layers.{position}.weight"].T + state[f"layers.{position}.bias"]
        x = x.relu() if positions[1] == 3 and index < 4 else x
    torch.testing.assert_close(scorer.score_embeddings(embeddings), x[:, 0], rtol=0, atol=1e-5)


def test_aesthetic_single_linear_layer(tmp_path):
    torch.save({"weight": torch.ones(1, 32), "bias": torch.tensor([2.0])}, tmp_path / "sa_0_4_linear.pth")
    scorer = load("aesthetic", tmp_path / "sa_0_4_linear.pth", "cpu", tower=GOLDEN / "pickscore")
    assert scorer.score_embeddings(torch.eye(32)[:1]).tolist() == [3.0]
    assert scorer.score(["any", "prompt"], IMAGES[:2]).shape == (2,)


def test_aesthetic_image_tower_agrees_with_the_full_clip_model(aesthetic, pickscore):
    inputs = torch.stack([aesthetic.preprocessor(image) for image in IMAGES])
    by_hand = aesthetic.score_embeddings(pickscore.encode_inputs(inputs))
    torch.testing.assert_close(aesthetic.score("", IMAGES), by_hand, rtol=0, atol=1e-6)


RANDOM = {
    "pickscore": clip_config(),
    "hpsv2.1": SMALL_HPS_CONFIG,
    "hps_v1": SMALL_HPS_CONFIG,
    "mps": mps_config(),
}


@pytest.mark.parametrize("name", RANDOM)
def test_saved_scorer_comes_back_the_same(tmp_path, name):
    folder = write_random(name, tmp_path / "start", RANDOM[name], TOKENIZER, seed=3)
    scorer = load(name, folder, "cpu")
    scores = scorer.score("a fox", IMAGES)
    assert len(set(scores.tolist())) == 3
    again = load(name, save_scorer(scorer, tmp_path / "again"), "cpu")
    torch.testing.assert_close(again.score("a fox", IMAGES), scores, rtol=0, atol=0)
    other = load(name, write_random(name, tmp_path / "other", RANDOM[name], TOKENIZER, seed=4), "cpu")
    assert other.version != scorer.version


@pytest.mark.parametrize("name", ["pickscore", "mps"])
def test_a_convolutional_stem_is_part_of_the_checkpoint(tmp_path, name):
    config = RANDOM[name] if name == "pickscore" else RANDOM[name]["clip"]
    vision = config["vision_config"] | {"stem_channels": [4, 4, 6], "patch_size": 8, "hidden_size": 32}
    config = config | {"vision_config": vision}
    config = config if name == "pickscore" else {**RANDOM[name], "clip": config}
    scorer = load(name, write_random(name, tmp_path / "start", config, TOKENIZER), "cpu")
    tower = scorer.model if name == "pickscore" else scorer.model.tower
    stem = tower.clip.vision_model.embeddings.patch_embedding
    assert [layer.stride[0] for layer in stem if hasattr(layer, "stride")] == [2, 1, 2, 2]
    size = tower.image_size
    assert stem(torch.zeros(2, 3, size, size)).shape == (2, 32, size // 8, size // 8)
    scores = scorer.score("a fox", IMAGES)
    assert len(set(scores.tolist())) == 3
    again = load(name, save_scorer(scorer, tmp_path / "again"), "cpu")
    torch.testing.assert_close(again.score("a fox", IMAGES), scores, rtol=0, atol=0)
    half = load(name, tmp_path / "again", "cpu", dtype="bfloat16").score("a fox", IMAGES)
    torch.testing.assert_close(half, scores, rtol=0, atol=0.05 * float(scores.abs().max()))


def test_a_stem_that_does_not_fit_the_patches(tmp_path):
    config = clip_config()
    config["vision_config"] |= {"stem_channels": [4, 4, 4, 4, 4], "patch_size": 4}
    with pytest.raises(RewardModelError, match="shrink a picture by 8"):
        write_random("pickscore", tmp_path / "start", config, TOKENIZER)


def test_ensemble_file(tmp_path, pickscore, aesthetic):
    head = GOLDEN / "mlp_head" / "model.safetensors"
    tower = {"tower": str(GOLDEN / "pickscore")}
    shutil.copytree(GOLDEN / "pickscore", tmp_path / "pick")
    members = [
        {"name": "pickscore", "checkpoint": "pick", "tokenizer": str(TOKENIZER), "weight": 2, "mean": 5, "std": 4},
        {"name": "aesthetic", "checkpoint": str(head), "options": tower, "weight": -1, "mean": 0.5, "std": 0.1},
    ]
    (tmp_path / "both.json").write_text(json.dumps({"reference_set": "three noises", "members": members}))
    both = load("ensemble", tmp_path / "both.json", "cpu")
    reference = 2 * (pickscore.score("a fox", IMAGES) - 5) / 4 - (aesthetic.score("", IMAGES) - 0.5) / 0.1
    torch.testing.assert_close(both.score("a fox", IMAGES), reference, rtol=0, atol=2e-5)
    assert both.preprocessing == "clip_pil+shown@64; openai+shown@64"
    assert "reference=three noises" in both.version
    pixels = torch.rand(2, 3, 70, 60)
    reference = 2 * (pickscore.score_tensor("a fox", pixels) - 5) / 4
    reference -= (aesthetic.score_tensor("a fox", pixels) - 0.5) / 0.1
    torch.testing.assert_close(both.score_tensor("a fox", pixels), reference, rtol=0, atol=2e-5)


def test_ensemble_specification_is_strict():
    with pytest.raises(RewardModelError, match=r"members.0.std"):
        members = [{"name": "pickscore", "weight": 1, "mean": 0, "std": 0}]
        load("ensemble", device="cpu", members=members, reference_set="x")
    with pytest.raises(RewardModelError, match="reference_set"):
        load("ensemble", device="cpu", members=[{"name": "pickscore", "weight": 1, "mean": 0, "std": 1}])
    with pytest.raises(RewardModelError, match="either checkpoint"):
        load("ensemble", device="cpu")
