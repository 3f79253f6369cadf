#!/usr/bin/env bash
# Compares the logits of imported weights with the original programs: runs the PSPNet of mmsegmentation and GluonCV, each
# in a separate environment. (The ordinary tests run torchvision and segmentation-models-pytorch.)
#
# Uses the interpreters $PYTHON310 and $PYTHON38 or searches for them; reports and skips a missing one. Existing
# environments are used unchanged: $PSPNET_MMSEG_PYTHON, $PSPNET_GLUONCV_PYTHON.
# $PYTEST is the command that runs the tests, by default `uv run pytest`.
set -euo pipefail
cd "$(dirname "$0")/.."

mmseg_packages=(mmsegmentation==1.2.2 mmcv-lite==2.1.0 torch==2.1.2 'numpy<2' ftfy regex)
gluoncv_packages=(gluoncv==0.10.5.post0 mxnet==1.9.1 'numpy<1.24' opencv-python-headless)

step() { printf '\n-- %s\n' "$*"; }

# works INTERPRETER VERSION: runs the interpreter, since pyenv has shims for versions that are not selected.
works() { "$1" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$2')" >/dev/null 2>&1; }

# find_python VERSION GIVEN: prints an interpreter, or nothing.
find_python() {
  local candidate
  for candidate in ${2:+"$2"} "python$1" "$(uv python find --no-project --offline "$1" 2>/dev/null || true)" \
    "$(pyenv root 2>/dev/null || true)"/versions/"$1".*/bin/python; do
    if [[ -n $candidate ]] && works "$candidate" "$1"; then
      command -v "$candidate"
      return
    fi
  done
}

# make_environment FOLDER INTERPRETER PACKAGE...: prints its interpreter.
make_environment() {
  local folder=$1 base=$2
  shift 2
  if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --no-project --python "$base" "$folder" >&2
    uv pip install --quiet --python "$folder/bin/python" "$@" >&2
  else
    "$base" -m venv "$folder" >&2
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
  fi
  echo "$folder/bin/python"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tests=()

# prepare VARIABLE NAME VERSION GIVEN TEST PACKAGE...: exports VARIABLE and adds TEST, or reports a skipped test.
prepare() {
  local variable=$1 name=$2 version=$3 given=$4 test=$5 base made
  shift 5
  if [[ -z ${!variable:-} ]]; then
    base=$(find_python "$version" "$given")
    if [[ -z $base ]]; then
      echo "SKIPPED: no Python $version on this machine, so weights of $name were NOT compared with $name."
      echo "         Install it (uv python install $version) or set its path: PYTHON${version/./}=/path/to/python $0"
      return
    fi
    step "$name under $base: $*"
    made=$(make_environment "$work/$name" "$base" "$@")
    export "$variable=$made"
  fi
  tests+=("$test")
}

prepare PSPNET_MMSEG_PYTHON mmsegmentation 3.10 "${PYTHON310:-}" tests/models/imports/test_mmsegmentation.py \
  "${mmseg_packages[@]}"
prepare PSPNET_GLUONCV_PYTHON gluoncv 3.8 "${PYTHON38:-}" tests/models/imports/test_gluoncv.py "${gluoncv_packages[@]}"

if [[ ${#tests[@]} == 0 ]]; then
  exit 0
fi
step "our logits against theirs"
# A skipped test would pass without checking anything.
${PYTEST:-uv run pytest} -k logits_of -rs "${tests[@]}" | tee "$work/report"
! grep -q '^SKIPPED' "$work/report"
