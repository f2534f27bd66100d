"""The op of hadamard banks against the composed weight in float64, and every way to trace it.

test_fixed_conv2d.py differentiates and transforms it by all that torch has, as the op of other banks.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import TOLERANCE, relative_error
from support.limited_memory import limited_memory
from support.random_conv import DTYPES, Case, layout, random_conv
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import explainfix_ext as efx
from explainfix_ext.ops import binaries, reference
from explainfix_ext.ops import hadamard_conv2d as ops
from explainfix_ext.ops.binaries import ISAS, set_cpu_isa
from explainfix_ext.ops.plans.plan import PLANS, make_plan

OP = torch.ops.explainfix.hadamard_conv2d


@pytest.fixture(autouse=True)
def _best_isa_afterwards() -> Iterator[None]:
    yield
    if binaries.LOADED["cpu"] is not None:
        set_cpu_isa(None)


def available_isas() -> list[str]:
    if binaries.LOADED["cpu"] is None:
        return ["no binary"]
    return list(ISAS[: ISAS.index(set_cpu_isa(None)) + 1])


def check_case(seed: int, isas: list[str]) -> None:
    for isa in isas:
        if isa in ISAS:
            set_cpu_isa(isa)
        random_conv(seed, hadamard=True).check()


@pytest.mark.parametrize("chunk", range(4))
def test_op_equals_float64_on_random_geometry(chunk: int) -> None:
    isas = available_isas()
    for seed in range(chunk, 500, 4):
        check_case(seed, [random.Random(seed).choice(isas)])


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(10))
def test_op_equals_float64_on_5000_geometries(chunk: int) -> None:
    for seed in range(500 + chunk, 5500, 10):
        check_case(seed, available_isas())


def case_of_eights(seed: int, dtype: torch.dtype, most: int, device: str) -> Case:
    """Channels are multiples of 8, up to about `most`, and the rest is such that the kernel of a GPU takes it."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    groups = rng.choice([1, 1, 1, 2, 4])
    eights = max(1, most // groups // 8)
    channels, outputs = (groups * 8 * rng.randint(1, eights) for _ in range(2))
    if rng.random() < 0.5:  # most layers are so
        channels = outputs = groups * 8 * 2 ** rng.randint(0, eights.bit_length() - 1)
    density = rng.choice([1.0, 1.0, 0.5, 0.125])
    bank = efx.make_bank("hadamard", outputs, channels, 3, groups=groups, seed=seed, density=density)
    x = layout(rng, torch.randn(rng.randint(1, 3), channels, rng.randint(3, 12), rng.randint(3, 12)).to(dtype))
    bias = torch.randn(outputs).to(device, dtype) if rng.random() < 0.5 else None
    stride = (rng.choice([1, 1, 2]), rng.choice([1, 1, 2]))
    geometry = {"stride": stride, "padding": (rng.randint(0, 3), rng.randint(0, 3)), "groups": groups}
    return Case(x.to(device), bank.to(device), bias, geometry, "hadamard")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_channels_by_eights_equal_float64(dtype: torch.dtype) -> None:
    for seed in range(40):
        case_of_eights(seed, dtype, most=136, device="cpu").check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_many_channels_by_eights_equal_float64(dtype: torch.dtype) -> None:
    for seed in range(40, 210):
        case_of_eights(seed, dtype, most=1040 if seed % 10 == 0 else 264, device="cpu").check()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_channels_by_eights_equal_float64_cuda(dtype: torch.dtype) -> None:
    with torch.backends.cudnn.flags(allow_tf32=False):  # what the dense plan does is as exact as can be
        for seed in range(170):
            case_of_eights(seed, dtype, most=1040, device="cuda").check()


def test_auto_is_the_transform_and_a_call_that_no_kernel_does_is_dense() -> None:
    bank = efx.make_bank("hadamard", 24, 16, 3, seed=0)
    if binaries.LOADED["cpu"] is not None:
        names = {dtype: make_plan(bank, dtype).name for dtype in DTYPES}
        assert names[torch.float64] == "dense"
        assert names[torch.float32] == names[torch.bfloat16] == "hadamard"
        assert make_plan(bank, torch.float32, stride=(2, 1)).name == "hadamard"
    for geometry in ({"dilation": (1, 2), "stride": (2, 2)}, {"stride": (1, 3)}):
        assert make_plan(bank, torch.float32, **geometry, force="hadamard").name == "dense"


# --- the raw op -------------------------------------------------------------------------------------------------------


def raw_args(
    layout: torch.memory_format = torch.contiguous_format, bias: bool = True, dtype: torch.dtype = torch.float64
) -> tuple:
    """Every argument different from every other of its kind, so that a swapped one is seen."""
    bank = efx.make_bank("hadamard", 6, 8, (3, 2), groups=2, seed=1, terms=2, density=0.5)
    f = bank.hadamard
    x = torch.randn(2, 8, 11, 9, dtype=dtype).to(memory_format=layout).requires_grad_()
    b = torch.randn(6, dtype=dtype, requires_grad=True) if bias else None
    geometry = ([2, 1], [1, 0], [1, 2], 2, f.order, f.stages, 0.7)
    return (x, *f.tensors, None, b, *geometry, PLANS["hadamard"])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_opcheck(layout: torch.memory_format) -> None:
    args = raw_args(layout, layout is torch.channels_last, torch.float32)
    torch.library.opcheck(OP, args)
    y = OP(*args).detach().requires_grad_()
    torch.library.opcheck(torch.ops.explainfix.hadamard_conv2d_input_grad, (y, *args[1:6], [11, 9], *args[7:]))


def test_raw_op_differentiates_twice() -> None:
    x, *rest = raw_args()
    x = x[:, :, :5, :4].detach().requires_grad_()

    def f(x: Tensor, bias: Tensor) -> Tensor:
        return OP(x, *rest[:5], bias, *rest[6:])

    assert torch.autograd.gradcheck(f, (x, rest[5]))
    assert torch.autograd.gradgradcheck(f, (x, rest[5]), fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
def test_binary_equals_reference(dtype: torch.dtype, dilation: int) -> None:
    bank = efx.make_bank("hadamard", 6, 4, (3, 5), seed=0, density=0.5, terms=2)
    f = bank.hadamard
    geometry = ([2, 1], [1, 2], [1, dilation], 1, f.order, f.stages, 0.37, PLANS["hadamard"])
    x = torch.randn(2, 4, 9, 12, dtype=dtype)
    y, expected = (op(x, *f.tensors, None, None, *geometry) for op in (OP, reference.hadamard_conv2d))
    assert relative_error(y, expected) <= TOLERANCE[dtype]
    grads = (ops.PAIR.input_grad, reference.hadamard_conv2d_input_grad)
    dx, expected = (op(y, *f.tensors, None, [9, 12], *geometry) for op in grads)
    assert relative_error(dx, expected) <= TOLERANCE[dtype]


# --- tracers ----------------------------------------------------------------------------------------------------------


def layers(**options: Any) -> torch.nn.Sequential:
    """Hadamard layers of all that the kernel takes, and one that it does not, by dilation."""
    torch.manual_seed(0)
    fixed = {"init": "hadamard", "seed": 0, **options}
    return torch.nn.Sequential(
        efx.FixedConv2d(16, 24, 3, padding=1, **fixed),
        efx.FixedConv2d(24, 12, 5, stride=2, padding=2, groups=2, **fixed),
        efx.FixedConv2d(12, 12, 3, dilation=2, padding="same", **fixed),
    )


def same_numbers(traced: Any, model: torch.nn.Module, sizes: Any = ((2, 9, 9), (3, 13, 8))) -> None:
    for n, h, w in sizes:
        x = torch.randn(n, 16, h, w, requires_grad=True)
        y, expected = traced(x), model(x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        grad = torch.randn_like(expected)
        (a,), (b,) = torch.autograd.grad(y, x, grad), torch.autograd.grad(expected, x, grad)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_compile_fullgraph() -> None:
    """Without inductor, which test_fixed_conv2d.py runs."""
    torch.compiler.reset()
    model = layers()[:1]
    same_numbers(torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager"), model)


def test_export_has_the_op_and_any_size() -> None:
    model = layers()
    n, h, w = (torch.export.Dim(name, min=4, max=64) for name in "nhw")
    program = torch.export.export(model, (torch.randn(4, 16, 9, 9),), dynamic_shapes=({0: n, 2: h, 3: w},))
    assert sum(node.target is OP.default for node in program.graph.nodes) == 3
    same_numbers(program.module(), model, ((4, 9, 9), (5, 13, 8)))


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore:.*deprecated:DeprecationWarning")
def test_jit_trace_is_saved_and_loaded() -> None:
    model, file = layers(), io.BytesIO()
    torch.jit.save(torch.jit.trace(model, torch.randn(2, 16, 9, 9)), file)
    file.seek(0)
    same_numbers(torch.jit.load(file), model)


def test_fx_sees_one_call_a_layer() -> None:
    model = layers()

    class Open(torch.fx.Tracer):
        def is_leaf_module(self, module: torch.nn.Module, name: str) -> bool:
            return False

    graph = Open().trace(model)
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert [node.target for node in calls] == [efx.functional.convolve_hadamard] * 3
    same_numbers(torch.fx.GraphModule(model, graph), model)


def test_autocast_casts_as_conv2d_does(device: str) -> None:
    bank = efx.make_bank("hadamard", 8, 4, 3, seed=0).to(device)
    x, bias = torch.randn(1, 4, 6, 6, device=device), torch.randn(8, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = efx.fixed_conv2d(x, bank, bias)
        expected = F.conv2d(x, bank.weight(), bias)
        wide = efx.fixed_conv2d(x.double(), bank, bias.double())
    assert y.dtype == expected.dtype == torch.bfloat16
    assert wide.dtype == torch.float64
    assert relative_error(y, expected) <= TOLERANCE[torch.bfloat16]


def test_the_convolutions_of_an_onnx_file_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    for seed in range(150):
        random_conv(seed, dtype=torch.float64, hadamard=True).check()


# --- memory -----------------------------------------------------------------------------------------------------------


class Outputs(TorchDispatchMode):
    """Notes the sizes of all tensors that torch's operators make."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.numbers += [t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)]
        return out


@pytest.mark.parametrize("pointwise", [False, True])
def test_no_tensor_has_a_number_for_each_filter(pointwise: bool) -> None:
    """Operators' results, forward and backward: none has O I numbers, but for a learned 1x1 and its gradient."""
    conv = efx.FixedConv2d(512, 512, 3, padding=1, init="hadamard", seed=0, pointwise=pointwise)
    x = torch.randn(1, 512, 4, 4, requires_grad=True)
    with Outputs() as seen:
        conv(x).sum().backward()
    assert len(seen.numbers) > 3
    assert max(n for n in seen.numbers if not pointwise or n != 512 * 512) < 512 * 32
    assert max(t.numel() for t in conv.bank.tensors) < 512 * 32
    assert all(plan.packed is None or plan.packed.nbytes < 512 * 32 for plan in conv._held.plans.values())


MALFORMED: dict[str, Any] = {  # name of the argument -> what makes a wrong one of it
    "columns": lambda t: t.double(),
    "rows": lambda t: t[:, :, :1],
    "outputs": lambda t: t + 100,
    "inputs": lambda t: t - 1,
    "order": lambda n: n + 1,
    "stages": lambda n: n | 64,
    "plan": lambda n: 1,
}


@pytest.mark.skipif(binaries.LOADED["cpu"] is None, reason="no compiled CPU kernels")
@pytest.mark.parametrize("name", MALFORMED)
def test_what_the_kernel_indexes_by_is_checked(name: str) -> None:
    names = ("x", "columns", "rows", "outputs", "inputs", "packed", "bias")
    names += ("stride", "padding", "dilation", "groups", "order", "stages", "scale", "plan")
    args = dict(zip(names, raw_args(dtype=torch.float32), strict=True))
    args[name] = MALFORMED[name](args[name])
    with torch.no_grad(), pytest.raises(RuntimeError, match=rf"{name} must be [^\n]*$"):
        OP(*args.values())


@pytest.mark.skipif(
    not torch._C._dispatch_has_kernel_for_dispatch_key("explainfix::hadamard_conv2d", "CPU"),
    reason="no compiled kernel: the reference composes the filters",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_kernels_scratch_memory_has_no_number_for_each_filter(dtype: torch.dtype, stride: int) -> None:
    """What C++ allocates is no tensor. The filters would be 600 MB here, or half of it."""
    conv = efx.FixedConv2d(4096, 4096, 3, stride, padding=1, init="hadamard", seed=0, bias=False, dtype=dtype)
    for memory in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(1, 4096, 7, 7, dtype=dtype).to(memory_format=memory).requires_grad_()
        conv(x[:, :, :1, :1]).sum().backward()  # starts the threads
        with limited_memory(200 << 20):
            conv(x).sum().backward()
