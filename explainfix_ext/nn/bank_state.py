"""BankState: how the filters of a fixed layer, no Parameter and no buffer, are saved, loaded, moved and copied."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.layout import as_pair
from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.bank_bytes import decode_bank, encode_bank
from explainfix_ext.ops.plans.plan import check_plan

from .held_bank import HeldBank


class BankState(nn.Module):
    """Mixed into FixedConv: gives `_held` a place in state_dicts, `.to()`, copies and pickles."""

    _held: HeldBank
    coeff: nn.Parameter | None
    out_channels: int
    in_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    _loading = False

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        """Returns (O, I/groups, kh, kw) of the filters as the layer is now: pruning changes its channels."""
        return (self.out_channels, self.in_channels // self.groups, *as_pair(self.kernel_size))

    def _check_fit(self, bank: FilterBank) -> None:
        if bank.shape != self._shape:
            raise ValueError(f"bank must be [O, I/groups, kh, kw] = {list(self._shape)}, got {list(bank.shape)}")
        self._check_groups(bank)

    def _check_groups(self, bank: FilterBank) -> None:
        if bank.groups not in (None, self.groups):
            raise ValueError(f"bank must be for {self.groups} groups, as the layer is, got one for {bank.groups}")

    def _hold(self, bank: FilterBank) -> None:
        """Makes `bank`, which fits, the layer's."""
        self._held.hold(bank, as_pair(self.stride), as_pair(self.dilation), self.groups)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Follows `.to()` and the like: the bank goes to the new device and keeps its dtypes."""
        super()._apply(fn, recurse)
        bank = self._held.moved(fn, self._shape)
        if bank.device == self._held.device:
            self._hold(bank)
        return self

    def get_extra_state(self) -> Tensor:
        """Returns the bank as bytes: what a state_dict saves as `_extra_state`."""
        return encode_bank(self._held.bank)

    def set_extra_state(self, state: Tensor) -> None:
        """Adopts the bank that `get_extra_state` saved, as weights would be.

        A layer on the meta device leaves it, to where its Parameters are by now, or else to `state`'s device; a `state`
        without numbers, of another model on meta, leaves it as it is.

        Raises:
            ValueError: the bytes are damaged, or the bank does not fit the layer.
        """
        if self._loading:
            return  # _load_from_state_dict has it already
        device = self._held.device
        if device.type == "meta" and isinstance(state, Tensor):
            there = (p.device for p in self._parameters.values() if p is not None and not p.is_meta)
            device = next(there, state.device)
        self._take(state, device)

    def _take(self, state: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> None:
        """Adopts a saved bank, on `device`, which becomes the layer's, as `dtype` does."""
        held = self._held
        if device.type == "meta" and isinstance(state, Tensor) and state.is_meta:
            held.device = device
            return
        bank = decode_bank(state, held.bank, self._shape)
        if (self.coeff is None) != (bank.shape[0] > 0):
            kinds = ("fixed", "learned (learn_coeff=True)")
            here, there = kinds if self.coeff is None else kinds[::-1]
            raise ValueError(f"the coefficients are {there} in the checkpoint and {here} in this layer")
        if self.coeff is not None:
            self._check_basis(bank)
        self._check_groups(bank)
        check_plan(held.force, bank, self.groups)
        if self.coeff is not None and bank.rank != self.coeff.shape[2]:
            self.coeff.data = self.coeff.new_zeros(*self._shape[:2], bank.rank)
        held.device, held.dtype = device, dtype or held.dtype
        self._hold(bank.to(device))

    def _check_basis(self, bank: FilterBank) -> None:
        """Checks the functions that coefficients are to be learned of; a few bytes of them make many coefficients."""
        assert self.coeff is not None
        if bank.shape[1:] != self._shape[1:]:
            raise ValueError(
                f"basis must be for [I/groups, kh, kw] = {list(self._shape[1:])}, got {list(bank.shape[1:])}"
            )
        most = max(math.prod(self.kernel_size), self.coeff.shape[2])
        if bank.rank > most:
            raise ValueError(f"basis must be of at most {most} functions, got {bank.rank}")

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        """Loads the filters first: if they do not fit, nothing of this layer is loaded. Then what Module loads."""
        error_msgs, state = args[-1], state_dict.get(prefix + "_extra_state")
        if prefix + "weight" in state_dict:
            error_msgs.append(
                f"{prefix}weight belongs to a plain convolution, and this model is converted: load it into the plain "
                f'model, convert first, or convert(model, init="unchanged") after loading.'
            )
            return
        learned = [state_dict.get(prefix + name) for name in ("bias", "coeff", "pointwise")]
        like = next((p for p in learned if isinstance(p, Tensor)), None)
        if state is not None:
            try:
                if local_metadata.get("assign_to_params_buffers"):  # the checkpoint's device and dtype
                    self._take(state, *((state.device,) if like is None else (like.device, like.dtype)))
                elif like is not None and like.is_meta and self._held.device.type == "meta":
                    self._take(state, like.device)
                else:
                    self.set_extra_state(state)
            except ValueError as e:
                error_msgs.append(f"{prefix}_extra_state: {e}")
                return
        self._loading = state is not None
        try:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        finally:
            del self._loading
        for keys, saved in zip(args[1:3], (False, True), strict=True):  # missing, unexpected
            if prefix + "pointwise" in keys:
                keys[keys.index(prefix + "pointwise")] = _PointwiseKey(prefix + "pointwise", saved)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_bank" in state:  # a pickle from before HeldBank, which had its parts as attributes
            self._held = _held_of_attributes(self)
        self._hold(self._held.bank)  # plans are this machine's


class _PointwiseKey(str):
    """Is a missing or unexpected key that torch prints, in its error of strict loading, with the reason."""

    saved: bool

    def __new__(cls, key: str, saved: bool) -> _PointwiseKey:
        made = super().__new__(cls, key)
        made.saved = saved
        return made

    def __format__(self, spec: str) -> str:
        there, here = ("a", "none") if self.saved else ("no", "one")
        why = f"the checkpoint has {there} learned 1x1 and this layer has {here}"
        return f"{self!s} ({why}: convert(..., pointwise={self.saved}) before loading)"


def _held_of_attributes(layer: Any) -> HeldBank:
    """Gathers what version 0.1 kept as attributes of the layer, and deletes them."""
    held = HeldBank(layer._bank, layer._dtype, layer._device, layer._forced_plan)
    for name in ("_bank", "_kept", "_dtype", "_device", "_forced_plan", "_plans"):
        delattr(layer, name)
    return held
