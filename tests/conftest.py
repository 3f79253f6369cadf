"""Settings for all tests: small machines, no network, repeatable numbers."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# A run's own folders come from these; a developer's shell must not send a test's files there.
for _name in [name for name in os.environ if name.startswith("SM_")]:
    del os.environ[_name]


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    import torch

    torch.manual_seed(0)
