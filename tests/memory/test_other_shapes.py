"""Rows (N, C), sequences (N, C, L) and volumes (N, C, D, H, W): torch's gradients and statistics, and fewer bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.training_step import EXACT, check_saving, mean_square
from torch import Tensor, nn

from explainfix_ext.memory import memory_report, save_memory
from explainfix_ext.ops import passes

Make = Callable[..., nn.Module]
SHAPES = {2: (7, 6), 3: (3, 6, 11), 5: (2, 6, 3, 4, 5)}
# By the number of axes: a layer of 6 channels whose weight is learned, and the BatchNorm after it.
LAYERS: dict[int, tuple[Make, Make]] = {
    2: (lambda: nn.Linear(6, 6), nn.BatchNorm1d),
    3: (lambda: nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d),
    5: (lambda: nn.Conv3d(6, 6, 3, padding=1), nn.BatchNorm3d),
}
KINDS = {
    "plain": {},
    "no weight": {"affine": False},
    "cumulative": {"momentum": None},
    "untracked": {"track_running_stats": False},
}


class _Twice(nn.Module):
    """Reads the output of the layers twice, after an addition that goes round them."""

    def __init__(self, layer: nn.Module, norm: nn.Module, act: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.layers, self.last = nn.Sequential(layer, norm, act), last

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return self.last(y) * y + x


def _net(axes: int, act: nn.Module, blocks: int = 2, **options: object) -> nn.Module:
    torch.manual_seed(0)
    layer, norm = LAYERS[axes]
    model = nn.Sequential(*(_Twice(layer(), norm(6, **options), act, layer()) for _ in range(blocks))).double()
    for module in model.modules():
        if isinstance(module, LAYERS[axes][1]):
            for p in module.parameters():
                nn.init.uniform_(p, 0.5, 1.5)
            for name, b in module.named_buffers():
                if name != "num_batches_tracked":
                    nn.init.uniform_(b, 0.5, 1.5)
    return model


def _input(axes: int, layout: str = "contiguous") -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(SHAPES[axes], dtype=torch.float64)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last_3d) if axes == 5 else x
    return x.transpose(0, 1).contiguous().transpose(0, 1) if layout == "transposed" else x


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", SHAPES)
def test_kinds_of_batch_norm(axes: int, kind: str, mode: str) -> None:
    model = _net(axes, nn.SiLU(), **KINDS[kind])
    check_saving(model, _input(axes), mode, tolerance=1e-11)
    check_saving(model.eval(), _input(axes), mode, tolerance=1e-11)
    for p in model[0].layers[1].parameters():
        p.requires_grad_(False)
    check_saving(model, _input(axes), mode, tolerance=1e-11)


@pytest.mark.parametrize(
    "act", [nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.2), nn.Hardswish(), nn.GELU()], ids=str
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("axes", SHAPES)
def test_layouts(axes: int, layout: str, act: nn.Module) -> None:
    """The norm comes first, too, and after a tensor that is in no order that torch has a name for."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = x * 1  # in the layout of x
        return model(model[0].layers[1:](y)[:, :6]).square().mean()

    for mode in EXACT:
        check_saving(_net(axes, act), _input(axes, layout), mode, loss, tolerance=1e-11)


@pytest.mark.parametrize("mode", EXACT)
def test_a_strided_convolution_of_volumes(mode: str) -> None:
    """A 1x1x1 with a stride keeps the voxels that it reads."""
    torch.manual_seed(0)
    layers = (
        nn.Conv3d(6, 4, 1, (1, 2, 3)),
        nn.BatchNorm3d(4),
        nn.SiLU(),
        nn.Conv3d(4, 4, (1, 3, 2), (2, 1, 2), (0, 1, 1)),
    )
    model = nn.Sequential(*layers, nn.Dropout(0.4), nn.Conv3d(4, 2, 2, dilation=(1, 2, 1), bias=False)).double()
    for layout in ("contiguous", "channels_last"):
        x = torch.nn.functional.pad(_input(5, layout), (2, 2, 2, 2, 2, 2))
        check_saving(model, x, mode, tolerance=1e-11)


@pytest.mark.parametrize("axes", SHAPES)
def test_checkpoints_of_blocks(axes: int) -> None:
    model, x = _net(axes, nn.ReLU(), blocks=4), _input(axes)
    ours = check_saving(model, x, "recompute")
    save_memory(ours, "recompute", checkpoint="blocks")
    plain = _net(axes, nn.ReLU(), blocks=4)
    for net in (plain, ours):
        net.zero_grad()
    mean_square(plain, x).backward()
    mean_square(ours, x).backward()
    for (name, want), got in zip(plain.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize(("act", "share"), [(nn.ReLU(), 0.75), (nn.SiLU(), 0.6)], ids=["ReLU", "SiLU"])
def test_fewer_bytes_are_kept(axes: int, act: nn.Module, share: float) -> None:
    layer, norm = LAYERS[axes]
    layers = [m for _ in range(3) for m in (layer(), norm(6), act)]
    model, x = nn.Sequential(*layers, layer()), torch.randn(64, *SHAPES[axes][1:])
    before = memory_report(model, x).ours.kept_bytes
    save_memory(model, "exact")
    assert memory_report(model, x).ours.kept_bytes < share * before


@pytest.mark.parametrize("conv", ["Conv3DSimple", "Conv3DNoTemporal"])
def test_torchvisions_video_blocks(conv: str) -> None:
    video = pytest.importorskip("torchvision.models.video.resnet")
    torch.manual_seed(0)
    model = nn.Sequential(*(video.BasicBlock(6, 6, getattr(video, conv)) for _ in range(3))).double()
    x = _input(5)
    before = memory_report(model, x).ours.kept_bytes
    for mode in EXACT:
        ours = check_saving(model, x, mode)
        assert memory_report(ours, x).ours.kept_bytes < 0.9 * before


def test_wrong_shapes_raise_torchs_errors() -> None:
    for axes, message in ((2, "expected 5D input"), (3, "expected 5D input")):
        model = nn.Sequential(nn.BatchNorm3d(6))
        save_memory(model)
        with pytest.raises(ValueError, match=message):
            model(_input(axes).float().requires_grad_())
    model = nn.Sequential(nn.BatchNorm1d(6))
    save_memory(model)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.ones(1, 6, requires_grad=True))


@pytest.mark.parametrize("axes", SHAPES)
def test_passes_view_and_do_not_copy(axes: int) -> None:
    for layout in ("contiguous", "channels_last"):
        x = _input(axes, layout)
        assert passes._as_image(x).data_ptr() == x.data_ptr()
