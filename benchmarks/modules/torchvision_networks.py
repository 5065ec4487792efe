"""torchvision's own networks as `--torch FILE.py:FACTORY` takes them: without arguments or weights."""

import torchvision  # pyright: ignore[reportMissingImports]  # of a benchmark, not of the project


def resnet18_imagenet():
    """ResNet-18."""
    return torchvision.models.resnet18()


def resnet34_imagenet():
    """ResNet-34."""
    return torchvision.models.resnet34()


def resnet50_imagenet():
    """ResNet-50, stride on the 3x3 (v1.5)."""
    return torchvision.models.resnet50()


def mobilenetv2_imagenet():
    """MobileNetV2."""
    return torchvision.models.mobilenet_v2()


def deeplabv3_resnet50():
    """DeepLabv3 of 13 classes, output stride 8, without the second head."""
    return torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=13, aux_loss=None
    )
