"""The judgement of what a study trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from t2i_align.evaluation import generate, score
from t2i_align.evaluation.manifest import read_settings
from t2i_align.evaluation.prompts import PromptSet
from t2i_align.evaluation.scorers import Scorer, open_scorer
from t2i_align.study.config import Judging, Method

BASE = "base"


class Judge:
    """Pictures and scores of the base model and of trained ones, on one prompt set; the base is drawn once.

    Args:
        folder: receives ``pictures/`` and ``scores/``.
        base: the base model.
        prompts: to draw.
        judging: sampler and scorer.
    """

    def __init__(self, folder: Path, base: str, prompts: PromptSet, judging: Judging) -> None:
        self._folder, self._base, self._prompts, self._judging = folder, base, prompts, judging
        self._scorer: Scorer | None = None

    def scores(self, name: str, runs: Mapping[str, Path], method: Method) -> dict[str, np.ndarray]:
        """Dimension -> ``[1 + runs, prompts]`` scores, the base first and then each run; the first dimension judges.

        Args:
            name: of the table of scores.
            runs: name of the pictures -> run folder.
            method: says whether a run is a negative model.
        """
        models = [BASE, *runs]
        folders = self._draw({BASE: self._base}, {})
        negative = method.judged_as == "negative"
        for model, run in runs.items():
            drawn = {model: self._base if negative else str(run)}
            folders |= self._draw(drawn, {model: str(run)} if negative else {}, self._outdated(model, run))
        self._scorer = self._scorer or open_scorer(self._judging.scorer)
        table = score.run(folders, [self._scorer], self._folder / "scores" / name, first_prompts=len(self._prompts))
        return {
            dimension: np.stack([np.nanmean(table.matrix(model, scorer, dimension), axis=1) for model in models])
            for scorer, dimension in table.dimensions
        }

    def _outdated(self, model: str, run: Path) -> bool:
        """Whether the pictures under a name are another training's: of a setting or of weights that were replaced."""
        kept = read_settings(self._folder / "pictures" / model)
        return bool(kept) and generate.identify(str(run), None)[1] not in kept["fingerprint"]

    def _draw(self, models: Mapping[str, str], negative: Mapping[str, str], overwrite: bool = False) -> dict[str, Path]:
        return generate.run(
            models,
            self._prompts,
            self._folder / "pictures",
            num_inference_steps=self._judging.num_inference_steps,
            guidance_scale=self._judging.guidance_scale,
            batch_size=self._judging.batch_size,
            negative=negative,
            overwrite=overwrite,
            show_progress=False,
        )

    @property
    def precision(self) -> str:
        """What the pictures were drawn in."""
        return read_settings(self._folder / "pictures" / BASE)["dtype"]
