"""Rules across sections: options that contradict each other, and options that nothing would read.

An option that is set in a file or on the command line but not read by the chosen model, objective or schedule
is an error: a flag that does nothing lies about the run. Defaults of such options are no error; the resolved
file leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from t2i_align.config import reference_rules, user_rules
from t2i_align.config.fields import keys
from t2i_align.config.objective_rules import objective_problems
from t2i_align.config.problems import Problem, in_words, report
from t2i_align.config.schema import RunConfig
from t2i_align.objectives.config import resolve

FILE_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv")
BUILT_IN = "shapes:"
_NOT_OF_ROLLOUTS = ("shuffle_labels", "proportion_empty_prompts", "random_flip", "loser_captions")
LATENT_GRID = 8  # every supported VAE divides the side by 4 or 8
REMOVE = "remove it"

Rule = Callable[[RunConfig], Iterator[Problem]]


def check(config: RunConfig) -> None:
    """Raise one UserError with every broken rule; nothing when all hold."""
    problems = violations(config)
    if problems:
        raise report(problems, "run configuration", {})


def violations(config: RunConfig) -> list[Problem]:
    """Every broken rule, contradictions first, then set options that nothing reads."""
    broken = [problem for rule in RULES for problem in rule(config)]
    for path, (reason, fix) in unread(config).items():
        broken += [Problem(found, reason, in_words(value), fix) for found, value in _set_below(config, path)]
    return broken


# Contradictions.


def _heldout_once(config: RunConfig) -> Iterator[Problem]:
    if config.data.heldout_source is not None and config.data.heldout_fraction > 0:
        yield Problem(
            "data.heldout_fraction",
            "data.heldout_source already names the held-out pairs",
            in_words(config.data.heldout_fraction),
            "keep one of the two",
        )


def _reference_fits(config: RunConfig) -> Iterator[Problem]:
    if config.model.reference == "adapter_off" and config.model.train == "full":
        yield Problem(
            "model.reference",
            "the base is not kept under a fully trained UNet, so there is no adapter to switch off",
            "adapter_off with model.train: full",
            "use frozen_copy or auto, or train: lora",
        )


def _kohya_knows_no_dora(config: RunConfig) -> Iterator[Problem]:
    if config.export.kohya and config.model.lora.use_dora:
        yield Problem(
            "export.kohya",
            "the kohya keys written here have no place for DoRA's magnitudes",
            "kohya: true with model.lora.use_dora: true",
            "set one of the two to false; the diffusers LoRA is written in any case",
        )


def _one_kind_of_pairs(config: RunConfig) -> Iterator[Problem]:
    if config.rollout is not None and config.online is not None:
        yield Problem(
            "online", "a rollout section makes the pairs already", "both rollout and online", "keep one of the two"
        )


def _cache_is_fixed(config: RunConfig) -> Iterator[Problem]:
    if config.data.cache_dir is not None and not config.data.center_crop:
        yield Problem(
            "data.center_crop",
            "a cache holds one crop of each picture, a random crop needs a new one in every epoch",
            "center_crop: false with cache_dir",
            "use center_crop: true, or remove data.cache_dir",
        )


def _resolution_fits(config: RunConfig) -> Iterator[Problem]:
    side = config.data.resolution
    if side % LATENT_GRID:
        lower = max(side // LATENT_GRID, 1) * LATENT_GRID
        yield Problem(
            "data.resolution",
            f"must be divisible by {LATENT_GRID}, the step of the latent grid",
            in_words(side),
            f"use {lower} or {(side // LATENT_GRID + 1) * LATENT_GRID}",
        )


def _warmup_fits(config: RunConfig) -> Iterator[Problem]:
    training = config.training
    if 0 < training.max_train_steps < training.lr_warmup_steps:
        yield Problem(
            "training.lr_warmup_steps",
            "the warm-up is longer than the run, so the learning rate would never be reached",
            f"{training.lr_warmup_steps} of max_train_steps {training.max_train_steps}",
            "lower lr_warmup_steps or raise max_train_steps",
        )


def _scale_lr_is_a_base(config: RunConfig) -> Iterator[Problem]:
    training = config.training
    pairs = training.train_batch_size * training.gradient_accumulation_steps
    result = training.learning_rate * pairs
    if training.scale_lr and result > 0.1:
        yield Problem(
            "training.scale_lr",
            "learning_rate is multiplied by the effective batch, so it must be a rate per pair",
            f"{training.learning_rate:g} x {pairs} pairs per process = {result:g}",
            f"lower learning_rate, or set scale_lr: false to use {training.learning_rate:g} as it is",
        )


def _validation_has_input(config: RunConfig) -> Iterator[Problem]:
    steps = config.validation.validation_steps
    if steps is not None and not config.validation.validation_prompts and not _has_heldout(config):
        yield Problem(
            "validation.validation_steps",
            "there is nothing to validate",
            f"every {steps} steps, without prompts and without held-out pairs",
            "set validation.validation_prompts, data.heldout_source or data.heldout_fraction",
        )


def _trackers_once(config: RunConfig) -> Iterator[Problem]:
    if len(set(config.report_to)) < len(config.report_to):
        yield Problem("report_to", "a tracker is named twice", in_words(config.report_to), "name each once")


RULES: tuple[Rule, ...] = (
    _heldout_once,
    _reference_fits,
    _kohya_knows_no_dora,
    _one_kind_of_pairs,
    *user_rules.RULES,
    reference_rules.problems,
    _cache_is_fixed,
    _resolution_fits,
    _warmup_fits,
    _scale_lr_is_a_base,
    _validation_has_input,
    _trackers_once,
    objective_problems,
)


# Options that nothing reads.


def unread(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Dotted path of every key or section that this run does not read -> (why, how to fix it)."""
    return dict(
        [
            *_unread_model(config),
            *_unread_data(config),
            *_unread_training(config),
            *_unread_validation(config),
            *_unread_rollout(config),
            *reference_rules.unread(config),
            *user_rules.unread(config),
        ]
    )


Unread = Iterator[tuple[str, tuple[str, str]]]


def _unread_model(config: RunConfig) -> Unread:
    if config.model.gradient_checkpointing != "auto":
        fix = f"{REMOVE}, or set model.gradient_checkpointing: auto"
        yield "model.memory_limit_gb", ("the limit is for an automatic choice", fix)
    if config.model.train == "full":
        why = "is not read when the whole UNet is trained"
        yield "model.lora", (why, f"{REMOVE}, or use model.train: lora")
        yield "export.kohya", (why, f"{REMOVE}, or use model.train: lora")
    if config.model.train == "user":
        why = "the user adapter is trained, and its reference is the network without it"
        for path in ("model.lora", "model.reference", "export.kohya"):
            yield path, (why, REMOVE)
    elif not resolve(config.objective).needs_reference:
        why = f"objective {config.objective.preset} has no reference policy"
        yield "model.reference", (why, f"{REMOVE}, or use an objective with a reference such as dpo")
    if config.model.pretrained_model_name_or_path.startswith(BUILT_IN):
        for name in ("revision", "variant"):
            yield f"model.{name}", ("built-in models have none", REMOVE)


def _unread_data(config: RunConfig) -> Unread:
    data = config.data
    if not _has_splits(data.source):
        yield "data.split", (f"{data.source} has no splits", REMOVE)
    if data.heldout_source is None:
        yield (
            "data.heldout_split",
            ("is read with data.heldout_source only", f"{REMOVE}, or set data.heldout_source"),
        )
    elif not _has_splits(data.heldout_source):
        yield "data.heldout_split", (f"{data.heldout_source} has no splits", REMOVE)
    layout = resolve(config.objective).layout
    if layout != "pair":
        why = f"objective {config.objective.preset} does not compare a winner with a loser"
        yield "data.loser_captions", (why, f"{REMOVE}, or use a pairwise objective such as dcpo")
    if layout not in ("ranked", "group"):
        why = f"objective {config.objective.preset} compares single pictures"
        yield "data.list_size", (why, f"{REMOVE}, or use an objective on lists such as rankdpo or mdpo")


def _unread_training(config: RunConfig) -> Unread:
    training = config.training
    if training.optimizer == "adafactor":
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            yield f"training.{name}", ("adafactor does not read it", f"{REMOVE}, or use optimizer: adamw")
    if training.lr_scheduler == "constant":
        fix = f"{REMOVE}, or use lr_scheduler: constant_with_warmup"
        yield "training.lr_warmup_steps", ("the constant schedule has no warm-up", fix)
    if not training.ema.enabled:
        for name in ("decay", "update_after_step"):
            yield (
                f"training.ema.{name}",
                ("the average is not enabled", f"{REMOVE}, or set training.ema.enabled: true"),
            )


def _unread_validation(config: RunConfig) -> Unread:
    if not config.validation.validation_prompts:
        for name in ("num_inference_steps", "guidance_scale", "validation_seed"):
            fix = f"{REMOVE}, or set validation.validation_prompts"
            yield f"validation.{name}", ("no pictures are drawn without prompts", fix)
    if not _has_heldout(config):
        for name in ("heldout_pairs", "heldout_draws"):
            fix = f"{REMOVE}, or set data.heldout_source or data.heldout_fraction"
            yield f"validation.{name}", ("no pairs are held out", fix)


def _unread_rollout(config: RunConfig) -> Unread:
    if config.rollout is None and config.online is None:
        return
    for name in () if config.rollout is None else _NOT_OF_ROLLOUTS:
        yield f"data.{name}", ("rollouts make their own pairs and labels", f"{REMOVE}, or remove the rollout section")
    if config.data.cache_dir is not None and not _has_heldout(config):
        yield "data.cache_dir", ("no picture is read: rollouts make the pairs and none are held out", REMOVE)


def _has_heldout(config: RunConfig) -> bool:
    of_users = config.personal is not None and config.personal.heldout_users > 0
    return of_users or config.data.heldout_source is not None or config.data.heldout_fraction > 0


def _has_splits(source: str) -> bool:
    """Whether an address may hold several splits: folders and hub ids may, files and built-ins do not."""
    return not source.startswith(BUILT_IN) and not source.endswith(FILE_SUFFIXES)


def _set_below(config: RunConfig, path: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of every key at or below ``path`` that was given explicitly."""
    *sections, name = path.split(".")
    holder: BaseModel = config
    for section in sections:
        holder = getattr(holder, section)
    if name not in holder.model_fields_set:
        return
    value = getattr(holder, name)
    if keys()[path].is_section:
        for inner in value.model_fields_set:
            yield from _set_below(config, f"{path}.{inner}")
    else:
        yield path, value
