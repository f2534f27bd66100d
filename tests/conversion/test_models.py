"""Whole networks, converted and reverted: what they compute, and that they train, are saved, copied and compiled."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from support.compare import relative_error
from support.zoo import ZOO, convert_quietly, fixed_layers, make, needs_libraries, output
from torch import nn

from explainfix_ext import revert

needs_libraries()


@pytest.mark.parametrize("name", ZOO)
def test_unchanged_computes_what_the_model_did(name: str) -> None:
    model, x = make(name)
    model.eval()
    with torch.no_grad():
        expected = output(model, x)
        convert_quietly(model, "unchanged")
        assert relative_error(output(model, x), expected) < 1e-5
        revert(model)
        assert relative_error(output(model, x), expected) < 1e-5
    assert not fixed_layers(model)


@pytest.mark.parametrize("name", ZOO)
def test_converted_model_trains_and_survives(name: str) -> None:
    """Forward, backward; state_dict into a fresh model; copies; dtypes; devices; safetensors; EMA."""
    model, x = make(name)
    spatial = [m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    report = convert_quietly(model, "dct2", seed=1)
    assert len(report.converted) == len(spatial) == len(fixed_layers(model))
    assert not report.skipped
    output(model, x).square().mean().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None or key.startswith("aux_classifier."), key  # output() leaves the auxiliary head out
        assert p.grad is None or torch.isfinite(p.grad).all(), key
    model.eval()
    with torch.no_grad():
        expected = output(model, x)
        for other in survivors(name, model):
            assert torch.equal(output(other.eval(), x), expected)


def survivors(name: str, model: nn.Module) -> Iterator[nn.Module]:
    fresh, _ = make(name, init="ghaar4_s1", seed=5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    yield fresh

    yield copy.deepcopy(model)

    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)

    with torch.device("meta"):
        empty, _ = make(name, init="dct2", seed=2)
    empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    for plain, filled in zip(model.buffers(), empty.buffers(), strict=True):
        filled.copy_(plain)  # what is not persistent
    yield empty

    yield model.to("cpu", torch.float64).to(torch.float32)

    safetensors = pytest.importorskip("safetensors.torch")
    data = safetensors.save({k: v.contiguous() for k, v in model.state_dict().items()})
    fresh, _ = make(name, init="dct2", seed=3)
    fresh.load_state_dict(safetensors.load(data))
    yield fresh

    ema = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    ema.update_parameters(model)
    yield ema.module


@pytest.mark.parametrize("name", ZOO)
def test_half_and_back(name: str) -> None:
    model, _ = make(name, init="dct2")
    filters = [layer.weight for layer in fixed_layers(model)]
    model.half().float()
    assert all(torch.equal(layer.weight, w) for layer, w in zip(fixed_layers(model), filters, strict=True))


@pytest.mark.parametrize("name", ZOO)
def test_compile_and_export(name: str) -> None:
    model, x = make(name, init="dct2")
    model.eval()
    with torch.no_grad():
        expected = output(model, x)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert relative_error(output(compiled, x), expected) < 1e-5
        program = torch.export.export(model, (x,))
        assert relative_error(output(program.module(), x), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_inductor_training_step(name: str) -> None:
    model, x = make(name, init="dct2")
    model.eval()  # batch statistics of two images would amplify rounding
    output(model, x).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    output(torch.compile(model, fullgraph=True), x).sum().backward()
    for n, p in model.named_parameters():
        assert relative_error(p.grad, expected[n]) < 1e-3, n


def test_checkpoint_of_fixed_resnet50_is_small() -> None:
    def size(model: nn.Module) -> int:
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        return file.tell()

    model, _ = make("resnet50")
    learned = size(model)
    convert_quietly(model)
    assert size(model) < 0.6 * learned


def test_timm_same_padding_is_converted_as_itself() -> None:
    model, x = make("timm.tf_efficientnet_lite0", init="unchanged")
    kinds = {type(layer).__name__ for layer in fixed_layers(model)}
    assert "FixedConv2dSame" in kinds
    revert(model)
    assert "Conv2dSame" in {type(m).__name__ for m in model.modules()}
    for size in (63, 64, 97):  # the padding depends on the size
        odd = torch.randn(1, 3, size, size)
        plain, _ = make("timm.tf_efficientnet_lite0")
        fixed = copy.deepcopy(plain)
        convert_quietly(fixed, "unchanged")
        assert relative_error(fixed.eval()(odd), plain.eval()(odd)) < 1e-5
