"""SageMaker commands for training and hosting. AWS's packages are imported lazily."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from pspnet.config.values import nearest
from pspnet.errors import ConfigError

COMMANDS = {
    "upload": ("training.upload", "check a data set and upload its channels to S3"),
    "train": ("training.submit", "train as a SageMaker job"),
    "rehearse": ("training.rehearse", "run the job locally, before paying for it"),
    "deploy": ("hosting.deploy", "create an endpoint of a model"),
    "predict": ("hosting.predict", "write the masks of images from an endpoint"),
    "transform": ("hosting.transform", "write the masks of images on S3, without an endpoint"),
    "status": ("hosting.status", "show endpoints and jobs, and what is billed"),
    "delete": ("hosting.delete", "delete an endpoint and its resources"),
    "lambda_package": ("pipeline.lambda_package", "pack the function that summarises masks on S3"),
}
"""Module and help line of every command; its function `NAME_command` takes the arguments and the usage prefix."""


def dispatch(argv: Sequence[str], program: str = "python -m sagemaker_entry") -> int:
    """Run one command and return its exit code. Raises ConfigError for an unknown command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {program} COMMAND ... [--help]\n\nPSPNet on Amazon SageMaker.\n")
        print("\n".join(f"  {name:16}{text}" for name, (_, text) in COMMANDS.items()))
        return 0 if argv else 2
    name = argv[0].replace("-", "_")
    if name not in COMMANDS:
        like = nearest(name, COMMANDS)
        fix = f"did you mean {like}?" if like else f"expected one of {', '.join(COMMANDS)}."
        raise ConfigError(f"{program}: unknown command {argv[0]!r}; {fix}")
    run = getattr(import_module(f"sagemaker_entry.{COMMANDS[name][0]}"), f"{name}_command")
    code: int = run(argv[1:], f"{program} {name}")
    return code
