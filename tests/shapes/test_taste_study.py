"""Pictures for people the model has never met, judged by their own taste."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from t2i_align.errors import UserError
from t2i_align.personal.config import PersonalConfig
from t2i_align.personal.features import PixelFeatures
from t2i_align.personal.files import save_personal
from t2i_align.shapes.taste_arms import Settings
from t2i_align.shapes.taste_study import run, share
from t2i_align.shapes.user_pairs import SCHEMA, answers
from t2i_align.shapes.users import UNSEEN_OFFSET, make_user
from tests.personal.common import add_adapter, open_up
from tests.shapes.test_user_pairs import shown


def test_an_interval_over_users_and_prompts() -> None:
    rng = np.random.default_rng(0)
    found = share((rng.random((20, 24)) < 0.7).astype(float))
    assert 0.55 < found.low < found.value < found.high < 0.85
    by_user = share(np.repeat((np.arange(20)[:, None] % 10 < 7).astype(float), 24, axis=1))
    assert by_user.high - by_user.low > 2 * (found.high - found.low)  # users are what varies: more prompts do not help


def write_users(folder: Path) -> Path:
    """What `user_pairs.run` writes of two unseen users, with rendered pictures."""
    users = [make_user(UNSEEN_OFFSET), make_user(UNSEEN_OFFSET + 1)]
    rows = answers(shown(), users, per_user=6, seed=0, tie_margin=0.0)
    (folder / "pairs").mkdir(parents=True)
    (folder / "prompts").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "pairs/heldout.parquet")
    (folder / "prompts/heldout.txt").write_text("a large star\na small ring\na heart\n", encoding="utf-8")
    known = {"seed": 0, "tastes": ["colour", "brightness"], "unseen": {str(u.user_id): u.weights for u in users}}
    (folder / "users.json").write_text(json.dumps(known), encoding="utf-8")
    return folder


def test_every_arm_is_judged_by_the_user(tiny_run: Path, tmp_path: Path) -> None:
    base, data = tiny_run / "base", write_users(tmp_path / "users")
    pixels = PixelFeatures()
    config = PersonalConfig(
        "pair_set", 2, 8, hidden=16, features=pixels.width, caption_features=pixels.caption_width, extractor="pixels"
    )
    adapter = add_adapter(base, config)
    open_up(adapter, size=1.0)
    folder = save_personal(adapter, tmp_path / "run" / "export")
    model = {"pretrained_model_name_or_path": str(base)}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}), encoding="utf-8")

    settings = Settings(prompts=2, shots=2, steps=3, num_inference_steps=1)
    result = run(str(tmp_path / "run"), data, tmp_path / "study", settings, pooled=str(base))
    rates = result["win_rate"]
    assert set(rates) == {"own", "another", "opposite", "null", "pooled"}
    assert rates["null"]["value"] == rates["pooled"]["value"] == 0.5  # the base itself: every picture ties
    assert [row["share"] for row in result["between"]["rows"]] == [0.0, 0.5, 1.0]
    assert json.loads((tmp_path / "study/taste_study.json").read_text())["users"] == 2
    assert (tmp_path / "study/strip.png").is_file() and "own" in (tmp_path / "study/taste_study.md").read_text()
    arms = tmp_path / "study" / "arms"
    stamps = {path: path.stat().st_mtime_ns for path in arms.iterdir()}
    run(str(tmp_path / "run"), data, tmp_path / "study", settings, pooled=str(base))
    assert stamps == {path: path.stat().st_mtime_ns for path in arms.iterdir()}  # nothing is drawn twice
    with pytest.raises(UserError, match="other settings"):
        run(str(tmp_path / "run"), data, tmp_path / "study", Settings(prompts=1))
    with pytest.raises(UserError, match="no user adapter"):
        run(str(base), data, tmp_path / "none", settings)
