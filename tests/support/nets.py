"""Small networks, each with one way of moving, tying or mixing channels; and what tests ask of any."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import explainfix_ext as efx
from support.bench_networks import randomise_norms

# Arguments of channelprune with which whole channels go, also those that are constants.
BY_CHANNEL: dict[str, Any] = {"criterion": "l1", "granularity": "channel", "bn_bias": "drop"}
# Kind of filters -> arguments of convert; None: the filters stay learned.
KINDS: dict[str, dict[str, Any] | None] = {
    "learned": None,
    "dct2": {},
    "low rank": {"init": "ghaar4_s1"},
    "hadamard": {"init": "hadamard"},
    "coefficients": {"learn_coeff": True},
    "pointwise": {"pointwise": True},
}


def made(make: Callable[[], nn.Module], kind: str = "learned") -> Any:
    """A network in eval mode, the same at each call, with norms that do something and filters of one of KINDS."""
    torch.manual_seed(0)
    model = randomise_norms(make()).eval()
    if (options := KINDS[kind]) is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*little is left to learn")
            efx.convert(model, **{"init": "dct2", "seed": 0, **options})
    return model


def images(n: int = 2, size: int = 8) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def check_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def conv(i: int, o: int, k: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


class Net(nn.Module):
    """stem -> middle -> tail -> mean -> head."""

    def __init__(self, width: int = 16, tail: int = 16) -> None:
        super().__init__()
        self.stem, self.bn = conv(3, width), nn.BatchNorm2d(width)
        self.tail, self.head = conv(tail, 8), nn.Linear(8, 4)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.bn(self.stem(x))))
        return self.head(F.relu(self.tail(x)).mean((2, 3)))


class Residual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(16, 16), conv(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        y = x + self.b(F.relu(self.a(x)))
        y += self.a(x)  # a module that runs twice
        return y


class Gate(Net):
    """Squeeze and excitation, with functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = conv(16, 16), conv(16, 4, 1), conv(4, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = F.adaptive_avg_pool2d(x, 1)
        return x * self.up(F.relu(self.down(gate))).sigmoid()


class Chunk(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        p, q = x.chunk(2, dim=1)
        return torch.cat([self.a(p), q], 1)


class SplitHalf(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(8, 16)

    def middle(self, x: Tensor) -> Tensor:
        p, q = torch.split(x, x.shape[1] // 2, 1)
        return self.a(p * q)


class Shuffle(Net):
    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        return x.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


class ShuffleModule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.shuffle = nn.ChannelShuffle(4)

    def middle(self, x: Tensor) -> Tensor:
        return self.shuffle(x)


class Flip(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.flip(1)


class PixelShuffle(Net):
    def __init__(self) -> None:
        super().__init__(tail=4)
        self.up = nn.PixelShuffle(2)

    def middle(self, x: Tensor) -> Tensor:
        return self.up(x)


class PixelUnshuffle(Net):
    def __init__(self) -> None:
        super().__init__(tail=64)

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


class Groups(Net):
    """Groups of one (depthwise), many small groups, few large groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(16, 16, groups=16), conv(16, 32, groups=8), conv(32, 16, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Norms(Net):
    """GroupNorm, PReLU, InstanceNorm, a vector of scales, batch_norm as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.group, self.prelu = nn.GroupNorm(8, 16), nn.PReLU(16)
        self.instance = nn.InstanceNorm2d(16, affine=True)
        self.scale = nn.Parameter(torch.rand(16, 1, 1) + 0.5)
        self.gamma = nn.Parameter(torch.rand(16) + 0.5)
        self.register_buffer("mean", torch.rand(16))
        self.register_buffer("var", torch.rand(16) + 0.5)

    def middle(self, x: Tensor) -> Tensor:
        x = self.scale * self.instance(self.prelu(self.group(x)))
        return F.batch_norm(x, self.mean, self.var, self.gamma)


class Transposed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.grouped = nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(12, 16, 2, 2, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        return self.grouped(self.up(x))


class FlattenLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pool = conv(3, 8), conv(8, 8), nn.AdaptiveMaxPool2d(3)
        self.hidden, self.head = nn.Linear(72, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.b(F.relu(self.a(x)))))
        return self.head(F.relu(self.hidden(x.view(x.size(0), -1))))


class Last(Net):
    """Channels last, through LayerNorm and linear layers, as in ConvNeXt."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16) if norm else nn.Identity()
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)

    def middle(self, x: Tensor) -> Tensor:
        x = self.norm(x.permute(0, 2, 3, 1))
        return self.narrow(F.gelu(self.wide(x))).permute(0, 3, 1, 2)


class Attend(Net):
    """Gates of one channel: a map over the pixels, and one number an image."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.number = conv(16, 1, 7), nn.Linear(16, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.map(x)) + x.max(dim=1, keepdim=True).values
        return x * self.number(x.mean((2, 3)))[:, :, None, None].sigmoid()


class Tokens(Net):
    """A Parameter beside the channels, whose own numbers may all be useless."""

    def __init__(self) -> None:
        super().__init__(tail=20)
        self.tokens = nn.Parameter(torch.rand(1, 4, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([self.tokens.expand(x.size(0), -1, x.size(2), x.size(3)), x], 1)


class Softmax(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.softmax(1)


class Roll(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.roll(3, 1)


class FixedSlice(Net):
    def __init__(self) -> None:
        super().__init__(tail=5)

    def middle(self, x: Tensor) -> Tensor:
        return x[:, :5]


class FixedSplit(Net):
    def __init__(self) -> None:
        super().__init__(tail=6)

    def middle(self, x: Tensor) -> Tensor:
        p, q = x.split([6, 10], 1)
        return p + q.mean(1, keepdim=True)


class FixedView(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 16, 64).reshape(-1, 16, 8, 8)


class Attention(Net):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)

    def middle(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.attend(tokens, tokens, tokens, need_weights=False)[0]
        return tokens.transpose(1, 2).reshape(x.shape)


# Networks in which channels can go, and those where the middle holds them, with a word of the reason.
class Sizes(Net):
    """Splits by sizes that the module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.a, self.b = (10, 6), conv(10, 10), conv(6, 6)

    def middle(self, x: Tensor) -> Tensor:
        x = torch.split(x, self.sizes, 1)
        return torch.cat([self.a(x[0]), self.b(x[1])], 1)


PRUNABLE = {
    "plain": Net, "residual": Residual, "gate": Gate, "chunk": Chunk, "split_half": SplitHalf, "shuffle": Shuffle,
    "shuffle_module": ShuffleModule, "flip": Flip, "pixel_shuffle": PixelShuffle, "pixel_unshuffle": PixelUnshuffle,
    "groups": Groups, "norms": Norms, "transposed": Transposed, "flatten_linear": FlattenLinear,
    "last": lambda: Last(False), "layer_norm": lambda: Last(True), "tokens": Tokens, "sizes": Sizes,
}  # fmt: skip
HELD = {
    "attend": (Attend, "max"),
    "softmax": (Softmax, "softmax"),
    "roll": (Roll, "roll"),
    "fixed_slice": (FixedSlice, "getitem"),
    "fixed_split": (FixedSplit, "split"),
    "fixed_view": (FixedView, "reshape"),
    "attention": (Attention, "MultiheadAttention"),
}


class Untraceable(Net):
    """A network that torch.fx cannot trace, only record: what it computes depends on the data."""

    def middle(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Hidden(Net):
    """A network that can be neither traced nor recorded: it computes in numpy."""

    def middle(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(0.5 * x.detach().numpy())
