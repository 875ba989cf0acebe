#!/usr/bin/env bash
# Package:  setuptools 84.2.1
# Input:    a package `house` with an __init__.py, and `house.rooms`, which package_dir maps to the folder plans/ beside it,
#           where there is data and no __init__.py (a namespace package). Installed once as a wheel, once editable.
# Expected: the same imports either way: setuptools' pages on package discovery give package_dir for folders that lie
#           elsewhere, and those on development mode name no such difference.
# Seen:     house.rooms is imported from the wheel; in the editable install there is "No module named 'house.rooms'", although
#           the generated finder lists it (2026-11-29, Linux, Python 3.11).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/project/house" "$folder/project/plans" "$folder/elsewhere"
cd "$folder/project"
touch house/__init__.py
echo "walls: 4" > plans/kitchen.yaml
cat > pyproject.toml <<'TOML'
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
TOML
cat > setup.cfg <<'CFG'
[metadata]
name = house
version = 1.0
[options]
packages =
    house
    house.rooms
package_dir =
    house.rooms = plans
[options.package_data]
house.rooms = *.yaml
CFG

# Prints what `import house.rooms` does after an installation with the given options of pip.
import_after() {
    local venv="$folder/venv-$1"
    shift
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet setuptools==84.2.1
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-build-isolation "$@" "$folder/project"
    cd "$folder/elsewhere"
    "$venv/bin/python" - <<'PYTHON'
import house

try:
    import house.rooms
except ModuleNotFoundError as error:
    print(error)
else:
    print("imported")
PYTHON
}

wheel=$(import_after wheel)
editable=$(import_after editable --editable)
echo "setuptools 84.2.1: from a wheel: $wheel; editable: $editable"
if [ "$wheel" != "imported" ] || [ "$editable" != "No module named 'house.rooms'" ]; then
    echo "changed: this is not what was seen before" >&2
    exit 1
fi
