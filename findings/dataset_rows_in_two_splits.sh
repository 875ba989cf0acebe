#!/usr/bin/env bash
# Package:  datasets 5.2.0
# Input:    dataset folders of two parquet files with one row each, given to load_dataset without data_files:
#           data/train.parquet beside data/train-test.parquet (say, the test rows that resemble training rows);
#           train_and_test/train.parquet beside train_and_test/test.parquet; train/rows.parquet beside
#           validation.parquet.
# Expected: each file in one split, none left out; at the least, an error for a name that says two things. The pages on
#           structuring a repository say that files and folders named after a split become that split.
# Seen:     a file belongs to every split that any word of its path below the dataset's folder names, so test rows are
#           training rows too; and where a folder names a split, files named so beside it are not loaded. Nothing is
#           said in either case (2026-11-29, Linux, Python 3.11).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --disable-pip-version-check --quiet datasets==5.2.0

cd "$folder"
seen=$(HF_HOME="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

datasets.disable_progress_bars()
print(f"datasets {datasets.__version__}")
FOLDERS = (
    ("data/train.parquet", "data/train-test.parquet"),
    ("train_and_test/train.parquet", "train_and_test/test.parquet"),
    ("train/rows.parquet", "validation.parquet"),
)
for number, files in enumerate(FOLDERS):
    for file in files:
        path = Path(f"dataset{number}", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table({"file": [file]}), path)
    for split, rows in datasets.load_dataset(f"./dataset{number}").items():
        print(f"{' and '.join(files)}: {split} has {', '.join(sorted(rows['file']))}")
PYTHON
)
echo "$seen"
both="train_and_test/train.parquet and train_and_test/test.parquet"
wanted="datasets 5.2.0
data/train.parquet and data/train-test.parquet: train has data/train-test.parquet, data/train.parquet
data/train.parquet and data/train-test.parquet: test has data/train-test.parquet
$both: train has train_and_test/test.parquet, train_and_test/train.parquet
$both: test has train_and_test/test.parquet, train_and_test/train.parquet
train/rows.parquet and validation.parquet: train has train/rows.parquet"
if [ "$seen" != "$wanted" ]; then
    echo "changed: this is not what was seen before" >&2
    exit 1
fi
