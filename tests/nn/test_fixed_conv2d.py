"""FixedConv2d behaves as an nn.Conv2d whose weight nobody learns."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import TOLERANCE, check_equals, relative_error
from torch import nn

import explainfix_ext as efx
from explainfix_ext import FixedConv2d

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (1, 3), "stride": (2, 1)},
    {"kernel_size": (5, 1), "dilation": 2, "padding": "same"},
    {"kernel_size": 4, "padding": "same", "bias": False},
    {"kernel_size": 2, "padding": "valid", "groups": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular", "groups": 4},
    {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
    {"kernel_size": 7, "stride": 2, "padding": 3, "dtype": torch.float64},
]


def plain_twin(conv: FixedConv2d, options: dict[str, Any]) -> nn.Conv2d:
    twin = nn.Conv2d(conv.in_channels, conv.out_channels, **options)
    twin.load_state_dict({"weight": conv.weight} | ({} if conv.bias is None else {"bias": conv.bias}))
    return twin


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("mode", [{}, {"learn_coeff": True}], ids=["fixed", "learn_coeff"])
def test_equals_conv2d(options: dict[str, Any], mode: dict[str, Any]) -> None:
    conv = FixedConv2d(4, 8, **options, **mode, init="ghaar", seed=0)
    twin = plain_twin(conv, options)
    x = torch.randn(2, 4, 13, 12, dtype=conv.weight.dtype, requires_grad=True)
    expected = check_equals(conv, twin, x)
    assert conv(x[0]).shape == expected.shape[1:]


def test_is_a_conv2d_without_a_weight() -> None:
    conv = FixedConv2d(4, 8, 3, seed=0)
    assert isinstance(conv, nn.Conv2d)
    assert [name for name, _ in conv.named_parameters()] == ["bias"]
    assert list(conv.buffers()) == []
    assert list(conv.state_dict()) == ["bias", "_extra_state"]
    assert "bank=ghaar4_s1, rank=4" in repr(conv)  # "auto", for four inputs
    for value in (torch.zeros(8, 4, 3, 3), nn.Parameter(torch.zeros(8, 4, 3, 3))):
        with pytest.raises(AttributeError, match="assign `bank`"):
            conv.weight = value


def test_seed_none_draws_from_torch_and_is_recorded() -> None:
    torch.manual_seed(3)
    a = FixedConv2d(4, 8, 3)
    torch.manual_seed(3)
    b = FixedConv2d(4, 8, 3)
    assert a.bank.recipe.seed == b.bank.recipe.seed
    assert torch.equal(a.weight, FixedConv2d(4, 8, 3, seed=a.bank.recipe.seed).weight)
    assert not torch.equal(a.weight, FixedConv2d(4, 8, 3).weight)


def test_bias_starts_as_that_of_conv2d() -> None:
    bound = 1 / (64 * 9) ** 0.5
    bias = FixedConv2d(64, 512, 3, seed=0).bias
    assert bias.abs().max() <= bound
    assert bias.abs().max() > 0.95 * bound


@pytest.mark.parametrize("mode", [{}, {"learn_coeff": True}, {"pointwise": True}], ids=str)
@pytest.mark.parametrize("init", ["dct2", "psine"])
def test_state_dict_brings_filters_to_a_fresh_layer(mode: dict[str, Any], init: str) -> None:
    conv = FixedConv2d(4, 8, 3, init=init, seed=0, density=0.5, **mode)
    for p in conv.parameters():
        nn.init.normal_(p)
    other = FixedConv2d(4, 8, 3, init=init, seed=1, **mode)
    file = io.BytesIO()
    torch.save(conv.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(1, 4, 8, 8)
    assert torch.equal(other(x), conv(x))
    assert torch.equal(other.weight, conv.weight)


def test_state_dict_of_another_init_or_geometry() -> None:
    conv, other = FixedConv2d(4, 8, 3, init="ghaar", seed=0), FixedConv2d(4, 8, 3, init="dct2", seed=0)
    other.load_state_dict(conv.state_dict())
    assert other.bank.recipe == conv.bank.recipe
    small = FixedConv2d(4, 8, 5, seed=0)
    before = small.weight
    with pytest.raises(RuntimeError, match=r"_extra_state: bank must be .* = \[8, 4, 5, 5\], got \[8, 4, 3, 3\]"):
        small.load_state_dict(conv.state_dict())
    assert torch.equal(small.weight, before)


def test_fixed_and_learned_coefficients_do_not_load_into_each_other() -> None:
    fixed, learned = FixedConv2d(4, 8, 3, seed=0), FixedConv2d(4, 8, 3, seed=1, learn_coeff=True)
    for target, source in ((fixed, learned), (learned, fixed)):
        before = target.weight.detach().clone()
        for strict in (True, False):
            with pytest.raises(RuntimeError, match="the coefficients are (fixed|learned).* in the checkpoint"):
                target.load_state_dict(source.state_dict(), strict=strict)
        assert torch.equal(target.weight, before)


def test_learned_coefficients_adopt_basis_rank_and_recipe() -> None:
    source = FixedConv2d(4, 8, 3, init="ghaar4_s1", seed=0, learn_coeff=True)
    target = FixedConv2d(4, 8, 3, init="dct2", seed=1, learn_coeff=True)
    coeff = target.coeff
    target.load_state_dict(source.state_dict())
    assert target.coeff is coeff, "an optimizer may hold it"
    assert torch.equal(target.weight, source.weight)
    target.to("meta").to_empty(device="cpu").reset_parameters()
    assert torch.equal(target.weight, FixedConv2d(4, 8, 3, init="ghaar4_s1", seed=0).weight)


def test_checkpoint_of_learned_coefficients_holds_them_once() -> None:
    state = FixedConv2d(64, 64, 3, seed=0, learn_coeff=True).state_dict()
    assert state["_extra_state"].numel() < 2000
    tiny = FixedConv2d(1, 1, (1, 5), seed=0, learn_coeff=True, shared_basis=1)
    tiny.load_state_dict(tiny.state_dict())


def test_assign_adopts_the_dtype_of_the_checkpoint() -> None:
    state = FixedConv2d(4, 8, 3, seed=0).half().state_dict()
    conv = FixedConv2d(4, 8, 3, seed=1)
    conv.load_state_dict(state, assign=True)
    assert conv.weight.dtype == conv.bias.dtype == torch.float16


def test_loading_the_same_filters_makes_none() -> None:
    conv = FixedConv2d(4, 8, 3, init="psine", seed=0)
    basis = conv.bank.basis
    conv.load_state_dict(FixedConv2d(4, 8, 3, init="psine", seed=0).state_dict())
    assert conv.bank.basis is basis


def test_plain_checkpoint_into_fixed_layer_says_convert_first() -> None:
    model = nn.Sequential(FixedConv2d(4, 8, 3, seed=0))
    plain = nn.Sequential(nn.Conv2d(4, 8, 3))
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="convert first"):
            model.load_state_dict(plain.state_dict(), strict=strict)
    with pytest.raises(RuntimeError, match=r"_extra_state"):
        plain.load_state_dict(model.state_dict())


@pytest.mark.parametrize("mode", [{}, {"learn_coeff": True}, {"pointwise": True}], ids=str)
def test_copies(mode: dict[str, Any]) -> None:
    conv = FixedConv2d(4, 8, 3, seed=0, **mode).eval()
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        y = conv(x)
        for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
            assert torch.equal(other(x), y)


def test_kept_weight_lives_only_while_it_is_right() -> None:
    conv = FixedConv2d(4, 8, 3, seed=0, plan="dense")
    x = torch.randn(1, 4, 8, 8)

    def kept() -> bool:
        return conv._held.weight is not None

    def infer() -> None:
        conv.eval()
        with torch.no_grad():
            conv(x.to(conv.bias.dtype))

    with torch.no_grad():
        conv(x)
    assert not kept(), "in train mode"
    conv.eval()(x)
    assert not kept(), "with gradients on"
    for forget in (conv.train, conv.double, lambda: setattr(conv, "bank", conv.bank), conv.float):
        infer()
        assert kept()
        forget()
        assert not kept()
    infer()
    assert pickle.loads(pickle.dumps(conv))._held.weight is None
    assert copy.deepcopy(conv)._held.weight is None


def test_kept_weight_follows_autocast() -> None:
    conv = FixedConv2d(4, 8, 3, seed=0).eval()
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        y = conv(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = conv(x)
        again = conv(x)
    assert half.dtype == torch.bfloat16
    assert relative_error(half, y) <= TOLERANCE[torch.bfloat16]
    assert torch.equal(again, y)


def test_bank_keeps_its_dtype_when_the_layer_changes() -> None:
    conv = FixedConv2d(4, 8, 3, init="psine", seed=0)
    weight = conv.weight
    half = conv.half()
    assert half.weight.dtype == torch.float16
    assert half.bank.basis.dtype == torch.float64
    assert half.bank.coeff.dtype == torch.float32
    assert half(torch.randn(1, 4, 8, 8).half()).dtype == torch.float16
    assert torch.equal(conv.half().float().weight, weight)


@pytest.mark.parametrize("mode", [{}, {"learn_coeff": True}, {"pointwise": True}], ids=str)
def test_meta_device(mode: dict[str, Any]) -> None:
    conv = FixedConv2d(4, 8, 3, seed=0, device="meta", **mode)
    with torch.device("meta"):
        same = FixedConv2d(4, 8, 3, seed=0, **mode)
    expected = FixedConv2d(4, 8, 3, seed=0, **mode)
    for meta in (conv, same):
        assert meta.bank.device.type == "meta"
        assert meta(torch.randn(2, 4, 8, 8, device="meta")).shape == (2, 8, 6, 6)
        real = meta.to_empty(device="cpu")
        real.reset_parameters()
        assert torch.equal(real.weight, expected.weight)
    moved = FixedConv2d(4, 8, 3, seed=0, **mode).to("meta").to_empty(device="cpu")
    moved.load_state_dict(expected.state_dict())
    assert torch.equal(moved.weight, expected.weight)


def test_meta_device_without_a_recipe_waits_for_a_state_dict() -> None:
    source = FixedConv2d.from_conv2d(nn.Conv2d(4, 8, 3, bias=False))
    for assign in (False, True):
        conv = FixedConv2d.from_conv2d(nn.Conv2d(4, 8, 3, bias=False, device="meta"))
        if not assign:
            conv.to_empty(device="cpu")
            with pytest.raises(ValueError, match="bank must be on x's device cpu, got meta"):
                conv(torch.randn(1, 4, 8, 8))
        conv.load_state_dict(source.state_dict(), assign=assign)
        assert torch.equal(conv.weight, source.weight)
        assert conv(torch.randn(1, 4, 8, 8)).device.type == "cpu"


def test_learned_coefficients_get_the_gradient_of_the_weight() -> None:
    conv = FixedConv2d(4, 8, 3, init="dct2", seed=0, learn_coeff=True, dtype=torch.float64)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    weight = conv.weight.detach().requires_grad_()
    grad = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    (want,) = torch.autograd.grad(F.conv2d(x, weight, conv.bias), weight, grad)
    (got,) = torch.autograd.grad(conv(x), conv.coeff, grad)
    torch.testing.assert_close(got, torch.einsum("oihw,lhw->oil", want, conv.bank.basis))
    assert conv.bank.recipe is None
    assert list(conv.state_dict()) == ["bias", "coeff", "_extra_state"]


def test_pointwise_follows_the_fixed_convolution() -> None:
    conv = FixedConv2d(4, 8, 3, seed=0, pointwise=True)
    x = torch.randn(1, 4, 8, 8)
    expected = F.conv2d(F.conv2d(x, conv.weight), conv.pointwise, conv.bias)
    assert relative_error(conv(x), expected) < 1e-6
    given = FixedConv2d.from_conv2d(nn.Conv2d(4, 8, 3), pointwise=True)
    assert torch.equal(given.pointwise.flatten(1), torch.eye(8)), "given filters start unmixed"


def test_bank_can_be_replaced() -> None:
    conv = FixedConv2d(4, 8, 3, seed=0)
    bank = efx.make_bank("ghaar4_s1", 8, 4, 3, seed=9)
    conv.bank = bank
    assert torch.equal(conv.weight, bank.weight())
    with pytest.raises(ValueError, match=r"bank must be \[O, I/groups, kh, kw\] = \[8, 4, 3, 3\], got \[8, 4, 5, 5\]"):
        conv.bank = efx.make_bank("dct2", 8, 4, 5, seed=0)
    assert torch.equal(conv.weight, bank.weight())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="unknown init 'dct'; nearest: dct2"):
        FixedConv2d(4, 8, 3, init="dct")
    with pytest.raises(ValueError, match="a bank needs no init, seed or options, got density"):
        FixedConv2d(4, 8, 3, bank=efx.make_bank("dct2", 8, 4, 3, seed=0), density=0.5)
    with pytest.raises(ValueError, match="bank must be"):
        FixedConv2d(4, 8, 3, bank=efx.make_bank("dct2", 8, 5, 3, seed=0))
    conv = FixedConv2d(4, 8, 3)
    with pytest.raises(TypeError, match="bank must be a FilterBank .* got Tensor"):
        conv.bank = torch.zeros(8, 4, 3, 3)
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        FixedConv2d(4, 8, 3)._replicate_for_data_parallel()


@pytest.mark.parametrize("mode", [{}, {"learn_coeff": True}, {"pointwise": True}], ids=str)
def test_compile_export_and_fx(mode: dict[str, Any]) -> None:
    model = nn.Sequential(
        FixedConv2d(3, 8, 3, padding="same", seed=0, **mode),
        nn.ReLU(),
        FixedConv2d(8, 8, 4, padding="same", padding_mode="reflect", init="ghaar", gain="kaiming", seed=0),
    )
    x = torch.randn(2, 3, 8, 8)
    y = model(x)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), y, atol=1e-5, rtol=1e-5)
    compiled(x).sum().backward()
    assert model[2].bias.grad is not None
    for strict in (False, True):
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=strict)
        torch.testing.assert_close(program.module()(x), y, atol=1e-5, rtol=1e-5)
        names = [str(node.target) for node in program.graph.nodes]
        assert names.count("explainfix.fixed_conv2d.default") == (1 if "learn_coeff" in mode else 2)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), y)


def test_inference_mode_and_hooks() -> None:
    conv = FixedConv2d(4, 8, 3, seed=0).eval()
    calls = []
    conv.register_forward_hook(lambda *a: calls.append(1))
    x = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        y = conv(x)
    x.requires_grad_()
    assert torch.equal(conv(x).detach(), y)
    conv(x).sum().backward()
    assert len(calls) == 3


def test_layers_made_and_loaded_in_inference_mode_can_train() -> None:
    with torch.inference_mode():
        conv = FixedConv2d(4, 8, 3, init="psine", bias=False)
        conv.load_state_dict(FixedConv2d(4, 8, 3, init="ghaar", seed=0, bias=False).state_dict())
        conv.eval()(torch.randn(1, 4, 8, 8))
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    conv(x).sum().backward()
    with torch.no_grad():
        torch.func.jvp(conv, (x.detach(),), (x.detach(),))


def test_fake_tensors_leave_nothing_behind() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    conv = FixedConv2d(4, 8, 3, seed=0).eval()
    x = torch.randn(1, 4, 8, 8)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        conv(mode.from_tensor(x))
    with torch.no_grad():
        assert type(conv(x)) is torch.Tensor


def test_traced_model_in_half_precision() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(FixedConv2d(4, 8, 3, seed=0))).half()
    assert traced(torch.randn(1, 4, 8, 8).half()).dtype == torch.float16


def test_bank_of_learned_coefficients_is_a_copy() -> None:
    conv = FixedConv2d(4, 8, 3, seed=0, learn_coeff=True)
    bank = conv.bank
    before = bank.weight()
    conv.coeff.data.add_(1)
    assert torch.equal(bank.weight(), before)


def test_meta_state_dict_and_summary() -> None:
    meta = FixedConv2d(4, 8, 3, seed=0, device="meta")
    assert torch.equal(meta.state_dict()["_extra_state"], FixedConv2d(4, 8, 3, seed=0).state_dict()["_extra_state"])
    given = FixedConv2d.from_conv2d(nn.Conv2d(4, 8, 3, device="meta"))
    assert given.state_dict()["_extra_state"].is_meta
    assert "8x4x3x3 (?)" in str(efx.summary(nn.Sequential(given)))


def test_from_conv2d_refuses_what_it_cannot_replace() -> None:
    with pytest.raises(TypeError, match="conv cannot be replaced: ConvTranspose2d: spatial, still learned"):
        FixedConv2d.from_conv2d(nn.ConvTranspose2d(4, 8, 3))
    again = FixedConv2d.from_conv2d(FixedConv2d(4, 8, 3, seed=0, pointwise=True))
    assert type(again.to_conv2d()) is nn.Conv2d
    with torch.device("meta"):
        assert FixedConv2d.from_conv2d(again.to_conv2d(), pointwise=True).pointwise.device.type == "cpu"


def test_weight_norm_style_reads_of_weight_work() -> None:
    conv = FixedConv2d(4, 8, 3, seed=0)
    assert conv.weight.shape == (8, 4, 3, 3)
    assert conv.weight.numel() == 288
    assert not conv.weight.requires_grad
