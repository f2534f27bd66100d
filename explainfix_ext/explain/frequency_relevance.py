"""frequency_relevance divides an explanation among the frequencies of one layer's filters, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainfix_ext._support.layout import as_pair, as_picture
from explainfix_ext._support.models import spatial_convolutions
from explainfix_ext._support.text import shown, table_lines, unknown_name
from explainfix_ext.filters.basis import dct_basis, frequency_order
from explainfix_ext.nn.replaceable import obstacle

from .calls import calls_of, gradients
from .explained_output import Target, explained_part, images_on
from .plain import plain
from .saliency import padded
from .spectra import frequencies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bands = Sequence[str] | Mapping[str, Sequence[int]]
BANDS = ("constant", "low", "high")


@dataclass(frozen=True, eq=False)
class FrequencyMaps:
    """FrequencyMaps divide an explanation among bands of frequencies of one layer; `frequency_relevance` makes them.

    `print(maps)` shows a table; `maps.plot()` draws the maps.

    Attributes:
        layer: the layer's name.
        bands: name of a band -> its functions, as places in `frequency_order` of the layer's kernel.
        amount: name of a band -> (N,), what the band's part of the layer's output adds to the cost: sum y_F * dc/dy.
            The amounts of bands that hold all functions add up to sum y * dc/dy, y without its bias.
        map: name of a band -> (N, H, W), where in the image that comes from: x * dc/dx through the band alone, summed
            over the image's channels. These maps add up to x * dc/dx of all that passes through the layer.
        image: (N, H, W), the images, averaged over their channels.
        bits: of every layer that was tried, how much its bands differ in where they look, as `bits_of_place` says.

    Examples:
        >>> net = nn.Sequential(FixedConv2d(3, 8, 3, seed=0), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
        >>> found = frequency_relevance(net, torch.rand(2, 3, 8, 8), 1)
        >>> found.layer, list(found.map), found.map["low"].shape
        ('0', ['constant', 'low', 'high'], torch.Size([2, 8, 8]))
    """

    layer: str
    bands: dict[str, list[int]]
    amount: dict[str, Tensor]
    map: dict[str, Tensor]
    image: Tensor
    bits: dict[str, float]

    @property
    def share(self) -> dict[str, Tensor]:
        """The size of each band's amount, over the sum of these sizes: (N,) in 0 to 1, adding up to 1 over bands.

        It is NaN for an image in which the layer adds nothing.
        """
        sizes = {name: amount.abs() for name, amount in self.amount.items()}
        whole = sum(sizes.values(), torch.zeros(()))
        return {name: size / whole for name, size in sizes.items()}

    def __str__(self) -> str:
        rows = [("band", "functions", "share", "amount (mean)")]
        for name, share in self.share.items():
            functions = str(len(self.bands[name]))
            rows.append((name, functions, f"{share.mean():.1%}", f"{self.amount[name].mean():.4g}"))
        last = (
            f"layer {self.layer or '(model)'}: its bands differ by {self.bits[self.layer]:.3f} bits in where they look"
        )
        return "\n".join([*table_lines(rows), last])

    def plot(self) -> Figure:
        """Draws each image beside the maps of its bands, red where they speak for the target; this needs matplotlib."""
        from .plot_maps import plot_maps  # here, because matplotlib is optional

        return plot_maps(self.image, self.map)


def frequency_relevance(
    model: nn.Module, x: Tensor, target: Target, layer: str | None = None, bands: Bands = BANDS
) -> FrequencyMaps:
    """Divides x * dc/dx, where c is the target's logit, among the frequencies of the filters of one layer.

    A filter is a sum of DCT-II functions, `W = sum_l <W, B_l> B_l`, so that a layer's output is a sum of parts, one for
    each function: y = sum_l y_l. A function adds sum y_l * dc/dy to the explanation, and the map of a band of functions
    is what flows back to the image through its filters alone. Both are exact, for learned filters too, and add up: a
    convolution and its gradient are linear in the filters. Nothing else is changed: dc/dy is the network's own.

    Args:
        model: learned, frozen, fixed or any mix. It is not changed: all runs on `plain(model)`.
        x: (N, C, H, W) floating; or signals (N, C, L), whose maps are (N, L).
        target: classes (N,), or one class for all images; (N, H, W) for segmentation; or floating, of the output's
            shape, for c = sum(output * target).
        layer: name of a convolution larger than 1x1; None chooses the one whose bands differ most in where they look,
            by `bits_of_place`.
        bands: some of "constant", "low" and "high": function (u, v) of a kernel (kh, kw) has frequency
            (u + v) / (kh + kw - 2), which is 0, below 0.5, or more. Or name -> functions, as places in
            `frequency_order((kh, kw))`, none in two bands.

    Returns:
        FrequencyMaps, in x's dtype, on the model's device. With a skip connection around the layer the maps are of
        what passes through the layer.

    Raises:
        TypeError, ValueError: an argument does not fit; the message says what was expected and what came.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> _ = convert(model, "ghaar4_s1", seed=0)
        >>> x = torch.rand(2, 3, 32, 32)
        >>> bands = {"DC": [0], "AC": range(1, 9)}
        >>> found = frequency_relevance(model, x, torch.tensor([0, 1]), "layer1.0.conv1", bands)
        >>> found.amount["AC"].shape, found.map["DC"].shape
        (torch.Size([2]), torch.Size([2, 32, 32]))

        The equivalent PyTorch, for the amount of one function of a first layer:

        >>> layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
        >>> net, x = nn.Sequential(*layers), torch.rand(1, 3, 8, 8)
        >>> dc = torch.ones(3, 3) / 3  # the constant function, B_0
        >>> y = net[0](x).detach().requires_grad_()
        >>> net[1:](y)[0, 1].backward()
        >>> part = F.conv2d(x, (net[0].weight * dc).sum((2, 3), keepdim=True) * dc)
        >>> torch.allclose(frequency_relevance(net, x, 1, "0").amount["constant"], (part * y.grad).sum(), atol=1e-5)
        True

    Source: concepts of CRP (Achtibat et al. 2023), with functions of a basis in place of channels.
    """
    copied = plain(model).requires_grad_(False)
    images = images_on(copied, x)
    layers = _layers(copied, layer)
    wanted = {name: _functions(name, as_pair(conv.kernel_size), bands) for name, conv in layers.items()}
    with calls_of(layers) as calls, torch.enable_grad():
        output, counts = explained_part(copied(images), target)
        flows = gradients([output], [counts], [call.output for call in calls])
        if not calls:
            raise ValueError(f"layer {layer!r} gives nothing that depends on x: the model does not use it")
        found: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        for name, conv in layers.items():
            runs = [(c.input, flow) for c, flow in zip(calls, flows, strict=True) if c.name == name]
            parts = {band: _part(conv, runs, functions, images) for band, functions in wanted[name].items()}
            found[name] = ({b: amount for b, (amount, _) in parts.items()}, {b: m for b, (_, m) in parts.items()})
    bits = {name: float(bits_of_place(maps).mean()) for name, (_, maps) in found.items()}
    chosen = max(bits, key=bits.__getitem__)
    return FrequencyMaps(chosen, wanted[chosen], *found[chosen], images.detach().mean(1), bits)


def _layers(model: nn.Module, layer: str | None) -> dict[str, Any]:
    """Returns the convolutions to divide: the one asked for, or all whose filters can be taken apart."""
    spatial = spatial_convolutions(model)
    reasons = {name: obstacle(conv) for name, conv in spatial.items()}
    if layer is None:
        if all(reasons.values()):
            raise ValueError("model has no spatial convolution whose filters can be taken apart")
        return {name: conv for name, conv in spatial.items() if not reasons[name]}
    if layer not in spatial:
        raise unknown_name("layer", layer, spatial)
    if reasons[layer]:
        raise ValueError(f"layer {layer!r} cannot be taken apart: {reasons[layer]}")
    return {layer: spatial[layer]}


def _functions(layer: str, kernel: tuple[int, int], bands: Bands) -> dict[str, list[int]]:
    """Returns the functions of each band, as places in `frequency_order`."""
    if isinstance(bands, Mapping):
        given = {str(name): list(functions) for name, functions in bands.items()}
        every, count = [place for functions in given.values() for place in functions], kernel[0] * kernel[1]
        if not given or any(not isinstance(p, int) or not 0 <= p < count for p in every) or len({*every}) < len(every):
            where = f"bands of {layer or '(model)'}"
            raise ValueError(f"{where} must hold functions from 0 to {count - 1}, each once, got {shown(given)}")
        return given
    f = frequencies(kernel)
    known = dict(zip(BANDS, (f == 0, (f > 0) & (f < 0.5), f >= 0.5), strict=True))
    if isinstance(bands, str) or not bands or any(name not in known for name in bands):
        raise ValueError(f"bands must be some of {', '.join(BANDS)}, or name -> functions, got {shown(bands)}")
    return {name: known[name].nonzero()[:, 0].tolist() for name in bands}


def _part(conv: Any, runs: list[tuple[Tensor, Tensor]], functions: list[int], images: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the amount (N,) and the map (N, H, W) of some functions, over the layer's runs: (input, dc/dy)."""
    kernel, stride, dilation = (as_pair(numbers) for numbers in (conv.kernel_size, conv.stride, conv.dilation))
    basis = dct_basis(kernel).flatten(1)[frequency_order(kernel)[functions]]
    weight = as_picture(conv.weight.detach())
    band = (weight.flatten(2) @ (basis.T @ basis).to(weight)).reshape(weight.shape)
    ys = []
    for x, _ in runs:
        signal, (x, padding) = x.ndim == 3, padded(conv, x)
        y = F.conv2d(as_picture(x), band, None, stride, padding, dilation, conv.groups)
        ys.append(y.squeeze(2) if signal else y)
    flows = [flow for _, flow in runs]
    (flow,) = gradients(ys, flows, [images])
    amounts = [(y.detach() * flow).flatten(1).sum(1) for y, flow in zip(ys, flows, strict=True)]
    return torch.stack(amounts).sum(0), (images.detach() * flow).sum(1)


def bits_of_place(maps: Mapping[str, Tensor]) -> Tensor:
    """Computes how many bits the place tells of the band, and the band of the place: (N,), for maps (N, H, W).

    It is the mutual information of both, where |map| over its sum is the probability of a band and a place. It is 0 if
    all bands look at the same places, or only one looks at all, and at most log2 of the number of bands.
    """
    sizes = torch.stack([found.detach().abs().flatten(1) for found in maps.values()], 1).double()  # (N, bands, HW)
    joint = sizes / sizes.sum((1, 2), keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)

    def entropy(p: Tensor) -> Tensor:
        return -torch.special.xlogy(p, p).flatten(1).sum(1) / torch.log(p.new_tensor(2.0))

    return (entropy(joint.sum(1)) + entropy(joint.sum(2)) - entropy(joint)).clamp(min=0)
