"""save_memory(checkpoint="blocks"), and our drop-ins under torch's own checkpoints, against the plain network."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from support.bench_networks import MEMORY_MODELS
from support.training_step import EXACT, check_same, gradient_error, image, prepared, step
from support.two_processes import states_of_two
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import explainfix_ext as efx
from explainfix_ext.commands.benchmarks.models import freeze_spatial
from explainfix_ext.memory import save_memory
from explainfix_ext.memory.blocks import find_blocks
from explainfix_ext.memory.count import count_step
from explainfix_ext.training.models import logits_of

pytest.importorskip("torchvision")
from torchvision.ops import StochasticDepth

NAMES = [n if n == "efficientnet_b0" else pytest.param(n, marks=pytest.mark.slow) for n in MEMORY_MODELS]


class _Residual(nn.Module):
    """Draws random numbers, in its Dropout and StochasticDepth, and adds in place."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Sequential(efx.FixedConv2d(8, 8, 3, 1, 1, seed=0), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, momentum=None), nn.Dropout(0.3))
        self.depth = StochasticDepth(0.5, "row")

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.wide(self.spatial(x)))
        y += x
        return y.relu_()


def _network(blocks: int = 5) -> nn.Module:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    return prepared(nn.Sequential(stem, nn.Sequential(*[_Residual() for _ in range(blocks)]), nn.Conv2d(8, 4, 1)))


def _changed(model: nn.Module, mode: str = "recompute") -> nn.Module:
    save_memory(model, mode, checkpoint="blocks")
    return model


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return logits_of(model(x)).square().mean()


def _converted(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = freeze_spatial(MEMORY_MODELS[name]())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        efx.convert(model, "dct2", seed=0)
    return prepared(model.train())


@pytest.mark.parametrize("name", NAMES)
def test_every_network_in_every_mode(name: str) -> None:
    model, x = _converted(name), image(2, size=64)
    plain = step(copy.deepcopy(model), x, _loss)
    for mode in EXACT:
        check_same(plain, step(_changed(copy.deepcopy(model), mode), x, _loss))
    ours = step(_changed(model, "int8"), x, _loss)
    assert gradient_error(plain, ours, [n for n, p in model.named_parameters() if p.requires_grad]) < 0.01


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_torchs_checkpoint_around_each_block(name: str, reentrant: bool) -> None:
    """It moves running statistics twice, for the plain network as for ours; so parameters alone are compared."""
    model, x = _converted(name), image(2, size=64)
    blocks = [n for n, m in model.named_modules() if any(m is b for b in find_blocks(model).values())]
    for network in (plain := copy.deepcopy(model)), (ours := model):
        network.eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
    want = step(plain, x, _loss)
    for mode in (*EXACT, "int8"):
        found = copy.deepcopy(ours)
        save_memory(found, mode)
        for block in map(found.get_submodule, blocks):
            block.forward = partial(checkpoint, block.forward, use_reentrant=reentrant)
        got = step(found, x, _loss)
        keys = [k for k in want if not k.startswith("buffer")]
        if mode == "int8":
            assert gradient_error(want, got, [k for k in keys if k not in ("x", "loss")]) < 0.01
        else:
            check_same({k: want[k] for k in keys}, {k: got[k] for k in keys})


@pytest.mark.parametrize("mode", EXACT)
def test_random_numbers_and_statistics_are_those_of_one_run(mode: str) -> None:
    model, x = _network(), image()
    plain = step(copy.deepcopy(model), x)
    check_same(plain, step(_changed(model, mode), x))
    assert model[1][0].wide[1].num_batches_tracked == 1
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_blocks_are_found_and_named() -> None:
    model = _network()
    changes = save_memory(model, "exact", checkpoint="blocks")
    assert changes.checkpoints == ("1[0:3]", "1[3:5]")
    assert "checkpoints: 1[0:3], 1[3:5]" in str(changes)
    lists = nn.ModuleDict({"body": nn.ModuleList([_Residual(), _Residual()])})
    assert list(find_blocks(lists)) == ["body.0", "body.1"]


def test_the_peak_is_lower() -> None:
    peaks = []
    for how in ("off", "blocks"):
        model = _network(16)
        save_memory(model, "exact", checkpoint=how)
        peaks.append(count_step(model, lambda net: net(image(4, size=32)).square().mean()).peak)
    assert peaks[1] < 0.75 * peaks[0]


def test_off_and_copies() -> None:
    model, x = _network(), image()
    classes, names = [type(m) for m in model.modules()], list(model.state_dict())
    plain = step(copy.deepcopy(model), x)
    ours = _changed(copy.deepcopy(model))
    assert list(ours.state_dict()) == names
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        check_same(plain, step(copied, x))
        assert copied[1][0] is not ours[1][0]
        save_memory(copied, "off")
        assert [type(m) for m in copied.modules()] == classes


def test_autocast_eval_and_no_gradient() -> None:
    model, x = _network().float(), image().float()
    ours = _changed(copy.deepcopy(model))
    save_memory(model, "recompute")

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x).float().square().mean()

    check_same(step(model, x, loss), step(ours, x, loss), 1e-5)
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), ours.eval()(x), atol=1e-6)


@pytest.mark.slow
def test_compiled_it_runs_as_torchs_own() -> None:
    model, x = _network(), image()
    plain, ours = copy.deepcopy(model), torch.compile(_changed(model), backend="aot_eager")
    for network in (plain, ours):
        torch.manual_seed(1)
        network(x).square().mean().backward()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-12)


class _Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) * self.calls


def test_what_cannot_run_twice_is_refused() -> None:
    model = _changed(nn.Sequential(_Counts(), _Counts()))
    with pytest.raises(RuntimeError, match="_Counts in one changes its buffer 'calls'"):
        model(image().float())


@pytest.mark.parametrize(
    ("mode", "how", "words"),
    [("exact", "block", "checkpoint must be off or blocks"), ("off", "blocks", "checkpoint must be off in mode 'off'")],
)
def test_wrong_arguments(mode: str, how: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        save_memory(_network(), mode, checkpoint=how)


def test_a_model_without_blocks_is_refused_and_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
    with pytest.raises(ValueError, match=r"wants a model with blocks .* got Sequential"):
        save_memory(model, "exact", checkpoint="blocks")
    assert type(model[1]) is nn.ReLU


def _train(rank: int, folder: Path, how: str) -> None:
    torch.manual_seed(0)
    model = _network()
    save_memory(model, "recompute", checkpoint=how)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for i in range(3):
        optimizer.zero_grad()
        torch.manual_seed(i)
        wrapped(image(4)[rank::2]).square().mean().backward()
        optimizer.step()
    if rank == 0:
        torch.save(model.state_dict(), folder / "state.pt")


@pytest.mark.slow
def test_two_ddp_processes(tmp_path: Path) -> None:
    states = states_of_two(_train, tmp_path, ("off", "blocks"))
    for name, want in states[0].items():
        if want.is_floating_point():
            assert torch.allclose(states[1][name], want, rtol=1e-9, atol=1e-11), name
