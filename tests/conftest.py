"""Settings for all tests: small machines, no network, repeatable numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# A run's own folders come from these; a developer's shell must not send a test's files there.
for _name in [name for name in os.environ if name.startswith("SM_")]:
    del os.environ[_name]


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _active_residual_branches() -> Iterator[None]:
    """Keep the residual branches of random networks active: at 0, as they start, no comparison would cover them.

    Tests of the start itself call zero_residual_branches.
    """
    from pspnet.models import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "zero_residual_branches", lambda backbone: None)
        yield
