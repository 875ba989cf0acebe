"""`t2i-align rewards train` of judges of noisy latents, from YAML to a rollout that uses them."""

import json

import pytest
import torch
import yaml
from typer.testing import CliRunner

from reward_models.latent import LatentRewardModel
from reward_models.step_aware import StepAwareModel
from t2i_align import cli
from tests.stepwise.harness import trainer
from tests.training.runs import contents, write_pairs


def run(*words):
    return CliRunner().invoke(cli.app, ["rewards", "train", *map(str, words)])


@pytest.fixture
def settings(tmp_path, tiny_sdxl):
    return {
        "scorer": "lrm",
        "output_dir": str(tmp_path / "run"),
        "model": {"pretrained_model_name_or_path": str(tiny_sdxl)},
        "data": {
            "source": str(write_pairs(tmp_path / "pairs.parquet")),
            "heldout_fraction": 0.4,
            "resolution": 32,
            "ties": "soft",
        },
        "lrm": {"guidance_scale": 1.0, "text_encoders": "base", "stages": 1},
        "training": {
            "max_train_steps": 3,
            "train_batch_size": 4,
            "learning_rate": 1e-3,
            "lr_warmup_steps": 0,
            "train_text_encoders": False,
            "checkpointing_steps": 2,
        },
        "validation": {"timesteps": [1, 801], "draws": 1},
    }


@pytest.fixture
def write(tmp_path):
    def _write(content):
        path = tmp_path / "rewards.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return _write


def test_a_latent_reward_model_from_yaml_to_rollout(settings, write, tiny_sdxl, tmp_path):
    result = run(write(settings))
    assert result.exit_code == 0, result.output
    folder = tmp_path / "run/model"
    assert f"Model: {folder}" in result.output and "Held-out accuracy: t=1 " in result.output
    assert set(json.loads((tmp_path / "run/accuracy.json").read_text())["lrm"]) == {"1", "801"}
    assert (tmp_path / "run/accuracy.png").is_file()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    model = LatentRewardModel.load(folder, tiny_sdxl)
    assert model.trunk.unet.mid_block is None and len(model.trunk.unet.down_blocks) == 1
    counter = trainer(tiny_sdxl, {"scorer": {"name": "lrm", "checkpoint": str(folder)}}).steps(1).parts.counter
    assert counter.pairs > 0 and counter.scoring == 0
    before = contents(tmp_path / "run")
    again = run(write(settings))
    assert again.exit_code == 0 and "finished before; nothing was written" in again.output
    assert "Held-out accuracy: t=1 " in again.output and contents(tmp_path / "run") == before


def test_a_step_aware_model_from_yaml_to_rollout(settings, write, head, tiny_sdxl, tmp_path):
    del settings["lrm"]
    settings |= {"scorer": "spm", "spm": {"checkpoint": str(head), "guidance_scale": 2.0}}
    settings["training"] |= {"shared_noise": True}
    result = run(write(settings))
    assert result.exit_code == 0, result.output
    folder = tmp_path / "run/model"
    assert StepAwareModel.load(folder).modulation.pooled[1].weight.abs().max() > 0
    step = trainer(tiny_sdxl, {"scorer": {"name": "spm", "checkpoint": str(folder)}}).steps(1)
    assert step.parts.counter.pairs > 0 and step.parts.counter.scoring > 0
    assert torch.isfinite(torch.tensor(step.losses)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spm": {"guidance_scale": 2.0}}, "does not read the section spm"),
        ({"training": {"train_text_encoders": True}}, "are never trained"),
        ({"data": {"source": "x.parquet", "resolutoin": 32}}, "resolutoin"),
        ({"lrm": {"stages": 5, "guidance_scale": 1.0, "text_encoders": "base"}}, "stages must lie between"),
    ],
)
def test_mistakes_are_explained(settings, write, change, message):
    result = run(write({**settings, **change}))
    assert result.exit_code == 2 and message in result.output


def test_another_run_in_the_folder_is_refused(settings, write, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("scorer: lrm\n")
    result = run(write(settings))
    assert result.exit_code == 2 and "other settings" in result.output


@torch.no_grad()
def test_the_packaged_model_reads_the_latents_of_the_packaged_base():
    from reward_models.latent import LatentSpace
    from t2i_align.rewards.noisy import NoisyRewardConfig
    from t2i_align.rewards.noisy_run import load_base
    from t2i_align.shapes.assets import resolve

    data = {"source": "shapes:pairs", "resolution": 64}
    values = {"scorer": "lrm", "output_dir": "unused", "model": {"pretrained_model_name_or_path": "shapes:base"}}
    backbone = load_base(NoisyRewardConfig.model_validate({**values, "data": data}))
    folder = resolve("shapes:lrm")
    model = LatentRewardModel.load(folder, resolve("shapes:base"))
    ours = LatentSpace.measure(backbone.encode_image, backbone.alphas_cumprod)
    assert model.config.latent_space is not None and model.config.latent_space.difference(ours) is None
    scores = model.score(torch.zeros(2, 4, 16, 16), torch.tensor([1, 901]), ["a red circle"] * 2)
    assert scores.isfinite().all() and scores[0] != scores[1]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2**20
