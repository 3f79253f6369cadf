"""The reader in docs/mask_format.md reads the files of this package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from pspnet.masks.segment import SegmentHeader
from pspnet.masks.writer import SegmentFolder, SegmentSettings
from tests.masks.mask_items import START, item, scene

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "mask_format.md"


def test_the_documented_reader_reads_a_segment(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[-1]
    names: dict[str, Any] = {}
    exec(code, names)
    segments = SegmentFolder(tmp_path, SegmentSettings(key_every=5), SegmentHeader(0, 0, ("road", "car")))
    rng = np.random.default_rng(0)
    masks = [scene(index) for index in range(8)] + [rng.integers(0, 256, (24, 33)).astype(np.uint8)] + [scene(2)] * 3
    for index, mask in enumerate(masks):
        segments.append(item(index, mask, fragment=str(index // 3)))
    path = segments.finish()
    found = list(names["read_segment"](path))
    assert len(found) == 12
    for index, (frame, captured, mask, classes) in enumerate(found):
        assert (frame, captured, classes) == (index, START + index / 10, ["road", "car"])
        assert np.array_equal(mask, masks[index])
