"""The model card: what was trained, on what, with which objective, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from t2i_align import __version__
from t2i_align.backbones.adapters import lora_alpha
from t2i_align.config.schema import ModelConfig, RunConfig
from t2i_align.export.history import History
from t2i_align.objectives.config import resolve
from t2i_align.objectives.objective import Objective
from t2i_align.personal.section import PersonalSection

Rows = list[tuple[str, str]]
TEMPLATE = "model_card.md"
WHAT = {"lora": "A LoRA", "full": "A fully trained UNet", "user": "A user adapter"}


def model_card(
    config: RunConfig,
    pipeline_class: str,
    metrics: Mapping[str, Any],
    data_fingerprint: str | None = None,
    history: History = (),
) -> str:
    """Markdown with YAML front matter, as model hubs read it.

    Args:
        config: of the run.
        pipeline_class: name of the diffusers class that loads the base.
        metrics: last logged values; those that are not numbers are left out.
        data_fingerprint: identity of the pairs, where known.
        history: what the run was resumed with; the hyper-parameters are those of its end.
    """
    objective = resolve(config.objective)
    model = config.model
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)  # Markdown: nothing to escape
    template = environment.from_string(
        resources.files("t2i_align.export").joinpath("templates", TEMPLATE).read_text(encoding="utf-8")
    )
    return template.render(
        front_matter=_front_matter(config),
        title=f"{_short_name(model)}, {objective.name}",
        what=WHAT[model.train],
        base=model.pretrained_model_name_or_path,
        version=__version__,
        objective=objective,
        steps=metrics.get("step", config.training.max_train_steps),
        load_lines=_load_lines(model, pipeline_class),
        data=_data(config, data_fingerprint),
        scale=_scale(objective),
        slots=_slots(objective),
        settings=_settings(config),
        changes=_changes(history),
        metrics=_numbers(metrics),
    )


def _front_matter(config: RunConfig) -> str:
    kind = config.model.train
    entries = {
        "base_model": config.model.pretrained_model_name_or_path,
        "base_model_relation": "finetune" if kind == "full" else "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "other",
        "license_name": "same-as-base-model",
        "tags": [
            "text-to-image",
            "diffusers",
            "preference-optimization",
            config.objective.preset,
            "t2i_align",
            *{"lora": ["lora"], "user": ["personalization"]}.get(kind, []),
        ],
    }
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)


def _load_lines(model: ModelConfig, pipeline_class: str) -> str:
    """A few lines after the imports, for a reader who stands in this folder."""
    base = repr(model.pretrained_model_name_or_path)
    imports = ["import torch", f"from diffusers import {pipeline_class}"]
    if model.pretrained_model_name_or_path.startswith("shapes:"):
        imports.append("from t2i_align.shapes.assets import resolve")
        base = f"resolve({base})"
    options = "".join(
        f", {name}={value!r}" for name, value in (("revision", model.revision), ("variant", model.variant)) if value
    )
    options += ", dtype=dtype"
    lines = ["dtype = torch.float32  # of all parts: transformers would follow a text encoder's own, such as float16"]
    if model.train == "user":
        imports.append("from t2i_align.personal import load_personal")
        lines += [
            f"pipe = {pipeline_class}.from_pretrained({base}{options})",
            'personal = load_personal(pipe, ".")',
            "with personal.user(personal.names[-1]):  # names[0] is the null user, the base model",
            '    pipe("a red fox").images[0]',
        ]
    elif model.train == "lora":
        lines += [f"pipe = {pipeline_class}.from_pretrained({base}{options})", 'pipe.load_lora_weights(".")']
    else:
        imports[1] += ", UNet2DConditionModel"
        lines += [
            'unet = UNet2DConditionModel.from_pretrained(".", subfolder="unet", dtype=dtype)',
            f"pipe = {pipeline_class}.from_pretrained({base}, unet=unet{options})",
        ]
    return "\n".join([*imports, "", *lines])


def _data(config: RunConfig, fingerprint: str | None) -> Rows:
    data = config.data
    rows: list[tuple[str, Any]] = [
        ("source", f"`{data.source}`"),
        ("fingerprint of the pairs", f"`{fingerprint}`" if fingerprint else None),
        ("ties", data.ties),
        ("labels", "drawn by fair coin: a control, not for use" if data.shuffle_labels else None),
        ("pairs used, at most", data.max_pairs),
        ("resolution", data.resolution),
    ]
    return _cells(rows)


def _scale(objective: Objective) -> str:
    logit = objective.config["logit"]
    return f"beta = {logit['beta']:g}, so k = {objective.logit_scale:g}" if "beta" in logit else ""


def _slots(objective: Objective) -> Rows:
    rows = []
    for name, choice in objective.config.items():
        if name != "preset":
            options = ", ".join(f"{key} = {_value(value)}" for key, value in choice.items() if key != "name")
            rows.append((name, choice["name"] + (f" ({options})" if options else "")))
    return rows


def _value(value: Any) -> Any:
    return value.get("name", value) if isinstance(value, Mapping) else value


def _settings(config: RunConfig) -> Rows:
    training, lora = config.training, config.model.lora
    rows: list[tuple[str, Any]] = [("trained", "the whole UNet" if config.model.train == "full" else None)]
    if config.model.train == "lora":
        kind = "DoRA" if lora.use_dora else "LoRA"
        rows.append((kind, f"rank {lora.rank}, alpha {lora_alpha(lora):g}, on {', '.join(lora.target_modules)}"))
    if config.personal is not None:
        rows += _personal_settings(config.personal)
    rows += [
        ("pairs per device and micro-step", training.train_batch_size),
        ("gradient accumulation steps", training.gradient_accumulation_steps),
        ("optimiser steps", training.max_train_steps),
        ("learning rate", f"{training.learning_rate:g}" + (" per pair of the batch" if training.scale_lr else "")),
        ("schedule", f"{training.lr_scheduler}, {training.lr_warmup_steps} warm-up steps"),
        ("optimiser", training.optimizer),
        ("weight decay", f"{training.adam_weight_decay:g}"),
        ("gradient norm limit", f"{training.max_grad_norm:g}"),
        ("mixed precision", training.mixed_precision),
        ("EMA decay", f"{training.ema.decay:g}" if training.ema.enabled else None),
        ("empty prompts", f"{config.data.proportion_empty_prompts:g}"),
        ("seed", config.seed),
    ]
    return _cells(rows)


def _personal_settings(personal: PersonalSection) -> list[tuple[str, Any]]:
    tokens = f"{personal.num_tokens} tokens of width {personal.token_width}"
    return [
        ("trained", f"a user adapter, encoder {personal.encoder}, {tokens}"),
        ("features", personal.features),
        ("pairs shown per user", personal.support_pairs if personal.encoder == "pair_set" else None),
        ("rewards", None if personal.rewards is None else ", ".join(personal.rewards)),
        ("user dropout", f"{personal.user_dropout:g}"),
    ]


def _changes(history: History) -> list[tuple[str, ...]]:
    """(first step, setting, before, from then on) of everything a resumed run did differently."""
    rows = [
        (entry["step"] + 1, f"`{key}`", value["then"], value["now"])
        for entry in history
        for key, value in entry["changed"].items()
    ]
    return [tuple(str(cell).replace("|", "\\|") for cell in row) for row in rows]


def _numbers(metrics: Mapping[str, Any]) -> Rows:
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return [(name, f"{numbers[name]:.6g}") for name in sorted(numbers)]


def _cells(rows: Iterable[tuple[str, Any]]) -> Rows:
    """Rows that have a value, as text that cannot break a Markdown table."""
    return [(name, str(value).replace("|", "\\|")) for name, value in rows if value is not None]


def _short_name(model: ModelConfig) -> str:
    return model.pretrained_model_name_or_path.rstrip("/").rsplit("/", 1)[-1]
