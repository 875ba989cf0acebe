"""Combinations that make no sense are refused with the reason when the file is checked, and their neighbours pass."""

from __future__ import annotations

import pytest

from t2i_align.config.loading import load_config
from t2i_align.errors import UserError
from tests.config.conftest import WriteConfig

ROLLOUT = "rollout={preset: lpo, scorer: {checkpoint: lrm}}"
ONLINE = "online={method: online_dpo, scorer: oracle}"
SOFT, DPO = "data.ties=soft", "objective={preset: dpo}"

# objective section and overrides, what the message says
NONSENSE: list[tuple[str, list[str], str]] = [
    # slots against slots
    ("{preset: mapo, link: softplus}", [], "with this link use logit: full"),
    ("{preset: mapo, latents: policy_rollout}", [], "does not compare with one on data"),
    ("{preset: npo, latents: policy_rollout}", [], "prefer the model's own samples"),
    ("{preset: dcpo, latents: policy_rollout}", [], "no meaning"),
    ("{preset: dro, link: soft_label}", [], "no meaning"),
    ("{preset: dro, weight: confidence}", [], "no meaning"),
    ("{preset: ncp_dpo, timestep: {weighting: min_snr}}", [], "not defined for this error metric"),
    ("{preset: dpo, beta: 100, logit: {beta: 200}}", [], "given twice"),
    ("{preset: sft, reference: guarded}", [], "no use for a reference"),
    ("{preset: npo, anchor: winner}", [], "pushes winners away"),
    # against the data section
    ("{preset: dpo}", [SOFT], "a tie would count as a full win"),
    ("{preset: kto}", [SOFT], "a tie would count as a full win"),
    ("{preset: ternary}", [], "set data.ties: soft"),
    ("{preset: dpo, link: ternary}", ["data.ties=coin"], "set data.ties: soft"),
    ("{preset: dro}", ["data.loser_captions=weak"], "need the prompt itself"),
    ("{preset: mdpo}", ["data.list_size=3"], "as many winners as losers"),
    ("{preset: mipo, link: unbiased_square}", ["data.list_size=6"], "multiple of 4"),
    ("{preset: mdpo, link: soft_label}", ["data.list_size=4"], "a list of pictures does not have"),
    ("{preset: dcpo, logit: ranked}", [], "a list of pictures does not have"),
    # against a rollout
    ("{preset: inpo}", [ROLLOUT], "sampler's transitions"),
    ("{preset: dpo, timestep: {weighting: min_snr}}", [ROLLOUT], "sampler's transitions"),
    ("{preset: dpo, reference: guarded}", [ROLLOUT], "the reference is the initial model"),
    ("{preset: sft}", [ROLLOUT], "must compare pairs"),
    ("{preset: gapo}", [ROLLOUT], "does not provide scores"),
    ("{preset: ternary}", [ROLLOUT], "never tie"),
    ("{preset: dpo}", [ROLLOUT, "data.loser_captions=weak"], "their own pairs"),
    # against online pairs
    ("{preset: gapo}", [ONLINE], "do not hold scores"),
    ("{preset: dcpo}", [ONLINE], "do not hold captions"),
    ("{preset: dpo, weight: user_balance}", [ONLINE], "do not hold user_shares"),
    ("{preset: dpo, weight: user_balance}", [ROLLOUT], "does not provide user_shares"),
    ("{preset: ternary}", [ONLINE], "never tie"),
    ("{preset: mdpo}", [ONLINE, "data.list_size=4"], "one a prompt"),
    ("{preset: dro}", [ONLINE], "throw away"),
]
SENSE: list[tuple[str, list[str]]] = [
    ("{preset: mapo, error: perceptual}", []),
    ("{preset: ipo, latents: ddim_inversion}", []),
    ("{preset: ipo, latents: policy_rollout}", []),
    ("{preset: kto, error: velocity}", []),
    ("{preset: rankdpo, timestep: {weighting: min_snr}, anchor: winner}", [SOFT]),
    ("{preset: ternary}", [SOFT]),
    ("{preset: kto, items: labelled}", [SOFT]),
    ("{preset: dpo, weight: confidence}", [SOFT]),
    ("{preset: mipo, link: unbiased_square}", ["data.list_size=8"]),
    ("{preset: ncp_dpo, latents: ddim_inversion}", []),
    ("{preset: dpo, error: clean, timestep: {weighting: min_snr}}", []),
    ("{preset: dpo, beta: 100, link: {name: hinge, margin: 0.5}}", []),
    ("{preset: hinge}", [ROLLOUT]),
    ("{preset: mapo}", [ROLLOUT]),
    ("{preset: rankdpo}", [ONLINE]),
    ("{preset: dcpo}", [ONLINE, "data.loser_captions=weak"]),
    ("{preset: mdpo}", [ONLINE, "data.list_size=2"]),
]


@pytest.mark.parametrize(("objective", "overrides", "says"), NONSENSE)
def test_nonsense_is_refused_with_the_reason(
    write: WriteConfig, objective: str, overrides: list[str], says: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(), [f"objective={objective}", *overrides])
    message = str(caught.value)
    assert says in message and "fix:" in message and "1 problem " in message


@pytest.mark.parametrize(("objective", "overrides"), SENSE)
def test_sensible_neighbours_pass(write: WriteConfig, objective: str, overrides: list[str]) -> None:
    load_config(write(), [f"objective={objective}", *overrides])
