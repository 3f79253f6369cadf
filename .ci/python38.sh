#!/usr/bin/env bash
# The training path under Python 3.8 with torch 1.12.1, the newest that SageMaker allows on ml.p2.xlarge, from source:
# a tiny training, its resume, its model directory, and the exit code of a wrong setting.
#
# Takes the interpreter from $PYTHON38, or looks for one (python3.8, uv's, pyenv's). Where there is none, it says so
# and ends with 0. An interpreter that has torch 1.12.1 already is used as it is; for another one, a virtual environment
# is made in a temporary folder.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

packages=(
  torch==1.12.1 torchvision==0.13.1 'numpy<2' pillow 'pydantic<2.11' eval-type-backport pyyaml safetensors
  albumentations==1.4.18 opencv-python-headless tqdm tensorboard six
)

step() { printf '\n-- %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# A name on the path proves nothing: pyenv's shims exist for versions that are not selected.
works() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 8))' >/dev/null 2>&1; }

find_python38() {
  local candidate
  for candidate in python3.8 "$(uv python find --no-project --offline 3.8 2>/dev/null || true)" \
    "$(pyenv root 2>/dev/null || true)"/versions/3.8*/bin/python; do
    if [[ -n $candidate ]] && works "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
}

if [[ -n ${PYTHON38:-} ]]; then
  works "$PYTHON38" || fail "PYTHON38=$PYTHON38 is no working Python 3.8; unset it to have one looked for."
  base=$PYTHON38
else
  base=$(find_python38)
fi
if [[ -z $base ]]; then
  echo "SKIPPED: there is no Python 3.8 on this machine, so the training path was NOT checked under it."
  echo "         Install one (uv python install 3.8) or name one: PYTHON38=/path/to/python .ci/python38.sh"
  exit 0
fi
step "Python 3.8: $base ($("$base" --version 2>&1))"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if "$base" -c 'import sys, torch; sys.exit(not torch.__version__.startswith("1.12.1"))' >/dev/null 2>&1; then
  python=$base
  echo "it has torch 1.12.1 already and is used as it is"
else
  step "installing into a temporary environment: ${packages[*]}"
  if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --no-project --python "$base" "$work/venv"
    uv pip install --quiet --python "$work/venv/bin/python" "${packages[@]}"
  else
    "$base" -m venv "$work/venv"
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
  fi
  python=$work/venv/bin/python
fi
# -W: torch 1.12.1 and its time's packages use what later setuptools deprecate.
export PYTHONPATH=$root PYTHONWARNINGS=ignore NO_ALBUMENTATIONS_UPDATE=1
"$python" -c 'import torch, numpy, pydantic, sys; print("torch", torch.__version__, "numpy", numpy.__version__,
"pydantic", pydantic.VERSION)'

cd "$work"
step "a tiny data set"
"$python" -c 'from pathlib import Path; from pspnet.data.shapes import write_shapes
write_shapes(Path("tiny"), train=5, validation=2, size=(64, 48))'

train() {
  "$python" "$root/train.py" --data tiny --num_classes 7 --class_names shapes --use_pretrained_model False --width 8 \
    --crop_size 48 --base_size 64 --mini_batch_size 2 --optimizer adam --ema_decay 0.9 --accumulate_steps 2 \
    --early_stopping True --early_stopping_min_epochs 1 --rotation 10 --blur 0.5 --color_jitter 0.5 --workers 2 \
    --device cpu --name python38 "$@"
}

step "training for one epoch"
train --epochs 1 2>&1 | tee first.log
grep -qE '^epoch=1 train:loss=[0-9.]+ ' first.log || fail "the line of the training loss is missing"
grep -qE '^epoch=1 validation:mIOU=[0-9.]+ validation:pixel_accuracy=[0-9.]+$' first.log || fail "no validation line"

step "the same command for two epochs: it goes on from the checkpoint"
train --epochs 2 2>&1 | tee second.log
grep -q '^Resuming from runs/python38/checkpoints/last.safetensors: epoch 2, step 2\.$' second.log || fail "no resume"
grep -q '^epoch=2 validation:mIOU=' second.log || fail "the second epoch was not scored"

step "what it left"
for file in model/model.safetensors model/config.json metrics.json metrics.jsonl samples.png checkpoints/last.safetensors \
  checkpoints/best.safetensors; do
  [[ -s runs/python38/$file ]] || fail "runs/python38/$file is missing or empty"
  echo "runs/python38/$file"
done
if "$python" -c 'from torch.utils.tensorboard import SummaryWriter' >/dev/null 2>&1; then
  compgen -G 'runs/python38/tensorboard/events.out.tfevents.*' || fail "no TensorBoard files were written"
else
  grep '^No TensorBoard files are written: ' first.log || fail "nothing was said of the missing TensorBoard"
fi

step "loading the model directory"
"$python" -c 'from pspnet import Predictor
mask = Predictor.load("runs/python38/model", device="cpu")("tiny/validation/validation_00000.jpg")
assert mask.shape == (48, 64) and mask.dtype == "uint8" and mask.max() < 7, (mask.shape, mask.dtype, mask.max())
print("a mask of", mask.shape)'

step "torchvision's DeepLabV3"
train --epochs 1 --algorithm deeplab --width 64 --name deeplab38 2>&1 | tee deeplab.log
grep -q '^DeepLabV3 resnet-50, 7 classes, 42.0 M parameters' deeplab.log || fail "the first line is missing"
"$python" -c 'from pspnet import Predictor
mask = Predictor.load("runs/deeplab38/model", device="cpu")("tiny/validation/validation_00000.jpg")
assert mask.shape == (48, 64) and mask.max() < 7'

step "a wrong setting"
code=0
train --epochs 2 --learning_rate fast 2>wrong.log || code=$?
cat wrong.log
[[ $code == 2 ]] || fail "exit code $code, expected 2"
grep -q "learning_rate: found 'fast'" wrong.log || fail "the message does not name the setting"
! grep -q Traceback wrong.log || fail "the message is a traceback"

printf '\nThe training path works under %s with torch 1.12.1.\n' "$("$python" --version)"
