"""Plain engineering English in code and documents: phrases of a private dialect fail here.

Standard terms instead: atomic, idempotent, exponential backoff, heartbeat, ground truth, precision, fraction, queue.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("pspnet", "sagemaker_entry", "benchmarks", "tests", "docs", "configs", "examples", "notebooks", ".ci")
SUFFIXES = (".py", ".md", ".yaml", ".html", ".js", ".sh", ".toml", ".ipynb")
BANNED = re.compile(
    r"whole or not at all|later each time|number format\b|\bof late\b|\banew\b|\bin turns\b"
    r"|(?-i:\b(?:that|which) (?:is|are) none\b|`\S+` is none\b|= \S+ is none\b)"
    r"|\b(?:is|are|was|were|be|been) told\b|\b(?:is|are|was|were) said\b"
    r"|\btells? (?:it|them|the user|what|whether|how)\b"
    r"|\bis no (?:file|folder|model|name|number|image|class|address|setting|directory|path|region|archive|export)\b"
    r"|\bhands? (?:it |them )?(?:on|over)\b|\bgo(?:es)? on\b|\bbe it that\b|\bnumber of passes\b|\bclass shares\b"
    r"|\bin truth\b|\bground truths\b|\bwished for\b|\bmend(?:s|ed)?\b",
    re.IGNORECASE,
)
OPENING = re.compile(r"\s*(?:What|Where|How|Whether|Which|Who|Why)\b")


def texts() -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.suffix in (".md", ".py", ".toml")]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    return sorted(path for path in found if path != Path(__file__).resolve() and path.name != "uv.lock")


@pytest.mark.slow
def test_no_phrase_of_the_dialect() -> None:
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = BANNED.search(line)
            if match:
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group(0)!r} in {line.strip()[:90]!r}")
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_docstrings_begin_with_a_noun_phrase_or_an_imperative() -> None:
    found = []
    for path in (path for path in texts() if path.suffix == ".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node) or ""
                if OPENING.match(text):
                    found.append(
                        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0][:90]!r}"
                    )
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "The file appears whole or not at all.",
        "runtime = x is none",
        "It is told that",
        "waits longer, later each time",
    ],
)
def test_the_lint_finds_what_it_should(text: str) -> None:
    assert BANNED.search(text)
