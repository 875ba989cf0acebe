"""``t2i-align study``: train every method with every seed under one budget, judge all alike, write the table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reward_models.files import complete_file
from t2i_align import objectives, progress
from t2i_align.data.pictures import decode
from t2i_align.data.sources import open_source
from t2i_align.errors import UserError
from t2i_align.evaluation import statistics
from t2i_align.evaluation.ahead import check_checkpoints, check_models, check_output_folder
from t2i_align.evaluation.prompts import PromptSet, load_prompts
from t2i_align.evaluation.scorers import check_scorers, open_scorer
from t2i_align.evaluation.worlds import default_prompts, default_scorers
from t2i_align.study.config import Method, Setting, StudyConfig, all_methods, run_of
from t2i_align.study.table import Row, StudyFolderError, Table
from t2i_align.study.trials import Judge
from t2i_align.training.once import OtherRunError, Trained, train_once

logger = logging.getLogger(__name__)
Say = Callable[[str], None]
SCORED_PAIRS = "pairs.parquet"
OF_REWARDS = frozenset({"scores", "margins", "frequencies", "difficulty"})


def run(study: StudyConfig, say: Say = progress.say, only: Collection[str] = (), command: str = "") -> Table:
    """Run what is missing of a study and write its table after every method.

    Everything is kept on disk as it is made: run it again after an interruption, or with more methods or seeds.

    Args:
        study: the configuration.
        say: prints a line of progress.
        only: names of methods to run; empty runs all. The table holds those that are done.
        command: that runs the whole study, for the table.

    Raises:
        UserError: an unknown name in ``only``, data that cannot be used, or a folder with other settings.
        Interrupted: asked to stop; the same command goes on.
    """
    methods = dict(all_methods(study))
    unknown = [name for name in only if name not in methods]
    if unknown:
        raise UserError(
            "There is no such method in the study.", ", ".join(unknown), f"choose from {', '.join(methods)}"
        )
    folder = Path(study.output_dir)
    _look_ahead(study)
    folder.mkdir(parents=True, exist_ok=True)
    table = Table(folder, study, command)
    work = _Work(with_scored_pairs(study, list(methods.values()), say), folder, say)
    for number, (name, method) in enumerate(methods.items(), start=1):
        if only and name not in only:
            continue
        say(f"[{number}/{len(methods)}] {name}")
        table.add(work.row(name, method))
        table.write()
    return table


def _look_ahead(study: StudyConfig) -> None:
    """Find out before hours of training that the base, the judge or its prompts cannot be had."""
    judging, said = study.judging, study.judging.model_fields_set
    check_output_folder(study.output_dir)
    check_scorers([judging.scorer])
    check_checkpoints([judging.scorer])
    base = [str(study.run["model"]["pretrained_model_name_or_path"])]
    check_models(base)
    default_scorers([judging.scorer] if "scorer" in said else None, base)
    default_prompts(judging.prompts if "prompts" in said else None, base)
    load_prompts(judging.prompts, judging.num_prompts)


class _Work:
    """What methods share: two judges, one on prompts of the training pairs for tuning, one on held-out ones."""

    def __init__(self, study: StudyConfig, folder: Path, say: Say) -> None:
        check_scorers([study.judging.scorer])
        self._study, self._folder, self._say = study, folder, say
        base = str(study.run["model"]["pretrained_model_name_or_path"])
        judging = study.judging
        held_out = load_prompts(judging.prompts, judging.num_prompts)
        self._judge = Judge(folder / "judged", base, held_out, judging)
        tuning = PromptSet("tuning", tuple(self._training_prompts(judging.tuning_prompts)))
        self._tuning_judge = Judge(folder / "tuning", base, tuning, judging)

    def row(self, name: str, method: Method) -> Row:
        """Tune, train with every seed and judge. A method that cannot be trained is a row that says why."""
        preset = str(method.objective["preset"])
        start = Row(name=name, preset=preset, kind=method.kind, judged_as=method.judged_as, note=_note(method))
        try:
            setting, tuning = self._tune(name, method)
            trained = [self._train(name, method, setting, seed) for seed in self._study.seeds]
        except (StudyFolderError, OtherRunError):
            raise
        except UserError as error:
            self._say(f"    failed: {error.what} {error.found}")
            return replace(start, failure=f"{error.what} ({error.found})", made=date.today().isoformat())
        seeds = tuple(self._study.seeds)
        folders = {f"{name}-{seed}": one.folder for seed, one in zip(seeds, trained, strict=True)}
        scores = self._judge.scores(name, folders, method)
        start = replace(start, seed_list=seeds, tuning=tuning, reads=self._reads(method))
        return _filled(start, setting, trained, scores)

    def _tune(self, name: str, method: Method) -> tuple[Setting, dict[str, float]]:
        """The setting with the best mean score on tuning prompts, the first of equals; and all means."""
        settings = method.settings
        if len(settings) == 1:
            return settings[0], {}
        means = []
        for setting in settings:
            trial = self._train(name, method, setting, self._study.judging.tuning_seed)
            trial_name = f"{name}-{setting.name}"
            scores = self._tuning_judge.scores(trial_name, {f"{trial_name}-0": trial.folder}, method)
            means.append(float(np.nanmean(next(iter(scores.values()))[1])))
            self._say(f"    tuning {setting.name}: {means[-1]:.3f}")
        names = [setting.name for setting in settings]
        return settings[int(np.argmax(means))], dict(zip(names, means, strict=True))

    def _train(self, name: str, method: Method, setting: Setting, seed: int) -> Trained:
        folder = self._folder / "runs" / name / f"{setting.name}-seed-{seed}"
        return train_once(run_of(self._study, method, setting, seed, folder))

    def _training_prompts(self, count: int) -> list[str]:
        """The first different captions of the training pairs; none of them is held out."""
        data = self._study.run["data"]
        config = run_of(self._study, next(iter(self._study.methods.values())), Setting(0.0, None), 0, self._folder)
        captions = open_source(config.data.model_copy(update={"source": data["source"]})).captions()
        return list(dict.fromkeys(captions))[:count]

    def _reads(self, method: Method) -> tuple[str, ...]:
        return tuple(sorted(objectives.resolve(method.objective).data_needs))


def _note(method: Method) -> str:
    """The method's note, with what differs in its data."""
    differs = [f"data.{key}: {value}" for key, value in method.data.items()]
    return "; ".join([part for part in (method.note,) if part] + differs)


def _filled(row: Row, setting: Setting, trained: Sequence[Trained], scores: dict[str, np.ndarray]) -> Row:
    """The row with its numbers. Seeds are averaged within a prompt; intervals are over prompts."""
    base, models = next(iter(scores.values()))[0], next(iter(scores.values()))[1:]
    against = np.repeat(base[:, None], len(models), axis=1)
    rates = [float(np.nanmean(statistics.paired_outcomes(model, base))) for model in models]

    def last(metric: str) -> float | None:
        values = [one.metrics[metric] for one in trained if metric in one.metrics]
        return float(np.mean(values)) if values else None

    return replace(
        row,
        learning_rate=setting.learning_rate,
        beta=setting.beta,
        tuned_over=max(1, len(row.tuning)),
        seeds=len(trained),
        win_rate=statistics.win_rate(models.T, against),
        p_value=statistics.sign_flip_p_value(statistics.paired_outcomes(models.T, against) - 0.5),
        constant=statistics.only_value(np.concatenate([base[None], models])),
        seed_win_rates=tuple(rates),
        score=float(np.nanmean(models)),
        base_score=float(np.nanmean(base)),
        dimensions={name: float(np.nanmean(value[1:] - value[0])) for name, value in scores.items()},
        heldout_accuracy=last("heldout/implicit_accuracy"),
        d_winner=last("heldout/d_w"),
        train_seconds=float(np.mean([one.train_seconds for one in trained])),
        made=date.today().isoformat(),
    )


def with_scored_pairs(study: StudyConfig, methods: Sequence[Method], say: Say) -> StudyConfig:
    """The study on pairs with scores of the judge, if some method reads rewards and the pairs have none.

    The judge is the one the table is made with: methods that read its scores see more than labels; the table says so.
    """
    reading = [m for m in methods if objectives.resolve(m.objective).data_needs & OF_REWARDS]
    data = study.run["data"]
    config = run_of(study, methods[0], Setting(0.0, None), 0, Path(study.output_dir)).data
    source = open_source(config.model_copy(update={"ties": "soft", "loser_captions": "as_given"}))
    if not reading or source.has_scores or source.margin_names:
        return study
    path = Path(study.output_dir) / SCORED_PAIRS
    if not path.is_file():
        say(f"scoring {len(source)} pairs with {study.judging.scorer}: {len(reading)} methods read rewards")
        _write_scored(source, study.judging.scorer, path)
    return study.model_copy(update={"run": {**study.run, "data": {**data, "source": str(path)}}})


def _write_scored(source, scorer_name: str, path: Path) -> None:
    """The pairs with ``score_0`` and ``score_1``, clipped to [0, 1]; ids, labels and pictures as they are."""
    scorer = open_scorer(scorer_name)
    rows = []
    for index in range(len(source)):
        record = source[index]
        captions = [record.caption, record.caption_1 or record.caption]
        scores = scorer.score(captions, [decode(record.image_0), decode(record.image_1)])[scorer.dimensions[0]]
        rows.append(
            {
                "ranking_id": record.pair_id,
                "user_id": record.user_id,
                "caption": record.caption,
                "caption_1": record.caption_1,
                "jpg_0": record.image_0,
                "jpg_1": record.image_1,
                "label_0": record.label_0,
                "label_1": 1.0 - record.label_0,
                "weight": record.weight,
                **{f"score_{side}": float(np.clip(value, 0.0, 1.0)) for side, value in enumerate(scores)},
            }
        )
    with complete_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary, row_group_size=64)
