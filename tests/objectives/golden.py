"""Golden cases as calls of the public functions: one adapter per family of official code.

An adapter returns the objective and the record the case stands for;
``tests/data/golden/objectives/README.md`` explains the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from t2i_align.objectives import Objective, PairErrors, build, snr_table
from t2i_align.objectives.error_metrics import mean_squared_error

FOLDER = Path(__file__).parents[1] / "data" / "golden" / "objectives"
CASES = [json.loads(line.rstrip(",")) for line in (FOLDER / "cases.json").read_text().splitlines() if len(line) > 2]
TENSORS = load_file(FOLDER / "tensors.safetensors")


@dataclass
class Case:
    """An objective, its record, the leaf tensors the official gradient is taken to, and a factor on the loss.

    ``mirrored``: the official code has our losers in its winners' place.
    """

    objective: Objective
    record: PairErrors
    prediction: Tensor | None = None
    logps: tuple[Tensor, Tensor] | None = None
    loss_scale: float = 1.0
    mirrored: bool = False


class Inputs:
    """The tensors of one case in one dtype (integers as they are)."""

    def __init__(self, case: dict[str, Any], dtype: torch.dtype) -> None:
        self.names, self.dtype, self.params = case["inputs"], dtype, case["params"]

    def __getitem__(self, name: str) -> Tensor:
        value = TENSORS[self.names[name]]
        return value.to(self.dtype) if value.is_floating_point() else value

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def target(self) -> Tensor:
        """What the networks should have predicted."""
        if "eps_expert" in self:
            return torch.cat([self["eps_expert"], self["eps_policy"]])
        if self.params.get("prediction_type") == "v_prediction":
            signal = self["alphas_cumprod"][self["timesteps"]].reshape(-1, 1, 1, 1)
            return signal.sqrt() * self["noise"] - (1 - signal).sqrt() * self["latents"]
        return self["noise"]

    def errors(self, target: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Leaf prediction, policy errors ``[2B]`` and reference errors."""
        target = self.target() if target is None else target
        prediction = self["model_pred"].clone().requires_grad_()
        reference = mean_squared_error(self["ref_pred"], target) if "ref_pred" in self else None
        return prediction, mean_squared_error(prediction, target), reference


def _pairs(inputs: Inputs, objective: Objective, target: Tensor | None = None, **more: Any) -> Case:
    prediction, policy, reference = inputs.errors(target)
    half = len(policy) // 2
    sides = [policy[:half], policy[half:]]
    if reference is not None and objective.needs_reference:
        sides += [reference[:half], reference[half:]]
    return Case(objective, PairErrors(*sides, **more), prediction)


def _official_dpo(inputs: Inputs) -> Case:
    if "script" in inputs.params:
        return _npo(inputs, inputs.params["beta"])
    return _pairs(inputs, build("dpo", beta=inputs.params["beta"]))


def _diffusers_sd15(inputs: Inputs) -> Case:
    """No factor 1/2 there, so its beta is half of ours; its IPO leaves h unscaled, k = 1."""
    beta = inputs.params["beta"]
    if "script" in inputs.params:
        return _npo(inputs, 2 * beta)
    if inputs.params["loss_type"] == "ipo":
        return _pairs(inputs, build("ipo", beta=2.0, target=1 / (2 * beta)))
    return _pairs(inputs, build({"sigmoid": "dpo", "hinge": "hinge"}[inputs.params["loss_type"]], beta=2 * beta))


def _npo(inputs: Inputs, beta: float) -> Case:
    """Diffusion-NPO puts the disliked picture first and runs DPO; ours keeps the winner first and mirrors the logit."""
    prediction, policy, reference = inputs.errors()
    assert reference is not None
    half = len(policy) // 2
    record = PairErrors(policy[half:], policy[:half], reference[half:], reference[:half])
    return Case(build("npo", beta=beta), record, prediction, mirrored=True)


def _orpo_diffusers(inputs: Inputs) -> Case:
    """Its log-odds are e_l - e_w, unscaled, once the sign is put right: CPO with k = 1, divided by b."""
    b = inputs.params["beta_orpo"]
    objective = build("cpo", beta=2.0, anchor={"name": "winner", "coefficient": 1 / b})
    case = _pairs(inputs, objective)
    case.loss_scale = b
    return case


def _mapo(inputs: Inputs) -> Case:
    objective = build("mapo", beta=inputs.params["beta_mapo"], snr_value=inputs.params["snr_value"])
    return _pairs(inputs, objective, num_timesteps=inputs.params["T"])


def _kto(inputs: Inputs) -> Case:
    params = inputs.params
    point = {"none": "batch", "sigmoid": "class_means"}[params["bce_offset"]]
    objective = build(
        "kto",
        beta=params["beta"],
        items="labelled",
        utility=params["halo"],
        reference_point=point,
        desirable_weight=params["lambda_d"],
        undesirable_weight=params["lambda_u"],
    )
    prediction, policy, reference = inputs.errors()
    record = PairErrors(policy, None, reference, labels=inputs["labels"].to(policy))
    return Case(objective, record, prediction)


def _dro(inputs: Inputs) -> Case:
    """max(0, d_expert - d_policy + m): a hinge with k = 1 whose loser is the policy's own state."""
    return _pairs(inputs, build("hinge", beta=2.0, margin=inputs.params["margin"]))


def _smpo(inputs: Inputs) -> Case:
    params = inputs.params
    logit = {"name": "smoothed_by_score", "beta": params["beta"], "score_range": params["max"] - params["min"]}
    margins = torch.full((5,), params["score_w"] - params["score_l"], dtype=inputs.dtype)
    return _pairs(inputs, build("dpo", logit=logit), margins=margins)


def _videodpo(inputs: Inputs) -> Case:
    frequencies = 0.72 / inputs["factor"]
    return _pairs(inputs, build("video_dpo_weight", beta=inputs.params["beta"]), frequencies=frequencies)


def _gapo(inputs: Inputs) -> Case:
    prediction = inputs["model_x0"].clone().requires_grad_()
    weight = 1 / (1 - inputs["alphas_cumprod_sqrt"].square())
    policy = weight * mean_squared_error(prediction, inputs["x0"])
    reference = weight * mean_squared_error(inputs["ref_x0"], inputs["x0"])
    scores = torch.tensor([[inputs.params["score_w"], inputs.params["score_l"]]], dtype=inputs.dtype) / 100
    record = PairErrors(policy[:1], policy[1:], reference[:1], reference[1:], scores=scores)
    return Case(build("gapo", beta=inputs.params["beta"]), record, prediction)


def _flow(inputs: Inputs) -> Case:
    return _pairs(inputs, build("dpo", beta=inputs.params["beta"]), inputs["noise"] - inputs["latents"])


def _min_snr(inputs: Inputs) -> Case:
    params = inputs.params
    weighting = {"name": "min_snr", "gamma": params["snr_gamma"]}
    prediction, policy, _ = inputs.errors()
    snr = snr_table(inputs["alphas_cumprod"])
    kind = params["prediction_type"]
    record = PairErrors(policy, timesteps=inputs["timesteps"], snr=snr, prediction_type=kind)
    return Case(build("sft", timestep={"weighting": weighting}), record, prediction)


def _rankdpo(inputs: Inputs) -> Case:
    """The case's beta multiplies the error difference itself: k."""
    errors = inputs["s"].clone().requires_grad_()[None]
    record = PairErrors(errors, None, torch.zeros_like(errors), scores=inputs["phi"][None])
    return Case(build("rankdpo", beta=2 * inputs.params["beta"]), record)


def _log_probabilities(inputs: Inputs, objective: Objective, **more: Any) -> Case:
    """log p = -e/2, per token where the case counts tokens."""
    counts = inputs.params.get("completion_tokens", [[1] * 6, [1] * 6])
    per_token = [torch.tensor(count, dtype=inputs.dtype) for count in counts]
    leaves = (inputs["chosen_logps"].clone().requires_grad_(), inputs["rejected_logps"].clone().requires_grad_())
    references = (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
    errors = [-2 * logps / n for logps, n in zip((*leaves, *references), per_token * 2, strict=True)]
    record = PairErrors(*(errors if objective.needs_reference else errors[:2]))
    return Case(objective, record, logps=leaves, **more)


def _trl_dpo(inputs: Inputs) -> Case:
    params = inputs.params
    beta, kind = params["beta"], params["loss_type"]
    renamed = {"sigmoid": "dpo", "sigmoid_norm": "dpo", "robust": "rdpo"}
    options: dict[str, Any] = {"beta": beta}
    if "label_smoothing" in params:
        options["label_smoothing"] = params["label_smoothing"]
    if kind == "discopop":
        options["temperature"] = params["discopop_tau"]
    if divergence := params.get("f_divergence_type"):
        bend: dict[str, Any] = {"name": "divergence", "divergence": divergence.removesuffix("_divergence")}
        options["logit"] = bend | ({"alpha": params["f_alpha"]} if "f_alpha" in params else {})
    objective = build(renamed.get(kind, kind.removesuffix("_pair")), **options)
    # ours are in logit units: beta^2 times trl's
    return _log_probabilities(inputs, objective, loss_scale=beta**-2 if kind in ("ipo", "sppo_hard") else 1.0)


def _trl_cpo(inputs: Inputs) -> Case:
    params = inputs.params
    beta, kind = params["beta"], params["loss_type"]
    logit = {"name": "reference_free", "beta": beta, "alpha": params.get("alpha", 0.0)}
    logit["gamma"] = params.get("simpo_gamma", 0.0)
    link = {"sigmoid": "softplus", "simpo": "softplus", "hinge": "hinge", "ipo": "square"}[kind]
    chosen: Any = {"name": "smoothed", "label_smoothing": q} if (q := params.get("label_smoothing")) else link
    objective = build("simpo", logit=logit, link=chosen)
    return _log_probabilities(inputs, objective, loss_scale=beta**-2 if kind == "ipo" else 1.0)


def _trl_orpo(inputs: Inputs) -> Case:
    objective = build("orpo", anchor="none", beta=inputs.params["beta"], error_scale=0.5)
    return _log_probabilities(inputs, objective)


def _dposhift(inputs: Inputs) -> Case:
    params = inputs.params
    link = {"name": "smoothed", "label_smoothing": params["label_smoothing"]}
    return _log_probabilities(inputs, build("dpo_shift", beta=params["beta"], lam=params["lam"], link=link))


ADAPTERS: dict[str, Callable[[Inputs], Case]] = {
    "salesforce": _official_dpo,
    "dpo_sdxl": _official_dpo,
    "dpo_sd15": _diffusers_sd15,
    "orpo_diffusers": _orpo_diffusers,
    "mapo": _mapo,
    "kto": _kto,
    "dro": _dro,
    "smpo_loss": _smpo,
    "videodpo": _videodpo,
    "gapo": _gapo,
    "flow_dpo": _flow,
    "minsnr_loss": _min_snr,
    "rankdpo": _rankdpo,
    "trl_dpo": _trl_dpo,
    "trl_cpo": _trl_cpo,
    "trl_orpo": _trl_orpo,
    "dposhift": _dposhift,
}
