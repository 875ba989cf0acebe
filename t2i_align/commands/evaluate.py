"""``t2i-align generate`` and ``t2i-align evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2i_align.commands.common import (
    OutputDir,
    chosen_prompts,
    chosen_users,
    is_main_process,
    named_models,
    named_values,
    negative_models,
)
from t2i_align.errors import UserError

if TYPE_CHECKING:
    from t2i_align.evaluation.best_of import BestOf
    from t2i_align.evaluation.results import Evaluation

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME=MODEL",
        help="Diffusers folder, hub id, run folder, LoRA folder, or shapes:base; NAME= may be left out.",
        show_default=False,
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME[:PART][=PATH]",
        help="A .txt, .jsonl, .csv or .tsv file, shapes (held-out prompts of the built-in world; the default for its "
        "models), or a suite: partiprompts, hpdv2, pickapic, geneval, dpg, compbench.",
    ),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT", help="A prompt as it stands, in place of --prompts; may be repeated."),
]
Shuffle = Annotated[
    bool, typer.Option("--shuffle-prompts", help="Fixed random order, so that --limit is a fair sample of a suite.")
]
SeedsPerPrompt = Annotated[int, typer.Option(min=1, help="Pictures per prompt.")]
Steps = Annotated[int, typer.Option("--num-inference-steps", min=1, help="Denoising steps.")]
Guidance = Annotated[float, typer.Option("--guidance-scale", min=0.0, help="Classifier-free guidance.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures sampled together.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the initial noise, the same for every model.")]
Side = Annotated[int | None, typer.Option(min=8, help="Pixels; the model's own size by default.")]
NegativePrompt = Annotated[
    str | None, typer.Option(help="Text that every picture is guided away from; needs a guidance scale above 1.")
]
SamplerName = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help="ddim, ddpm, euler, euler_a, heun, dpm2, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde, unipc, deis, lms, "
        "pndm, ... on the checkpoint's own noise schedule; the checkpoint's own by default.",
    ),
]
Variant = Annotated[str | None, typer.Option(help="File variant of the weights, such as fp16.")]
Base = Annotated[str | None, typer.Option(help="Base model of entries that are adapters only.")]
Negative = Annotated[
    list[str] | None,
    typer.Option(
        "--negative-model",
        metavar="[NAME=]MODEL",
        help="Model that NAME, or every model, is guided away from, such as a run of objective npo; may be repeated.",
    ),
]
NegativeMerge = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of a model's own change that its negative model takes over.")
]
User = Annotated[
    list[str] | None,
    typer.Option(
        "--user",
        metavar="[NAME=]WHO",
        help="For whom NAME, or every user adapter, makes pictures: pairs.parquet#USER, a known name, null, "
        "file.safetensors#NAME, reward=weight,..., or a mixture 0.7*WHO+0.3*WHO; may be repeated.",
    ),
]
UserScale = Annotated[float, typer.Option(min=0.0, help="Strength of the user's attention; 0 is the base model.")]
UserGuidance = Annotated[
    float | None, typer.Option(min=0.0, help="Guidance over the user, at a third pass; as over the prompt by default.")
]
Device = Annotated[str | None, typer.Option(help="Such as cuda:0; CUDA where there is one by default.")]
Dtype = Annotated[str | None, typer.Option(help="fp32, fp16 or bf16; fp16 on CUDA, fp32 on a CPU by default.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace pictures made with other settings.")]


def generate(
    models: Models,
    output_dir: OutputDir,
    prompts: Prompts = None,
    prompt: Prompt = None,
    seeds_per_prompt: SeedsPerPrompt = 1,
    num_inference_steps: Steps = 25,
    guidance_scale: Guidance = 5.0,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    height: Side = None,
    width: Side = None,
    negative_prompt: NegativePrompt = None,
    sampler: SamplerName = None,
    variant: Variant = None,
    base: Base = None,
    negative_model: Negative = None,
    negative_merge: NegativeMerge = 0.0,
    user: User = None,
    user_scale: UserScale = 1.0,
    user_guidance: UserGuidance = None,
    best_of: Annotated[
        int | None, typer.Option(min=2, help="Draw so many and keep the best by the first --scorer.")
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="With --best-of: a reward model, or oracle (default for models of the shapes world); the first "
            "chooses, the others judge."
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(metavar="STRENGTHS", help="With --best-of: rounds of refinement, such as 0.8,0.8,0.5,0.5."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
) -> None:
    """Sample models on the same prompts from the same noise.

    With --best-of several pictures are drawn for each one kept; their price in UNet passes is shown beside the gain.
    A stopped command goes on where it was.
    """
    from t2i_align.evaluation.generate import run
    from t2i_align.evaluation.users import UserChoice

    named = named_models(models)
    folders = run(
        named,
        chosen_prompts(prompts, prompt),
        output_dir,
        seeds_per_prompt=seeds_per_prompt,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        seed=seed,
        height=height,
        width=width,
        negative_prompt=negative_prompt,
        sampler=sampler,
        variant=variant,
        base=base,
        negative=negative_models(negative_model, named),
        negative_merge=negative_merge,
        users=UserChoice(chosen_users(user, named, base), user_scale, user_guidance),
        best_of=_best_of(best_of, scorer, refine, named, base),
        device=device,
        dtype=dtype,
        overwrite=overwrite,
    )
    for name, folder in folders.items() if is_main_process() else ():
        print(f"{name}: {folder}")
        if best_of is not None:
            _print_gains(folder)


def _best_of(
    candidates: int | None, scorer: list[str] | None, refine: str | None, models: dict[str, str], base: str | None
) -> BestOf | None:
    from t2i_align.evaluation.ahead import check_models
    from t2i_align.evaluation.best_of import BestOf
    from t2i_align.evaluation.worlds import default_scorers

    if candidates is None:
        if scorer or refine:
            raise UserError("--scorer and --refine belong to --best-of.", "no --best-of", "add --best-of N")
        return None
    try:
        strengths = [float(word) for word in refine.split(",")] if refine else []
    except ValueError as error:
        raise UserError("--refine takes numbers.", repr(refine), "for example --refine 0.8,0.5") from error
    check_models(models.values(), base)
    return BestOf(candidates, default_scorers(scorer or None, models.values(), base), strengths)


def _print_gains(folder: Path) -> None:
    """Price and gain of every n and round, as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from t2i_align.evaluation.best_of import gains

    found = gains(folder)
    table = Table("", "UNet passes per picture", *(escape(f"gain by {name}") for name in found[0].gains))
    for row in found:
        cells = [f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" for gain in row.gains.values()]
        table.add_row(escape(row.what), f"{row.passes:.0f}", *cells)
    Console().print(table)


def evaluate(
    models: Models,
    output_dir: OutputDir,
    prompts: Prompts = None,
    prompt: Prompt = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[:CONDITION][=CHECKPOINT], file.py:function, or oracle (default for models of the shapes world); "
            "may be repeated, the first judges."
        ),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Model the others are compared with; base or the first.")] = None,
    control: Annotated[str | None, typer.Option(help="Model that must not win, trained on shuffled labels.")] = None,
    user_to: Annotated[
        list[str] | None,
        typer.Option(
            "--user-to",
            metavar="[NAME=]WHO",
            help="The report also shows the way from NAME's --user to this one; may be repeated.",
        ),
    ] = None,
    run_folder: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="NAME=FOLDER", help="Run folder of a model that lies elsewhere."),
    ] = None,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Judge every checkpoint of a run, for score against training step."),
    ] = None,
    drift: Annotated[bool, typer.Option("--drift/--no-drift", help="Measure what changed beside the scores.")] = True,
    proxy: Annotated[
        str | None, typer.Option(metavar="SCORER[:DIMENSION]", help="Score the models were trained on.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="CLIP-based reward model by which variety is measured; one of the scorers, or the VAE."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    shuffle_prompts: Shuffle = False,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Score differences up to this size are ties.")] = 0.0,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the bootstrap intervals.")] = 0.95,
    seeds_per_prompt: SeedsPerPrompt = 1,
    num_inference_steps: Steps = 25,
    guidance_scale: Guidance = 5.0,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    height: Side = None,
    width: Side = None,
    negative_prompt: NegativePrompt = None,
    sampler: SamplerName = None,
    variant: Variant = None,
    base: Base = None,
    negative_model: Negative = None,
    negative_merge: NegativeMerge = 0.0,
    user: User = None,
    user_scale: UserScale = 1.0,
    user_guidance: UserGuidance = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare models with a baseline and write a report.

    Generates pictures, scores them, and writes report.html, which begins with the verdict, evaluation.json and
    scores.parquet. A stopped command goes on where it was.
    """
    from t2i_align.evaluation.evaluate import REPORT_FILE, run
    from t2i_align.evaluation.users import UserChoice

    named = named_models(models)
    evaluation = run(
        named,
        chosen_prompts(prompts, prompt),
        scorer or None,
        output_dir,
        baseline=baseline,
        control=control,
        runs=named_values(run_folder, "--run"),
        checkpoints=named_values(checkpoints, "--checkpoints"),
        drift=drift,
        proxy=proxy,
        features=features,
        limit=limit,
        shuffle_prompts=shuffle_prompts,
        seeds_per_prompt=seeds_per_prompt,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        seed=seed,
        height=height,
        width=width,
        negative_prompt=negative_prompt,
        sampler=sampler,
        variant=variant,
        base=base,
        negative=negative_models(negative_model, named),
        negative_merge=negative_merge,
        users=UserChoice(chosen_users(user, named, base), user_scale, user_guidance),
        towards=chosen_users(user_to, named, base),
        device=device,
        dtype=dtype,
        tolerance=tolerance,
        confidence=confidence,
        overwrite=overwrite,
    )
    if is_main_process():
        print_verdicts(evaluation)
        print(f"Report: {Path(output_dir) / REPORT_FILE}")


def print_verdicts(evaluation: Evaluation) -> None:
    """What may be said of every model, and of the control."""
    for name in evaluation.subjects:
        verdict = evaluation.verdict(name)
        print(f"{verdict.headline}\n  {verdict.sentence}")
    if (of_control := evaluation.control_verdict()) is not None:
        print(f"{of_control.headline}\n  {of_control.sentence}")
