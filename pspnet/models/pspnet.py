"""PSPNet: normalisation, backbone, heads and up-sampling in one module.

H. Zhao et al., Pyramid Scene Parsing Network, arXiv 1612.01105, figure 3.

Shape letters:
    N  images in the batch             K  classes
    H  image height in pixels          W  image width in pixels
    s  output stride of the backbone; X/s means ceil(X / s)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet.errors import PspnetError
from pspnet.models.constants import IMAGENET_MEAN, IMAGENET_STD, MIN_SIZE
from pspnet.models.pyramid import AuxiliaryHead, PSPHead
from pspnet.models.resnet import ResNet


class SegmentationNetwork(nn.Module):
    """Base class of all networks: images in, logits at the images' size out.

    `mean` and `std` are non-persistent buffers: they follow `.to()` but are not in the state dict, since they belong
    to the model's configuration.

    Args:
        backbone: returns (layer3, layer4) features; has an int `output_stride`.
        head: features of layer4 -> logits.
        auxiliary_head: features of layer3 -> logits, in training mode only; None omits it.
        align_corners: convention of the bilinear up-sampling of the logits.
        mean: per channel, RGB, on the scale 0..255.
        std: per channel, RGB, on the scale 0..255.

    Raises:
        PspnetError: mean or std are not three numbers, or a std is not positive.
    """

    mean: Tensor
    std: Tensor
    upsampled_in_training = True
    """False returns logits at the heads' size in training mode, for a loss that scores them without up-sampling."""

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        auxiliary_head: nn.Module | None = None,
        align_corners: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
            raise PspnetError(
                f"mean is {tuple(mean)} and std {tuple(std)}: expected three numbers each, for RGB on the scale "
                "0..255, and every std positive."
            )
        self.backbone = backbone
        self.head = head
        self.auxiliary_head = auxiliary_head
        self.align_corners = align_corners
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the logits of every pixel.

        Args:
            images: (N, 3, H, W) RGB, uint8 or floating point 0..255, H and W of 32 or more.

        Returns:
            Evaluation mode, or no auxiliary head: logits (N, K, H, W).
            Training mode with an auxiliary head: (logits, auxiliary logits), both (N, K, H, W).
            Logits are float32 also under autocast and in half precision.

        Raises:
            PspnetError: images have another shape or dtype, or are smaller than 32 pixels.
        """
        self._check(images)
        size = images.shape[-2:]
        x = self._normalise(images)  # (N, 3, H, W)
        layer3, layer4 = self.backbone(x)  # (N, 1024, H/min(s, 16), W/min(s, 16)), (N, 2048, H/s, W/s)
        logits = self._upsample(self.head(layer4), size)  # (N, K, H/s, W/s) -> (N, K, H, W)
        if self.auxiliary_head is None or not self.training:
            return logits
        auxiliary = self._upsample(self.auxiliary_head(layer3), size)  # (N, K, H, W)
        return logits, auxiliary

    def _check(self, images: Tensor) -> None:
        check_images(images, type(self).__name__)
        count, _, height, width = images.shape
        stride = cast(int, self.backbone.output_stride)
        if self.training and count == 1 and height <= stride and width <= stride:
            raise PspnetError(
                f"one image of {width}x{height} pixels leaves a single cell at output_stride {stride}, too few "
                "for batch norm in training: use a larger crop_size, a larger batch or a smaller output_stride."
            )

    def _normalise(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) on the scale 0..255 -> (N, 3, H, W) of mean 0 and variance 1 over ImageNet, in mean's dtype."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def _upsample(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """(N, K, H/s, W/s) in any precision -> (N, K, H, W) in float32 or float64, which losses and argmax need."""
        if self.training and not self.upsampled_in_training:
            return logits
        # torch.compile of PyTorch 2.1 cannot trace promote_types.
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return F.interpolate(logits, (size[0], size[1]), mode="bilinear", align_corners=self.align_corners)


def check_images(images: Tensor, network: str = "PSPNet") -> None:
    """Raise PspnetError for images of an unsupported shape or dtype, or smaller than 32 pixels."""
    shape = tuple(images.shape)
    if images.dim() != 4 or shape[1] != 3:
        raise PspnetError(f"images have the shape {shape}: expected (N, 3, H, W), RGB.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise PspnetError(f"images are {images.dtype}: expected uint8 or floating point, on the scale 0..255.")
    height, width = shape[2:]
    if height < MIN_SIZE or width < MIN_SIZE:
        raise PspnetError(
            f"images are {width}x{height} pixels: {network} needs at least {MIN_SIZE}x{MIN_SIZE}. "
            "Enlarge the image or the crop."
        )


class PSPNet(SegmentationNetwork):
    """Dilated ResNet, pyramid pooling head, auxiliary head on layer3 (section 3 and figure 3)."""

    backbone: ResNet
    head: PSPHead
    auxiliary_head: AuxiliaryHead | None
