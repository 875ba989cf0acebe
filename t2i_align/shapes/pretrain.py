"""Pretraining of the shapes world's base model, in the folder layout of `StableDiffusionXLPipeline`."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_models.files import share

from ..errors import UserError
from .fitting import Ema
from .render import contact_sheet
from .tokenizer import build_tokenizer, save_tokenizer
from .unet_training import Denoiser, UnetConfig, build_denoiser, encoded_scenes, train_denoiser
from .vae_training import VaeConfig, train_vae
from .world import IMAGE_SIZE, split_prompts

logger = logging.getLogger(__name__)


class PretrainConfig(BaseModel):
    """Everything that decides what the base model becomes."""

    model_config = ConfigDict(extra="forbid")

    seed: int = 0
    num_threads: int = Field(default=2, ge=1)
    num_scenes: int = Field(default=40_000, ge=1, description="renders the denoiser is trained on")
    flaw_rate: float = Field(default=0.2, ge=0, le=1, description="how often one of these is soft, or shaded")
    vae: VaeConfig
    unet: UnetConfig


def load_config(path: str | Path) -> PretrainConfig:
    """Read and validate a YAML file; raises UserError with every mistake in it."""
    path = Path(path)
    if not path.is_file():
        raise UserError("the pretraining config does not exist", str(path), "name a file such as pretrain.yaml")
    try:
        return PretrainConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML", str(error), "correct the syntax") from error
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path} is not a valid pretraining config", mistakes, "correct these keys") from error


def run(config_path: str | Path, output_dir: str | Path, resume: bool = False) -> Path:
    """Train the base model of `config_path`; returns the pipeline folder `output_dir/base`.

    `output_dir` also receives `pretrain.log`, checkpoints in `state/`, and `samples.png`. With `resume` the run goes
    on from the checkpoints; without, a folder that has some is refused.
    """
    config, folder = load_config(config_path), Path(output_dir)
    state = folder / "state"
    if state.exists() and not resume:
        raise UserError(
            "the output folder holds an earlier run", str(state), "pass --resume to continue it, or name another folder"
        )
    state.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "pretrain.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    package_logger = logging.getLogger(__package__)
    package_logger.addHandler(handler)
    package_logger.setLevel(logging.INFO)
    try:
        return pretrain(config, folder, resume)
    finally:
        package_logger.removeHandler(handler)
        handler.close()


def pretrain(config: PretrainConfig, folder: Path, resume: bool = False) -> Path:
    """Train the autoencoder, then the denoiser on its latents; write the pipeline and a sheet of samples."""
    torch.set_num_threads(config.num_threads)
    torch.set_flush_denormal(True)
    state = folder / "state"
    vae = _trained_vae(config, state, resume)
    scenes, latents = encoded_scenes(vae, config.num_scenes, config.seed, config.flaw_rate, state / "latents.pt")
    denoiser = _new_denoiser(config, vae)
    train_denoiser(denoiser, config.unet, scenes, latents, state, config.seed, resume)
    write_pipeline(config, vae, denoiser, folder / "base")
    write_samples(folder / "base", folder / "samples.png", config.seed)
    return folder / "base"


def publish_intermediate(config: PretrainConfig, folder: Path, target: Path) -> int:
    """Write the pipeline of an unfinished run's last checkpoint (its EMA weights) to `target`; returns its step."""
    vae = AutoencoderKL.from_pretrained(folder / "state" / "vae")
    denoiser = _new_denoiser(config, vae)
    latest = max((folder / "state").glob("unet-*.ckpt"), key=lambda path: path.stat().st_mtime)
    state = torch.load(latest, weights_only=True)
    modules = denoiser.modules()
    ema = Ema(modules, decay=0.0)
    ema.shadow = state["ema"]
    ema.copy_to(modules)
    write_pipeline(config, vae, denoiser, target)
    return state["step"]


def _trained_vae(config: PretrainConfig, state: Path, resume: bool) -> AutoencoderKL:
    finished = state / "vae"
    if resume and finished.exists():
        return AutoencoderKL.from_pretrained(finished)
    vae = train_vae(config.vae, state, config.seed, resume)
    vae.save_pretrained(finished)
    share(finished)
    return vae


def _new_denoiser(config: PretrainConfig, vae: AutoencoderKL) -> Denoiser:
    torch.manual_seed(config.seed)
    latent_size = IMAGE_SIZE // 2 ** (len(vae.config.block_out_channels) - 1)
    return build_denoiser(config.unet, build_tokenizer(), vae.config.latent_channels, latent_size)


def write_pipeline(config: PretrainConfig, vae: AutoencoderKL, denoiser: Denoiser, folder: Path) -> None:
    """Save everything as fp16 safetensors in the layout of SDXL, replacing `folder`."""
    scheduler = EulerDiscreteScheduler(
        beta_start=config.unet.beta_start,
        beta_end=config.unet.beta_end,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",  # begins at the noisiest step, which the first latents are
    )
    # as in SDXL's own file: read by the other schedulers that are made from this configuration
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True)
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        text_encoder_2=denoiser.text_encoder_2,
        tokenizer=denoiser.tokenizer,
        tokenizer_2=denoiser.tokenizer,
        unet=denoiser.unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=False,  # the unconditional it was trained with is the empty caption
        add_watermarker=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        save_tokenizer(denoiser.tokenizer, folder / name)
    for name in ("text_encoder", "text_encoder_2"):
        _declare_float32(folder / name / "config.json")
    share(folder)


def _declare_float32(path: Path) -> None:
    """Let a plain `from_pretrained` load the encoder in fp32, as diffusers loads the rest.

    transformers would otherwise follow the stored weights, and fp16 hidden states would meet an fp32 UNet.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_samples(model: Path, sheet: Path, seed: int, count: int = 48) -> None:
    """Sample `count` held-out prompts from the pipeline folder `model` and lay them out on one sheet."""
    from .sampling import load_pipeline, sample

    _, prompts = split_prompts(0, count, seed)
    contact_sheet(sample(load_pipeline(model), prompts, seeds=range(count))).save(sheet)
