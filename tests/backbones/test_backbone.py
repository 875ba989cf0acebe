"""The contract, on SDXL, SD1.x and SD2.x layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline

from t2i_align.errors import UserError
from tests.backbones.common import PROMPTS, inputs, load
from tests.tiny import edit_json, make_sd, make_sdxl, make_vae

LAYOUTS = ("tiny_sdxl", "tiny_sd", "tiny_sd_v")


@pytest.fixture(params=LAYOUTS)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_prompts_are_those_of_the_pipeline(folder: Path) -> None:
    backbone, pipe = load(folder), DiffusionPipeline.from_pretrained(folder)
    ours = backbone.encode_prompt(PROMPTS)
    theirs = pipe.encode_prompt(prompt=PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    torch.testing.assert_close(ours.hidden, theirs[0], rtol=0, atol=0)
    torch.testing.assert_close(backbone.empty_prompt(2).hidden, theirs[1])
    if len(theirs) == 4:
        torch.testing.assert_close(ours.pooled, theirs[2], rtol=0, atol=0)
        torch.testing.assert_close(backbone.empty_prompt(2).pooled, theirs[3], rtol=0, atol=0)
    else:
        assert ours.pooled is None


def test_sdxl_takes_penultimate_layers_and_sd_the_normed_last(tiny_sdxl: Path, tiny_sd: Path) -> None:
    def states(backbone, number):
        tokenizer, encoder = backbone.tokenizers[number], backbone.text_encoders[number]
        ids = tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return encoder(ids, output_hidden_states=True)

    with torch.no_grad():
        sdxl, sd = load(tiny_sdxl), load(tiny_sd)
        expected = torch.cat([states(sdxl, number).hidden_states[-2] for number in (0, 1)], dim=-1)
        torch.testing.assert_close(sdxl.encode_prompt(PROMPTS).hidden, expected)
        torch.testing.assert_close(sdxl.encode_prompt(PROMPTS).pooled, states(sdxl, 1).text_embeds)
        torch.testing.assert_close(sd.encode_prompt(PROMPTS).hidden, states(sd, 0).last_hidden_state)


def test_empty_prompt_is_zero_only_where_the_pipeline_says_so(tmp_path: Path) -> None:
    folder = make_sdxl(tmp_path / "sdxl")
    assert load(folder).empty_prompt(1).hidden.abs().max() == 0
    edit_json(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    encoded = load(folder)
    assert torch.equal(encoded.empty_prompt(1).hidden, encoded.encode_prompt([""]).hidden)


def test_time_ids_are_in_diffusers_order(tiny_sdxl: Path, tiny_sd: Path) -> None:
    backbone, pipe = load(tiny_sdxl), DiffusionPipeline.from_pretrained(tiny_sdxl)
    ours = backbone.time_ids((100, 80), (3, 5), (64, 48))
    theirs = pipe._get_add_time_ids((100, 80), (3, 5), (64, 48), torch.float32, 20)
    assert ours.tolist() == theirs.tolist() == [[100, 80, 3, 5, 64, 48]]
    rows = backbone.time_ids([(1, 2), (7, 8)], [(3, 4), (9, 10)], [(5, 6), (11, 12)])
    assert rows.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]
    assert load(tiny_sd).time_ids((1, 1), (0, 0), (1, 1)) is None


def test_prediction_is_the_unet_output(folder: Path) -> None:
    backbone, pipe = load(folder), DiffusionPipeline.from_pretrained(folder)
    given = inputs(backbone)
    added = {"text_embeds": given["prompt"].pooled, "time_ids": given["time_ids"]}
    with torch.no_grad():
        theirs = pipe.unet(
            given["noisy"], given["timesteps"], given["prompt"].hidden, added_cond_kwargs=added, return_dict=False
        )[0]
        torch.testing.assert_close(backbone.predict(**given), theirs)


def test_schedule_and_prediction_type_come_from_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    backbone = load(folder)
    assert backbone.prediction_type == ("v_prediction" if folder.name == "sd_v" else "epsilon")
    expected = DDPMScheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod
    assert torch.equal(backbone.alphas_cumprod, expected)
    assert backbone.num_train_timesteps == 1000
    zero = load(make_sd(tmp_path / "zero", "v_prediction", rescale_betas_zero_snr=True))
    assert zero.alphas_cumprod[-1] == 0


def test_pictures_to_latents_and_back(folder: Path) -> None:
    backbone, pipe = load(folder), DiffusionPipeline.from_pretrained(folder)
    pixels = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = backbone.encode_image(pixels)
    side = backbone.vae_scale_factor
    assert latents.shape == (2, 4, 64 // side, 48 // side)
    with torch.no_grad():
        mode = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        torch.testing.assert_close(latents, mode)
        picture = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    torch.testing.assert_close(backbone.decode(latents), (picture / 2 + 0.5).clamp(0, 1))


def test_latent_statistics_of_the_vae_are_honoured(tmp_path: Path) -> None:
    folder = make_sd(tmp_path / "sd")
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    plain = load(folder).encode_image(pixels) / 0.18215
    edit_json(folder / "vae/config.json", latents_mean=[1.0, 2, 3, 4], latents_std=[2.0, 2, 4, 4])
    backbone = load(folder)
    expected = (plain - torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)) * 0.18215
    expected = expected / torch.tensor([2.0, 2, 4, 4]).view(1, 4, 1, 1)
    torch.testing.assert_close(backbone.encode_image(pixels), expected)
    edit_json(folder / "vae/config.json", latents_mean=None, latents_std=None, shift_factor=0.5)
    torch.testing.assert_close(load(folder).encode_image(pixels), (plain - 0.5) * 0.18215)


@pytest.mark.parametrize(
    ("dtype", "force_upcast", "expected"),
    [
        (torch.float16, True, torch.float32),
        (torch.float16, False, torch.float16),
        (torch.bfloat16, True, torch.bfloat16),
        (torch.float32, True, torch.float32),
    ],
)
def test_vae_precision(tmp_path: Path, dtype: torch.dtype, force_upcast: bool, expected: torch.dtype) -> None:
    folder = make_sdxl(tmp_path / "sdxl")
    edit_json(folder / "vae/config.json", force_upcast=force_upcast)
    backbone = load(folder, dtype)
    assert backbone.vae.dtype == expected
    assert backbone.text_encoders[0].dtype == dtype
    assert backbone.encode_image(torch.zeros(1, 3, 32, 32)).dtype == torch.float32


def test_a_vae_that_overflows_is_reported(tiny_sdxl: Path) -> None:
    backbone = load(tiny_sdxl)
    with torch.no_grad():
        backbone.vae.quant_conv.bias.fill_(float("inf"))
    with pytest.raises(UserError, match="non-finite"):
        backbone.encode_image(torch.zeros(1, 3, 32, 32))


def test_another_vae(tiny_sdxl: Path, tmp_path: Path) -> None:
    make_vae(scaling_factor=0.5).save_pretrained(tmp_path / "vae")
    assert load(tiny_sdxl, pretrained_vae_model_name_or_path=str(tmp_path / "vae")).vae.config.scaling_factor == 0.5
    other = make_sd(tmp_path / "sd")
    assert load(tiny_sdxl, pretrained_vae_model_name_or_path=str(other)).vae.config.scaling_factor == 0.18215
    make_vae(latent_channels=8).save_pretrained(tmp_path / "wide")
    with pytest.raises(UserError, match="8 latent channels, the UNet takes 4"):
        load(tiny_sdxl, pretrained_vae_model_name_or_path=str(tmp_path / "wide"))
    with pytest.raises(UserError, match="not an AutoencoderKL"):
        load(tiny_sdxl, pretrained_vae_model_name_or_path=str(tiny_sdxl / "unet"))


def test_differently_sized_pipelines(tmp_path: Path) -> None:
    folder = make_sdxl(
        tmp_path / "odd", latent_channels=6, downsamples=1, unet_channels=(8, 16, 24), text_width=8, pooled_width=12
    )
    backbone = load(folder)
    assert (backbone.latent_channels, backbone.vae_scale_factor) == (6, 2)
    assert backbone.predict(**inputs(backbone)).shape == (2, 6, 16, 16)


def test_resolution_must_fit_the_vae(tiny_sd_v: Path) -> None:
    backbone = load(tiny_sd_v)
    backbone.check_resolution(64)
    with pytest.raises(UserError, match="multiple of 8") as error:
        backbone.check_resolution(62)
    assert error.value.fix == "use 64"
    with pytest.raises(ValueError, match="multiples of 8"):
        backbone.encode_image(torch.zeros(1, 3, 60, 64))


def test_pipeline_samples_from_the_policy(folder: Path) -> None:
    backbone = load(folder, torch.bfloat16)
    pipe = backbone.pipeline()
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet is backbone.unet
    assert pipe("a star", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


def test_half_precision_pipeline_decodes_with_a_float32_vae(tiny_sdxl: Path) -> None:
    backbone = load(tiny_sdxl, torch.float16)
    latents = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        picture = backbone.pipeline().vae.decode(latents.half(), return_dict=False)[0]
    assert picture.dtype == torch.float32


def test_encoders_can_leave_the_device_and_come_back(tiny_sdxl: Path) -> None:
    backbone = load(tiny_sdxl)
    backbone.encoders_to("meta")
    assert backbone.vae.device.type == backbone.text_encoders[1].device.type == "meta"
    assert backbone.unet.device.type == "cpu"
