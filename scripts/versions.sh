#!/usr/bin/env bash
# Run the unit tests with the oldest versions of what the library needs, and with the newest.
#
#     scripts/versions.sh [oldest|newest]      both without an argument
#
# Environments are made below build/versions, or where VERSIONS points, and used again. The oldest one takes Python 3.11
# (PYTHON_OLDEST says another), the newest the `python3` of the path (PYTHON_NEWEST).
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${VERSIONS:-build/versions}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# The lower bounds in pyproject.toml; numpy 1.26 is the oldest that the library declares.
cat >"$folder/oldest.txt" <<'VERSIONS'
torch==2.6.0
torchvision==0.21.0
numpy==1.26.4
pillow==10.1.0
matplotlib==3.8.0
opencv-python-headless==4.8.1.78
safetensors==0.4.0
tqdm==4.66.0
jinja2==3.1.0
h5py==3.10.0
VERSIONS
: >"$folder/newest.txt"

python_for() { # the first interpreter that starts
  local candidate
  for candidate in "$@"; do
    if "$candidate" -c "" >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "there is none of: $*" >&2
  exit 1
}

tests_with() { # name, interpreter
  local environment="$folder/$1"
  [ -x "$environment/bin/python" ] || "$2" -m venv "$environment"
  echo "== $1: $("$environment/bin/python" --version)"
  "$environment/bin/python" -m pip install -q --upgrade pip
  "$environment/bin/python" -m pip install -q --upgrade --constraint "$folder/$1.txt" -e '.[demo,keras]' \
    captum hypothesis import-linter psutil pytest pytest-timeout pytest-xdist scipy timm
  "$environment/bin/python" -c "import torch, torchvision, numpy; print(torch.__version__, torchvision.__version__, numpy.__version__)"
  "$environment/bin/python" -m pytest -q -n 2 -m "not slow" -p no:cacheprovider
}

for name in ${1:-oldest newest}; do
  case "$name" in
  oldest) tests_with oldest "$(python_for ${PYTHON_OLDEST:-} python3.11)" ;;
  newest) tests_with newest "$(python_for ${PYTHON_NEWEST:-} python3)" ;;
  *)
    echo "oldest or newest, not $name" >&2
    exit 2
    ;;
  esac
done
