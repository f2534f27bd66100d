"""stream: outputs and gradients are those of the whole image, in float64, and what cannot be streamed is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.compare import relative_error
from support.streamed import TOLERANCE, Net, by_axis, calibrated, check_same, fixed, images, step, strided, unpadded
from support.training_step import Block, prepared
from support.two_processes import states_of_two
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.memory.count import count_step
from explainfix_ext.training.models import build_model

NETS: dict[str, Callable[[], nn.Module]] = {
    "strided": strided,
    "unpadded": unpadded,
    "by axis": by_axis,
    "decoder": lambda: Block().eval(),
    "reflected": lambda: Net(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(8, 8, 3)),
}


@pytest.mark.parametrize("mode", ["off", "recompute"])
@pytest.mark.parametrize("name", NETS)
def test_is_the_whole_image(name: str, mode: str) -> None:
    plain = calibrated(NETS[name])
    model = copy.deepcopy(plain)
    efx.save_memory(model, mode)
    for size, tile in [((61, 47), 7), ((96, 33), 24), ((64, 80), 1000)]:
        if name == "decoder" and size[0] % 2:
            size = (60, 48)  # its skips fit these alone
        efx.stream(model, tile)
        check_same(model, plain, images(*size))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tile"),
    [("resnet18", 96), ("vgg11_bn", 128), ("mobilenet_v2", 128), ("unet_encoder", 64), ("bottleneck", 64)],
)
def test_networks(name: str, tile: int) -> None:
    models = pytest.importorskip("torchvision.models")

    def make() -> nn.Module:
        torch.manual_seed(0)
        if name == "unet_encoder":
            levels = build_model("unet_plain", 3, 1).down
            return nn.Sequential(*[layer for level in levels for layer in (level, nn.MaxPool2d(2))])
        model = build_model(name, 3, 10) if name == "bottleneck" else getattr(models, name)(num_classes=10)
        efx.convert(model, seed=0)
        return model.apply(lambda m: m.eval() if isinstance(m, nn.Dropout) else None)

    plain = calibrated(make)
    model = copy.deepcopy(plain)
    efx.save_memory(model, "recompute")
    efx.stream(model, tile)
    check_same(model, plain, images(517, 389, batch=1))


def test_a_report() -> None:
    model = calibrated(strided)
    report = efx.stream(model, 100)
    assert report.until == "body"
    assert report.stop == "mean: its result has 2 axes"
    assert report.tile == (96, 96)
    assert report.period == (8, 8)
    assert report.halo == (24, 24)
    assert report.norms == ("body.1", "body.4.body.1")
    assert report.cost == (120 / 96) ** 2
    assert "tile: 96 x 96 pixels, and 24 x 24 of halo" in str(report)
    assert efx.stream(model, 100, until="body.3").until == "body.3"
    assert "a tile of 64 would make that less than 2" in str(efx.stream(model, 8))


def test_small_images_share_tiles() -> None:
    model, plain = calibrated(strided), calibrated(strided)
    efx.stream(model, 64)
    seen: list[tuple[int, ...]] = []
    model.body[0].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    check_same(model, plain, images(32, 32, batch=6))
    assert seen == [(4, 3, 32, 32), (2, 3, 32, 32)] * 2


def test_empty_batch() -> None:
    model = calibrated(strided)
    efx.stream(model, 16)
    assert model(images(40, 40, batch=0)).shape == (0, 5)


def test_hooks_of_parameters_are_called_once_with_the_sum() -> None:
    model, plain = calibrated(strided), calibrated(strided)
    efx.stream(model, 16)
    seen: list[Tensor] = []
    model.body[0].weight.register_hook(seen.append)
    check_same(model, plain, images(60, 50))
    assert len(seen) == 1
    assert torch.equal(seen[0], model.body[0].weight.grad)


def test_frozen_parameters_stay_so() -> None:
    model = calibrated(strided)
    efx.stream(model, 16)
    model.body.requires_grad_(False)
    model(images(60, 50)).sum().backward()
    assert model.body[0].weight.grad is None
    assert model.head.weight.grad is not None
    with torch.no_grad():
        assert not model(images(60, 50)).requires_grad


def test_dropout_draws_the_same_again() -> None:
    """The output is linear in the weights, so that its derivative along them is itself: with the same masks alone."""
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 3, bias=False), nn.Dropout(0.5), nn.AvgPool2d(2))
    model = nn.Sequential(*body).double()
    efx.stream(model, 8)
    state = torch.get_rng_state()
    y = model(images(40, 30))
    after = torch.get_rng_state()
    y.sum().backward()
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(after, state)
    assert float((model[0].weight.grad * model[0].weight).sum().detach()) == pytest.approx(
        float(y.sum().detach()), rel=1e-9
    )


def test_images_stay_uint8() -> None:
    plain = calibrated(strided)
    model = copy.deepcopy(plain)
    efx.stream(model, 16, transform=lambda x: (x.double() - 128) / 64)
    image = torch.randint(0, 256, (2, 3, 50, 41), dtype=torch.uint8)
    expected = plain((image.double() - 128) / 64)
    got = model(image)
    for y in (got, expected):
        y.square().sum().backward()
    assert relative_error(got.detach(), expected.detach()) < TOLERANCE
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert relative_error(p.grad, q.grad) < TOLERANCE


def test_autocast() -> None:
    plain = calibrated(strided).float()
    model = copy.deepcopy(plain)
    efx.stream(model, 16)
    grads = []
    for net in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            y = net(images(60, 50).float())
        assert y.dtype == torch.bfloat16
        y.float().square().mean().backward()  # autocast is over by then
        grads.append([p.grad for p in net.parameters()])
    for got, expected in zip(*grads, strict=True):
        assert got.dtype == torch.float32
        assert relative_error(got, expected) < 0.02


def test_modes_and_statistics_stay() -> None:
    model = calibrated(strided).train()
    before = copy.deepcopy(model.state_dict())
    efx.stream(model, 16)
    model(images(60, 50)).sum().backward()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "running" in name)


def test_calibrate() -> None:
    model = strided().double()
    with pytest.raises(ValueError, match=r"body\.1 is a BatchNorm2d without statistics.* give calibrate"):
        efx.stream(model, 16)
    assert "forward" not in vars(model)
    image = images(60, 50)
    efx.stream(model, 1000, calibrate=[(image, torch.zeros(2)), (2 * image, torch.zeros(2))])
    x = model.body[0](torch.stack([image, 2 * image]).flatten(0, 1)).detach()
    halves = [half.mean((0, 2, 3)) for half in x.split(2)]
    assert relative_error(model.body[1].running_mean, (halves[0] + halves[1]) / 2) < 1e-12
    assert model.body[1].momentum == 0.1
    assert model.body[1].training


def test_a_calibration_that_fails_changes_nothing() -> None:
    model = calibrated(strided)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="calibrate must have at least one batch"):
        efx.stream(model, 16, calibrate=[])
    with pytest.raises(RuntimeError):
        efx.stream(model, 16, calibrate=[images(60, 50), torch.zeros(1, 7, 60, 50).double()])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name[:4] == "body")


def test_an_error_in_the_backward_pass_leaves_the_model() -> None:
    calls = []

    def transform(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) == 20:
            raise KeyError("a user's error")
        return x

    model, plain = calibrated(strided).train(), calibrated(strided)
    report = efx.stream(model, 16, transform=transform)
    assert report.tile == (16, 16)
    y = model(images(60, 50))
    assert 10 < len(calls) < 20
    with pytest.raises(KeyError, match="a user's error"):
        y.sum().backward()
    assert all(module.training for module in model.modules())
    check_same(model, plain, images(60, 50))


def test_copies_and_pickles_are_streamed(tmp_path: Path) -> None:
    model = calibrated(strided)
    efx.stream(model, 16)
    expected = step(model, images(60, 50))
    torch.save(model, tmp_path / "model.pt")
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ):
        model.body[0].weight.data.zero_()  # the copy does not refer to the original
        seen: list[int] = []
        other.body[0].register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].shape[2]))
        for name, got in step(other, images(60, 50)).items():
            assert torch.equal(got, expected[name]), name
        assert max(seen) < 60


def test_unstream() -> None:
    model, plain = calibrated(strided), calibrated(strided)
    efx.stream(model, 16)
    efx.unstream(model)
    assert "forward" not in vars(model)
    efx.unstream(model)
    check_same(model, plain, images(60, 50))


def test_memory_follows_the_tile() -> None:
    """Apart from the image, the output and its gradient, a step takes as much for an image of twice the height."""
    model = prepared(Net(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), fixed(8, 8, padding=1), nn.Conv2d(8, 8, 3, 2, 1)))
    efx.stream(model, 64)
    peaks = []
    for height in (256, 512):
        image = images(height, 256, batch=1)
        usage = count_step(model, lambda net, image=image: net(image).square().mean())
        peaks.append(usage.peak - 8 * (image.numel() // 3 // 16) * 8)  # either is alive
    assert peaks[1] == pytest.approx(peaks[0], rel=0.1)
    whole = efx.memory_report(model, image)
    assert whole.ours.peak < 0.25 * whole.frozen.peak


def _train(rank: int, folder: Path, streamed: bool) -> None:
    model = calibrated(strided)
    if streamed:
        efx.stream(model, 16)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(images(60, 50, batch=4)[rank::2]).square().mean().backward()
        optimizer.step()
    if rank == 0:
        torch.save(model.state_dict(), folder / "state.pt")


@pytest.mark.slow
def test_two_ddp_processes(tmp_path: Path) -> None:
    states = states_of_two(_train, tmp_path, (False, True))
    for name, expected in states[0].items():
        if isinstance(expected, Tensor) and expected.is_floating_point():
            assert relative_error(states[1][name], expected) < TOLERANCE, name
