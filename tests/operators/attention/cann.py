"""CANN's npu_fusion_attention, as torch_npu 2.13 documents it: its signature, its limits and what it computes, for any device."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from itertools import pairwise

import torch
from torch import Tensor

_ALL = 2**31 - 1
_HALF_OR_SINGLE = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Call:
    """One call's arguments, those left out with their defaults."""

    query: Tensor
    key: Tensor
    value: Tensor
    head_num: int
    input_layout: str
    pse: Tensor | None
    atten_mask: Tensor | None
    scale: float
    pre_tockens: int
    next_tockens: int
    actual_seq_qlen: list[int] | None
    actual_seq_kvlen: list[int] | None
    sparse_mode: int

    def check(self) -> None:
        """AssertionError where the documentation forbids the call. Asks for no value of a tensor."""
        tensors = [self.query, self.key, self.value, *([] if self.pse is None else [self.pse])]
        assert len({x.dtype for x in tensors}) == 1
        assert self.query.dtype in _HALF_OR_SINGLE
        assert len({x.device for x in [*tensors, *([] if self.atten_mask is None else [self.atten_mask])]}) == 1
        assert self.key.shape == self.value.shape
        assert 1 <= self.head_num == self.query.shape[1] == self.key.shape[1] <= 256
        assert 1 <= self.query.shape[-1] == self.key.shape[-1] <= 768
        assert type(self.scale) is float
        assert self.atten_mask is None or self.atten_mask.dtype == torch.bool
        assert self.input_layout in ("TND", "BNSD")
        if self.input_layout == "TND":
            self._check_pack()
        else:
            self._check_batch()

    def _check_pack(self) -> None:
        ends = self.actual_seq_qlen
        assert self.query.shape == self.key.shape
        assert self.query.dim() == 3
        assert isinstance(ends, list)
        assert ends == self.actual_seq_kvlen
        assert all(type(end) is int for end in ends)
        assert 1 <= len(ends) <= 1_000
        assert all(a <= b for a, b in pairwise([0, *ends]))
        assert ends[-1] == self.query.shape[0]
        assert self.pse is None
        if self.atten_mask is None:
            assert (self.sparse_mode, self.pre_tockens, self.next_tockens) == (0, _ALL, _ALL)
        else:
            assert self.sparse_mode == 4
            assert self.atten_mask.shape == (2048, 2048)
            assert min(self.pre_tockens, self.next_tockens) >= 0

    def _check_batch(self) -> None:
        assert self.query.dim() == self.key.dim() == 4
        assert self.query.shape[0] == self.key.shape[0]
        assert self.actual_seq_qlen is self.actual_seq_kvlen is None
        assert (self.sparse_mode, self.pre_tockens, self.next_tockens) == (0, _ALL, _ALL)
        pairs = (self.query.shape[2], self.key.shape[2])
        assert self.pse is None or (self.pse.shape == (*self.query.shape[:2], *pairs) and self.pse.is_contiguous())
        assert self.atten_mask is None or self.atten_mask.shape == pairs

    def compute(self) -> Tensor:
        """softmax(scale (q k^T + pse)) v over what is not masked; True in a mask hides a pair."""
        if self.input_layout == "BNSD":
            return self._attend(self.query, self.key, self.value, self.pse, self.atten_mask)
        assert self.actual_seq_qlen is not None
        parts = []
        for start, end in pairwise([0, *self.actual_seq_qlen]):
            q, k, v = (x[start:end].transpose(0, 1) for x in (self.query, self.key, self.value))
            parts.append(self._attend(q, k, v, None, self._band(end - start)).transpose(0, 1))
        return torch.cat(parts)

    def _band(self, length: int) -> Tensor | None:
        """Mode 4 hides what is more than `next_tockens` after a query, or more than `pre_tockens` before it."""
        if self.atten_mask is None:
            return None
        assert torch.equal(self.atten_mask, torch.ones(2048, 2048, dtype=torch.bool).triu(1))
        everything = torch.ones(length, length, dtype=torch.bool)
        return everything.triu(self.next_tockens + 1) | everything.tril(-self.pre_tockens - 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, pse: Tensor | None, hidden: Tensor | None) -> Tensor:
        scores = q @ k.transpose(-1, -2)
        if pse is not None:
            scores = scores + pse
        scores = scores * self.scale
        if hidden is not None:
            assert not hidden.all(dim=-1).any()
            scores = scores.masked_fill(hidden, -torch.inf)
        return scores.softmax(-1) @ v


class Kernel:
    """Stands in for the module torch_npu; keeps the calls. `compute`: else results are empty tensors."""

    def __init__(self, *, compute: bool) -> None:
        self.__spec__ = ModuleSpec("torch_npu", None)  # importlib asks modules for it
        self._compute = compute
        self.calls: list[Call] = []

    def npu_fusion_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        head_num: int,
        input_layout: str,
        pse: Tensor | None = None,
        padding_mask: None = None,
        atten_mask: Tensor | None = None,
        scale: float = 1.0,
        keep_prob: float = 1.0,
        pre_tockens: int = _ALL,
        next_tockens: int = _ALL,
        inner_precise: int = 0,
        prefix: None = None,
        actual_seq_qlen: list[int] | None = None,
        actual_seq_kvlen: list[int] | None = None,
        sparse_mode: int = 0,
    ) -> tuple[Tensor, None, None, None, int, int, int]:
        """As torch_npu's; what follows `sparse_mode` there is for training."""
        assert (padding_mask, keep_prob, inner_precise, prefix) == (None, 1.0, 0, None)
        masks = (pse, atten_mask, scale, pre_tockens, next_tockens)
        call = Call(query, key, value, head_num, input_layout, *masks, actual_seq_qlen, actual_seq_kvlen, sparse_mode)
        call.check()
        self.calls.append(call)
        return call.compute() if self._compute else torch.empty_like(query), None, None, None, 0, 0, 0
