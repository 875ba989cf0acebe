"""`t2i-align rewards train` from YAML: any pair source, dimensions from margins or the oracle, resume, refusals."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import reward_models
from reward_models import RewardModelError
from t2i_align import cli
from t2i_align.config.schema import DataConfig
from t2i_align.data.sources import open_source
from t2i_align.errors import UserError
from t2i_align.rewards.training import PairRecords, RewardDataConfig, load_config
from tests.data_pkg.make import pickapic, write_parquet
from tests.reward_models.golden import TOKENIZER
from tests.reward_models.layouts import mps_config
from tests.training.runs import contents

from .conftest import tiny_clip_config
from .test_label import oracle_gaps


def run(*words):
    return CliRunner().invoke(cli.app, ["rewards", "train", *map(str, words)])


@pytest.fixture
def settings(shapes_pairs, tmp_path):
    return {
        "scorer": "pickscore",
        "checkpoint": None,
        "model_config": tiny_clip_config(),
        "tokenizer": str(TOKENIZER),
        "output_dir": str(tmp_path / "run"),
        "train_batch_size": 4,
        "max_train_steps": 4,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 0,
        "validation_steps": 2,
        "checkpointing_steps": 2,
        "data": {"source": str(shapes_pairs), "heldout_fraction": 0.4},
    }


@pytest.fixture
def write(tmp_path):
    def _write(content):
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return _write


def test_trains_reports_and_resumes(settings, write, tmp_path):
    path = write(settings)
    result = run(path, "max_train_steps=2")
    assert result.exit_code == 0, result.output
    assert "overall: accuracy" in result.stdout
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["final"]["overall"]["pairs"] == 4 and report["final"]["overall"]["reliability"]
    assert Image.open(tmp_path / "run" / "calibration.png").width == 420
    assert reward_models.load("pickscore", tmp_path / "run" / "best", "cpu").name == "pickscore"
    refused = run(path)
    assert refused.exit_code == 2 and "not empty" in refused.stderr
    refused = run(path, "resume_from_checkpoint=latest")
    assert refused.exit_code == 2 and "max_train_steps: 2 then, 4 now" in refused.stderr
    before = contents(tmp_path / "run")
    finished = run(path, "max_train_steps=2", "resume_from_checkpoint=latest")
    assert finished.exit_code == 0 and "finished before; nothing was written" in finished.stdout
    assert "overall: accuracy" in finished.stdout
    assert contents(tmp_path / "run") == before


def test_interruption_says_how_to_go_on(settings, write, monkeypatch):
    from t2i_align.rewards import training

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_head", stop)
    path = write(settings)
    result = run(path, "seed=3")
    assert result.exit_code == 130
    assert f"t2i-align rewards train {path} seed=3 resume_from_checkpoint=latest" in result.stderr


def test_dimensions_come_from_the_oracle_or_from_margins(shapes_pairs, tmp_path):
    gaps = {name: oracle_gaps(shapes_pairs, name) for name in ("semantic", "detail")}
    config = RewardDataConfig(
        source=str(shapes_pairs), dimensions={n: f"oracle:{n}" for n in gaps}, dimension_ties=0.02
    )
    records = PairRecords.of(open_source(config.pairs()), config)
    for name, gap in gaps.items():
        expected = np.where(np.abs(gap) <= 0.02, 0.5, gap > 0)
        assert [record.label(name) for record in records] == expected.tolist()
    margins = [{"taste": value} for value in (0.5, 0.5, 0.001)]
    path = write_parquet(tmp_path / "m.parquet", pickapic([1.0, 0.0, 1.0], margins=margins))
    config = RewardDataConfig(source=str(path), dimensions={"style": "taste"}, prompt_weights=True)
    records = PairRecords.of(open_source(config.pairs()), config)
    assert [record.label("style") for record in records] == [1.0, 0.0, 0.5]
    with pytest.raises(RewardModelError, match="oracle:semantic"):
        PairRecords.of(
            open_source(config.pairs()), config.model_copy(update={"dimensions": {"style": "oracle:beauty"}})
        )


def test_mps_learns_from_oracle_dimensions(settings, write, tmp_path):
    config = mps_config()
    config["clip"]["vision_config"] |= {"image_size": 32, "hidden_size": 32, "intermediate_size": 64}
    config["cross"]["layer_num"] = 1
    names = ("semantic", "aesthetic", "detail")
    data = settings["data"] | {"dimensions": {name: f"oracle:{name}" for name in names}, "dimension_ties": 0.0}
    mps = {"recipe": "mps", "mixed_precision": "no", "max_train_steps": 2, "model_config": config, "data": data}
    settings.pop("scorer")
    result = run(write(settings | mps))
    assert result.exit_code == 0, result.output
    assert set(json.loads((tmp_path / "run" / "metrics.json").read_text())["best"]) == {"step", "overall", *names}
    assert reward_models.load("mps:detail", tmp_path / "run" / "final", "cpu").name == "mps:detail"


def test_extra_sources_join_without_the_held_out_prompts(settings, write, tmp_path, monkeypatch):
    from t2i_align.rewards import training

    seen = {}

    def remember(config, records, held_out, progress):
        seen["train"], seen["held_out"] = [r.prompt for r in records], [r.prompt for r in held_out]
        raise RewardModelError("enough")

    monkeypatch.setattr(training, "train_head", remember)
    settings["data"]["extra_sources"] = [settings["data"]["source"]]
    settings["data"]["max_pairs"] = 2
    assert run(write(settings)).exit_code == 2
    assert len(seen["held_out"]) == 4 and len(seen["train"]) == 2 + 4
    assert not set(seen["train"]) & set(seen["held_out"])


def test_captions_per_picture_are_refused(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", pickapic([1.0, 0.0], caption_1=[None, "other"]))
    config = RewardDataConfig(source=str(path))
    pairs = open_source(DataConfig(source=str(path), resolution=8))
    with pytest.raises(UserError, match="one prompt"):
        PairRecords.of(pairs, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "data section is missing"),
        ({"data": {"sauce": "x"}}, "data.sauce"),
        ({"learning_rat": 1.0}, "learning_rat"),
        ({"model_config": None}, "random weights"),
        ({"checkpoint": "/no/such/folder"}, "does not exist"),
        ({"data": {"source": "/no/such/pairs"}}, "does not exist"),
        ({"recipe": "mps", "scorer": "mps"}, "have no labels"),
        ({"tokenizer": "shapes:nonsense"}, "no such part of the shapes world"),
    ],
)
def test_bad_configurations_are_one_message(settings, write, changes, message):
    result = run(write(settings | changes))
    assert result.exit_code == 2 and message in result.stderr, (result.output, result.exception)
    assert "Traceback" not in result.stderr


def test_a_broken_picture_names_its_row(settings, write, shapes_pairs, tmp_path):
    import pyarrow.parquet as pq

    columns = pq.read_table(shapes_pairs).to_pydict()
    columns["jpg_0"][5] = b""
    settings["data"] = {"source": str(write_parquet(tmp_path / "broken.parquet", columns))}
    result = run(write(settings))
    assert result.exit_code == 2 and "row 5" in result.stderr


def test_overrides_and_addresses(settings, write):
    checked = load_config(write(settings), ["seed=7", "data.max_pairs=3"])
    assert (checked.seed, checked.data.max_pairs, checked.training.seed) == (7, 3, 7)
