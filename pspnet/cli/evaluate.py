"""`pspnet evaluate`: score a model, or mask files, on images with annotations."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pspnet.config.command_line import parse_settings
from pspnet.evaluation.evaluation_request import EvaluationRequest

_DESCRIPTION = """\
Score a model on images with annotations, by one protocol or several (docs/evaluation.md):
whole, one forward pass per image at its own size; slide, overlapping windows of crop_size; multiscale, slide at several
scales with mirror images; builtin, the score of SageMaker's built-in algorithm, always together with whole.
With --predictions, score mask files instead of a model.
torchrun distributes the images over processes: torchrun --nproc_per_node 2 -m pspnet.cli evaluate ..."""


def evaluate_command(argv: Sequence[str]) -> int:
    """Run an evaluation and print its scores."""
    request = parse_settings(EvaluationRequest, argv, "pspnet evaluate", _DESCRIPTION)
    # Imported here, so that --help and wrong settings respond without importing torch.
    from pspnet.evaluation.evaluate import run_evaluation

    run_evaluation(request, log=print, command=shlex.join(["pspnet", "evaluate", *argv]))
    return 0
