"""The objective section: overrides, round trips, and what the messages say when it is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from t2i_align.config.schema import ModelConfig
from t2i_align.errors import UserError
from t2i_align.objectives import ObjectiveConfig, build, describe, list_presets, resolve
from t2i_align.objectives.base import SLOT_NAMES
from t2i_align.objectives.config import SLOTS
from t2i_align.objectives.listing import render_list
from t2i_align.objectives.presets import PRESETS
from t2i_align.objectives.timestep_weights import TIMESTEP_WEIGHTS


@pytest.mark.parametrize("name", PRESETS)
def test_resolved_config_resolves_to_the_same_objective(name: str) -> None:
    objective = build(name)
    assert resolve(ObjectiveConfig(**objective.config)) == objective


def test_options_beside_the_preset_reach_the_one_slot_that_reads_them() -> None:
    assert build("dpo", beta=2000).logit_scale == 1000
    assert build("mapo", beta=0.2).slots.link.beta == 0.2
    assert build("cdpo", label_smoothing=0.2).slots.link.label_smoothing == 0.2
    assert build("kto", beta=1000).logit_scale == 1000


def test_slots_are_overridden_by_name_by_mapping_and_by_option() -> None:
    assert build("dpo", link="hinge").slots.link.name == "hinge"
    assert build("dpo", link={"name": "hinge", "margin": 0.5}).slots.link.margin == 0.5
    shifted = build("dpo_shift", beta=1000, logit={"lam": 0.5})
    assert (shifted.slots.logit.lam, shifted.slots.logit.beta) == (0.5, 1000)
    ranged = build("dpo", timestep={"name": "range", "low": 0, "high": 500}).timestep
    assert (ranged.low, ranged.high) == (0, 500)
    weighted = build("rankdpo", timestep={"weighting": "min_snr"})
    assert weighted.timestep.name == "uniform" and weighted.needs >= {"snr", "timesteps", "scores"}


def test_the_reference_follows_from_the_logit() -> None:
    assert build("dpo").needs_reference and not build("dpo", logit="reference_free").needs_reference
    assert not build("mapo").needs_reference and build("mapo").needs_loser
    assert not build("sft").needs_loser
    assert build("kto", items="labelled").layout == "labelled" and not build("kto", items="labelled").needs_loser


@pytest.mark.parametrize(
    ("preset", "options", "says"),
    [
        ("dpoo", {}, "did you mean 'dpo'"),
        ("dpo", {"betta": 1}, "did you mean 'beta'"),
        ("dpo", {"beta": -1}, "greater than 0"),
        ("dpo", {"beta": "much"}, "beta"),
        ("dpo", {"beta": float("nan")}, "beta"),
        ("dpo", {"label_smoothing": 0.1}, "it belongs to link: smoothed"),
        ("dpo", {"link": "hinj"}, "did you mean 'hinge'"),
        ("dpo", {"link": {"name": "hinge", "margins": 1}}, "did you mean 'margin'"),
        ("dpo", {"link": {"margin": 1}}, "it has no options"),
        ("dpo", {"link": 3}, "must be a choice's name or a mapping"),
        ("dpo", {"link": "kto"}, "with this link use logit: per_sample"),
        ("dpo", {"link": "bounded"}, "with this link use logit: likelihood"),
        ("cpo", {"link": "nca"}, "use logit: full"),
        ("rankdpo", {"link": "soft_label"}, "needs from the logit: item"),
        ("dpo_shift", {"link": "aot"}, "needs from the logit: margins"),
        ("dpo", {"reference": "none"}, "reference is none"),
        ("cpo", {"reference": "initial"}, "has no use for a reference"),
        ("sft", {"anchor": "none"}, "nothing is trained"),
        ("rankdpo", {"weight": "gain"}, "not defined on the input"),
        ("dpo", {"timestep": {"name": "range", "low": 500, "high": 100}}, "low must be below high"),
        ("dpo", {"timestep": {"name": "listed", "timesteps": [1, 2], "probabilities": [1]}}, "one probability per"),
        ("dpo", {"timestep": {"name": "binned", "probabilities": [0, 0]}}, "must be positive"),
        ("dpo", {"timestep": {"weighting": "minsnr"}}, "did you mean 'min_snr'"),
        ("dpo", {"logit": {"name": "divergence", "alpha": 0.5}}, "give alpha with divergence: alpha"),
        ("madpo", {"lowest": 3}, "lowest must not exceed highest"),
        ("cdpo", {"label_smoothing": 0.7}, "less than or equal to 0.5"),
    ],
)
def test_mistakes_are_explained(preset: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        build(preset, **options)
    assert says in str(caught.value)
    assert caught.value.fix


def test_an_option_two_slots_read_must_name_its_slot() -> None:
    with pytest.raises(UserError, match="read by more than one slot"):
        build("dpo", weight="adaptive_margin", logit="smoothed_by_score", margin="clip")


def test_a_wrong_section_is_a_validation_error_with_the_same_words() -> None:
    class Run(BaseModel):
        objective: ObjectiveConfig

    with pytest.raises(ValidationError, match="did you mean 'beta'"):
        Run(objective={"preset": "dpo", "bta": 2000})
    with pytest.raises(ValidationError, match="preset"):
        Run(objective={"link": "hinge"})
    assert resolve(Run(objective={"preset": "dpo", "beta": 2000}).objective).logit_scale == 1000


def test_every_choice_says_what_it_is() -> None:
    for slot in SLOT_NAMES:
        for name, choice in SLOTS[slot].items():
            assert choice.model_fields["name"].default == name
            assert choice.formula and choice.paper and choice.__doc__, (slot, name)
            for option, field in choice.model_fields.items():
                assert option == "name" or field.description, (slot, name, option)


def test_listing() -> None:
    rows = {row.name: row for row in list_presets()}
    assert list(rows) == list(PRESETS)
    assert rows["gapo"].reads == ("scores",) and rows["dpo"].reads == ()
    text = describe("dpo_shift")
    for part in (
        "arXiv 2502.07599",
        "lam: 0.75",
        "log 2 = 0.693147",
        "shared_noise",
        "initial",
        "policy and reference",
    ):
        assert part in text
    assert "reads" not in text and "scores (a score in [0, 1] of every picture)" in describe("gapo")
    with pytest.raises(UserError, match="did you mean 'dpo_shift'"):
        describe("dpo_shif")


def test_the_list_fits_a_terminal_and_is_one_line_each_in_a_pipe() -> None:
    rows = list_presets()
    piped, shown = render_list(rows, None).splitlines(), render_list(rows, 80).splitlines()
    assert [line.split()[0] for line in piped] == list(PRESETS) and all("arXiv" in line for line in piped[1:3])
    assert [line.split()[0] for line in shown[::2]] == list(PRESETS)
    assert shown[2:4] == [f"{'dpo':<16}  reference  Diffusion-DPO, arXiv 2311.12908", "    sp(-z)"]
    assert max(map(len, shown)) <= 100


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_shown_can_be_written(name: str) -> None:
    """Every option line is YAML that the slot takes back."""
    objective, slot = build(name), ""
    for line in describe(name).splitlines():
        if line.startswith("    ") and line[4] != " ":
            slot = line.split()[0]
        elif line.startswith(" " * 17):
            option, _, value = line.split("  (")[0].strip().partition(": ")
            changed = build(name, **{slot: {option: yaml.safe_load(value)}})
            assert changed.slots == objective.slots, line


def test_the_package_is_light_until_used() -> None:
    code = "import sys, t2i_align.objectives; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_documentation_names_every_preset_and_choice() -> None:
    text = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    names = [*PRESETS, *(name for choices in SLOTS.values() for name in choices), *TIMESTEP_WEIGHTS]
    assert not [name for name in names if f"`{name}`" not in text]


def test_choices_in_the_documentation_exist() -> None:
    """What a page tells readers to write, such as `anchor: winner`; Python code has other colons."""
    root, wrong = Path(__file__).parents[2], []
    slot = re.compile(rf"(?<![.\w])({'|'.join(SLOT_NAMES)}): (?:{{name: )?([a-z_]+)(?![\w.:])")
    quoted = re.compile(r"^```.*?^```|`[^`\n]+`", flags=re.DOTALL | re.MULTILINE)
    for page in [*(root / "docs").rglob("*.md"), root / "README.md"]:
        for code in (code for code in quoted.findall(page.read_text()) if not code.startswith("```python")):
            wrong += [(page.name, *found) for found in slot.findall(code) if found[1] not in SLOTS[found[0]]]
    of_the_model = get_args(ModelConfig.model_fields["reference"].annotation)
    expected = {("reference", name) for name in of_the_model}
    assert not [found for found in wrong if found[1:] not in expected]


def test_the_documented_example_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    namespace: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], namespace)
    assert namespace["output"].loss.shape == (2,)
