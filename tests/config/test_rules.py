"""Rules across sections: contradictions, and set options that nothing would read."""

from __future__ import annotations

import pytest

from t2i_align.config import rules
from t2i_align.config.loading import load_config
from t2i_align.errors import UserError
from tests.config.conftest import WriteConfig

LORA = "model.train=lora"
NO_HELDOUT = "data.heldout_source=null"
CONTRADICTIONS = [
    (["data.heldout_fraction=0.1"], "data.heldout_fraction"),
    (["model.reference=adapter_off"], "model.reference"),
    (["data.cache_dir=cache", "data.center_crop=false"], "data.center_crop"),
    (["data.resolution=100"], "data.resolution"),
    (["training.lr_warmup_steps=101"], "training.lr_warmup_steps"),
    (["training.scale_lr=true", "training.learning_rate=0.03"], "training.scale_lr"),
    ([NO_HELDOUT, "validation.validation_steps=10"], "validation.validation_steps"),
    (["report_to=[wandb, wandb]"], "report_to"),
    ([LORA, "model.lora.use_dora=true", "export.kohya=true"], "export.kohya"),
]
UNREAD = [
    (["model.lora.rank=4"], "model.lora.rank", "whole UNet"),
    (["export.kohya=false"], "export.kohya", "whole UNet"),
    ([LORA, "objective={preset: mapo}", "model.reference=frozen_copy"], "model.reference", "no reference policy"),
    (["model.variant=fp16"], "model.variant", "built-in"),
    (["model.reference_draws=2"], "model.reference_draws", "precomputed only"),
    (["model.reference_dir=errors"], "model.reference_dir", "precomputed only"),
    (["model.memory_limit_gb=12.0"], "model.memory_limit_gb", "automatic choice"),
    (["model.revision=main"], "model.revision", "built-in"),
    (["data.split=train"], "data.split", "no splits"),
    (["data.heldout_split=test"], "data.heldout_split", "no splits"),
    ([NO_HELDOUT, "data.heldout_split=test"], "data.heldout_split", "heldout_source only"),
    (["training.optimizer=adafactor", "training.adam_beta1=0.9"], "training.adam_beta1", "adafactor"),
    (["training.lr_scheduler=constant", "training.lr_warmup_steps=5"], "training.lr_warmup_steps", "no warm-up"),
    (["training.ema.decay=0.9"], "training.ema.decay", "not enabled"),
    (["validation.guidance_scale=3"], "validation.guidance_scale", "without prompts"),
    ([NO_HELDOUT, "validation.heldout_draws=3"], "validation.heldout_draws", "no pairs"),
]
ROLLOUT = "rollout={preset: lpo, scorer: {checkpoint: lrm}}"
UNREAD += [
    ([ROLLOUT, "data.shuffle_labels=true"], "data.shuffle_labels", "their own pairs"),
    ([ROLLOUT, "data.proportion_empty_prompts=0.1"], "data.proportion_empty_prompts", "their own pairs"),
    ([ROLLOUT, "data.random_flip=true"], "data.random_flip", "their own pairs"),
    ([ROLLOUT, NO_HELDOUT, "data.cache_dir=cache"], "data.cache_dir", "no picture is read"),
]
ALLOWED = [
    [ROLLOUT, "data.cache_dir=cache", "validation.heldout_draws=2"],
    ["model.reference=frozen_copy"],
    ["model.reference=precomputed", "model.reference_draws=2", "data.cache_dir=cache"],
    ["model.gradient_checkpointing=auto", "model.memory_limit_gb=12.0"],
    [LORA, "model.lora.rank=4", "model.reference=adapter_off", "export.kohya=true"],
    ["model.pretrained_model_name_or_path=owner/model", "model.variant=fp16"],
    ["data.source=owner/pairs", "data.split=train"],
    ["data.heldout_source=owner/pairs", "data.heldout_split=test"],
    ["data.cache_dir=cache", "data.random_flip=true"],
    ["training.lr_warmup_steps=100"],
    ["training.max_train_steps=0", "training.lr_warmup_steps=10"],
    ["training.scale_lr=true", "training.learning_rate=1e-8"],
    ["training.ema.enabled=true", "training.ema.decay=0.9"],
    ["training.ema.enabled=false"],
    ["validation.validation_steps=10"],
    [NO_HELDOUT, "validation.validation_steps=10", "validation.validation_prompts=[a red circle]"],
    ["training.optimizer=adafactor", "training.adam_weight_decay=0"],
    [NO_HELDOUT, "data.heldout_fraction=0.1", "validation.heldout_pairs=8"],
    ["objective={preset: sft}"],
]


@pytest.mark.parametrize(("overrides", "path"), CONTRADICTIONS)
def test_contradictions_are_refused(write: WriteConfig, overrides: list[str], path: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(), overrides)
    assert f"1. {path}: " in str(caught.value)
    assert "1 problem " in str(caught.value)


@pytest.mark.parametrize(("overrides", "path", "reason"), UNREAD)
def test_set_options_that_nothing_reads_are_refused(
    write: WriteConfig, overrides: list[str], path: str, reason: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(), overrides)
    message = str(caught.value)
    assert f"{path}: " in message and reason in message and "remove it" in message


@pytest.mark.parametrize("overrides", ALLOWED)
def test_sensible_combinations_pass(write: WriteConfig, overrides: list[str]) -> None:
    load_config(write(), overrides)


def test_broken_rules_are_reported_together(write: WriteConfig) -> None:
    overrides = ["data.resolution=65", "model.lora.rank=4", "model.lora.dropout=0.1", "data.heldout_fraction=0.5"]
    with pytest.raises(UserError) as caught:
        load_config(write(), overrides)
    message = str(caught.value)
    assert "4 problems" in message and "use 64 or 72" in message
    assert "model.lora.rank" in message and "model.lora.dropout" in message and "model.lora.alpha" not in message


def test_check_raises_for_a_config_made_in_code(write: WriteConfig) -> None:
    config = load_config(write())
    rules.check(config)
    data = config.data.model_copy(update={"heldout_fraction": 0.5})
    with pytest.raises(UserError, match="heldout_source already"):
        rules.check(config.model_copy(update={"data": data}))


def test_every_unread_path_is_a_key(write: WriteConfig) -> None:
    from t2i_align.config.fields import keys

    for overrides in ([], [NO_HELDOUT], ["training.optimizer=adafactor"], [LORA, "objective={preset: sft}"]):
        assert set(rules.unread(load_config(write(), overrides))) <= set(keys())
