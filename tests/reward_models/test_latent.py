"""The latent reward model: the published code's scores, invariants, storage."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from reward_models.errors import RewardModelError
from reward_models.latent import LatentRewardConfig, LatentRewardModel, LatentSpace, TextConditioning, TextTower
from reward_models.latent_space import probe_pixels

GOLDEN = Path(__file__).parents[1] / "data/golden/latent_reward"
DOCUMENT = json.loads((GOLDEN / "cases.json").read_text())
CASES = [case for case in DOCUMENT["cases"] if case["kind"] == "lrm_score"]


def golden_model(case: dict, **choices) -> tuple[LatentRewardModel, dict[str, torch.Tensor]]:
    params, backbone = case["params"], case["params"]["backbone"]
    state = load_file(GOLDEN / f"lrm_{backbone}.safetensors")
    settings = {
        "multi_scale": params["multi_scale"],
        "guidance_scale": params["guidance_scale"],
        # As released, the SDXL class leaves the finest stage alone when asked to enhance all.
        "enhanced": ("all_but_first" if backbone == "sdxl" else "all") if params["multi_scale_cfg"] else "mid",
    }
    visual = state["visual_projection" + ("" if params["multi_scale"] else "_mid_only") + ".weight"]
    config = LatentRewardConfig(
        unet=DOCUMENT["unet_config"][backbone],
        pooled_width=state["pooled"].shape[1],
        width=visual.shape[0],
        vae_scale_factor=8,
        text_projection=backbone == "sd15",
        **{**settings, **choices},
    )
    model = LatentRewardModel(config)
    unet = {name.removeprefix("unet."): value for name, value in state.items() if name.startswith("unet.")}
    model.trunk.load_unet(unet, GOLDEN, torch.float64)
    model.double()
    model.heads.visual_projection.weight.data = visual.double()
    model.heads.logit_scale.data = state["logit_scale"].double()
    if backbone == "sd15":
        model.heads.text_projection.weight.data = state["text_projection.weight"].double()
    return model, state


def golden_score(model: LatentRewardModel, state: dict[str, torch.Tensor]) -> torch.Tensor:
    prompts = TextConditioning(state["prompt_embeds"].double(), state["pooled"].double())
    null = prompts.index(torch.tensor([len(prompts) - 1]))
    text = prompts.index(state["prompt_index"])
    with torch.no_grad():
        return model(state["latents"].double(), state["timesteps"], text, null)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_published_scores(case):
    score = golden_score(*golden_model(case))
    wanted = torch.tensor(case["expected"]["score"]["rederived"], dtype=torch.float64)
    torch.testing.assert_close(score, wanted, rtol=1e-7, atol=1e-7)
    if "score_all_stages" in case["expected"]:
        every = golden_score(*golden_model(case, enhanced="all"))
        wanted = torch.tensor(case["expected"]["score_all_stages"]["rederived"], dtype=torch.float64)
        torch.testing.assert_close(every, wanted, rtol=1e-7, atol=1e-7)


def components(folder: Path) -> tuple[DiffusionPipeline, TextTower]:
    pipe = DiffusionPipeline.from_pretrained(folder)
    names = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
    tokenizers = [getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in names]
    return pipe, TextTower([getattr(pipe, name) for name in names], tokenizers)


@pytest.fixture(scope="module", params=["tiny_sdxl", "tiny_sd", "tiny_sd_v"])
def folder(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(folder) -> LatentRewardModel:
    torch.manual_seed(0)
    pipe, text = components(folder)
    space = LatentSpace.measure(
        lambda pixels: pipe.vae.encode(pixels).latent_dist.mode(), pipe.scheduler.alphas_cumprod
    )
    return LatentRewardModel.from_components(pipe.unet, text, pipe.vae_scale_factor, space).eval()


def noisy(count: int = 3, side: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(1))


PROMPTS = ["a red circle", "a blue square", ""]
TIMES = torch.tensor([1, 501, 951])


@torch.no_grad()
def test_any_pipeline_makes_a_reward_model(model):
    scores = model.score(noisy(), TIMES, PROMPTS)
    assert scores.shape == (3,) and scores.dtype == torch.float32
    assert (scores.abs() <= model.heads.scale).all()
    assert not any("up_blocks" in name or "conv_out" in name for name, _ in model.named_parameters())
    other_size = model.score(noisy(side=16), TIMES, PROMPTS)
    assert torch.isfinite(other_size).all()


@torch.no_grad()
def test_rows_do_not_see_each_other(model):
    together = model.score(noisy(), TIMES, PROMPTS)
    alone = torch.cat([model.score(noisy()[i : i + 1], TIMES[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_timestep_and_the_prompt_matter(model):
    latents = noisy(1).repeat(3, 1, 1, 1)
    by_time = model.score(latents, TIMES, ["a red circle"] * 3)
    by_prompt = model.score(latents, TIMES[:1].repeat(3), PROMPTS)
    assert len(set(by_time.tolist())) == 3 and len(set(by_prompt.tolist())) == 3


@torch.no_grad()
def test_enhancement_is_nothing_at_scale_1_and_for_the_empty_prompt(model):
    text, null = model.encode(PROMPTS), model.encode([""])
    enhanced = model.visual_features(noisy(), TIMES, text, null)
    plain = model.heads.visual(model.trunk(noisy(), TIMES, text))
    torch.testing.assert_close(enhanced[2], plain[2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(enhanced[0], plain[0], atol=1e-5)


@torch.no_grad()
def test_a_folder_round_trip_gives_the_same_scores(model, tmp_path):
    loaded = LatentRewardModel.load(model.save(tmp_path / "lrm"))
    assert torch.equal(loaded.score(noisy(), TIMES, PROMPTS), model.score(noisy(), TIMES, PROMPTS))
    assert loaded.config == LatentRewardConfig.from_json(model.config.to_json(), tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    half = LatentRewardModel.load(model.save(tmp_path / "half", torch.float16), dtype=torch.bfloat16)
    assert half.trunk.dtype == torch.bfloat16 and half.heads.logit_scale.dtype == torch.float32
    assert torch.isfinite(half.score(noisy(), TIMES, PROMPTS)).all()


@torch.no_grad()
def test_a_model_may_lean_on_its_bases_text_encoders(folder, tmp_path):
    pipe, text = components(folder)
    model = LatentRewardModel.from_components(pipe.unet, text, pipe.vae_scale_factor, text_encoders="base").eval()
    saved = model.save(tmp_path / "lrm")
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(RewardModelError, match="pass base="):
        LatentRewardModel.load(saved)
    for base in (folder, text):
        loaded = LatentRewardModel.load(saved, base=base)
        torch.testing.assert_close(loaded.score(noisy(), TIMES, PROMPTS), model.score(noisy(), TIMES, PROMPTS))


def test_gradients_reach_latents_blocks_and_temperature_but_not_the_source(folder):
    pipe, text = components(folder)
    pipe.unet.requires_grad_(False)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    model = LatentRewardModel.from_components(pipe.unet, text, pipe.vae_scale_factor)
    latents = noisy().requires_grad_()
    model.score(latents, TIMES, PROMPTS).sum().backward()
    assert latents.grad.abs().sum() > 0 and model.heads.logit_scale.grad is not None
    assert all(parameter.grad is not None for parameter in model.trunk.unet.mid_block.parameters())
    torch.optim.SGD(model.trunk.parameters(), lr=1.0).step()
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


def test_published_widths():
    """4800 for SD1.5 and SD2.x, 3520 for SDXL; only shapes are made."""
    sd = {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768}
    sdxl = {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    for unet, pooled, width in ((sd, 768, 4800), ({**sd, "cross_attention_dim": 1024}, 1024, 4800), (sdxl, 1280, 3520)):
        with torch.device("meta"):
            made = LatentRewardModel(LatentRewardConfig(unet, pooled, pooled, 8, text_projection=pooled != 1280))
        assert tuple(made.heads.visual_projection.weight.shape) == (pooled, width)


def test_latent_spaces_are_told_apart(model, folder, tmp_path):
    pipe, _ = components(folder)
    space, alphas = model.config.latent_space, pipe.scheduler.alphas_cumprod

    def measure(vae, factor=1.0, schedule=alphas):
        return LatentSpace.measure(lambda pixels: factor * vae.encode(pixels).latent_dist.mode(), schedule)

    assert space.difference(measure(pipe.vae)) is None
    assert space.difference(LatentSpace.from_dict(json.loads(json.dumps(space.to_dict())))) is None
    half = measure(pipe.vae.half().float())
    assert space.difference(half) is None  # another precision of the same weights
    assert "scaling factor" in space.difference(measure(pipe.vae, factor=0.7))
    assert "noise schedule" in space.difference(measure(pipe.vae, schedule=alphas.square()))
    assert "timesteps" in space.difference(measure(pipe.vae, schedule=alphas[:500]))
    assert probe_pixels().abs().max() <= 1.0


def test_bad_folders_are_explained(model, tmp_path):
    saved = model.save(tmp_path / "lrm")
    config = json.loads((saved / "config.json").read_text())
    for change in ({"format": "something else"}, {"unknown": 1}):
        (saved / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(RewardModelError, match="not the configuration of a latent reward model"):
            LatentRewardModel.load(saved)
    (saved / "config.json").write_text(json.dumps({**config, "multi_scale": False}))
    with pytest.raises(RewardModelError, match="do not fit"):
        LatentRewardModel.load(saved)
    with pytest.raises(RewardModelError, match="no text encoder"):
        TextTower.load(tmp_path)
    with pytest.raises(RewardModelError, match="not supported"):
        LatentRewardModel(LatentRewardConfig({"addition_embed_type": "image"}, 8, 8, 8, True))
