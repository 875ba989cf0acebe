"""Latents that ask the policy, errors in features and clean latents: against official numbers and against algebra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.errors import UserError
from t2i_align.objectives import PairErrors, build, snr_table
from t2i_align.objectives.error_metrics import CleanError, Denoised, PerceptualError, PredictionError
from t2i_align.objectives.latents import DdimInversion, LatentRequest, PolicyRollout, SharedNoise, TruncatedRollout
from tests.objectives.golden import FOLDER, TENSORS

GOLDEN = load_file(FOLDER / "inversion.safetensors")
ALPHAS = TENSORS["schedule.alphas_cumprod"]
CASES = sorted({name.rsplit(".", 1)[0] for name in GOLDEN if "_inversion_" in name})


class Toy:
    """A denoiser that is a formula, with the noise schedule of Stable Diffusion."""

    prediction_type = "epsilon"
    alphas_cumprod = ALPHAS
    num_train_timesteps = 1000

    def __init__(self, constant: Tensor | None = None) -> None:
        self.constant, self.asked, self.used = constant, [], []

    def predict(
        self, noisy: Tensor, timesteps: Tensor, prompt: PromptEmbeddings, time_ids: Tensor | None = None
    ) -> Tensor:
        assert len(prompt) == len(noisy)
        self.asked.append(timesteps.tolist())
        if self.constant is not None:
            return self.constant.expand_as(noisy).clone()
        return (0.25 + 0.5 * timesteps.to(noisy).reshape(-1, 1, 1, 1) / 1000) * noisy

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal = ALPHAS[timesteps].to(latents).reshape(-1, 1, 1, 1)
        return signal.sqrt() * latents + (1 - signal).sqrt() * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise

    def empty_prompt(self, count: int) -> PromptEmbeddings:
        return PromptEmbeddings(torch.zeros(count, 1, 1))

    @contextmanager
    def inference(self, snapshot: str | None = None) -> Iterator[None]:
        self.used.append(snapshot)
        yield


def request(latents: Tensor, timesteps: list[int], seed: int = 0) -> LatentRequest:
    count = len(timesteps)
    prompt = PromptEmbeddings(torch.ones(len(latents), 1, 1))
    names = [str(index) for index in range(count)]
    return LatentRequest(latents, torch.tensor(timesteps), names, [0] * count, 0, seed, prompt)


def random_latents(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_released_inversion_against_the_official_loops(case: str) -> None:
    renoise = case.startswith("smpo")
    latents = DdimInversion(steps=5 if renoise else 10, renoise=int(renoise), grid="released")
    timestep = int(case.rsplit("_t", 1)[1])
    found = latents(Toy(), request(GOLDEN["latents"].double(), [timestep] * 2))
    for ours, name in ((found.noisy, "noisy"), (found.target, "pseudo_noise")):
        expected = GOLDEN[f"{case}.{name}"]
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("steps", [10, 5])
def test_the_whole_released_inversion_is_that_of_diffusers(steps: int) -> None:
    """DDIMInverseScheduler of diffusers 0.20 on the configuration of Stable Diffusion, to its last step."""
    latents = GOLDEN["latents"].double()
    found = DdimInversion(steps=steps, grid="released")(Toy(), request(latents, [999] * 2)).noisy
    expected = GOLDEN[f"ddim_inverse_{steps}steps_sd_config_v0.20.x_T"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("renoise", [0, 1, 3])
def test_inverting_a_constant_noise_is_forward_noising(renoise: int) -> None:
    clean, noise = random_latents(6), random_latents(1, seed=1)
    toy = Toy(noise)
    found = DdimInversion(renoise=renoise)(toy, request(clean, [0, 437, 999]))
    levels = torch.tensor([0, 437, 999] * 2)
    assert found.timesteps.tolist() == levels.tolist()
    assert torch.allclose(found.noisy, toy.add_noise(clean, noise, levels), rtol=1e-5, atol=1e-6)
    assert torch.allclose(found.target, noise.expand_as(clean), rtol=1e-4, atol=1e-4)


def test_a_correction_reads_a_velocity_at_the_level_it_was_asked_at() -> None:
    """By hand, one step to A = 1/2, v = 0 first and v = 1 then: the noise is 0, then sqrt(1/2) (1 + x)."""

    class Velocity(Toy):
        prediction_type, num_train_timesteps = "v_prediction", 2
        alphas_cumprod = torch.tensor([0.8, 0.5])

        def predict(self, noisy: Tensor, timesteps: Tensor, prompt: object, time_ids: Tensor | None = None) -> Tensor:
            self.asked.append(timesteps.tolist())
            return torch.full_like(noisy, float(len(self.asked) - 1))

    toy, clean, root = Velocity(), random_latents(1), 0.5**0.5
    found = DdimInversion(steps=1, renoise=1)(toy, request(clean, [1]))
    assert toy.asked == [[1], [1]]
    noise = 0.5 * (0.0 + root * (1.0 + root * clean))  # mean of both estimates
    assert torch.allclose(found.noisy, root * (clean + noise), rtol=1e-6)


def test_inversion_ends_at_t_and_does_not_depend_on_the_batch() -> None:
    clean, toy = random_latents(3), Toy()
    found = DdimInversion()(toy, request(clean, [5, 437, 950]))
    assert max(max(asked) for asked in toy.asked) == 950 and 437 in {t for asked in toy.asked for t in asked}
    alone = DdimInversion()(Toy(), request(clean[1:2], [437]))
    assert torch.allclose(found.noisy[1], alone.noisy[0], rtol=1e-12)
    assert torch.equal(found.noisy, DdimInversion()(Toy(), request(clean, [5, 437, 950])).noisy)


def test_random_inversion_is_addressed() -> None:
    clean = random_latents(2)
    noisy = DdimInversion(eta=0.1)(Toy(), request(clean, [500, 500]))
    again = DdimInversion(eta=0.1)(Toy(), request(clean, [500, 500]))
    other = DdimInversion(eta=0.1)(Toy(), request(clean, [500, 500], seed=1))
    assert torch.equal(noisy.noisy, again.noisy) and not torch.equal(noisy.noisy, other.noisy)
    assert not torch.equal(noisy.noisy, DdimInversion()(Toy(), request(clean, [500, 500])).noisy)


def test_a_rollout_stands_in_the_losers_place() -> None:
    toy, latents = Toy(), random_latents(4)
    found = PolicyRollout(num_inference_steps=8)(toy, request(latents, [300, 700]))
    assert toy.used == ["rollout"] and found.timesteps.tolist() == [300, 700, 300, 700]
    expected = toy.add_noise(latents[:2], found.target[:2], torch.tensor([300, 700]))
    assert torch.allclose(found.noisy[:2], expected)
    assert torch.allclose(found.target[2:], toy.predict(found.noisy[2:], found.timesteps[2:], toy.empty_prompt(2)))
    other = PolicyRollout(num_inference_steps=8)(Toy(), request(latents + 1, [300, 700]))
    assert torch.equal(found.noisy[2:], other.noisy[2:])  # the loser of the data is not looked at
    assert PolicyRollout(sync_steps=3).lag.every == 3


def test_a_truncated_rollout_regresses_on_its_last_clean_estimate() -> None:
    noise = random_latents(1, seed=3)
    latents = random_latents(2)
    found = TruncatedRollout(steps=3)(Toy(noise), request(latents, [600, 100]))
    assert (found.timesteps >= torch.tensor([600 - 120, 0])).all() and (found.timesteps < 1000).all()
    signal = ALPHAS[found.timesteps].double().reshape(-1, 1, 1, 1)
    clean = (found.noisy - (1 - signal).sqrt() * found.target) / signal.sqrt()
    start = Toy().add_noise(latents, request(latents, [600, 100]).noise("noise"), torch.tensor([600, 100]))
    first = ALPHAS[[600, 100]].double().reshape(-1, 1, 1, 1)
    # with a constant prediction every step has the same estimate of x_0
    assert torch.allclose(clean, (start - (1 - first).sqrt() * noise) / first.sqrt(), rtol=1e-5, atol=1e-5)


def denoised(timesteps: list[int], features=None, kind: str = "epsilon") -> Denoised:
    noisy, guess, noise = (random_latents(len(timesteps), seed=seed) for seed in (1, 2, 3))
    snr = snr_table(ALPHAS.double())
    extra = random_latents(len(timesteps), seed=4)
    return Denoised(guess, noise, torch.tensor(timesteps), kind, snr, noisy=noisy, features=features, extra_noise=extra)


def test_identity_features_give_the_error_of_the_noise() -> None:
    record = denoised([0, 1, 500, 999], lambda x, t: [x])
    expected = PredictionError()(record)
    assert torch.allclose(PerceptualError()(record), expected, rtol=1e-6)
    bare = PerceptualError(normalise=False)(record)
    signal = ALPHAS.double()[[0, 1, 500, 999]]
    previous = torch.cat([torch.ones(1), ALPHAS[[0, 499, 998]]]).double()
    alpha = signal / previous
    assert torch.allclose(bare, (1 - alpha).square() / (alpha * (1 - signal)) * expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "base"), [("ncp_dpo", "dpo"), ("ncp_cpo", "cpo"), ("ncp_sft", "sft")])
def test_ncp_with_identity_features_is_its_base(name: str, base: str) -> None:
    """From predictions to losses."""
    passes = [replace(denoised([3, 600], lambda x, t: [x]), prediction=random_latents(2, seed)) for seed in range(4)]

    def loss(preset: str) -> Tensor:
        objective = build(preset)
        e_w, e_l, r_w, r_l = (objective.error(one) for one in passes)
        return objective(PairErrors(e_w, e_l, r_w, r_l)).loss

    assert torch.allclose(loss(name), loss(base), rtol=1e-6)


def test_orthogonal_features_change_nothing_and_blocks_are_averaged() -> None:
    record = denoised([400, 700], lambda x, t: [2.0 * x, x.flip(1)])
    expected = PredictionError()(record)
    assert torch.allclose(PerceptualError()(record), expected, rtol=1e-6)
    assert torch.allclose(PerceptualError(blocks=(0, 1))(record), 2.5 * expected, rtol=1e-6)
    with pytest.raises(UserError, match="does not have"):
        PerceptualError(blocks=(2,))(record)


def test_features_are_asked_one_step_earlier() -> None:
    asked = []
    PerceptualError()(denoised([0, 7], lambda x, t: asked.append(t.tolist()) or [x]))
    assert asked == [[0, 6], [0, 6]]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_error_of_clean_latents(kind: str) -> None:
    record = denoised([300, 800], kind=kind)
    signal = ALPHAS.double()[[300, 800]]
    squared = PredictionError()(record) * ((1 - signal) / signal if kind == "epsilon" else (1 - signal))
    assert torch.allclose(CleanError(huber=0)(record), squared, rtol=1e-6)
    assert (CleanError(huber=1e-3)(record) > 0).all()


def test_a_mask_chooses_what_counts_in_every_error_it_is_defined_for() -> None:
    record, left = denoised([300, 800]), torch.zeros(4)
    left[:2] = 1.0  # columns of the latents
    narrow = {name: getattr(record, name)[..., :2] for name in ("prediction", "target", "noisy")}
    for metric in (PredictionError(), CleanError(), CleanError(huber=0)):
        masked = metric(replace(record, mask=left))
        assert torch.allclose(masked, metric(replace(record, **narrow))) and not torch.allclose(masked, metric(record))
    with pytest.raises(ValueError, match="nothing about features"):
        PerceptualError()(replace(denoised([300], lambda x, t: [x]), mask=left))


@pytest.mark.parametrize(
    ("preset", "options", "says"),
    [
        ("sft", {"latents": "policy_rollout"}, "not defined on the input"),
        ("dpo", {"latents": "truncated_rollout"}, "not defined on the input"),
        ("kto", {"items": "labelled", "latents": "policy_rollout"}, "not defined on the input"),
        ("rankdpo", {"latents": "policy_rollout"}, "not defined on the input"),
        ("gapo", {"latents": "policy_rollout"}, "put the model's own samples"),
        ("smpo", {"latents": "policy_rollout"}, "put the model's own samples"),
        ("npo", {"anchor": "winner"}, "pushes winners away"),
        ("dcpo", {"logit": "none", "link": "none", "anchor": "winner"}, "only winners are trained"),
        ("mapo", {"reference": "guarded"}, "has no use for a reference"),
        ("rankdpo", {"weight": "curriculum"}, "not defined on the input"),
        ("inpo", {"latents": {"grid": "exakt"}}, "grid"),
    ],
)
def test_nonsense_is_refused_with_the_reason(preset: str, options: dict, says: str) -> None:
    with pytest.raises(UserError) as caught:
        build(preset, **options)
    assert says in str(caught.value) and caught.value.fix


def test_what_the_model_decides_is_refused_before_a_step() -> None:
    snr = snr_table(ALPHAS)
    build("ncp_dpo").check_model(1000, snr, "v_prediction")
    with pytest.raises(UserError, match="asks for more timesteps"):
        build("dpo", timestep={"name": "range", "high": 2000}).check_model(1000, snr)
    with pytest.raises(UserError, match="zero-terminal"):
        build("ncp_dpo").check_model(1000, torch.cat([snr[:-1], torch.zeros(1)]))


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"error": "prediction"}, ()),
        ({"error": "epsilon"}, ()),
        ({"error": "velocity"}, ("epsilon",)),
        ({"error": "clean"}, ("epsilon",)),
        ({"error": "perceptual"}, ("epsilon", "v_prediction", "sample")),
        ({"latents": "ddim_inversion"}, ()),
        ({"latents": "policy_rollout"}, ("epsilon",)),
        ({"timestep": {"weighting": "min_snr"}}, ()),
        ({"timestep": {"weighting": "noise_level"}}, ("epsilon", "v_prediction", "sample")),
        ({"error": "clean", "timestep": {"name": "range", "high": 999}}, ()),
        ({"error": "clean", "timestep": {"name": "listed", "timesteps": [999]}}, ("epsilon",)),
        ({"error": "clean", "timestep": {"name": "binned", "probabilities": [1, 0]}}, ()),
        ({"error": "clean", "timestep": {"name": "binned", "probabilities": [0, 1]}}, ("epsilon",)),
    ],
)
def test_what_a_timestep_without_signal_leaves_undefined_is_refused(options: dict, refused: tuple[str, ...]) -> None:
    snr = torch.cat([snr_table(ALPHAS)[:-1], torch.zeros(1)])
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        objective = build("dpo", **options)
        if prediction_type in refused:
            with pytest.raises(UserError, match=r"signal|positive SNR"):
                objective.check_model(1000, snr, prediction_type)
        else:
            objective.check_model(1000, snr, prediction_type)


def test_drawn_timesteps_are_those_that_are_sampled() -> None:
    for timestep in (
        {"name": "range", "low": 3, "high": 7},
        {"name": "listed", "timesteps": [2, 9], "probabilities": [0, 1]},
        {"name": "binned", "probabilities": [0, 1, 1]},
        {"name": "geometric", "bins": 5},
        {"name": "uniform"},
    ):
        choice = build("dpo", timestep=timestep).timestep
        sampled = set(choice.sample(list(range(500)), 0, 0, 0, num_timesteps=10).tolist())
        assert sampled == set(choice.drawn(10))


def test_options_of_a_preset_keep_its_reference() -> None:
    assert build("rethinking_dpo", beta=100).reference.every == 32
    assert build("rethinking_dpo", reference={"every": 8}).reference.limit == 0.005
    assert not build("rethinking_dpo", logit="reference_free").needs_reference
    assert SharedNoise().lag is None
