#!/usr/bin/env bash
# Package:  datasets 5.2.0
# Input:    two JSON Lines files of two captions each, strings every one: "1999-12-31" and "2024-02-29"; the same with
#           "a cat" in place of the second. Read by load_dataset("json").
# Expected: the strings of the files, in columns of the type string: JSON has no dates, and datasets' pages on loading
#           JSON do not speak of any. (pyarrow's page on its own JSON reader does, and that is what datasets calls.)
# Seen:     where every string of the column is a date in ISO 8601, the column is of the type timestamp[s] and its rows
#           are datetime objects; one other string among them, and they are strings. So the type depends on which rows a
#           file holds (2026-11-29, Linux, Python 3.11).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --disable-pip-version-check --quiet datasets==5.2.0

cd "$folder"
seen=$(HF_HOME="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import datasets

datasets.disable_progress_bars()
print(f"datasets {datasets.__version__}")
for number, captions in enumerate((("1999-12-31", "2024-02-29"), ("1999-12-31", "a cat"))):
    file = Path(f"captions{number}.jsonl")
    file.write_text("".join(json.dumps({"caption": caption}) + "\n" for caption in captions))
    rows = datasets.load_dataset("json", data_files=str(file), split="train")
    print(f"{' and '.join(captions)}: {rows.features['caption'].dtype}, the first {rows[0]['caption']!r}")
PYTHON
)
echo "$seen"
wanted="datasets 5.2.0
1999-12-31 and 2024-02-29: timestamp[s], the first datetime.datetime(1999, 12, 31, 0, 0)
1999-12-31 and a cat: string, the first '1999-12-31'"
if [ "$seen" != "$wanted" ]; then
    echo "changed: this is not what was seen before" >&2
    exit 1
fi
