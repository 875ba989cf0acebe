#!/usr/bin/env bash
# Package:  omegaconf 2.4.0
# Input:    a structured configuration with two fields of the type str, set by the dot-list ratio=16:9 size=1024:768, as
#           a command line does; and the same two in YAML.
# Expected: the strings 16:9 and 1024:768. The fields are declared str; OmegaConf reads 1e-5 as a number, as YAML 1.2
#           does, whose numbers have no colons; and its pages on dot-lists and structured configurations show no such
#           numbers.
# Seen:     969, which is 16 * 60 + 9, as a number in YAML and as the text "969" in the field; 1024:768 stays as it is,
#           because 768 is no digit to that base (2026-11-29, Linux, Python 3.11).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --disable-pip-version-check --quiet omegaconf==2.4.0

cd "$folder"
seen=$("$folder/venv/bin/python" - <<'PYTHON'
from dataclasses import dataclass

import omegaconf
from omegaconf import OmegaConf


@dataclass
class Picture:
    ratio: str = "1:1"
    size: str = "512:512"


print(f"omegaconf {omegaconf.__version__}")
field = OmegaConf.merge(OmegaConf.structured(Picture), OmegaConf.from_dotlist(["ratio=16:9", "size=1024:768"]))
print(f"in str fields: {OmegaConf.to_container(field)}")
print(f"in YAML: {OmegaConf.to_container(OmegaConf.create('{ratio: 16:9, size: 1024:768}'))}")
PYTHON
)
echo "$seen"
wanted="omegaconf 2.4.0
in str fields: {'ratio': '969', 'size': '1024:768'}
in YAML: {'ratio': 969, 'size': '1024:768'}"
if [ "$seen" != "$wanted" ]; then
    echo "changed: this is not what was seen before" >&2
    exit 1
fi
