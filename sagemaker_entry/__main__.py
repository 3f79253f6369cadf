"""`python -m sagemaker_entry`: the same as `pspnet sagemaker`."""

from __future__ import annotations

import sys

from pspnet.system.exit_codes import run_guarded
from sagemaker_entry.commands import dispatch

if __name__ == "__main__":
    sys.exit(run_guarded(dispatch, sys.argv[1:]))
