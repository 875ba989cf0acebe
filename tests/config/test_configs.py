"""Every recipe in configs/ is valid, says what it is for, and holds the published figures it claims."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_align.compare.config import load_comparison
from t2i_align.config.layers import file_layers, merge
from t2i_align.config.loading import load_config
from t2i_align.errors import UserError
from t2i_align.objectives.config import resolve
from t2i_align.rewards.noisy import read_config
from t2i_align.rewards.personal import read_config as read_personal
from t2i_align.rewards.training import load_config as load_rewards
from t2i_align.shapes.world import caption_of, parse_caption
from t2i_align.stepwise.judges import check_judge
from t2i_align.study.config import load_study

CONFIGS = Path(__file__).parents[2] / "configs"
NOISY = [path for path in sorted(CONFIGS.glob("*/*.yaml")) if path.stem in ("lrm", "spm")]  # t2i-align rewards train
OWN_READERS = ("pretrain", "study", "compare", "personal_head")  # not `RunConfig`: their own modules read them
OTHER_SCHEMAS = {
    *(CONFIGS / "shapes" / f"{stem}.yaml" for stem in OWN_READERS),
    *NOISY,
    CONFIGS / "sdxl" / "compare.yaml",
}
LAUNCHES = sorted(CONFIGS.glob("accelerate/*.yaml"))  # how processes are started; accelerate reads them
RECIPES = sorted(set(CONFIGS.glob("*/*.yaml")) - {*CONFIGS.glob("base/*.yaml"), *LAUNCHES} - OTHER_SCHEMAS)
HEADINGS = ("For:", "Launch:", "Memory:", "Result:", "Else:")


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def test_the_promised_recipes_exist() -> None:
    assert {name(path) for path in RECIPES} >= {
        "shapes/dpo.yaml",
        "shapes/mapo.yaml",
        "shapes/sft.yaml",
        "sdxl/dpo_lora.yaml",
        "sdxl/dpo_full.yaml",
        "sdxl/mapo_lora.yaml",
        "sd15/dpo_full.yaml",
        "shapes/lpo.yaml",
        "shapes/spo.yaml",
        "shapes/tailorpo.yaml",
        "shapes/online_dpo.yaml",
        "sd15/lpo.yaml",
        "sdxl/lpo.yaml",
        "sdxl/spo.yaml",
        "shapes/ppd.yaml",
        "sd15/ppd.yaml",
        "sdxl/ppd.yaml",
    }
    assert {name(path) for path in NOISY} == {
        f"{of}.yaml" for of in ("shapes/lrm", "shapes/spm", "sd15/lrm", "sdxl/lrm", "sdxl/spm")
    }


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_is_valid(path: Path) -> None:
    config = load_config(path)
    assert config.output_dir == f"runs/{path.parent.name}-{path.stem.replace('_', '-')}"


@pytest.mark.parametrize("path", NOISY, ids=name)
def test_recipe_of_a_noise_aware_reward_model_is_valid(path: Path) -> None:
    config = read_config(merge(path), str(path))
    assert config.output_dir == f"runs/{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", RECIPES + NOISY, ids=name)
def test_recipe_is_headed_by_a_comment(path: Path) -> None:
    comment = "".join(line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    for heading in HEADINGS:
        assert f"# {heading}" in comment
    assert f"configs/{name(path)}" in comment, "the launch command names the file"


def test_every_base_file_is_extended_by_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[Path] = set()
    from t2i_align.config import layers

    original = layers.read_file

    def remember(path: Path, chain: tuple[Path, ...] = ()) -> layers.Layer:
        read.add(path.resolve())
        return original(path, chain)

    monkeypatch.setattr(layers, "read_file", remember)
    for path in RECIPES:
        file_layers(path)
    assert read >= {path.resolve() for path in CONFIGS.glob("base/*.yaml")}


def test_shapes_recipes_validate_with_captions_of_their_world() -> None:
    for path in RECIPES:
        if path.parent.name == "shapes":
            prompts = load_config(path).validation.validation_prompts
            assert prompts == [caption_of(parse_caption(prompt)) for prompt in prompts] != []


@pytest.mark.parametrize(
    ("recipe", "beta", "rate", "warmup", "optimizer"),
    [
        ("sd15/dpo_full.yaml", 5000, 2.048e-5, 500, "adamw"),
        ("sdxl/dpo_full.yaml", 5000, 2.048e-5, 200, "adafactor"),
    ],
)
def test_published_diffusion_dpo(recipe: str, beta: float, rate: float, warmup: int, optimizer: str) -> None:
    """Launchers of arXiv 2311.12908: 1e-8 per pair, 16 x 1 x 128 pairs, 2000 steps, 20 % empty prompts."""
    config = load_config(CONFIGS / recipe)
    training = config.training
    assert resolve(config.objective).logit_scale == beta / 2
    assert training.learning_rate == rate == pytest.approx(1e-8 * 2048)
    assert 16 * training.train_batch_size * training.gradient_accumulation_steps == 2048
    assert (training.max_train_steps, training.lr_warmup_steps, training.optimizer) == (2000, warmup, optimizer)
    assert training.adam_weight_decay == 1e-2
    assert config.data.proportion_empty_prompts == 0.2 and config.data.random_flip and config.model.train == "full"


@pytest.mark.parametrize(("recipe", "reference"), [("sdxl/dpo_lora.yaml", True), ("sdxl/mapo_lora.yaml", False)])
def test_published_lora_examples(recipe: str, reference: bool) -> None:
    """The examples of diffusers and of MaPO: rank 8, 1e-5 constant, 8 x 2 pairs, 2000 steps, no caption dropout."""
    config = load_config(CONFIGS / recipe)
    training = config.training
    assert resolve(config.objective).needs_reference is reference
    assert config.model.lora.rank == 8 and config.data.proportion_empty_prompts == 0
    assert training.learning_rate == 1e-5 and training.lr_scheduler == "constant"
    assert training.train_batch_size * training.gradient_accumulation_steps == 16


@pytest.mark.parametrize(
    ("recipe", "beta", "rate", "rank", "low", "high", "candidates", "prompts", "batch"),
    [
        ("sd15/lpo.yaml", 500, 5e-5, 4, 0.35, 0.5, 4, 5, 10),
        ("sdxl/lpo.yaml", 500, 1e-5, 64, 0.45, 0.6, 4, 4, 4),
        ("sdxl/spo.yaml", 10, 1e-5, 64, 0.4, None, 2, 2, 4),
    ],
)
def test_published_step_level_recipes(recipe, beta, rate, rank, low, high, candidates, prompts, batch) -> None:
    """arXiv 2502.01051 table of settings; released configuration of arXiv 2406.04314."""
    config = load_config(CONFIGS / recipe)
    training, rollout = config.training, config.rollout
    assert rollout is not None and resolve(config.objective).logit_scale == beta / 2
    assert (training.learning_rate, training.adam_weight_decay, training.lr_scheduler) == (rate, 1e-4, "constant")
    assert training.train_batch_size * training.gradient_accumulation_steps == batch
    assert config.model.lora.rank == rank and config.model.lora.target_modules == ["to_q", "to_k", "to_v", "to_out.0"]
    assert (rollout.threshold.low, rollout.threshold.high) == (low, high)
    assert (rollout.candidates, rollout.prompts_per_rollout) == (candidates, prompts)
    assert (rollout.num_inference_steps, rollout.eta, rollout.guidance_scale) == (20, 1.0, 5.0)


@pytest.mark.parametrize(("recipe", "processes"), [("sd15/ppd.yaml", 1), ("sdxl/ppd.yaml", 8)])
def test_published_personal_recipe(recipe: str, processes: int) -> None:
    """arXiv 2501.06655: four pairs per user, 768 pairs per step, 1e-5, one pass over 0.8 M pairs."""
    config = load_config(CONFIGS / recipe)
    training, personal = config.training, config.personal
    assert personal is not None and personal.encoder == "pair_set" and personal.support_pairs == 4
    assert processes * training.train_batch_size * training.gradient_accumulation_steps == 768
    assert training.learning_rate == 1e-5 and round(800_000 / 768, -1) == training.max_train_steps
    assert resolve(config.objective).needs_reference and config.model.train == "user"


def test_recipe_of_a_personal_head_is_valid() -> None:
    path = CONFIGS / "shapes/personal_head.yaml"
    config = read_personal(merge(path), str(path))
    assert config.output_dir == "runs/shapes-personal-head" and config.few_shot.shots == [0, 1, 2, 4, 8, 16, 32]


def test_published_latent_reward_model() -> None:
    config = read_config(merge(CONFIGS / "sd15/lrm.yaml"), "")
    training = config.training
    assert (training.max_train_steps, training.learning_rate, training.lr_warmup_steps) == (4000, 1e-5, 500)
    assert training.timesteps == list(range(1, 952, 50)) and config.lrm.guidance_scale == 7.5


def test_published_noise_aware_judges_of_sdxl() -> None:
    """arXiv 2502.01051: 8,000 steps, 1,000 warm-up; arXiv 2406.04314: 7,000 steps, 500 warm-up, rates 1e-5 and 1e-6."""
    latent, pixels = (read_config(merge(CONFIGS / f"sdxl/{kind}.yaml"), "") for kind in ("lrm", "spm"))
    found = [
        (c.training.max_train_steps, c.training.lr_warmup_steps, c.training.learning_rate) for c in (latent, pixels)
    ]
    assert found == [(8000, 1000, 1e-5), (7000, 500, 1e-6)]
    assert latent.lrm.guidance_scale == 7.5 and latent.training.timesteps == list(range(1, 952, 50))
    assert pixels.spm.guidance_scale == load_config(CONFIGS / "sdxl/spo.yaml").rollout.guidance_scale
    for judge, recipe in ((latent, "lpo"), (pixels, "spo")):
        policy = load_config(CONFIGS / f"sdxl/{recipe}.yaml")
        assert policy.rollout.scorer.checkpoint == f"{judge.output_dir}/model"
        for key in ("pretrained_model_name_or_path", "pretrained_vae_model_name_or_path"):
            assert getattr(judge.model, key) == getattr(policy.model, key)


@pytest.mark.parametrize("path", [path for path in RECIPES if load_config(path).rollout is not None], ids=name)
def test_a_missing_judge_names_the_command_that_makes_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    scorer = load_config(path).rollout.scorer
    if scorer.name not in ("lrm", "spm") or scorer.checkpoint.startswith("shapes:"):
        check_judge(scorer)
        return
    with pytest.raises(UserError, match="judge of the rollouts is not there") as error:
        check_judge(scorer)
    recipe = error.value.fix.split()[3]
    assert (
        recipe == f"configs/{path.parent.name}/{scorer.name}.yaml"
        and CONFIGS / recipe.removeprefix("configs/") in NOISY
    )


def test_a_missing_judge_of_ones_own(tmp_path: Path) -> None:
    scorer = load_config(CONFIGS / "sdxl/lpo.yaml", [f"rollout.scorer.checkpoint={tmp_path}/mine"]).rollout.scorer
    with pytest.raises(UserError, match=r"configs/sdxl/lrm.yaml and its like make one"):
        check_judge(scorer)
    (tmp_path / "mine").mkdir()
    check_judge(scorer)


NO_PRECISION = ["training.mixed_precision=no"]  # YAML reads it as false


@pytest.mark.parametrize("path", RECIPES + NOISY, ids=name)
def test_every_recipe_takes_mixed_precision_no(path: Path) -> None:
    read = load_config(path, NO_PRECISION) if path in RECIPES else read_config(merge(path, NO_PRECISION), str(path))
    assert read.training.mixed_precision == "no"


def test_reward_heads_studies_and_comparisons_take_mixed_precision_no() -> None:
    for path in (CONFIGS / "shapes/rewards").glob("*.yaml"):
        if path.stem != "common":
            assert load_rewards(path, ["mixed_precision=no"]).training.mixed_precision == "no"
    comparison = load_comparison(CONFIGS / "shapes/compare.yaml", ["overrides=[training.mixed_precision=no]"])
    assert comparison.config.overrides == NO_PRECISION
    assert (
        load_study(CONFIGS / "shapes/study.yaml", [f"run.{NO_PRECISION[0]}"]).run["training"]["mixed_precision"]
        is False
    )


@pytest.mark.parametrize("path", LAUNCHES, ids=name)
def test_accelerate_reads_the_launch_files(path: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    text = path.read_text(encoding="utf-8")
    assert all(heading in text for heading in ("For:", "Launch:", "Else:")) and name(path) in text
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig) and config.num_processes % config.num_machines == 0
    assert config.mixed_precision == "no"  # the run decides
    assert config.distributed_type != "MULTI_CPU", "accelerate starts one process with it, whatever num_processes"


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name in ("sdxl", "sd15")], ids=name)
def test_a_recipe_with_another_source_reads_nothing_of_pick_a_pic(path: Path) -> None:
    data = load_config(path, ["data.source=pairs.jsonl"]).data
    assert data.heldout_source is None
    config = load_config(path)
    makes_its_own = config.rollout is not None or config.online is not None
    assert data.heldout_fraction == (0.0 if makes_its_own else 0.05)
    if makes_its_own:  # prompts come from a file
        assert config.data.heldout_source is None and config.rollout is not None and config.rollout.prompts is not None
