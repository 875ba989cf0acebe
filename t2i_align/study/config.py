"""The YAML file of ``t2i-align study``: what every training shares, and what each method changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from t2i_align.config.layers import merge
from t2i_align.config.loading import config_from_values
from t2i_align.config.problems import from_sections, report
from t2i_align.config.schema import NonNegativeInt, PositiveInt, RunConfig, Section
from t2i_align.config.texts import text_keys
from t2i_align.errors import UserError
from t2i_align.sections import Folder

RANDOM_LABELS, NO_TRAINING, SFT = "random_labels", "zero_learning_rate", "sft"


class Setting(NamedTuple):
    """What a method is trained with; ``beta`` None leaves the preset's default."""

    learning_rate: float
    beta: float | None

    @property
    def name(self) -> str:
        """As part of a folder's name."""
        beta = "" if self.beta is None else f"-beta-{self.beta:g}"
        return f"lr-{self.learning_rate:g}{beta}"


class Method(Section):
    """One row of the table. Lists of learning rates or betas are tuned first, all with the study's budget."""

    objective: dict[str, Any] = Field(description="objective section of its runs")
    learning_rate: float | list[float] = Field(description="one, or those to choose from")
    beta: float | list[float] | None = Field(None, description="one, or those to choose from; null: the preset's own")
    data: dict[str, Any] = Field({}, description="keys of the data section that differ, such as loser_captions")
    judged_as: Literal["model", "negative"] = Field(
        "model", description="negative: the base model is judged, guided away from the trained one"
    )
    kind: Literal["method", "control"] = Field("method", description="controls claim nothing")
    note: str = Field("", description="what a reader must know, or why it does not win")

    @property
    def settings(self) -> list[Setting]:
        """Every combination to choose from."""
        rates = self.learning_rate if isinstance(self.learning_rate, list) else [self.learning_rate]
        betas: Sequence[float | None] = self.beta if isinstance(self.beta, list) else [self.beta]
        return [Setting(float(rate), beta) for rate, beta in itertools.product(rates, betas)]

    @model_validator(mode="after")
    def _something_to_choose(self) -> Method:
        if not self.settings:
            raise ValueError("give at least one learning rate and one beta")
        if "preset" not in self.objective:
            raise ValueError("objective needs a preset")
        return self


class Judging(Section):
    """How a trained model is judged."""

    scorer: str = Field("oracle", description="judge, see t2i-align evaluate")
    prompts: str = Field("shapes", description="held-out prompts, see t2i-align evaluate")
    num_prompts: PositiveInt = Field(128, description="the first n of them")
    num_inference_steps: PositiveInt = Field(20, description="denoising steps per picture")
    guidance_scale: float = Field(3.0, ge=0.0, description="classifier-free guidance")
    batch_size: PositiveInt = Field(50, description="pictures sampled together")
    tuning_prompts: PositiveInt = Field(48, description="prompts of the training pairs by which settings are chosen")
    tuning_seed: NonNegativeInt = Field(1000, description="seed of the tuning runs, not among the study's")


class StudyConfig(Section):
    """A whole study."""

    output_dir: Folder = Field(description="runs, pictures, scores, table")
    run: dict[str, Any] = Field(description="what every training shares: a run's YAML without objective and output_dir")
    seeds: list[NonNegativeInt] = Field(min_length=1, description="one training each; pooled in the table")
    methods: dict[str, Method] = Field(min_length=1, description="rows of the table; sft is the third control")
    control_like: str = Field("dpo", description="method whose settings the random-label and lr = 0 controls share")
    judging: Judging = Field(default_factory=Judging)

    @model_validator(mode="after")
    def _controls_are_there(self) -> StudyConfig:
        missing = [name for name in (self.control_like, SFT) if name not in self.methods]
        if missing:
            raise ValueError(f"the controls need the methods {' and '.join(missing)}")
        taken = [name for name in (RANDOM_LABELS, NO_TRAINING) if name in self.methods]
        if taken:
            raise ValueError(f"{' and '.join(taken)} are added by the study itself")
        return self


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML file; ``extends`` and overrides as for a run. Every run it describes is checked.

    Raises:
        UserError: every problem of the file together, or the first method whose runs are not valid.
    """
    merged = merge(path, overrides, text_keys(StudyConfig, ("run", RunConfig)))
    try:
        study = StudyConfig.model_validate(merged.values)
    except ValidationError as error:
        raise report(
            from_sections(error, (StudyConfig, Method, Judging), "see docs/objectives.md, The method table"),
            str(path),
            merged.places,
        ) from error
    for name, method in all_methods(study):
        try:
            run_of(study, method, method.settings[0], study.seeds[0], Path(study.output_dir) / name)
        except UserError as error:
            raise UserError(f"method {name}: {error.what}", error.found, error.fix) from error
    return study


def all_methods(study: StudyConfig) -> Iterator[tuple[str, Method]]:
    """The methods in order, then the controls: random labels, no training at all, and supervised fine-tuning."""
    for name, method in study.methods.items():
        if name != SFT:
            yield name, method
    like = study.methods[study.control_like]
    shuffled = {**like.data, "shuffle_labels": True}
    yield RANDOM_LABELS, like.model_copy(update={"data": shuffled, "kind": "control", "note": "must not win"})
    still = {"learning_rate": 0.0, "beta": like.settings[0].beta, "kind": "control", "note": "must be the base"}
    yield NO_TRAINING, like.model_copy(update=still)
    yield SFT, study.methods[SFT].model_copy(update={"kind": "control"})


def run_of(study: StudyConfig, method: Method, setting: Setting, seed: int, folder: Path) -> RunConfig:
    """The run of a method with a setting and a seed.

    Raises:
        UserError: it is not valid; says why.
    """
    objective = dict(method.objective) | ({} if setting.beta is None else {"beta": setting.beta})
    training = {"learning_rate": setting.learning_rate, "resume_from_checkpoint": "latest"}
    values = {
        **study.run,
        "output_dir": str(folder),
        "seed": seed,
        "report_to": [],
        "objective": objective,
        "data": {**study.run.get("data", {}), **method.data},
        "training": {**study.run.get("training", {}), **training, "checkpoints_total_limit": 1},
    }
    return config_from_values(values, f"run {folder}")
