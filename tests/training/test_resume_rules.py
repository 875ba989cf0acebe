"""Every key of the configuration has one rule for resuming, and another value is treated by it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from t2i_align.config.fields import keys
from t2i_align.config.schema import RunConfig
from t2i_align.errors import UserError
from t2i_align.objectives import resolve
from t2i_align.training.checkpoints import save_checkpoint
from t2i_align.training.identity import both, settings_identity
from t2i_align.training.resume_rules import PAIRS, RULE_OF, RULES, Changes, Rule, as_table, compare, in_text, rule_of
from t2i_align.training.run import train

from .runs import run_settings
from .test_checkpoints import make_state

SECTIONS: dict[str, dict[str, Any]] = {
    "rollout": {"preset": "lpo", "scorer": {"checkpoint": "lrm"}},
    "online": {"method": "online_dpo", "scorer": "oracle"},
    "personal": {"encoder": "table"},
}
OBJECTIVES: dict[str, Any] = {  # another choice for each slot
    "preset": "ipo",
    "latents": "independent_noise",
    "error": "epsilon",
    "timestep": {"name": "range", "low": 100},
    "logit": {"beta": 100.0},
    "link": "hinge",
    "weight": "confidence",
    "anchor": "winner",
    "reference": "moving",
}
BUCKETS = {Rule.USED: "used", Rule.REFUSED: "refused", Rule.BATCH: "refused", Rule.PAIRS: "free", Rule.FREE: "free"}


def leaves() -> list[str]:
    return [key.path for key in keys().values() if not key.is_section]


def test_every_key_has_exactly_one_rule():
    listed = [path for paths in RULES.values() for path in paths]
    assert sorted(listed) == sorted(leaves())
    assert len(set(listed)) == len(listed)


def a_config(folder: Path, path: str = "") -> RunConfig:
    """A run with the section that holds the key; whether it would make sense to train is of no matter here."""
    section = path.partition(".")[0]
    more = {section: SECTIONS[section]} if section in SECTIONS else {}
    return RunConfig.model_validate(run_settings(folder / "no-model", folder / "pairs.parquet", folder, **more))


def identity_of(config: RunConfig) -> dict:
    return settings_identity(config, resolve(config.objective), num_processes=1)


def another(config: RunConfig, path: str) -> RunConfig:
    """The same run with another value at a key, of the right type."""
    *sections, name = path.split(".")
    config = config.model_copy(deep=True)
    if sections == ["objective"]:
        given = {"preset": "dpo", "beta": 2000.0} if name not in ("preset", "logit") else {"preset": "dpo"}
        config.objective = type(config.objective).model_validate({**given, name: OBJECTIVES[name]})
        return config
    holder: Any = config
    for section in sections:
        holder = getattr(holder, section)
    setattr(holder, name, _other(keys()[path].type, getattr(holder, name)))
    return config


def _other(kind: str, value: Any) -> Any:
    """A value of a type in words, such as ``sdpa | xformers``, that is not the given one."""
    if isinstance(value, dict):
        return {**value, "caption": "other"}
    if kind.startswith("list"):
        return [] if value else ["other"]
    if " | " in kind and not isinstance(value, bool):
        words = [word for word in kind.split(" or ")[0].split(" | ") if word != str(value)]
        return int(words[-1]) if isinstance(value, int) else words[-1]
    if isinstance(value, bool):
        return not value
    if value is None:
        return "other" if "text" in kind else 1
    return f"{value}-other" if isinstance(value, str) else value + 1


def below(path: str, names: Iterable[str]) -> set[str]:
    """The key itself, or the options inside it."""
    return {name for name in names if name == path or name.startswith(f"{path}.")}


@pytest.mark.parametrize("path", leaves())
def test_another_value_is_sorted_by_its_rule(path, tmp_path):
    config = a_config(tmp_path, path)
    changes = vars(compare(identity_of(config), identity_of(another(config, path))))
    bucket = BUCKETS[RULE_OF[path]]
    assert below(path, changes.pop(bucket))
    assert not any(below(path, rest) for rest in changes.values())
    assert compare(identity_of(config), identity_of(config)) == Changes()


@pytest.mark.parametrize("path", [*RULES[Rule.REFUSED], *RULES[Rule.BATCH]])
def test_a_refused_change_is_found_before_anything_is_loaded(path, tmp_path):
    config = a_config(tmp_path, path)  # there is neither a model nor a pair
    config.training.resume_from_checkpoint = "latest"
    save_checkpoint(tmp_path, 1, make_state(), {**identity_of(config), PAIRS: "abc"}, limit=None)
    changed = another(config, path)
    before, after = identity_of(config), identity_of(changed)
    name = min(below(path, [key for key in after if before.get(key) != after[key]]))
    with pytest.raises(UserError) as refusal:
        train(changed)
    assert "going on would mix the two" in refusal.value.what
    shown = [f"{name}: " + " then, ".join(_plain(side.get(name, "not there")) for side in (before, after)) + " now"]
    assert all(text in refusal.value.found for text in shown)
    assert "{'" not in refusal.value.found  # dotted keys, not whole sections


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test_only_what_differs_is_shown(tmp_path):
    config = a_config(tmp_path)
    changed = config.model_copy(deep=True)
    changed.model.lora.rank, changed.model.lora.use_dora, changed.data.max_pairs = 8, True, 5
    changes = compare(identity_of(config), identity_of(changed))
    assert in_text(changes.refused) == "model.lora.rank: 4 then, 8 now; model.lora.use_dora: false then, true now"
    other_pairs = compare({**identity_of(config), PAIRS: "abc"}, {**identity_of(changed), PAIRS: "def"})
    assert "data.max_pairs: null then, 5 now" in in_text(other_pairs.refused)  # the cause, beside the fingerprint


def test_a_section_that_comes_or_goes_is_named_once(tmp_path):
    plain, online = identity_of(a_config(tmp_path)), identity_of(a_config(tmp_path, "online.method"))
    assert in_text(compare(plain, online).refused) == "online: null then, a section now"
    assert in_text(compare(online, plain).refused) == "online: a section then, null now"


def test_a_key_that_has_come_since_had_its_default_then(tmp_path):
    config = a_config(tmp_path)
    then = {path: value for path, value in identity_of(config).items() if path != "data.random_flip"}
    assert compare(then, identity_of(config)) == Changes()
    config.data.random_flip = True
    assert in_text(compare(then, identity_of(config)).refused) == "data.random_flip: false then, true now"


def test_what_nobody_knows_is_refused():
    assert rule_of("model.from_the_future") is Rule.REFUSED
    assert in_text(compare({"model.x": 1}, {}).refused) == "model.x: 1 then, not there now"


def test_checkpoints_of_earlier_versions_are_judged_by_what_they_recorded(tmp_path):
    config = a_config(tmp_path)
    recorded = {
        "seed": 3,
        "model": config.model.model_dump(mode="json", exclude={"attention", "compile"}),
        "objective": resolve(config.objective).config,
        "rollout": None,
        "online": None,
        "personal": None,
        "effective_batch": 2,
        "resolution": 32,
        "ema": config.training.ema.model_dump(mode="json"),
        "optimizer": "adamw",
        "pairs": "abc",
    }
    config.data.center_crop = False  # was not recorded
    assert compare(*both(recorded, identity_of(config))).refused == {}
    config.model.lora.rank, config.data.resolution = 8, 64
    found = in_text(compare(*both(recorded, identity_of(config))).refused)
    assert found == "model.lora.rank: 4 then, 8 now; data.resolution: 32 then, 64 now"


def test_the_documentation_has_the_table():
    page = Path(__file__).parents[2] / "docs/training.md"
    assert as_table() in page.read_text(encoding="utf-8")
