"""The op against F.conv2d in float64, and every way to differentiate, trace and transform it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.compare import TOLERANCE, relative_error
from support.random_conv import DTYPES, random_conv

import explainfix_ext as efx
from explainfix_ext.functional import operators_of, parts_of
from explainfix_ext.ops import fixed_conv2d as ops
from explainfix_ext.ops import hadamard_conv2d as hadamard
from explainfix_ext.ops import reference
from explainfix_ext.ops.plans.plan import DENSE_PLAN

SEEDS = range(720)


@pytest.mark.parametrize("chunk", range(6))
def test_op_equals_conv2d_on_random_geometry(chunk: int) -> None:
    print(f"seeds {SEEDS[chunk::6]}")  # shown where it fails; random_conv(seed) makes the case again
    for seed in SEEDS[chunk::6]:
        random_conv(seed).check()


@pytest.mark.cuda
def test_op_equals_conv2d_on_random_geometry_cuda() -> None:
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for seed in SEEDS:
            random_conv(seed, "cuda").check()
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("init", ["dct2", "ghaar4_s1"])
def test_binary_equals_reference(dtype: torch.dtype, init: str) -> None:
    """The compiled op and the executable specification round at the same places, so they agree to the last bits."""
    bank = efx.make_bank(init, 6, 4, (3, 5), seed=0, density=0.6)
    for scale in (bank.scale, 0.37):
        args = (bank.basis, bank.steering, None, None, [2, 1], [1, 2], [1, 2], 1, scale, 0)
        x = torch.randn(2, 4, 9, 12, dtype=dtype)
        y, expected = ops.fixed_conv2d(x, *args), reference.fixed_conv2d(x, *args)
        assert relative_error(y, expected) <= TOLERANCE[dtype]
        rest = (bank.basis, bank.steering, None, [9, 12], [2, 1], [1, 2], [1, 2], 1, scale, 0)
        dx, expected = ops.fixed_conv2d_input_grad(y, *rest), reference.fixed_conv2d_input_grad(y, *rest)
        assert relative_error(dx, expected) <= TOLERANCE[dtype]


def raw_args(layout: torch.memory_format = torch.contiguous_format, init: str = "dct2", bias: bool = True) -> tuple:
    """Every argument different from every other of its kind, so that a swapped one is seen."""
    bank = efx.make_bank(init, 6, 8, (3, 2), groups=2, seed=1, density=0.7, gain="kaiming")
    x = torch.randn(2, 8, 11, 9, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    b = torch.randn(6, dtype=torch.float64, requires_grad=True) if bias else None
    return (x, bank.basis, bank.steering, None, b, [2, 1], [1, 0], [1, 2], 2, bank.scale, 0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("init", ["dct2", "ghaar4_s1"])
def test_opcheck(layout: torch.memory_format, init: str) -> None:
    args = raw_args(layout, init, bias=init == "dct2")
    torch.library.opcheck(ops.fixed_conv2d, args)
    y = ops.fixed_conv2d(*args).detach().requires_grad_()
    torch.library.opcheck(ops.fixed_conv2d_input_grad, (y, *args[1:4], [11, 9], *args[5:]))


@pytest.mark.parametrize("init", ["dct2", "ghaar4_s1"])
def test_raw_op_differentiates_twice(init: str) -> None:
    x, *rest = raw_args(init=init)
    bias = rest[3]

    def f(x, bias):
        return ops.fixed_conv2d(x, *rest[:3], bias, *rest[4:])

    assert torch.autograd.gradcheck(f, (x, bias))
    assert torch.autograd.gradgradcheck(f, (x, bias))


@pytest.fixture(params=["ghaar4_s1", "hadamard"])
def small(request: pytest.FixtureRequest):
    """(function of x and bias, x, bias, bank): the public functional, float64. One class differentiates both kinds."""
    bank = efx.make_bank(request.param, 4, 4, 3, groups=2, seed=0)

    def f(x, bias):
        return efx.fixed_conv2d(x, bank, bias, stride=2, padding=1, groups=2)

    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    return f, x, torch.randn(4, dtype=torch.float64, requires_grad=True), bank


def test_gradcheck_with_forward_mode_and_batched_grad(small) -> None:
    f, x, bias, _ = small
    assert torch.autograd.gradcheck(f, (x, bias), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, (x, bias), check_fwd_over_rev=True, check_rev_over_rev=True)


def test_a_training_step_calls_the_values_and_no_function_that_torch_binds_by_inspection(small, monkeypatch) -> None:
    """Those cost more than a small convolution."""
    f, x, bias, _ = small
    grad = torch.randn_like(f(x, bias))
    expected = torch.autograd.grad(f(x, bias), (x, bias), grad, create_graph=True)
    for pair in (ops.PAIR, hadamard.PAIR):
        monkeypatch.setattr(pair.transformable, "apply", None)
        monkeypatch.setattr(pair.transformable_grad, "apply", None)
    y = f(x, bias)
    got = torch.autograd.grad(y, (x, bias), grad, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_batched_gradients_can_be_differentiated(small) -> None:
    """torch batches them by the mechanism that vmap had before torch.func."""
    f, x, bias, _ = small
    grads = torch.randn(3, *f(x, bias).shape, dtype=torch.float64)

    def twice(first):
        return torch.autograd.grad(sum((g**2).sum() for g in first), (x, bias))

    batched = torch.autograd.grad(f(x, bias) ** 2, (x, bias), grads, is_grads_batched=True, create_graph=True)
    single = [torch.autograd.grad(f(x, bias) ** 2, (x, bias), g, create_graph=True) for g in grads]
    assert all(torch.allclose(*pair) for pair in zip(twice(batched), twice(sum(single, ())), strict=True))


def test_a_dual_gradient_has_its_tangent_where_the_graph_is_older_than_the_level(small) -> None:
    f, x, bias, bank = small
    y = f(x, bias)
    grad, tangent = torch.randn_like(y), torch.randn_like(y)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(grad, tangent)
        (dx,) = torch.autograd.grad(y, x, dual)
        got = torch.autograd.forward_ad.unpack_dual(dx).tangent
    plain = F.conv2d(x, bank.weight(torch.float64), bias, 2, 1, 1, 2)
    assert got is not None
    assert torch.allclose(got, torch.autograd.grad(plain, x, tangent)[0])


def test_torch_func_equals_that_of_conv2d(small) -> None:
    f, x, bias, bank = small
    x, bias = x.detach(), bias.detach()
    weight = bank.weight(torch.float64)

    def plain(x, bias):
        return F.conv2d(x, weight, bias, 2, 1, 1, 2)

    def loss(function):
        return lambda x, bias: function(x, bias).sin().sum()

    xs, biases = torch.randn(3, *x.shape, dtype=x.dtype), torch.randn(3, 4, dtype=x.dtype)
    for transform in (
        lambda g: torch.func.grad(loss(g), argnums=(0, 1))(x, bias),
        lambda g: torch.func.vmap(g, in_dims=(1, None))(xs.transpose(0, 1), bias),
        lambda g: torch.func.vmap(g, in_dims=(None, 0))(x, biases),
        lambda g: torch.func.vmap(g)(xs, biases),
        lambda g: torch.func.vmap(torch.func.grad(loss(g)))(xs, biases),
        lambda g: torch.func.jacrev(g)(x, bias),
        lambda g: torch.func.jacfwd(g, argnums=1)(x, bias),
        lambda g: torch.func.jvp(g, (x, bias), (x.cos(), bias.cos())),
        lambda g: torch.func.hessian(loss(g), argnums=1)(x, bias),
        lambda g: torch.func.jvp(torch.func.grad(loss(g)), (x, bias), (x.cos(), bias.cos())),
    ):
        torch.testing.assert_close(transform(f), transform(plain), rtol=1e-10, atol=1e-10)


def test_raw_op_under_vmap(small) -> None:
    _, x, bias, bank = small
    xs, (_, tensors, numbers) = torch.stack([x, x + 1]).detach(), parts_of(bank, DENSE_PLAN)
    pair, bank_and_packed, geometry = operators_of(bank), (*tensors, None), ([2, 2], [1, 1], [1, 1], 2, *numbers)

    def conv(x):
        return pair.conv(x, *bank_and_packed, bias.detach(), *geometry)

    ys = torch.func.vmap(conv)(xs)
    assert torch.equal(ys, torch.stack([conv(x) for x in xs]))
    torch.testing.assert_close(torch.compile(torch.func.vmap(conv), fullgraph=True)(xs), ys)

    def grad(y):
        return pair.input_grad(y, *bank_and_packed, [5, 6], *geometry)

    assert torch.equal(torch.func.vmap(grad)(ys), torch.stack([grad(y) for y in ys]))


def test_vmap_over_filters_is_refused(small) -> None:
    _, x, _, bank = small
    call, (first, second, *others), numbers = parts_of(bank, DENSE_PLAN)
    with pytest.raises(ValueError, match="vmap over the filters"):
        torch.func.vmap(lambda s: call(x.detach(), first, s, *others, None, None, 1, 1, 1, 2, *numbers))(
            torch.stack([second, second])
        )


def kept_for_backward(function, *args) -> list[torch.Tensor]:
    kept: list[torch.Tensor] = []

    def pack(t):
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(*args)
    return kept


@pytest.mark.parametrize("init", ["dct2", "psine", "hadamard"])
def test_nothing_is_kept_but_the_bank(init: str) -> None:
    conv = efx.FixedConv2d(16, 16, 3, padding=1, init=init, seed=0)
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    bank = {t.data_ptr() for t in conv.bank.tensors}
    if conv.kernel_plan.packed is not None:
        bank.add(conv.kernel_plan.packed.data_ptr())
    kept = kept_for_backward(conv, x)
    assert sum(t.nbytes for t in kept if t.data_ptr() not in bank) == 0
    frozen = torch.nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
    assert any(t.data_ptr() == x.data_ptr() for t in kept_for_backward(frozen, x)), "torch has mended issue 133566"


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic: bool, small) -> None:
    f, _, bias, _ = small
    f, bias = torch.compile(f, fullgraph=True, dynamic=dynamic), bias.detach().float().requires_grad_()
    for shape in ((2, 4, 8, 8), (3, 4, 9, 6)):
        x = torch.randn(shape, requires_grad=True)
        y, expected = f(x, bias), small[0](x, bias)
        torch.testing.assert_close(y, expected)
        grad = torch.randn_like(y)
        for a, b in zip(*(torch.autograd.grad(t, (x, bias), grad) for t in (y, expected)), strict=True):
            torch.testing.assert_close(a, b)


def test_autocast_casts_as_conv2d_does(device: str) -> None:
    bank = efx.make_bank("dct2", 8, 4, 3, seed=0).to(device)
    x, bias = torch.randn(1, 4, 6, 6, device=device), torch.randn(8, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = efx.fixed_conv2d(x, bank, bias)
        expected = F.conv2d(x, bank.weight(), bias)
        wide = efx.fixed_conv2d(x.double(), bank, bias.double())
        again = efx.fixed_conv2d(x.bfloat16(), bank, bias)
    assert y.dtype == expected.dtype == torch.bfloat16
    assert wide.dtype == torch.float64
    assert torch.equal(again, y)
    assert relative_error(y, expected) <= TOLERANCE[torch.bfloat16]


def test_channels_last_stays(device: str) -> None:
    bank = efx.make_bank("dct2", 8, 4, 3, seed=0).to(device)
    x = torch.randn(2, 4, 6, 6, device=device).to(memory_format=torch.channels_last).requires_grad_()
    y = efx.fixed_conv2d(x, bank)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert efx.fixed_conv2d(x.contiguous(), bank).is_contiguous()
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.is_contiguous(memory_format=torch.channels_last)


def test_packed_weight_is_used_as_it_is() -> None:
    x, *args = raw_args()
    packed = torch.randn(6, 4, 3, 2, dtype=torch.float64)
    y = ops.fixed_conv2d(x, *args[:2], packed, *args[3:])
    torch.testing.assert_close(y, F.conv2d(x, packed, args[3], *args[4:8]))
    dx = ops.fixed_conv2d_input_grad(y, *args[:2], packed, [11, 9], *args[4:])
    torch.testing.assert_close(dx, torch.autograd.grad(F.conv2d(x, packed, None, *args[4:8]), x, y)[0])


BANK = efx.make_bank("dct2", 6, 4, 3, seed=0)
X = torch.randn(1, 4, 8, 8)
BAD = {
    "x must be [N, C, H, W] or [C, H, W], got [4, 4]": (X[0, 0, :4, :4], {}),
    "x must be floating, got torch.int64": (X.long(), {}),
    "x must have I/groups * groups = 4 * 1 channels, got [1, 3, 8, 8]": (X[:, :3], {}),
    "groups must divide out_channels = 6, got 4": (X, {"groups": 4}),
    "bias must be [O] = [6], got [5]": (X, {"bias": torch.zeros(5)}),
    "bias must have x's dtype torch.float32, got torch.float64": (X, {"bias": torch.zeros(6, dtype=torch.float64)}),
    "stride must be one or two integers >= 1, got 0": (X, {"stride": 0}),
    "dilation must be one or two integers >= 1, got (1, 2, 3)": (X, {"dilation": (1, 2, 3)}),
    "padding must be one or two integers >= 0, got -1": (X, {"padding": -1}),
    'padding must be integers, "valid" or "same", got \'reflect\'': (X, {"padding": "reflect"}),
    'padding "same" needs stride 1, got (2, 2)': (X, {"padding": "same", "stride": 2}),
    "x must be at least as large as the dilated kernel, [3, 3]; padded it is [2, 8]": (X[:, :, :2], {}),
    "bank must be on x's device meta, got cpu": (X.to("meta"), {}),
    "stride must be one or two integers >= 1, got 1.5": (X, {"stride": 1.5}),
    "bank must be a FilterBank (FilterBank.from_weight makes one), got Tensor": (X, {"bank": torch.zeros(6, 4, 3, 3)}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_says_what_was_expected(message: str) -> None:
    x, options = BAD[message]
    with pytest.raises((ValueError, TypeError)) as error:
        efx.fixed_conv2d(x, **{"bank": BANK} | options)
    assert message in str(error.value)
