"""Long captions are said once: where a cache is built, or where pictures are read live."""

import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t2i_align.training.run import train
from tests.training.runs import run_config, write_pairs


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_says_how_many_captions_are_cut(cached, tiny_sd, tmp_path, caplog):
    table = pq.read_table(write_pairs(tmp_path / "short.parquet"))
    captions = table["caption"].to_pylist()
    captions[3] = captions[4] = " ".join(["a small red circle"] * 60)  # one caption, of two pairs
    column = table.schema.get_field_index("caption")
    pairs = tmp_path / "pairs.parquet"
    pq.write_table(table.set_column(column, "caption", pa.array(captions)), pairs)
    data = {"cache_dir": str(tmp_path / "cache")} if cached else {}
    for name in ("first", "second"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            train(run_config(tiny_sd, pairs, tmp_path / name, data=data, training={"max_train_steps": 1}))
        said = [message for message in caplog.messages if "captions are cut" in message]
        once = name == "first" or not cached  # a finished cache was told of when it was built
        assert [message.partition(" captions")[0] for message in said] == ["1 of 11"] * once
