"""Saving, and the two lines on plain diffusers pipelines."""

import subprocess
import sys

import pytest
import torch

from t2i_align.errors import UserError
from t2i_align.personal import load_personal, save_personal
from t2i_align.personal.adapter import add_user_adapter
from t2i_align.personal.config import PersonalConfig
from tests.personal.common import PAIRS, TABLE, load, open_up, picture

KINDS = ["sd", "sdxl"]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tiny_sd, tiny_sdxl):
    return tiny_sd if kind == "sd" else tiny_sdxl


def saved(pipe, config, path, **kwargs):
    torch.manual_seed(0)
    adapter = add_user_adapter(pipe.unet, config)
    open_up(adapter)
    save_personal(adapter, path, **kwargs)
    return adapter


def test_a_saved_adapter_makes_the_same_pictures_on_a_plain_pipeline(kind, folder, tmp_path):
    trained = load(folder, kind)
    adapter = saved(trained, TABLE, tmp_path / "ppd", users={"carl": torch.ones(3, 8)})
    with torch.no_grad(), adapter.condition(adapter.encoder(["anna"]), guided=True):
        expected = picture(trained)
    pipe = load(folder, kind)
    pipe.unet.requires_grad_(False)  # as in training: torch multiplies in other shapes by weights that want gradients
    base = picture(pipe)
    personal = load_personal(pipe, tmp_path / "ppd")
    assert personal.names == ["null", "anna", "ben", "carl"]
    with personal.user("anna"):
        own = picture(pipe)
    assert torch.equal(own, expected)
    assert not torch.allclose(own, base, atol=1e-3)
    assert torch.equal(picture(pipe), base)
    with personal.user("null"):
        assert torch.equal(picture(pipe), base)
    with personal.user("ben", scale=0):
        assert torch.equal(picture(pipe), base)
    assert sorted(path.name for path in (tmp_path / "ppd").iterdir()) == [
        "personal_config.json",
        "personal_weights.safetensors",
    ]


def test_mixtures_guidance_and_negative_users(kind, folder, tmp_path):
    saved(load(folder, kind), TABLE, tmp_path)
    pipe = load(folder, kind)
    personal = load_personal(pipe, tmp_path)
    pictures = {}
    for name, who in {"anna": "anna", "whole": {"anna": 1.0, "ben": 0.0}, "half": {"anna": 0.5, "null": 0.5}}.items():
        with personal.user(who):
            pictures[name] = picture(pipe)
    assert torch.equal(pictures["anna"], pictures["whole"])
    assert not torch.allclose(pictures["anna"], pictures["half"], atol=1e-3)
    with personal.user("anna", guidance_scale=4.0):  # the pipeline's own
        assert torch.equal(picture(pipe, guidance_scale=4.0), pictures["anna"])
    with personal.user("anna", guidance_scale=0.0):
        unguided = picture(pipe, guidance_scale=4.0)
    torch.testing.assert_close(unguided, picture(pipe, guidance_scale=4.0), atol=1e-4, rtol=1e-4)
    with personal.user("null", negative="ben"):
        assert not torch.allclose(picture(pipe), unguided, atol=1e-3)
    with personal.user("anna"):
        assert picture(pipe, prompt=["a circle", "a square"], num_images_per_prompt=2).shape[0] == 4
        assert picture(pipe, guidance_scale=1.0).shape == unguided.shape


def test_a_new_user_from_pairs_without_training(kind, folder, tmp_path):
    saved(load(folder, kind), PAIRS, tmp_path)
    personal = load_personal(load(folder, kind), tmp_path)
    shown = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 5)
    tokens = personal.add_pairs("dora", *shown)
    assert torch.equal(personal.tokens("dora"), tokens)
    with personal.user({"dora": 0.7}, scale=0.5):
        picture(personal.pipeline)
    with pytest.raises(UserError, match="no comparisons"):
        personal.add_pairs("empty", *(part[:0] for part in shown))
    with pytest.raises(UserError, match="does not encode reward weights"):
        personal.add_rewards("dora", {"clip": 1.0})
    with pytest.raises(UserError, match="nothing is known"):
        personal.add_pairs("null", *shown)


def test_half_precision_pipelines(kind, folder, tmp_path):
    adapter = saved(load(folder, kind), TABLE, tmp_path, dtype=torch.float16)
    pipe = load(folder, kind)
    pipe.unet.to(torch.bfloat16)
    personal = load_personal(pipe, tmp_path)
    torch.testing.assert_close(personal.adapter.encoder.table, adapter.encoder.table, atol=1e-2, rtol=1e-2)
    sample = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
    text = torch.randn(1, 7, pipe.unet.config.cross_attention_dim, dtype=torch.bfloat16)
    added = None
    if kind == "sdxl":
        added = {"text_embeds": torch.randn(1, 20).bfloat16(), "time_ids": torch.zeros(1, 6).bfloat16()}
    with torch.no_grad(), personal.adapter.condition(personal.tokens("anna")[None]):
        output = pipe.unet(sample, 3, text, added_cond_kwargs=added).sample
    assert output.dtype == torch.bfloat16
    assert torch.isfinite(output).all()


def test_clear_messages(tiny_sd, tiny_sdxl, tmp_path):
    saved(load(tiny_sd, "sd"), TABLE, tmp_path / "sd")
    pipe = load(tiny_sd, "sd")
    personal = load_personal(pipe, tmp_path / "sd")
    with pytest.raises(UserError, match="Unknown user"):
        personal.tokens("nobody")
    with pytest.raises(UserError, match="shape"):
        personal.tokens(torch.zeros(3, 7))
    with pytest.raises(UserError, match="already"):
        load_personal(pipe, tmp_path / "sd")
    with pytest.raises(UserError, match="another architecture"):
        load_personal(load(tiny_sdxl, "sdxl"), tmp_path / "sd")
    with pytest.raises(UserError, match="no user adapter in this folder"):
        load_personal(pipe, tmp_path / "nothing")
    (tmp_path / "sd" / "personal_config.json").write_text("{}")
    with pytest.raises(UserError, match="not the configuration"):
        load_personal(pipe, tmp_path / "sd")


def test_external_users_and_reward_vectors_on_a_pipeline(tiny_sd, tmp_path):
    from safetensors.torch import save_file

    saved(load(tiny_sd, "sd"), PersonalConfig("external", token_width=8, features=6), tmp_path / "external")
    personal = load_personal(load(tiny_sd, "sd"), tmp_path / "external")
    save_file({"anna": torch.randn(5, 6)}, tmp_path / "users.safetensors")
    assert personal.add_external(tmp_path / "users.safetensors") == ["anna"]
    assert personal.tokens("anna").shape == (5, 8)
    rewards = PersonalConfig("reward_vector", num_tokens=2, token_width=8, names=("clip", "aesthetic"))
    saved(load(tiny_sd, "sd"), rewards, tmp_path / "rewards")
    personal = load_personal(load(tiny_sd, "sd"), tmp_path / "rewards")
    mild, strong = (personal.add_rewards(name, {"clip": w}) for name, w in {"mild": 1.0, "strong": 2.0}.items())
    torch.testing.assert_close(2 * mild, strong)


def test_importing_the_room_is_light():
    code = "import sys, t2i_align.personal; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
