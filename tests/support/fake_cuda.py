"""Whole training steps on device "cuda" without a GPU: FakeTensors have shapes, dtypes and layouts, and no numbers.

Python sees "cuda:0". C++ is told "cpu", since autograd would ask a GPU's driver for its streams; so what C++ decides by
device, such as autocast, is done here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

import explainfix_ext as efx
from explainfix_ext.ops.plans.plan import ConvPlan, make_plan

CUDA = torch.device("cuda:0")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DEVICE = torch.ops.prim.device.default  # by which C++ asks a FakeTensor where it is
_AUTOCAST = {
    F.conv2d: torch.bfloat16,
    F.linear: torch.bfloat16,
    F.cross_entropy: torch.float32,
    F.layer_norm: torch.float32,
    F.group_norm: torch.float32,
}
_tensor_dispatch = FakeTensor.__torch_dispatch__


@contextmanager
def on_fake_cuda(model: nn.Module) -> Iterator[None]:
    """Moves a model to a fake GPU, with the plans that its fixed layers would have there, and makes all else that is
    made or moved to "cuda" meanwhile fake."""
    layers = {m: cuda_plans(m) for m in model.modules() if isinstance(m, efx.FixedConv2d)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeTensor, "__torch_dispatch__", classmethod(_of_tensor))
        patch.setattr(FakeTensor, "is_cuda", property(lambda t: t.fake_device.type == "cuda"), raising=False)
        with _FakeCuda(allow_non_fake_inputs=True):
            model.to(CUDA)
            for layer, plans in layers.items():
                layer._held.plans = {dtype: _moved(plan) for dtype, plan in plans.items()}
            yield


def cuda_plans(layer: efx.FixedConv2d) -> dict[torch.dtype, ConvPlan]:
    """Makes the plans of a layer on the CPU for a GPU."""
    geometry: Any = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    force = layer._held.force
    return {dtype: make_plan(layer.bank, dtype, **geometry, force=force, device=CUDA) for dtype in DTYPES}


@contextmanager
def autocast() -> Iterator[None]:
    """Does what torch.autocast("cuda", torch.bfloat16) does, which is off where there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        with _Casts():
            yield
    finally:
        torch.set_autocast_enabled("cuda", False)


class _Casts(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _AUTOCAST:
            dtype = _AUTOCAST[func]
            args, kwargs = tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs))
        return func(*args, **kwargs)


class _FakeCuda(FakeTensorMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is _DEVICE:
            return _told(args)
        kwargs = kwargs or {}
        if kwargs.get("device") == torch.device("cpu"):  # C++ copied it from an argument, as it was told
            kwargs = {**kwargs, "device": CUDA}
        return super().__torch_dispatch__(func, types, args, kwargs)


def _of_tensor(cls: type, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
    return _told(args) if func is _DEVICE else _tensor_dispatch(func, types, args, kwargs or {})


def _told(args: tuple) -> torch.device:
    return torch.device("meta" if args[0].fake_mode.in_kernel_invocation else "cpu")


def _moved(plan: ConvPlan) -> ConvPlan:
    return plan if plan.packed is None else dataclasses.replace(plan, packed=plan.packed.to(CUDA))
