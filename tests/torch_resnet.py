"""ResNets written with torch.nn, in torchvision's structure and names: what MiniRes's networks are held against."""

import torch
from torch import nn


class ShortcutA(nn.Module):
    def __init__(self, out_channels, stride):
        super().__init__()
        self.out_channels, self.stride = out_channels, stride

    def forward(self, x):
        before = (self.out_channels - x.shape[1]) // 2
        after = self.out_channels - x.shape[1] - before
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, after))


def shortcut(option, in_channels, out_channels, stride, norm=True):
    if option != "C" and stride == 1 and in_channels == out_channels:
        return None
    if option == "A":
        return ShortcutA(out_channels, stride)
    layers = [nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(out_channels)] if norm else []))


def skip(block, x):
    return x if block.downsample is None else block.downsample(x)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_channels, channels, stride=1, option="B", **unused):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(option, in_channels, channels, stride)

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + skip(self, x))


class PlainBlock(BasicBlock):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.downsample = None

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(
        self, in_channels, channels, stride=1, option="B", groups=1, base=64, dilation=1, stride_in="3x3", **unused
    ):
        super().__init__()
        width = int(channels * (base / 64)) * groups
        first, second = (1, stride) if stride_in == "3x3" else (stride, 1)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, dilation, dilation, groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = shortcut(option, in_channels, 4 * channels, stride)

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + skip(self, x))


class PreActBlock(nn.Module):
    expansion = 1

    def __init__(self, in_channels, channels, stride=1, option="B", **unused):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.downsample = shortcut(option, in_channels, channels, stride, norm=False)

    def forward(self, x):
        out = torch.relu(self.bn1(x))
        identity = x if self.downsample is None else self.downsample(out)
        return self.conv2(torch.relu(self.bn2(self.conv1(out)))) + identity


class PreActBottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels, channels, stride=1, option="B", **unused):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.downsample = shortcut(option, in_channels, 4 * channels, stride, norm=False)

    def forward(self, x):
        out = torch.relu(self.bn1(x))
        identity = x if self.downsample is None else self.downsample(out)
        out = self.conv2(torch.relu(self.bn2(self.conv1(out))))
        return self.conv3(torch.relu(self.bn3(out))) + identity


class ResNet(nn.Module):
    def __init__(
        self,
        block,
        layers,
        widths,
        num_classes=10,
        in_channels=3,
        stem="cifar",
        option="A",
        groups=1,
        base=64,
        stride_in="3x3",
        dilate=(False, False, False),
        final_norm=False,
    ):
        super().__init__()
        block = globals()[block] if isinstance(block, str) else block
        channels = widths[0]
        if stem == "cifar":
            self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
        if block not in (PreActBlock, PreActBottleneck):
            self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        dilation = 1
        for i, (count, width) in enumerate(zip(layers, widths, strict=True)):
            before, stride = dilation, 2 if i > 0 else 1
            if i > 0 and dilate[i - 1]:
                dilation, stride = dilation * stride, 1
            blocks = []
            for j in range(count):
                more = {"groups": groups, "base": base, "stride_in": stride_in}
                blocks.append(
                    block(
                        channels,
                        width,
                        stride if j == 0 else 1,
                        option,
                        dilation=before if j == 0 else dilation,
                        **more,
                    )
                )
                channels = width * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.stages = len(layers)
        self.norm = nn.BatchNorm2d(channels) if final_norm else None
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.conv1(x)
        if hasattr(self, "bn1"):
            x = torch.relu(self.bn1(x))
        x = self.maxpool(x)
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        if self.norm is not None:
            x = torch.relu(self.norm(x))
        return self.fc(x.mean((2, 3)))
