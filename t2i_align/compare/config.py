"""The YAML file of ``t2i-align compare``: which models, how the missing ones are trained, and how all are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from t2i_align.config.layers import merge
from t2i_align.config.loading import load_config
from t2i_align.config.problems import from_sections, report
from t2i_align.config.schema import NonNegativeInt, PositiveInt, RunConfig, Section
from t2i_align.config.texts import text_keys
from t2i_align.errors import UserError
from t2i_align.sections import Folder

RUNS = "runs"


class Entry(Section):
    """One model of the comparison: a recipe that is trained where it has not been, or a model that is there."""

    recipe: str | None = Field(
        None, description="YAML file of a run, relative to the file that says so; trained once, then kept"
    )
    overrides: list[str] = Field([], description="key.path=value words for the recipe, as for t2i-align train")
    model: str | None = Field(None, description="diffusers folder, hub id, run folder, LoRA folder, or shapes:base")
    user: str | None = Field(None, description="for whom a user adapter makes its pictures, see generate --user")
    note: str = Field("", description="what a reader of the report must know of this model")

    @model_validator(mode="after")
    def _one_origin(self) -> Entry:
        if (self.recipe is None) == (self.model is None):
            raise ValueError("give either a recipe or a model")
        if self.overrides and self.recipe is None:
            raise ValueError("overrides change a recipe; a model is taken as it is")
        return self


class Preparation(Section):
    """A command whose product the recipes need."""

    makes: str = Field(description="file it writes last; the command runs where that is missing")
    command: str = Field(description="words after t2i-align, such as rewards train configs/sdxl/lrm.yaml")


class Judging(Section):
    """How the models are judged; every key is an option of ``t2i-align evaluate``."""

    prompts: str = Field("shapes", description="prompt file, suite, or shapes")
    limit: PositiveInt | None = Field(None, description="only the first prompts")
    shuffle_prompts: bool = Field(False, description="fixed random order first, so that limit is a fair sample")
    scorers: list[str] = Field(["oracle"], min_length=1, description="judges; the first gives the verdict")
    seeds_per_prompt: PositiveInt = Field(1, description="pictures per prompt")
    num_inference_steps: PositiveInt = Field(25, description="denoising steps per picture")
    guidance_scale: float = Field(5.0, ge=0.0, description="classifier-free guidance")
    batch_size: PositiveInt = Field(8, description="pictures sampled together")
    seed: NonNegativeInt = Field(0, description="of the initial noise, the same for every model")
    height: PositiveInt | None = Field(None, description="pixels; null is the model's own")
    width: PositiveInt | None = Field(None, description="pixels; null is the model's own")
    negative_prompt: str | None = Field(None, description="text that every picture is guided away from")
    sampler: str | None = Field(None, description="such as euler_a or dpmpp_2m_karras; null is the checkpoint's own")
    variant: str | None = Field(None, description="file variant of the weights, such as fp16")
    user_scale: float = Field(1.0, ge=0.0, description="strength of a user's attention, of entries with a user")
    user_guidance: float | None = Field(None, ge=0.0, description="guidance over the user; null is as over the prompt")
    drift: bool = Field(True, description="measure what changed beside the scores")
    proxy: str | None = Field(None, description="SCORER[:DIMENSION] that the models were trained on")
    features: str | None = Field(None, description="CLIP-based scorer by which variety is measured; null is the VAE")
    tolerance: float = Field(0.0, ge=0.0, description="score differences up to this size are ties")
    confidence: float = Field(0.95, ge=0.5, le=0.999, description="of the bootstrap intervals")
    device: str | None = Field(None, description="such as cuda:0; null is CUDA where there is one")
    dtype: str | None = Field(None, description="fp32, fp16 or bf16; null is fp16 on CUDA, fp32 on a CPU")


class CompareConfig(Section):
    """A whole comparison."""

    output_dir: Folder = Field(description="trained runs, pictures, scores and report.html")
    models: dict[str, Entry | None] = Field(description="name -> model; null leaves one of an extended file out")
    baseline: str = Field("base", description="model the others are compared with")
    control: str | None = Field(None, description="model that must not win, trained on shuffled labels")
    prepare: list[Preparation] = Field([], description="commands that make what the recipes read")
    overrides: list[str] = Field([], description="key.path=value words for every recipe, before its own")
    evaluation: Judging = Field(default_factory=Judging)

    @property
    def entries(self) -> dict[str, Entry]:
        """The models that take part."""
        return {name: entry for name, entry in self.models.items() if entry is not None}

    @model_validator(mode="after")
    def _names_are_there(self) -> CompareConfig:
        names = list(self.entries)
        for name in (self.baseline, self.control):
            if name is not None and name not in names:
                raise ValueError(f"{name} is not among the models: {', '.join(names)}")
        if len(names) < 2:
            raise ValueError("a comparison needs two models")
        return self


@dataclass(frozen=True)
class Comparison:
    """A checked file.

    Attributes:
        config: the file.
        runs: name -> the run of each entry that is a recipe.
    """

    config: CompareConfig
    runs: dict[str, RunConfig]


def load_comparison(path: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """Read a comparison's YAML file, ``extends`` and overrides as for a run, and every recipe it names.

    Raises:
        UserError: every problem of the file together, or the first recipe that is not valid.
    """
    merged = merge(path, overrides, text_keys(CompareConfig))
    try:
        config = CompareConfig.model_validate(merged.values)
    except ValidationError as error:
        raise report(
            from_sections(
                error, (CompareConfig, Entry, Preparation, Judging), "see docs/evaluation.md, Many models, one report"
            ),
            str(path),
            merged.places,
        ) from error
    runs = {
        name: _run(config, name, entry, _folder_of(f"models.{name}.recipe", merged.places) / entry.recipe)
        for name, entry in config.entries.items()
        if entry.recipe is not None
    }
    return Comparison(config, runs)


def _folder_of(key: str, places: Mapping[str, str]) -> Path:
    """Folder of the file that set a key, such as ``compare.yaml:12``; where commands run for the command line."""
    file, _, _ = places.get(key, "").rpartition(":")
    return Path(file).parent if file else Path()


def _run(config: CompareConfig, name: str, entry: Entry, recipe: Path) -> RunConfig:
    """The run of a recipe, in the comparison's own folder."""
    where = [f"output_dir={Path(config.output_dir) / RUNS / name}", "training.resume_from_checkpoint=latest"]
    try:
        return load_config(recipe, [*config.overrides, *entry.overrides, *where])
    except UserError as error:
        raise UserError(f"model {name}: {error.what}", error.found, error.fix) from error
