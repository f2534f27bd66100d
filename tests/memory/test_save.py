"""save_memory: the gradients, the running statistics and everything about the modules stay."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.training_step import Block, Loss, check_same, image, mean_square, prepared, step
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import explainfix_ext as efx
from explainfix_ext.memory import flatten, functions, memory_report, save_memory
from explainfix_ext.memory.notes import replay_of

EXACT = ["exact", "recompute"]


def check(model: nn.Module, x: Tensor, mode: str, loss: Loss = mean_square, tolerance: float = 1e-10) -> nn.Module:
    """A step of `model`, plain and in `mode`; returns the latter."""
    ours = copy.deepcopy(model)
    save_memory(ours, mode)
    check_same(step(model, x, loss), step(ours, x, loss), tolerance)
    return ours


ACTS = [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish]


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize(
    "act", [*(a(inplace=i) for a in ACTS for i in (False, True)), nn.GELU(), nn.GELU("tanh")], ids=str
)
def test_gradients_are_exact(act: nn.Module, mode: str) -> None:
    check(prepared(Block(act)), image(), mode)


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 9])
def test_batch_sizes_and_layouts(mode: str, layout: torch.memory_format, batch: int) -> None:
    model = prepared(Block()).to(memory_format=layout)
    check(model, image(batch).contiguous(memory_format=layout), mode)


@pytest.mark.parametrize("mode", EXACT)
def test_a_slice_of_channels_in_channels_last(mode: str) -> None:
    """Its strides are those of channels_last, but it has gaps: a mask was made in one order and read in the other."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        wide = torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last) * 1
        return (model(wide[:, :3]) * torch.arange(17)).square().mean()

    check(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.SiLU()).double(), image(), mode, loss)


def test_large_activations_are_made_in_parts() -> None:
    check(prepared(Block(nn.SiLU(), channels=32)), image(4, size=200), "recompute")


def test_int8_is_off_by_a_percent_at_most() -> None:
    torch.manual_seed(0)
    model, x = prepared(Block(channels=16)), image(8, size=40)
    plain = step(copy.deepcopy(model), x)
    save_memory(model, "int8")
    ours = step(model, x)
    assert relative_error(ours["loss"], plain["loss"]) < 1e-12
    parameters = [name for name, _ in model.named_parameters() if name in plain]
    error = sum((plain[n] - ours[n]).square().sum() for n in parameters) / sum(
        plain[n].square().sum() for n in parameters
    )
    assert 0 < error.sqrt() < 0.01


NORMS = {
    "no weight": lambda: nn.BatchNorm2d(8, affine=False),
    "cumulative": lambda: nn.BatchNorm2d(8, momentum=None),
    "untracked": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "eval": lambda: nn.BatchNorm2d(8).eval(),
    "frozen": lambda: nn.BatchNorm2d(8).eval().requires_grad_(False),
}


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("kind", NORMS)
def test_kinds_of_batch_norm(kind: str, mode: str) -> None:
    norm = NORMS[kind]()
    conv = efx.FixedConv2d(3, 8, 3, seed=0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), conv, norm, nn.SiLU(), nn.Conv2d(8, 4, 1)).double()
    if norm.running_mean is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    check(model, image(), mode)


@pytest.mark.parametrize("mode", EXACT)
def test_a_value_that_others_read_is_not_overwritten(mode: str) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(3, 8, 1)
            self.conv, self.norm = efx.FixedConv2d(8, 8, 3, padding=1, seed=0), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(F.relu(self.mix(x)))
            return self.norm(y) + y

    check(prepared(Reader()), image(), mode)


@pytest.mark.parametrize("mode", EXACT)
def test_hooks_and_calls_from_outside_see_the_convolution(mode: str) -> None:
    model = prepared(Block())
    plain, seen = copy.deepcopy(model), []
    save_memory(model, mode)
    model.wide[0].register_forward_hook(lambda module, args, y: seen.append(y))
    plain.wide[0].register_forward_hook(lambda module, args, y: seen.append(y))
    check_same(step(plain, image()), step(model, image()))
    assert relative_error(seen[1], seen[0]) < 1e-12

    # Not through the model's forward, for which alone it is proven that the BatchNorm is the only reader.
    x = image().requires_grad_()
    y = model.wide[0](model.narrow(model.stem(x)))
    before = y.detach().clone()
    model.wide[1](y)
    assert torch.equal(y, before)


def test_a_batch_norm_overwrites_what_only_it_reads() -> None:
    model = prepared(Block())
    save_memory(model, "recompute")
    overwritten = []
    model.wide[1].forward = lambda x, plain=model.wide[1].forward: overwritten.append(x) or plain(x)
    model(image())
    assert overwritten[0]._version > 0
    assert replay_of(overwritten[0]) is None


def test_everything_about_the_modules_stays() -> None:
    model = prepared(Block())
    keys, parameters, kinds = list(model.state_dict()), list(model.parameters()), [type(m) for m in model.modules()]
    hook = model.stem[1].register_forward_hook(lambda *args: None)
    model.stem[1].eval()
    changes = save_memory(model, "recompute")
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(isinstance(m, kind) for m, kind in zip(model.modules(), kinds, strict=True))
    assert not model.stem[1].training
    assert len(model.stem[1]._forward_hooks) == 1
    assert "memory mode recompute" in str(changes)
    for same in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(copy.deepcopy(model).apply(lambda m: m._forward_hooks.clear()))),
    ):
        assert type(same.stem[1]) is type(model.stem[1])
    save_memory(model, "off")
    assert [type(m) for m in model.modules()] == kinds
    assert not model._forward_pre_hooks
    assert not any("_saving" in vars(m) for m in model.modules())
    hook.remove()


def test_what_is_not_understood_is_left_and_listed() -> None:
    class Odd(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Odd(8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3)).double()
    model[4].forward = model[4].forward
    changes = save_memory(model, "recompute")
    assert [(name, kind) for name, kind, _ in changes.left] == [("1", "Odd"), ("2", "GroupNorm"), ("4", "Conv2d")]
    assert "its forward was replaced on the instance" in str(changes)
    del model[4].forward
    check(nn.Sequential(*(copy.deepcopy(m) for m in model)), image(), "recompute")
    before = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match="memory mode must be one of off, exact, recompute, int8, got 'all'"):
        save_memory(model, "all")
    assert [type(m) for m in model.modules()] == before


def test_convert_takes_a_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match="memory mode"):
        efx.convert(model, memory="most")
    assert type(model[0]) is nn.Conv2d
    with pytest.warns(UserWarning, match="little is left to learn"):
        efx.convert(model, memory="exact")
    assert type(model[1]).__name__ == "MemoryBatchNorm2d"


# --- training as torch does it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", EXACT)
def test_accumulation_clipping_and_a_second_backward(mode: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        model(x * 0.5).square().mean().backward()
        value = model(x).square().mean()
        value.backward(retain_graph=True)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return value

    check(prepared(Block()), image(), mode, loss)


@pytest.mark.parametrize("mode", EXACT)
def test_checkpoint_around_a_block(mode: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = model.stem(x)
        y = checkpoint(model.narrow, y, use_reentrant=False)
        return checkpoint(model.spatial, y, use_reentrant=False).square().mean()

    check(prepared(Block()), image(), mode, loss)


@pytest.mark.parametrize("mode", EXACT)
def test_saved_tensors_may_be_moved_away(mode: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return mean_square(model, x)

    check(prepared(Block(nn.SiLU())), image(), mode, loss)


@pytest.mark.parametrize("mode", EXACT)
def test_gradients_that_others_hold_are_not_overwritten(mode: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        def keep(module: nn.Module, args: tuple, y: Tensor) -> None:
            y.register_hook(lambda grad: held.append((grad, grad.clone())))

        hooks = [m.register_forward_hook(keep) for m in model.modules() if not list(m.children())]
        value = mean_square(model, x)
        for hook in hooks:
            hook.remove()
        return value

    held: list[tuple[Tensor, Tensor]] = []
    check(prepared(Block()), image(), mode, loss)
    assert len(held) > 20
    assert all(torch.equal(grad, copied) for grad, copied in held)


def test_a_gradient_of_ours_alone_is_overwritten() -> None:
    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            addresses.append((grad.data_ptr(), functions.own(grad, torch.contiguous_format).data_ptr()))
            return grad

    addresses: list[tuple[int, int]] = []
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (Probe.apply(x * 1) * 2).square().sum().backward()
    ((before, after),) = addresses
    assert before == after


def test_twice_differentiated_is_an_error() -> None:
    model, x = prepared(Block()), image().requires_grad_()
    save_memory(model, "exact")
    (grad,) = torch.autograd.grad(mean_square(model, x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("mode", [*EXACT, "int8"])
def test_autocast(mode: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        return y.float().square().mean()

    model, x = prepared(Block(channels=16), torch.float32), image(4, torch.float32, 32)
    exact = step(copy.deepcopy(model), x)
    ours = copy.deepcopy(model)
    save_memory(ours, mode)
    with_torch, with_ours = step(model, x, loss), step(ours, x, loss)
    for name in exact:
        if exact[name].norm() > 1e-6:
            error = relative_error(with_ours[name], exact[name])
            assert error < 2 * relative_error(with_torch[name], exact[name]) + 0.02, name


@pytest.mark.parametrize("mode", EXACT)
def test_compile(mode: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), efx.FixedConv2d(8, 8, 3, seed=0), nn.BatchNorm2d(8), nn.SiLU()
    ).double()
    check(model, image(), mode, lambda net, x: torch.compile(net, backend="aot_eager")(x).square().mean(), 1e-9)


def test_torch_func_and_no_grad_run_the_plain_path() -> None:
    model = prepared(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8).eval(), nn.ReLU(), nn.Conv2d(8, 1, 1)))
    parameters, x = dict(model.named_parameters()), image()

    def loss(p: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, p, (x,)).square().mean()

    before = torch.func.grad(loss)(parameters)
    save_memory(model, "recompute")
    for name, grad in torch.func.grad(loss)(parameters).items():
        assert relative_error(grad, before[name]) < 1e-12
    with torch.no_grad():
        assert replay_of(model[1](model[0](x))) is None


def test_flatten_lets_go_of_tensors_early() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            convs = [efx.FixedConv2d(i, 8, 3, padding=1, seed=0) for i in (3, 8, 16, 8)]
            layers = [nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(inplace=True)) for conv in convs]
            self.down, self.up = nn.Sequential(*layers[:2]), nn.Sequential(*layers[2:])

        def forward(self, x: Tensor) -> Tensor:
            return self.up(torch.cat([self.down(x)] * 2, 1))

    model = prepared(Skipping())
    flat = flatten(copy.deepcopy(model))
    assert list(flat.state_dict()) == list(model.state_dict())
    check_same(step(copy.deepcopy(model), image()), step(flat, image()))
    check(flat, image(), "recompute")
    save_memory(flat, "recompute")
    save_memory(model, "recompute")
    x = image(4, size=64)
    assert memory_report(flat, x).ours.peak < memory_report(model, x).ours.peak


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture
def reported() -> nn.Module:
    model = prepared(Block(), torch.float32)
    save_memory(model, "recompute")
    return model


def test_report_counts_what_is_kept(reported: nn.Module, tmp_path) -> None:
    x = image(4, torch.float32, 64)
    state = copy.deepcopy(reported.state_dict())
    report = memory_report(reported, x)
    for before, after in itertools.zip_longest(state.values(), reported.state_dict().values()):
        assert torch.equal(before, after)
    assert all(p.grad is None for p in reported.parameters())
    assert report.ours.kept_bytes < 0.5 * report.frozen.kept_bytes
    assert report.ours.kept_bytes < report.ours.peak < report.frozen.peak
    assert max(report.ours.timeline) <= report.ours.peak
    assert report.by(lambda name, kind: kind)[1]["BatchNorm2d"] >= 4 * 8 * 64 * 64 * 4  # the stem's alone
    text = str(report)
    assert "stem.1" in text
    assert "peak over frozen torch: 0." in text
    report.plot(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 10_000


def test_report_equals_what_torch_says_it_keeps(reported: nn.Module) -> None:
    """Another way to count: the saved tensors of a fresh step, by address, without those that exist anyway."""
    plain, x = copy.deepcopy(reported), image(2, torch.float32, 32)
    save_memory(plain, "off")
    efx.revert(plain)
    own = {t.untyped_storage().data_ptr() for t in (*plain.parameters(), *plain.buffers(), x)}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = plain(x).float().square().mean()
    assert sum(kept.values()) == memory_report(reported, x).frozen.kept_bytes
    del y
