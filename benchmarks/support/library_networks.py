"""Networks of other libraries with our interface: RGB 0..255 in, logits at the images' size out.

Shape letters:
    N  images in the batch             K  classes
    H  image height in pixels          W  image width in pixels
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet.errors import ConfigError
from pspnet.models.constants import IMAGENET_MEAN, IMAGENET_STD


class LibraryNetwork(nn.Module):
    """A network of segmentation-models-pytorch, which accepts only sizes that are multiples of `divisor`."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, divisor: int = 8) -> None:
        super().__init__()
        self.model = model
        self.divisor = divisor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 or floating point 0..255 -> logits (N, K, H, W)."""
        height, width = images.shape[-2:]
        x = (images.to(self.mean.dtype) - self.mean) / self.std  # (N, 3, H, W)
        # The library rejects other sizes. Zero is the mean colour.
        x = F.pad(x, (0, -width % self.divisor, 0, -height % self.divisor))
        logits: Tensor = self.model(x)[:, :, :height, :width]  # (N, K, H, W)
        return logits.float()


def build_smp(name: str, num_classes: int, backbone: str = "resnet-50") -> LibraryNetwork:
    """segmentation-models-pytorch's PSPNet or DeepLabV3 with its own defaults and random weights.

    Raises ConfigError if the library is not installed.
    """
    try:
        import segmentation_models_pytorch as library
    except ImportError as error:
        raise ConfigError(
            "smp-pspnet and smp-deeplabv3 are segmentation-models-pytorch's, which is not installed: "
            "run `pip install segmentation-models-pytorch`, or leave them out."
        ) from error
    model = getattr(library, name)(backbone.replace("-", ""), encoder_weights=None, classes=num_classes)
    return LibraryNetwork(model)
