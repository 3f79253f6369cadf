"""Train a PSPNet: locally, under torchrun, or as a SageMaker script-mode job.

python train.py                                     the built-in data, configs/quickstart.yaml
python train.py --data FOLDER --num_classes 11      your own data
python train.py --help                              every setting
"""

from __future__ import annotations

import sys

from pspnet.cli.train import train_command
from pspnet.system.exit_codes import run_guarded

if __name__ == "__main__":
    sys.exit(run_guarded(train_command, sys.argv[1:]))
