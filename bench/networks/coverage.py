"""Lists the 60 architectures of prune_coverage.py: name -> how to build one with random weights and 10 classes.

They are small members of their families, from five libraries. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .blocks import torchvision_model

CLASSES = 10
_TIMM = [
    "resnet26d",
    "repvgg_a0",
    "mobileone_s0",
    "fastvit_t8",
    "ghostnet_050",
    "repghostnet_050",
    "repvit_m0_9",
    "ese_vovnet19b_dw",
    "convnext_atto",
    "convnextv2_atto",
    "inception_next_atto",
    "cspresnet50",
    "cs3darknet_s",
    "mixnet_s",
    "fasternet_t0",
    "mambaout_femto",
    "skresnet18",
    "resnest14d",
    "res2net50_14w_8s",
    "edgenext_xx_small",
    "rexnet_100",
    "nf_resnet26",
    "nf_regnet_b0",
    "ecaresnet26t",
    "efficientnet_b0",
    "mobilenetv4_conv_small",
    "regnety_002",
    "dla46_c",
    "hrnet_w18_small",
    "dpn48b",
    "lcnet_050",
    "mobilevit_xxs",
    "efficientvit_b0",
    "poolformer_s12",
    "starnet_s1",
    "hgnetv2_b0",
]
_TORCHVISION = [
    "resnet18",
    "densenet121",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "mobilenet_v2",
    "regnet_x_400mf",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
]
_SMP = [
    "Unet", "UnetPlusPlus", "FPN", "PSPNet", "DeepLabV3Plus", "Linknet",
]  # fmt: skip


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=CLASSES)


def _smp(name: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    return getattr(smp, name)("resnet18", encoder_weights=None, classes=CLASSES)


def _monai(name: str, **options: Any) -> nn.Module:
    import monai.networks.nets as nets

    return getattr(nets, name)(spatial_dims=2, in_channels=3, out_channels=CLASSES, **options)


def _hf(name: str, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **options)
    return getattr(transformers, f"{name}ForImageClassification")(config)


def coverage_networks() -> dict[str, Callable[[], nn.Module]]:
    """Returns "library name" -> a function that builds the network."""
    found: dict[str, Callable[[], nn.Module]] = {f"timm {name}": partial(_timm, name) for name in _TIMM}
    found |= {f"torchvision {name}": partial(torchvision_model, name, num_classes=CLASSES) for name in _TORCHVISION}
    found |= {f"smp {name}": partial(_smp, name) for name in _SMP}
    levels: dict[str, Any] = {"channels": (16, 32, 64), "strides": (2, 2)}
    found |= {
        "monai BasicUNet": partial(_monai, "BasicUNet"),
        "monai UNet": partial(_monai, "UNet", num_res_units=2, **levels),
        "monai AttentionUnet": partial(_monai, "AttentionUnet", **levels),
        "monai SegResNet": partial(_monai, "SegResNet", init_filters=16),
        "monai DenseNet121": partial(_monai, "DenseNet121"),
        "hf RegNet": partial(_hf, "RegNet", hidden_sizes=[32, 64, 160, 384], depths=[1, 1, 2, 1], groups_width=16),
        "hf ResNet": partial(_hf, "ResNet", hidden_sizes=[64, 128, 256, 512], depths=[1, 1, 1, 1]),
        "hf ConvNextV2": partial(_hf, "ConvNextV2", hidden_sizes=[40, 80, 160, 320], depths=[1, 1, 2, 1]),
        "hf MobileNetV2": partial(_hf, "MobileNetV2"),
        "hf PoolFormer": partial(_hf, "PoolFormer", depths=[1, 1, 2, 1]),
    }
    return found
