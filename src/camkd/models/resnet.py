"""Residual networks (He et al. 2015, arXiv 1512.03385).

The parameters have the names that torchvision uses, except for those of an MLP head. Images whose side is 64 pixels or
less get a stem that keeps their resolution (3x3 convolution, stride 1, no pooling). Larger images get the standard stem
(7x7 convolution, stride 2, max pooling).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from camkd.models.base import ImageClassifier

MAX_SMALL_IMAGE_SIZE = 64
"""Side in pixels of the largest image that gets the stem that keeps the resolution. Larger images are downsampled."""


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions.

    Args:
        in_channels: Channels of the input.
        width: Output channels of both convolutions and of the block, ``planes`` in torchvision.
        stride: Stride of the first convolution.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions.

    Args:
        in_channels: Channels of the input.
        width: Output channels of the 3x3 convolution, ``planes`` in torchvision. The block has four times as many
            output channels.
        stride: Stride of the 3x3 convolution, as in torchvision.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class ResNet(ImageClassifier):
    """Stages of residual blocks, global average pooling, and a linear classifier or an MLP.

    Every stage except the first halves the resolution.

    Args:
        block: Class of the residual blocks.
        widths: Output channels of the 3x3 convolutions of each stage. A stage has ``block.expansion`` times as many
            output channels.
        depths: Number of blocks of each stage.
        num_classes: Number of classes.
        image_size: Side of the images in pixels; it selects the stem.
        hidden_features: Number of hidden units of the head ``Linear - ReLU - Linear``, whose maps are gradient-based.
            With 0 the head is linear, and the maps are exact.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        widths: Sequence[int],
        depths: Sequence[int],
        num_classes: int,
        image_size: int,
        hidden_features: int = 0,
    ) -> None:
        super().__init__()
        channels = widths[0]
        keep_resolution = image_size <= MAX_SMALL_IMAGE_SIZE
        self.conv1 = _conv(3, channels, 3) if keep_resolution else _conv(3, channels, 7, 2)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if keep_resolution else nn.MaxPool2d(3, 2, 1)
        self.stage_names: list[str] = []
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            blocks = []
            for index in range(depth):
                blocks.append(block(channels, width, 2 if number > 1 and index == 0 else 1))
                channels = width * block.expansion
            self.stage_names.append(f"layer{number}")
            self.add_module(self.stage_names[-1], nn.Sequential(*blocks))
        self.fc: nn.Module = nn.Linear(channels, num_classes)
        if hidden_features:
            self.fc = nn.Sequential(
                nn.Linear(channels, hidden_features), nn.ReLU(), nn.Linear(hidden_features, num_classes)
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalize(x)))))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]
