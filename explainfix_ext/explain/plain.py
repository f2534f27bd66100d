"""`plain` copies a model with plain convolutions in place of fixed ones, for every tool that reads weights."""

from __future__ import annotations

from torch import nn

from explainfix_ext._support.models import check_is_module, detached_copy
from explainfix_ext.memory import save_memory
from explainfix_ext.memory.streaming import unstream
from explainfix_ext.nn.swap import make_plain


def plain(model: nn.Module) -> nn.Module:
    """Returns a copy of a model in which every fixed layer is the plain convolution that computes the same.

    Libraries that read, change or replace weights (zennit, captum, torchinfo, fvcore, quantisers, weightwatcher) look
    for the Parameter `weight`, which a fixed layer does not have. Most raise an error; zennit's rules raise none, and
    give other numbers. The copy is in eval mode, `save_memory` and `stream` are undone in it, and names of modules
    stay. Its filters are Parameters without gradient, into which a learned 1x1 of the layer is folded.

    Args:
        model: any module, a FixedConv2d too. It stays as it is.

    Returns:
        The copy, on the model's device.

    Raises:
        TypeError: model is no module, or a Parameter of a fixed layer is parametrized.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> _ = convert(model, "dct2", seed=0)
        >>> type(plain(model).layer1[0].conv1).__name__, type(model.layer1[0].conv1).__name__
        ('Conv2d', 'FixedConv2d')

        The equivalent PyTorch, for a model that neither `save_memory` nor `stream` has changed:

        >>> x = torch.randn(1, 3, 32, 32)
        >>> by_hand = revert(copy.deepcopy(model)).eval()
        >>> torch.equal(plain(model)(x), by_hand(x))
        True
    """
    check_is_module(model)
    copied = detached_copy(model)
    for module in copied.modules():
        unstream(module)
    save_memory(copied, "off")
    make_plain(copied)
    return copied.eval()
