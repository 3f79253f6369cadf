#!/usr/bin/env bash
# The training path under Python 3.8 with torch 1.12.1, the newest that SageMaker allows on ml.p2.xlarge, from source:
# a tiny training, its resume, its model directory, the exit code of a wrong setting, and the tests of the job of such a
# machine, under SageMaker's training toolkit and its SDK's drivers, and of the end of a data-parallel run.
#
# Takes the interpreter from $PYTHON38, or looks for one (python3.8, uv's, pyenv's). Where there is none, it says so
# and ends with 0. An interpreter that has torch 1.12.1 already is used as it is; for another one, a virtual environment
# is made in a temporary folder. The tests are run by $PYTEST, a command of the newer Python that the project is for.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

packages=(
  torch==1.12.1 torchvision==0.13.1 'numpy<2' pillow pyyaml safetensors
  albumentations==1.4.18 deflate opencv-python-headless simplejpeg tqdm tensorboard six
)
toolkit_package=sagemaker-training==4.2.8

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
  echo "SKIPPED: there is no Python 3.8 on this machine, so neither the training path nor an ml.p2 job was checked under it."
  echo "         Install one (uv python install 3.8) or name one: PYTHON38=/path/to/python .ci/python38.sh"
  exit 0
fi
# Makes the virtual environment $1 with the interpreter $2 and installs the other arguments there.
make_environment() {
  local folder=$1 interpreter=$2
  shift 2
  if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --no-project --python "$interpreter" "$folder"
    uv pip install --quiet --python "$folder/bin/python" "$@"
  else
    "$interpreter" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  fi
}

step "Python 3.8: $base ($("$base" --version 2>&1))"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if "$base" -c 'import sys, torch; sys.exit(not torch.__version__.startswith("1.12.1"))' >/dev/null 2>&1; then
  python=$base
  echo "it has torch 1.12.1 already and is used as it is"
else
  step "installing into a temporary environment: ${packages[*]} $toolkit_package"
  make_environment "$work/venv" "$base" "${packages[@]}" "$toolkit_package"
  python=$work/venv/bin/python
fi
toolkit=$python
if ! "$python" -c 'import sagemaker_training' >/dev/null 2>&1; then
  step "installing $toolkit_package beside it"
  make_environment "$work/toolkit" "$python" "$toolkit_package"
  toolkit=$work/toolkit/bin/python
  # The packages of the other interpreter, after those of this environment.
  "$python" -c 'import site; print("\n".join(site.getsitepackages()))' \
    >"$("$toolkit" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
fi
# -W: torch 1.12.1 and its time's packages use what later setuptools deprecate.
export PYTHONPATH=$root PYTHONWARNINGS=ignore NO_ALBUMENTATIONS_UPDATE=1
"$python" -c 'import torch, numpy; print("torch", torch.__version__, "numpy", numpy.__version__)'

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

step "the job of an ml.p2 machine"
if [[ -z ${PYTEST:-} ]] && command -v uv >/dev/null 2>&1; then
  PYTEST="uv run pytest"
fi
if [[ -n ${PYTEST:-} ]]; then
  # shellcheck disable=SC2086  (a command with its arguments)
  (cd "$root" && env -u PYTHONPATH -u PYTHONWARNINGS PSPNET_PYTHON38="$toolkit" $PYTEST -rs -k python38 tests/sagemaker_entry \
    tests/training/test_distributed.py)
else
  echo "SKIPPED: there is no uv, and PYTEST names no command that runs the tests, so the job was NOT rehearsed."
fi

printf '\nThe training path works under %s with torch 1.12.1.\n' "$("$python" --version)"
