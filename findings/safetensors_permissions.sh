#!/usr/bin/env bash
# Package:  safetensors 0.8.0 (with numpy 2.2.6)
# Input:    an array of three zeros, saved with safetensors.numpy.save_file under umask 022.
# Expected: the permissions of any new file, 0666 less the umask: 644, as open() gives, so that others can read it.
# Seen:     600, for the owner alone (2026-11-29, Linux, Python 3.11). A cache or a model in a shared folder cannot be read
#           by colleagues.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --disable-pip-version-check --quiet safetensors==0.8.0 numpy==2.2.6

umask 022
cd "$folder"
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import os
import stat
from importlib.metadata import version

import numpy
from safetensors.numpy import save_file

save_file({"a": numpy.zeros(3)}, "saved.safetensors")
open("opened", "w").close()
modes = [f"{stat.S_IMODE(os.stat(name).st_mode):o}" for name in ("saved.safetensors", "opened")]
print(f"safetensors {version('safetensors')}: save_file {modes[0]}, open {modes[1]}")
PYTHON
)
echo "$seen"
if [ "$seen" != "safetensors 0.8.0: save_file 600, open 644" ]; then
    echo "changed: this is not what was seen before" >&2
    exit 1
fi
