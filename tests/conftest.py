"""Settings for all tests: small machines, no network, repeatable numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# A run's own folders come from these; a developer's shell must not send a test's files there.
for _name in [name for name in os.environ if name.startswith("SM_")]:
    del os.environ[_name]


# Seconds until a test fails. A slow test trains, compiles or starts processes, on a machine that may be busy.
_TIMEOUT, _SLOW_TIMEOUT = 60, 900


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every test a timeout, and run campaigns only on request."""
    left_out = [] if "campaign" in config.option.markexpr else [item for item in items if _is(item, "campaign")]
    for item in items:
        if config.pluginmanager.hasplugin("timeout") and not _is(item, "timeout"):
            long = _is(item, "slow") or _is(item, "campaign")
            item.add_marker(pytest.mark.timeout(_SLOW_TIMEOUT if long else _TIMEOUT))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is(item: pytest.Item, name: str) -> bool:
    return item.get_closest_marker(name) is not None


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
