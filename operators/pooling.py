"""From the vectors of a pack's tokens to those of its windows, and of spans of the text (late pooling).

Late pooling ("late chunking", Guenther et al. 2024, arXiv 2409.04701) encodes a document whole and then takes the mean over
the tokens of each span, so that a span's vector knows what stands around it. A token of a long document counts as its owner
window sees it; so a span over a window's edge is the sum of its parts in several windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from operators.aggregation import Floats
from operators.inputs import Inputs
from operators.packing import Pack, ranges
from operators.schema import TEXT
from operators.segmentation import Flags, Ints
from operators.transfer import to_device


def pool(hidden_TH: Tensor, pack: Pack, modes: tuple[str, ...], excluded: int) -> Tensor:
    """float32 [S, H * modes]: each window's tokens pooled as sentence-transformers does, without the first `excluded` ones.

    Sums are kept in float32 also where the encoder runs in half precision. Unlike there, the results are not cast back.
    """
    hidden_TH = hidden_TH.float()
    device = hidden_TH.device
    lengths = to_device(pack.lengths, device).long()
    cu_seqlens = to_device(pack.cu_seqlens, device).long()
    window = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths, output_size=len(hidden_TH))
    position = torch.arange(len(hidden_TH), device=device) - cu_seqlens[window]
    taken = position >= excluded
    results: list[Tensor] = []
    for mode in modes:
        if mode == "cls":
            # A window without suffix may hold the prompt alone; its first token then stands.
            results.append(hidden_TH[cu_seqlens[:-1] + excluded * (lengths > excluded)])
        elif mode == "lasttoken":
            results.append(hidden_TH[cu_seqlens[1:] - 1])
        elif mode == "max":
            lowest = torch.full((len(lengths), hidden_TH.shape[1]), -torch.inf, device=device)
            values = hidden_TH.masked_fill(~taken[:, None], -torch.inf)
            results.append(lowest.scatter_reduce_(0, window[:, None].expand_as(values), values, "amax"))
        else:
            weights = (taken * (position + 1) if mode == "weightedmean" else taken).float()
            sums = _sum(hidden_TH * weights[:, None], window, len(lengths))
            total = _sum(weights[:, None], window, len(lengths)).clamp(min=1e-9)
            results.append(sums / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total))
    return torch.cat(results, dim=-1)


@dataclass(frozen=True)
class Spans:
    """N spans of D documents, and where their tokens are: R parts, each what one window owns of one span, window by window."""

    document: Ints
    """int64 [N]: the document of each span, in order."""
    bounds: Ints
    """int64 [N, 2]: start and end in code points."""
    valid: Flags
    """bool [D]: all spans of the document are pairs 0 <= start <= end <= length of the text. Bounds of others are 0."""
    part_span: Ints
    """int64 [R]: the span that it is a part of."""
    part_start: Ints
    """int64 [R]: its first token, counted from the first body token of its window."""
    part_length: Ints
    """int64 [R]: its tokens."""
    part_counts: Ints
    """int64 [S]: parts in each window."""


def find_spans(inputs: Inputs, column: str) -> Spans:
    """Find the tokens of the spans in `column` (list<list<int64>>, pairs of code points) of the documents.

    A token is where its last character is: the tokens of many tokenizers start with the space before their word. Tokens
    that no window owns, since the text was truncated, are in no span."""
    tokens, segments = inputs.tokens, inputs.segments
    if tokens.spans is None:
        raise ValueError("late pooling needs tokens with spans")
    document, bounds, valid = _read_spans(inputs, column)
    # Document and place in one sorted number; normalizers that reorder marks may set a place back, which is levelled out.
    places = np.maximum(tokens.spans[:, 1] - 1, tokens.spans[:, 0])
    owner = np.repeat(np.arange(inputs.n_documents), tokens.lengths)
    keys = np.maximum.accumulate((owner << 32) + places)
    first, last = np.searchsorted(keys, (document[:, None] << 32) + bounds).T

    owned_from = tokens.bounds[segments.document] + segments.first_owned
    owned_to = owned_from + segments.owned
    window = np.searchsorted(owned_to, first, side="right")
    count = np.where(first < last, np.maximum(np.searchsorted(owned_from, last) - window, 0), 0)
    part_span = np.repeat(np.arange(len(document)), count)
    part_window = np.repeat(window, count) + ranges(count)
    order = np.argsort(part_window, kind="stable")
    part_span, part_window = part_span[order], part_window[order]
    start = np.maximum(first[part_span], owned_from[part_window])
    length = np.minimum(last[part_span], owned_to[part_window]) - start
    origin = tokens.bounds[segments.document[part_window]] + segments.start[part_window]
    counts = np.bincount(part_window, minlength=len(segments.document))
    return Spans(document, bounds, valid, part_span, start - origin, length, counts)


def pool_spans(hidden_TH: Tensor, pack: Pack, spans: Spans) -> Tensor:
    """float32 [R', H + 1]: for each part in the pack's windows the sum of its tokens, and how many they are."""
    assert pack.body is not None
    counts = spans.part_counts[pack.segments]
    before = np.cumsum(spans.part_counts) - spans.part_counts
    parts = np.repeat(before[pack.segments], counts) + ranges(counts)
    lengths = spans.part_length[parts]
    token = np.repeat(np.repeat(pack.body, counts) + spans.part_start[parts], lengths) + ranges(lengths)
    row = np.repeat(np.arange(len(parts)), lengths)
    device = hidden_TH.device
    sums = _sum(hidden_TH[to_device(token, device)].float(), to_device(row, device), len(parts))
    return torch.cat([sums, to_device(lengths, device)[:, None]], dim=1)


def join_spans(sums: Floats, spans: Spans) -> tuple[Floats, Flags]:
    """float32 [N, H] and bool [N]: the mean over each span's tokens, and whether it has any; `sums` of all parts."""
    totals = np.zeros((len(spans.document), sums.shape[1]), np.float32)
    order = np.argsort(spans.part_span, kind="stable")
    found, starts = np.unique(spans.part_span[order], return_index=True)
    if len(found):
        totals[found] = np.add.reduceat(sums[order], starts, axis=0, dtype=np.float64)
    means: Floats = np.divide(totals[:, :-1], np.maximum(totals[:, -1:], 1))
    return means, totals[:, -1] > 0


def _read_spans(inputs: Inputs, column: str) -> tuple[Ints, Ints, Flags]:
    """`Spans.document`, `bounds` and `valid`."""
    listed = inputs.columns[column].combine_chunks()
    document = np.repeat(np.arange(inputs.n_documents), listed.value_lengths().to_numpy(zero_copy_only=False))
    pairs = listed.flatten()
    sizes = pairs.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    numbers = pairs.flatten().fill_null(-1).to_numpy()
    of_two = sizes == 2
    bounds = np.full((len(pairs), 2), -1, np.int64)
    bounds[of_two] = numbers[(np.cumsum(sizes) - sizes)[of_two, None] + np.arange(2)]
    characters = pc.utf8_length(inputs.columns[TEXT]).to_numpy()[document]
    good = (bounds[:, 0] >= 0) & (bounds[:, 0] <= bounds[:, 1]) & (bounds[:, 1] <= characters)
    bounds[~good] = 0
    return document, bounds, np.bincount(document[~good], minlength=inputs.n_documents) == 0


def _sum(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Rows of each group summed. index_add_ is 8 to 30 times as fast as segment_reduce on CPUs."""
    return torch.zeros(groups, values.shape[1], device=values.device).index_add_(0, group, values)
