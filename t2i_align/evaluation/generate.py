"""Pictures of several models from the same prompts and the same initial noise, resumable."""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reward_models.files import complete_file
from t2i_align.errors import UserError
from t2i_align.evaluation.ahead import check_checkpoints, check_models, check_output_folder
from t2i_align.evaluation.best_of import RECORD_FILE, BestOf, OpenBestOf
from t2i_align.evaluation.grids import grid
from t2i_align.evaluation.manifest import (
    MANIFEST_FILE,
    Picture,
    Settings,
    append_to_manifest,
    fingerprint,
    open_folder,
    read_manifest,
    remaining,
    write_manifest,
)
from t2i_align.evaluation.negative import attach, merge
from t2i_align.evaluation.prompts import PromptSet, load_prompts
from t2i_align.evaluation.sampling import check_negative_prompt, sample_images
from t2i_align.evaluation.scorers import check_scorers
from t2i_align.evaluation.users import UserChoice
from t2i_align.evaluation.worlds import default_prompts
from t2i_align.processes import Processes, join_lines
from t2i_align.progress import Progress
from t2i_align.randomness import address_hash

__all__ = ["grid", "identify", "picture_seed", "run", "sample_images"]
NOBODY = UserChoice()


def run(
    models: Mapping[str, str | Path],
    prompts: str | Path | PromptSet | Sequence[str] | None,
    output_dir: str | Path,
    *,
    seeds_per_prompt: int = 1,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    batch_size: int = 8,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str | None = None,
    sampler: str | None = None,
    variant: str | None = None,
    base: str | Path | None = None,
    negative: Mapping[str, str | Path] | None = None,
    negative_merge: float = 0.0,
    users: UserChoice = NOBODY,
    best_of: BestOf | None = None,
    device: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> dict[str, Path]:
    """Sample every model on every prompt; interrupted runs go on where they stopped.

    The initial noise of a picture is a function of ``(seed, prompt index, draw)``: the same for every
    model, and independent of the batch size and of which pictures already exist.

    Args:
        models: name -> diffusers folder, hub id, LoRA folder or ``shapes:base``; the name becomes a
            sub-folder.
        prompts: anything ``load_prompts`` reads; None, those of the shapes world, is for models of that world.
        output_dir: one sub-folder per model is written, see ``manifest``.
        seeds_per_prompt: pictures per prompt.
        batch_size: pictures sampled together.
        negative_prompt: of every picture, as it stands; a negative model is asked about it, too.
        sampler: name in ``backbones.samplers`` or what people call it; None is each checkpoint's own.
        variant: file variant of every pipeline, such as fp16; None is the one that a run recorded of its base.
        base: base model of entries that are only adapters.
        negative: name -> model that answers the unconditional half of guidance, see ``negative``.
        negative_merge: share of the model's own change that its negative model takes over.
        users: for whom the pictures of user adapters are made.
        best_of: keep the best of several pictures, see ``best_of``.
        device: None is CUDA where there is one, else the CPU.
        dtype: fp32, fp16 or bf16; None is fp16 on CUDA and fp32 on the CPU.
        overwrite: replace pictures made with other settings instead of refusing.

    Returns:
        name -> folder.

    Raises:
        UserError: a folder holds pictures of other settings, a name is unusable, a model cannot be loaded or does not
            fit the sampler, or there is a negative prompt without guidance.
    """
    from t2i_align.backbones import sampler_name

    _check(models, seeds_per_prompt, num_inference_steps, batch_size)
    negative = dict(negative or {})
    _check_negative(models, negative, guidance_scale)
    check_negative_prompt(negative_prompt, guidance_scale)
    sampler = None if sampler is None else sampler_name(sampler)
    check_output_folder(output_dir)
    processes = Processes.here()
    device, precision = device_and_dtype(processes.device(device), dtype)
    check_models([*models.values(), *negative.values()], base)
    prompts = default_prompts(prompts, models.values(), base)
    if best_of is not None:
        check_scorers(best_of.scorers)
        check_checkpoints(best_of.scorers)
    opened = users.open(models, base)
    if both := sorted(set(opened.tokens) & set(negative)):
        raise UserError("A user adapter has no negative model.", ", ".join(both), "leave --negative-model out for it")
    chooser = None if best_of is None else best_of.open(device)
    if best_of is not None and best_of.refine and opened.tokens:
        raise UserError("Refinement knows no users.", ", ".join(opened.tokens), "leave --refine or --user out")
    wanted = _pictures(load_prompts(prompts), seeds_per_prompt, seed)
    folders = {name: Path(output_dir) / name for name in models}
    todo: dict[str, list[Picture]] = {}
    for name, model in models.items():  # every folder is looked at before the first picture is made
        description, contents = identify(model, base, variant)
        if name in negative:
            of_negative = identify(negative[name], base, variant)
            description += f"; away from {of_negative[0]}, merged {negative_merge:g}"
            contents += f" negative {of_negative[1]} {negative_merge:g}"
        description, contents = description + opened.identity(name)[0], contents + opened.identity(name)[1]
        contents += "" if chooser is None else chooser.identity
        settings = Settings(
            model=description,
            fingerprint=contents,
            num_inference_steps=num_inference_steps,
            guidance_scale=float(guidance_scale),
            seed=seed,
            seeds_per_prompt=seeds_per_prompt,
            height=height,
            width=width,
            dtype=precision,
            negative_prompt=negative_prompt,
            sampler=sampler,
            variant=variant,
        )
        if processes.is_main:
            todo[name] = open_folder(folders[name], settings, wanted, overwrite)
            join_lines(folders[name] / RECORD_FILE)
    processes.wait()
    for name in models:
        left = todo[name] if processes.is_main else remaining(folders[name], wanted)
        todo[name] = processes.share(left, batch_size, lambda picture: picture.index)
    if sampler is not None:
        for model in (model for name, model in models.items() if todo[name]):
            _check_sampler(model, base, variant, sampler)
    processes.wait()  # nobody may have finished a picture before all have seen what is left
    sampling = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "negative_prompt": negative_prompt,
    }
    for name, model in models.items():
        if todo[name]:
            pipeline = load_model(model, base, precision, device, variant, sampler)
            if name in negative:
                _add_negative(pipeline, model, negative[name], base, precision, device, negative_merge, variant)
            speaks = show_progress and processes.is_main
            with opened.drawing(pipeline, name), Progress(f"sampling {name}", len(todo[name]), show=speaks) as progress:
                for start in range(0, len(todo[name]), batch_size):
                    batch = todo[name][start : start + batch_size]
                    _draw(pipeline, folders[name], batch, name, sampling, chooser, sampler)
                    progress.advance(len(batch))
            del pipeline
            _release_memory()
        _join(processes, folders[name])
    return folders


def _join(processes: Processes, folder: Path) -> None:
    """One manifest of everybody's pictures, when the last is made."""
    processes.wait()
    if processes.is_main and processes.count > 1:
        join_lines(folder / MANIFEST_FILE)
        join_lines(folder / RECORD_FILE)
        write_manifest(folder, read_manifest(folder))
    processes.wait()


def picture_seed(seed: int, prompt_index: int, draw: int) -> int:
    """Seed of one picture's CPU generator, below 2^32 (all that torch's CPU engine keeps of a seed)."""
    return address_hash(seed, "picture", prompt_index, draw) % 2**32


def _pictures(prompts: PromptSet, draws: int, seed: int) -> list[Picture]:
    pictures = []
    for prompt_index, prompt in enumerate(prompts.prompts):
        for draw in range(draws):
            index = prompt_index * draws + draw
            noise = picture_seed(seed, prompt_index, draw)
            pictures.append(Picture(index, prompt_index, draw, prompt, noise, f"images/{index:05d}.png"))
    return pictures


def _draw(
    pipeline,
    folder: Path,
    batch: list[Picture],
    model: str,
    sampling: dict,
    chooser: OpenBestOf | None = None,
    sampler: str | None = None,
) -> None:
    """Sample one batch and write it; a manifest line always follows its finished file."""
    if chooser is not None:
        images = chooser.draw(pipeline, batch, folder, sampling)
    else:
        prompts, seeds = [picture.prompt for picture in batch], [picture.seed for picture in batch]
        images = sample_images(pipeline, prompts, seeds, batch_size=len(batch), **sampling)
    for picture, image in zip(batch, images, strict=True):
        _save(image, folder / picture.file, picture, model, {**sampling, "sampler": sampler})
    append_to_manifest(folder, batch)


def _save(image: Image.Image, path: Path, picture: Picture, model: str, sampling: dict) -> None:
    info = PngInfo()
    described = {"prompt": picture.prompt, "seed": picture.seed, "model": model, **sampling}
    for key, value in described.items():
        if value is not None:
            info.add_text(key, str(value))
    with complete_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def load_model(
    model: str | Path,
    base: str | Path | None,
    precision: str,
    device: str,
    variant: str | None = None,
    sampler: str | None = None,
):
    """The pipeline of a model argument, a LoRA merged where that loses nothing, with a sampler of ``SAMPLERS``."""
    from t2i_align.backbones import load_for_sampling, make_sampler

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    pipeline = load_for_sampling(str(model), None if base is None else str(base), dtype, device, variant)
    if sampler is not None:
        pipeline.scheduler = make_sampler(sampler, pipeline.scheduler)
    if precision == "fp32" and getattr(pipeline.unet, "peft_config", None):
        # A merged adapter costs nothing per step. Not in half precision, where rounding would eat small updates.
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    return pipeline


def _add_negative(
    pipeline,
    model: str | Path,
    negative: str | Path,
    base: str | Path | None,
    precision: str,
    device: str,
    share: float,
    variant: str | None = None,
) -> None:
    """Load the negative model, merged where asked, and attach it; its encoders are dropped."""
    unet = load_model(negative, base, precision, device, variant).unet
    if share:
        from t2i_align.backbones import identify_model

        initial = identify_model(str(model), None if base is None else str(base), variant).base
        start = load_model(initial.pretrained_model_name_or_path, None, precision, device, initial.variant).unet
        merge(unet, pipeline.unet, start, share)
    attach(pipeline, unet)


def _check_sampler(model: str | Path, base: str | Path | None, variant: str | None, sampler: str) -> None:
    """Find out from the small files of a model, before pictures are made with any, that the sampler fits it."""
    from t2i_align.backbones import load_scheduler, make_sampler

    make_sampler(sampler, load_scheduler(str(model), None if base is None else str(base), variant))


def identify(model: str | Path, base: str | Path | None, variant: str | None = None) -> tuple[str, str]:
    """What a model argument means in words, and a hash of the weights behind it.

    Only what is sampled from counts: a run folder's checkpoints and logs may change. A model that is not on this
    machine yet is known by its hub id and revision.
    """
    from t2i_align.backbones import identify_model

    source = identify_model(str(model), None if base is None else str(base), variant)
    config = source.base
    parts = [_contents(config.pretrained_model_name_or_path, config.revision), config.variant or ""]
    if config.pretrained_vae_model_name_or_path:
        parts.append(_contents(config.pretrained_vae_model_name_or_path, None))
    if source.weights is not None:
        parts.append(fingerprint(source.weights))
    return source.description, " ".join(part for part in parts if part)


def _contents(name: str, revision: str | None) -> str:
    if name.startswith("shapes:"):
        from t2i_align.shapes import assets

        name = str(assets.resolve(name))
    return fingerprint(Path(name)) if Path(name).exists() else f"{name}@{revision or 'main'}"


def device_and_dtype(device: str | None, dtype: str | None) -> tuple[str, str]:
    """Where and in which precision pictures are made, defaults filled in.

    Raises:
        UserError: an unknown precision, or CUDA where there is none.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("fp32" if device == "cpu" else "fp16")
    if dtype not in ("fp32", "fp16", "bf16"):
        raise UserError("The precision is not known.", dtype, "use fp32, fp16 or bf16")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("A CUDA device was asked for.", "torch sees none", "use --device cpu")
    return device, dtype


def _check(models: Mapping[str, str | Path], draws: int, steps: int, batch_size: int) -> None:
    if not models:
        raise UserError("No model was given.", "", "name at least one, e.g. base=shapes:base")
    for name in models:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError("A model's name becomes a folder.", repr(name), "use letters, digits, dots and dashes")
    counts = {"seeds_per_prompt": draws, "num_inference_steps": steps, "batch_size": batch_size}
    for what, value in counts.items():
        if value < 1:
            raise UserError(f"{what} must be at least 1.", str(value), f"give a positive {what}")


def _check_negative(models: Mapping[str, str | Path], negative: Mapping[str, str | Path], scale: float) -> None:
    unknown = [name for name in negative if name not in models]
    if unknown:
        raise UserError(
            "A negative model belongs to no model.", ", ".join(unknown), f"name one of: {', '.join(models)}"
        )
    if negative and scale <= 1.0:
        raise UserError(
            "A negative model acts through guidance, which is off.",
            f"guidance_scale {scale:g}",
            "use a guidance scale above 1, or no negative model",
        )


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
