"""The networks of `kerasseg` in PyTorch, for `benchmarks.train_step`: each layer has the same size.

Images (B,3,H,W) are RGB in 0..255, segmentations (B,K,H,W); channels are last in memory.
"""

import torch
from torch import nn
from torch.nn import functional as F

BATCH_NORM_MOMENTUM = 0.03


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, bias: bool = False):
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel - 1) // 2, dilation, bias=bias)


def norm(channels: int, epsilon: float = 1e-3) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, epsilon, BATCH_NORM_MOMENTUM)


class Residual(nn.Module):
    """A series of layers with a shortcut around them."""

    def __init__(self, layers: nn.Sequential, shortcut: nn.Module, out: nn.Module):
        super().__init__()
        self.layers, self.shortcut, self.out = layers, shortcut, out

    def forward(self, x):
        return self.out(self.layers(x) + self.shortcut(x))


def relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


class ResNet50(nn.Module):
    """As in keras.applications: convolutions with biases, strides in the 1x1 ones; output stride 16."""

    low_channels, high_channels = 256, 2048

    def __init__(self, channels: int = 3):
        super().__init__()
        first = convolution(channels, 64, 7, 2, bias=True)
        self.low = nn.Sequential(first, norm(64), relu(), nn.MaxPool2d(3, 2, 1), self.stack(64, 64, 3))
        self.high = nn.Sequential(
            self.stack(256, 128, 4, stride=2), self.stack(512, 256, 6, stride=2), self.stack(1024, 512, 3, dilation=2)
        )

    @staticmethod
    def stack(inputs: int, width: int, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
        def block(inputs: int, stride: int) -> Residual:
            outputs = 4 * width
            shortcut: nn.Module = nn.Identity()
            if inputs != outputs:
                shortcut = nn.Sequential(convolution(inputs, outputs, 1, stride, bias=True), norm(outputs))
            layers = nn.Sequential(
                *(convolution(inputs, width, 1, stride, bias=True), norm(width), relu()),
                *(convolution(width, width, 3, 1, dilation, bias=True), norm(width), relu()),
                *(convolution(width, outputs, 1, bias=True), norm(outputs)),
            )
            return Residual(layers, shortcut, relu())

        return nn.Sequential(block(inputs, stride), *(block(4 * width, 1) for _ in range(blocks - 1)))

    def forward(self, x):
        low = self.low(x)
        return low, self.high(low)


class ResNet34(nn.Module):
    """As in keras-cv; output stride 16."""

    low_channels, high_channels = 64, 512

    def __init__(self, channels: int = 3):
        super().__init__()
        first = convolution(channels, 64, 7, 2)
        self.low = nn.Sequential(first, norm(64), relu(), nn.MaxPool2d(3, 2, 1), self.stack(64, 64, 3))
        self.high = nn.Sequential(
            self.stack(64, 128, 4, stride=2), self.stack(128, 256, 6, stride=2), self.stack(256, 512, 3, dilation=2)
        )

    @staticmethod
    def stack(inputs: int, width: int, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
        def block(inputs: int, stride: int, dilations: tuple[int, int]) -> Residual:
            shortcut: nn.Module = nn.Identity()
            if inputs != width:
                shortcut = nn.Sequential(convolution(inputs, width, 1, stride), norm(width))
            layers = nn.Sequential(
                *(convolution(inputs, width, 3, stride, dilations[0]), norm(width), relu()),
                *(convolution(width, width, 3, 1, dilations[1]), norm(width)),
            )
            return Residual(layers, shortcut, relu())

        # The convolution that had the stride sees neighbours, those after it every second pixel.
        first = block(inputs, stride, (1, dilation))
        return nn.Sequential(first, *(block(width, 1, (dilation, dilation)) for _ in range(blocks - 1)))

    def forward(self, x):
        low = self.low(x)
        return low, self.high(low)


class MobileNetV2(nn.Module):
    """As in keras.applications, up to the last block, or to the tap of `mobilenet_v2_c4`; output stride 16."""

    low_channels, high_channels = 144, 320

    def __init__(self, channels: int = 3):
        super().__init__()
        first = nn.Sequential(convolution(channels, 32, 3, 2), norm(32), nn.ReLU6(inplace=True))
        self.before = nn.Sequential(
            first, self.block(32, 16, expansion=1), self.block(16, 24, stride=2), self.block(24, 24)
        )
        tapped = self.layers(24, 32, stride=2)
        self.expand, self.rest = tapped[:3], tapped[3:]
        self.high = nn.Sequential(
            *(self.block(32, 32), self.block(32, 32), self.block(32, 64, stride=2)),
            *(self.block(64, 64), self.block(64, 64), self.block(64, 64), self.block(64, 96)),
            *(self.block(96, 96), self.block(96, 96), self.block(96, 160)),
            *(self.block(160, 160, dilation=2), self.block(160, 160, dilation=2), self.block(160, 320, dilation=2)),
        )

    @staticmethod
    def layers(inputs: int, outputs: int, stride: int = 1, dilation: int = 1, expansion: int = 6) -> nn.Sequential:
        width = expansion * inputs
        expand = [convolution(inputs, width, 1), norm(width), nn.ReLU6(inplace=True)] if expansion > 1 else []
        depthwise = nn.Conv2d(width, width, 3, stride, dilation, dilation, groups=width, bias=False)
        project = convolution(width, outputs, 1), norm(outputs)
        return nn.Sequential(*expand, depthwise, norm(width), nn.ReLU6(inplace=True), *project)

    @classmethod
    def block(cls, inputs: int, outputs: int, stride: int = 1, dilation: int = 1, expansion: int = 6) -> nn.Module:
        layers = cls.layers(inputs, outputs, stride, dilation, expansion)
        return Residual(layers, nn.Identity(), nn.Identity()) if inputs == outputs and stride == 1 else layers

    def forward(self, x):
        low = self.expand(self.before(x))
        return low, self.high(self.rest(low))


BACKBONES = {"resnet50": ResNet50, "resnet34": ResNet34, "mobilenet_v2": MobileNetV2}


class DeepLabV2Head(nn.Module):
    stride = 16

    def __init__(self, low_channels: int, channels: int, classes: int):
        super().__init__()
        self.branches = nn.ModuleList(
            convolution(channels, classes, 3, dilation=rate, bias=True) for rate in (3, 6, 9, 12)
        )
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)

    def forward(self, low, high):
        return sum(branch(high) for branch in self.branches)


class DeepLabV3PlusHead(nn.Module):
    stride = 4

    def __init__(self, low_channels: int, channels: int, classes: int, head_channels: int = 256):
        super().__init__()
        width = head_channels

        def layers(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
            layer = convolution(inputs, outputs, kernel, dilation=dilation)
            nn.init.kaiming_normal_(layer.weight)
            return nn.Sequential(layer, norm(outputs), relu())

        self.branches = nn.ModuleList(
            [layers(channels, width, 1), *(layers(channels, width, 3, rate) for rate in (6, 12, 18))]
        )
        self.pool = nn.Sequential(nn.Linear(channels, width, bias=False), nn.LayerNorm(width, 1e-3), relu())
        self.project, self.pool_project = convolution(4 * width, width, 1), nn.Linear(width, width, bias=False)
        self.after = nn.Sequential(norm(width), relu(), nn.Dropout(0.1))
        self.low = layers(low_channels, 48, 1)
        self.decoder = nn.Sequential(layers(width + 48, width, 3), layers(width, width, 3))
        self.logits = convolution(width, classes, 1, bias=True)

    def forward(self, low, high):
        pooled = self.pool_project(self.pool(high.mean((2, 3))))[:, :, None, None]
        x = self.after(self.project(torch.cat([branch(high) for branch in self.branches], 1)) + pooled)
        x = F.interpolate(x, size=low.shape[2:], mode="bilinear", align_corners=False)
        return self.logits(self.decoder(torch.cat([x, self.low(low)], 1)))


HEADS = {"deeplab_v2": DeepLabV2Head, "deeplab_v3plus": DeepLabV3PlusHead}


class Segmenter(nn.Module):
    """Images to logits (B,K,H,W). With `pad` inputs become multiples of 16 first, as in kerasseg."""

    def __init__(self, backbone: nn.Module, head: nn.Module, scheme: str, pad: bool):
        super().__init__()
        self.backbone, self.head, self.scheme, self.pad = backbone, head, scheme, pad
        self.register_buffer("mean", torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1), persistent=False)

    def normalized(self, image):
        return image / 127.5 - 1.0 if self.scheme == "tf" else image.flip(1) - self.mean

    def forward(self, image):
        return self.logits(self.normalized(image))

    def logits(self, x):
        height, width = x.shape[2:]
        if not self.pad:
            return F.interpolate(self.head(*self.backbone(x)), size=(height, width), mode="bilinear")
        logits = self.head(*self.backbone(F.pad(x, (0, -width % 16, 0, -height % 16))))
        return F.interpolate(logits, scale_factor=self.head.stride, mode="bilinear")[:, :, :height, :width]


class Corrector(Segmenter):
    """Segmentation and image to logits (B,K+1,H,W)."""

    def forward(self, segmentation, image):
        return self.logits(torch.cat([self.normalized(image), segmentation], 1))


def build_segmenter(
    segmenter: str, backbone: str, classes: int, pad: bool, extra_channels: int = 0, **head_config
) -> Segmenter:
    """The segmenter; the corrector with `extra_channels`, those of the segmentation that it takes with the image."""
    features = BACKBONES[backbone](3 + extra_channels)
    glorot(features)
    head = HEADS[segmenter](features.low_channels, features.high_channels, classes, **head_config)
    scheme = "caffe" if backbone == "resnet50" and not extra_channels else "tf"
    return (Corrector if extra_channels else Segmenter)(features, head, scheme, pad)


def glorot(network: nn.Module) -> None:
    """Keras' initial weights."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Halving(nn.Conv2d):
    """4x4, stride 2: half the size, rounded up."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 4, 2)

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, 2, [1 + size % 2 for size in x.shape[2:]])


def trunk(inputs: int, channels: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (channels, 2 * channels, 4 * channels, 8 * channels):
        layers += [Halving(inputs, width), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Dropout2d(dropout)] if dropout else []
        inputs = width
    return nn.Sequential(*layers)


class PixelDiscriminator(nn.Module):
    """Segmentation to logits (B,1,H,W)."""

    def __init__(self, classes: int, channels: int = 64):
        super().__init__()
        self.layers = nn.Sequential(*trunk(classes, channels, 0.0), Halving(8 * channels, 1))
        glorot(self)

    def forward(self, segmentation):
        height, width = segmentation.shape[2:]
        logits = F.interpolate(self.layers(segmentation), scale_factor=32, mode="bilinear")
        return logits[:, :, :height, :width]


class ImageDiscriminator(nn.Module):
    """Segmentation and image to features (B,F) and logits (B,1)."""

    def __init__(self, classes: int, channels: int = 64, dropout: float = 0.5):
        super().__init__()
        self.layers = trunk(classes + 3, channels, dropout)
        self.logit = nn.Linear(8 * channels, 1)
        glorot(self)

    def forward(self, segmentation, image):
        features = self.layers(torch.cat([segmentation, image / 255], 1)).mean((2, 3))
        return features, self.logit(features)
