"""What a resumed run may set differently: every key of the configuration has one rule, and a test walks the schema.

A checkpoint holds more than weights: the optimiser's state names its learning rate, the schedule its base. A changed
value is therefore either used from the resumed step on, or refused, or of no consequence for what is trained; never is
one value run and another one written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from t2i_align.config.fields import keys


class Rule(Enum):
    """What becomes of a changed value; the text is for the documentation."""

    FREE = "changes nothing that is trained, or its last bits at most"
    USED = "acts from the resumed step on, and is recorded"
    REFUSED = "refused: the remaining steps would be those of another run"
    PAIRS = "refused where it makes other training pairs, labels or prompts; the same ones may lie elsewhere"
    BATCH = "refused where the effective batch (times accumulated steps and processes) becomes another"


def _names(section: str, names: str) -> list[str]:
    return [f"{section}.{name}" if section else name for name in names.split()]


RULES: dict[Rule, list[str]] = {
    Rule.FREE: [
        *_names("", "output_dir report_to"),
        *_names("model", "reference_dir attention gradient_checkpointing memory_limit_gb channels_last compile"),
        *_names("data", "heldout_source heldout_split cache_dir dataloader_num_workers"),
        *_names("rollout", "scorer.candidates_per_pass"),
        *_names("online", "pictures_per_pass"),
        *_names("training", "checkpointing_steps checkpoints_total_limit resume_from_checkpoint logging_steps"),
        *_names("validation", "validation_prompts validation_steps num_inference_steps guidance_scale"),
        *_names("validation", "validation_seed heldout_pairs heldout_draws"),
        *_names("export", "kohya save_dtype"),
    ],
    Rule.USED: [
        *_names("training", "max_train_steps learning_rate scale_lr lr_scheduler lr_warmup_steps"),
        *_names("training", "adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm"),
        *_names("training", "mixed_precision allow_tf32"),
    ],
    Rule.PAIRS: [
        *_names("data", "source format columns split heldout_fraction ties max_pairs list_size"),
        *_names("", "rollout.prompts online.prompts"),
    ],
    Rule.BATCH: _names("training", "train_batch_size gradient_accumulation_steps"),
    Rule.REFUSED: [
        *_names("", "seed"),
        *_names("model", "pretrained_model_name_or_path pretrained_vae_model_name_or_path revision variant train"),
        *_names("model", "reference reference_draws"),
        *_names("model.lora", "rank alpha target_modules dropout use_dora"),
        *_names("data", "resolution center_crop random_flip loser_captions shuffle_labels proportion_empty_prompts"),
        *_names("objective", "preset latents error timestep logit link weight anchor reference"),
        *_names("rollout", "preset prompts_per_rollout num_inference_steps eta guidance_scale candidates"),
        *_names("rollout", "lowest_timestep highest_timestep continuation final_alpha reward_guidance ratio_clip"),
        *_names("rollout", "shared_pass threshold.schedule threshold.low threshold.high"),
        *_names("rollout.scorer", "name timestep checkpoint dtype reward channel sign"),
        *_names("online", "method scorer refresh_steps prompts_per_refresh candidates threshold loser_below"),
        *_names("online", "soft_labels num_inference_steps guidance_scale"),
        *_names("personal", "encoder num_tokens token_width start hidden features support_pairs encoder_steps"),
        *_names("personal", "users_file rewards user_dropout heldout_users"),
        *_names("training", "optimizer ema.enabled ema.decay ema.update_after_step"),
    ],
}
RULE_OF: dict[str, Rule] = {path: rule for rule, paths in RULES.items() for path in paths}

# What a checkpoint says besides the keys of the configuration.
BATCH, COMPARED, PAIRS = "effective_batch", "compared_items", "pairs"
DERIVED = {PAIRS: Rule.PAIRS, BATCH: Rule.BATCH, COMPARED: Rule.BATCH}  # -> the rule of the keys it follows from
OPTIONAL = ("rollout", "online", "personal")  # sections that may be null
ABSENT = "not there"  # an option that the choice of the other side does not have
SHOWN = 80  # characters of a value in a message


@dataclass
class Changes:
    """Settings that differ between a checkpoint and the run that resumes it, as key -> (then, now).

    Attributes:
        refused: must not differ.
        used: act from now on.
        free: change nothing that is trained, or only where it is found.
    """

    refused: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    used: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    free: dict[str, tuple[Any, Any]] = field(default_factory=dict)


def as_table() -> str:
    """The rules as a Markdown table, for the documentation."""
    lines = ["| another value | of |", "| --- | --- |"]
    for rule, paths in RULES.items():
        lines.append(f"| {rule.value} | {', '.join(f'`{path}`' for path in paths)} |")
    return "\n".join(lines)


def rule_of(path: str) -> Rule:
    """The rule of a key, or of an option inside one (``objective.logit.beta``); what is unknown is refused."""
    while path:
        if path in RULE_OF:
            return RULE_OF[path]
        path = path.rpartition(".")[0]
    return Rule.REFUSED


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted path -> value; lists and sections that are null stay values."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Sort what differs by its rule.

    Args:
        then: what a checkpoint recorded, dotted. A key of the schema that it lacks has come since, and had its default.
        now: the run that resumes; what follows from settings may be left out where it is not known yet.
    """
    changes, told = Changes(), set()
    for section in OPTIONAL:
        before, after = (any(path.startswith(f"{section}.") for path in side) for side in (then, now))
        if before != after:
            told.add(section)
            changes.refused[section] = ("a section", None) if before else (None, "a section")
    for path in dict.fromkeys([*now, *then]):
        if path in OPTIONAL or path.partition(".")[0] in told or (path in DERIVED and path not in now):
            continue
        old, new = then.get(path, _default(path)), now.get(path, ABSENT)
        if old == new:
            continue
        rule = Rule.REFUSED if path in DERIVED else rule_of(path)
        kept = {Rule.REFUSED: changes.refused, Rule.USED: changes.used}.get(rule, changes.free)
        kept[path] = (old, new)
    causes = {DERIVED[path] for path in changes.refused if path in DERIVED}
    changes.refused |= {path: changes.free.pop(path) for path in list(changes.free) if rule_of(path) in causes}
    return changes


def _default(path: str) -> Any:
    return keys()[path].default if path in RULE_OF and not keys()[path].required else ABSENT


def in_text(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """``model.lora.rank: 16 then, 8 now``, one after another."""
    return "; ".join(f"{key}: {_shown(then)} then, {_shown(now)} now" for key, (then, now) in changes.items())


def _shown(value: Any) -> str:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 3]}..."
