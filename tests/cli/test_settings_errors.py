"""One error format and exit code 2 for wrong settings of every command."""

from __future__ import annotations

import pytest

from pspnet.cli.dispatch import dispatch
from pspnet.system.exit_codes import run_guarded


@pytest.mark.parametrize(
    ("command", "problems"),
    [
        (
            "train --epohs 3 --mini_batch_size zero",
            [
                "epohs: unknown key (flag --epohs); did you mean epochs?",
                "mini_batch_size: found 'zero' (flag --mini_batch_size); allowed: a whole number, at least 1",
            ],
        ),
        pytest.param(
            "serve m --max-batch zero --queue -1",
            ["max_batch: found 'zero' (flag --max-batch); allowed: ", "queue: found '-1' (flag --queue); allowed: "],
        ),
        pytest.param("serve m --quue 3", ["quue: unknown key (flag --quue); did you mean queue?"]),
        pytest.param(
            "stream s --max-frames 0 --opacity 3",
            [
                "max_frames: found '0' (flag --max-frames); allowed: a whole number, at least 1",
                "opacity: found '3' (flag --opacity); allowed: a number from 0 to 1",
                "to: missing; ",
            ],
        ),
        (
            "evaluate m --batch-size zero --ignore 900",
            [
                "annotations: missing; it is required: a path",
                "output: missing; it is required: a path",
                "ignore: found '900' (flag --ignore); allowed: a whole number from 0 to 255",
                "batch_size: found 'zero' (flag --batch-size); allowed: a whole number, at least 1",
                "images: missing; it is required without --predictions",
            ],
        ),
        (
            "benchmark --rounds 0 --batch zero",
            [
                "batch: found 'zero' (flag --batch); allowed: a whole number, at least 1",
                "rounds: found '0' (flag --rounds); allowed: a whole number, at least 1",
            ],
        ),
        (
            "doctor . --num-classes 999",
            ["num_classes: found '999' (flag --num-classes); allowed: a whole number from 2 to 254"],
        ),
        pytest.param(
            "sagemaker deploy m --instance-count zero --memory 5",
            [
                "instance_count: found 'zero' (flag --instance-count); allowed: a whole number",
                "memory: found '5' (flag --memory); allowed: ",
            ],
        ),
    ],
)
def test_every_problem_is_listed(command: str, problems: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(dispatch, command.split()) == 2
    captured = capsys.readouterr()
    heading, *lines = captured.err.splitlines()
    assert heading == f"error: The configuration has {len(lines)} problem{'s' if len(lines) > 1 else ''}:"
    for problem in problems:
        assert any(line.startswith(f"  {problem}") for line in lines), captured.err
    assert captured.out == ""
