"""fit_steering learns how a pretrained network's filters are distributed; inits named "..._steer" draw from it.

`steering` is: in `convert`, this Steering; in `make_bank`, one of its layers, a FilterMixture; in a FilterBank and in
the operators, the bank's index or coefficients.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.files import write_atomic
from explainfix_ext._support.layout import as_pair, as_picture
from explainfix_ext._support.models import check_is_module, globs, left_out, spatial_convolutions
from explainfix_ext._support.text import first_line, table_lines, times

from .mixture import COEFFICIENTS, Components, FilterMixture, fit_basis, fit_mixture

METHODS = ("guided", "svd", "dct")
STEERED = tuple(f"{method}_steer" for method in METHODS)  # the initialisations that draw from a Steering
_FORMAT = "explainfix_ext steering 1"


@dataclass(frozen=True, eq=False, repr=False)
class Steering:
    """A Steering holds the statistics of a network's spatial filters; `print(steering)` shows them as a table.

    `fit_steering` makes it.

    Attributes:
        method: "guided", "svd" or "dct"; `convert` takes it as init "guided_steer", "svd_steer" or "dct_steer".
        layers: name of each fitted layer, in the model's order -> its FilterMixture.

    Examples:
        >>> steering = fit_steering(torchvision.models.resnet18())
        >>> steering.layers["conv1"].basis.shape
        torch.Size([49, 7, 7])
    """

    method: str
    layers: Mapping[str, FilterMixture]

    def __str__(self) -> str:
        rows = [("layer", "filters", "functions kept", "energy kept"), *(_row(*item) for item in self.layers.items())]
        lines = table_lines(rows)
        tensors = {id(t): t.nbytes for m in self.layers.values() for t in (m.basis, m.centres, m.spread)}
        return "\n".join([*lines, f"{self.method}: {len(self.layers)} layers, {sum(tensors.values()) / 1e6:.2f} MB"])

    def match(self, model: nn.Module) -> dict[str, str | None]:
        """Finds for each spatial convolution of a model the fitted layer from which its filters are drawn.

        This is the fitted layer of the same name and kernel size. If there is none, it is one of the same kernel size:
        preferably one that is depthwise (or not) like the convolution, and of those the one at the nearest relative
        depth, in the order of `named_modules`. It is None if no fitted layer has the kernel size.
        """
        convs = spatial_convolutions(model)
        last = max(len(convs) - 1, 1)
        return {name: self._source(name, conv, at / last) for at, (name, conv) in enumerate(convs.items())}

    def _source(self, name: str, conv: Any, depth: float) -> str | None:
        if name in self.layers and self.layers[name].kernel_size == as_pair(conv.kernel_size):
            return name
        last, depthwise = max(len(self.layers) - 1, 1), conv.in_channels == conv.groups
        distance = {
            other: ((mixture.filters[1] == 1) != depthwise, abs(at / last - depth))
            for at, (other, mixture) in enumerate(self.layers.items())
            if mixture.kernel_size == as_pair(conv.kernel_size)
        }
        return min(distance, key=distance.__getitem__) if distance else None

    def save(self, path: str | Path) -> None:
        """Writes the safetensors file `path`, whole or not at all.

        Raises:
            ValueError: safetensors is not installed.
        """
        tensors: dict[str, Tensor] = {}
        layers: list[dict[str, Any]] = []
        bases: dict[int, str] = {}  # with method "svd" layers share a basis, which is then saved once
        for name, mixture in self.layers.items():
            basis = bases.setdefault(id(mixture.basis), f"basis.{len(bases)}")
            tensors |= {basis: mixture.basis, f"centres.{name}": mixture.centres, f"spread.{name}": mixture.spread}
            layers.append({"name": name, "basis": basis, "filters": mixture.filters, "energy": mixture.energy})
        about = {"format": _FORMAT, "method": self.method, "layers": json.dumps(layers)}
        data = _safetensors().torch.save(tensors, about)
        write_atomic(Path(path), lambda file: file.write(data))

    @classmethod
    def load(cls, path: str | Path) -> Steering:
        """Reads the file `path` that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is something else or damaged, or safetensors is not installed.
        """
        safetensors = _safetensors()
        try:
            with safetensors.safe_open(path, "pt") as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise ValueError(f"its format must be {_FORMAT!r}, got {about.get('format')!r}")
                layers = json.loads(about["layers"])
                bases = {name: file.get_tensor(name) for name in {layer["basis"] for layer in layers}}
                found = {}
                for layer in layers:
                    name, (o, i) = layer["name"], layer["filters"]
                    centres, spread = (file.get_tensor(f"{part}.{name}") for part in ("centres", "spread"))
                    filters, energy = (int(o), int(i)), float(layer["energy"])
                    found[name] = FilterMixture(bases[layer["basis"]], centres, spread, filters, energy)
                if about["method"] not in METHODS:
                    raise ValueError(f"its method must be one of {', '.join(METHODS)}, got {about['method']!r}")
                return cls(about["method"], found)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} not found: expected a file of Steering.save") from None
        except Exception as e:  # what a library raises for any bytes, and Python for any JSON
            raise ValueError(f"{path} is not a file of Steering.save, or is damaged: {first_line(e):.300}") from None


def fit_steering(
    model: nn.Module | Sequence[nn.Module],
    method: str = "guided",
    *,
    energy: float = 1.0,
    components: slice | Sequence[int] | None = None,
    centred: bool = False,
    coefficients: str = "kde",
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> Steering:
    """Learns from pretrained networks how spatial filters are distributed, so that `convert` can draw new ones.

    Call it as in `convert(other, "guided_steer", steering=fit_steering(pretrained), seed=0)`. A layer's filters
    F (n, kh kw) are expressed on V, the principal axes of F^T F, and a distribution is fitted to the coefficients
    F V^T. No model is changed.

    Args:
        model: any module; its Conv2d and Conv1d layers larger than 1x1 are read, subclasses included. Or a list of
            modules: layers of one name, kernel size and kind (depthwise or not) are then fitted as one.
        method: "guided": each layer has its own axes (GuidedSteer); "svd": layers of one kernel size share theirs, and
            have their own coefficients (SVDsteering); "dct": V is the DCT-II basis, so that new filters keep its fast
            kernels (the authors' DCT2steering, with coefficients="normal").
        energy: share of the squared norm of F that the kept axes must have, in (0, 1]. Fewer axes make the new filters
            low-rank, hence fast.
        components: the axes to keep, by number from the strongest, instead of by energy: `slice(None, -3)` leaves out
            the three weakest (the authors' ablation GuidedSteer U3), `slice(1, None)` the strongest (V1).
        centred: subtract the mean filter first, and add it to every new filter.
        coefficients: "kde": a Gaussian kernel at each filter (Scott's factor), so all coefficients are kept, 4 bytes
            each; "normal": each coefficient on its own, by mean and standard deviation.
        include, exclude: globs of names of layers to fit, or not to fit.

    Raises:
        TypeError: model is neither a module nor a list of modules.
        ValueError: an argument is out of range, there is no layer to fit, a layer has no such components, or a weight
            is not finite or on the meta device.

    Examples:
        >>> steering = fit_steering(torchvision.models.resnet18(), "svd", energy=0.8, coefficients="normal")
        >>> model = torchvision.models.resnet34()
        >>> len(convert(model, "svd_steer", steering=steering).converted)
        33

        The equivalent PyTorch, for the functions of a layer, which are its principal axes up to their signs:

        >>> conv = nn.Conv2d(4, 8, 3)
        >>> filters = conv.weight.detach().double().flatten(0, 1).flatten(1)
        >>> axes = torch.linalg.svd(filters, full_matrices=False).Vh
        >>> basis = fit_steering(nn.Sequential(conv)).layers["0"].basis.flatten(1)
        >>> torch.allclose((basis @ axes.T).abs(), torch.eye(9, dtype=torch.float64), atol=1e-6)
        True

    Source: ExplainFix 2023, GuidedSteer and SVDsteering; the authors' code, DCT2steering. The authors choose axes by
    their share of sum sigma^4; here it is sum sigma^2, which is what `energy` means everywhere in this package.
    """
    _check(method, energy, components, coefficients)
    if isinstance(model, (list, tuple)):
        weights = _pooled(model, include, exclude)
    else:
        weights = _weights(model, include, exclude)
    groups: dict[Any, list[str]] = {}
    for name, weight in weights.items():
        groups.setdefault(weight.shape[2:] if method == "svd" else name, []).append(name)
    found: dict[str, FilterMixture] = {}
    for names in groups.values():
        filters = torch.cat([weights[name].flatten(0, 1) for name in names])
        rows, constant = fit_basis(filters, energy, centred, components, dct=method == "dct")
        basis = rows.reshape(-1, *weights[names[0]].shape[2:])
        for name in names:
            found[name] = fit_mixture(weights[name], basis, constant, coefficients)
    return Steering(method, {name: found[name] for name in weights})


def _check(method: str, energy: float, components: Components, coefficients: str) -> None:
    for name, value, choices in (("method", method, METHODS), ("coefficients", coefficients, COEFFICIENTS)):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], got {energy}")
    if components is not None and energy != 1:
        raise ValueError(f"energy must be left out where components are given, got {energy}")


def _weights(model: Any, include: Any, exclude: Any) -> dict[str, Tensor]:
    """Returns the weights to fit: name -> (O, I/groups, kh, kw) float64 on the CPU."""
    convs = spatial_convolutions(model)
    if not convs:
        raise ValueError("model has no spatial convolution to fit")
    include, exclude = globs(include) or ["*"], globs(exclude)
    weights = {}
    for name, conv in convs.items():
        if left_out(name, include, exclude):
            continue
        if conv.weight.is_meta:
            raise ValueError(f"{name}: its weight is on the meta device, and has no numbers to fit")
        weights[name] = as_picture(conv.weight.detach()).cpu().double()
        if not bool(torch.isfinite(weights[name]).all()):
            raise ValueError(f"{name}: its weight must be finite, got NaN or infinity")
    if not weights:
        raise ValueError(f"include and exclude must leave a spatial convolution, such as {next(iter(convs))}")
    return weights


def _pooled(models: Sequence[nn.Module], include: Any, exclude: Any) -> dict[str, Tensor]:
    """Returns the weights of several models, those of one name, kernel size and kind as one: of O = 1, or I = 1 where
    they are depthwise. They are in the order of their relative depth, which `match` goes by."""
    if not models:
        raise TypeError("model must be an nn.Module or a list of them, got an empty one")
    found: dict[Any, list[tuple[float, Tensor]]] = {}
    for model in models:
        check_is_module(model)
        weights = _weights(model, include, exclude)
        last = max(len(weights) - 1, 1)
        for at, (name, weight) in enumerate(weights.items()):
            depthwise = weight.shape[1] == 1
            pooled = weight.flatten(0, 1)[:, None] if depthwise else weight.flatten(0, 1)[None]
            found.setdefault((name, weight.shape[2:], depthwise), []).append((at / last, pooled))
    layers: dict[str, Tensor] = {}
    for (name, size, depthwise), parts in sorted(
        found.items(), key=lambda item: sum(d for d, _ in item[1]) / len(item[1])
    ):
        label = name if name not in layers else f"{name}, {times(size)}{', depthwise' if depthwise else ''}"
        layers[label] = torch.cat([weight for _, weight in parts], 0 if depthwise else 1)
    return layers


def _row(name: str, mixture: FilterMixture) -> tuple[str, ...]:
    (o, i), (kh, kw) = mixture.filters, mixture.kernel_size
    return name, f"{o}x{i} of {kh}x{kw}", f"{len(mixture.basis)} of {math.prod((kh, kw))}", f"{mixture.energy:.4f}"


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ValueError("to save or load a Steering: pip install safetensors") from None
    return safetensors
