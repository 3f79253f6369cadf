"""Constants of the published networks and their weights. Needs no torch."""

from __future__ import annotations

from typing import Literal, get_args

# Blocks of layer1 to layer4 (He et al., arXiv 1512.03385, table 1).
BACKBONES = {
    "resnet-18": (2, 2, 2, 2),
    "resnet-34": (3, 4, 6, 3),
    "resnet-50": (3, 4, 6, 3),
    "resnet-101": (3, 4, 23, 3),
}
# Backbones of basic blocks; the others have bottlenecks.
BASIC_BACKBONES = ("resnet-18", "resnet-34")

# ImageNet's statistics for RGB on the scale 0..255. All published backbones were trained with them.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# Smallest height and width of an image in pixels: one cell of the map at output stride 32.
MIN_SIZE = 32

# Programs whose weights can be imported.
Program = Literal["torchvision", "semseg", "mmsegmentation", "smp", "gluoncv"]
PROGRAMS: tuple[str, ...] = get_args(Program)
