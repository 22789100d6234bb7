"""What the backends that run exports share: a traced graph, its verification against torch, and the encoder over it.

The model is traced to ONNX by torch, which each library reads. A trace may hold what was true of its example alone, so every
export is compared with transformers over windows of several lengths before it is kept.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators.encoders import torch as reference
from operators.encoding import Encoder
from operators.exports import Export, Exports, Identity, cache, find, identify, make
from operators.models.files import read_json
from operators.models.layout import Layout
from operators.models.padded import rectangles, takes_token_types
from operators.models.quiet import quiet
from operators.packing import Pack
from operators.segmentation import Ints

Inputs = Mapping[str, Ints]
"""int64 [B, L] by name, as `operators.models.padded.Rectangles` has them; a graph that has no use for one lacks it."""

Run = Callable[[Inputs], npt.NDArray[np.float32]]
"""A graph at work: its inputs in, [B, L, H] out, which may be overwritten by the next call."""

_OPSET = 17
"""Of ONNX: the newest that torch traces to."""

_LONGEST = 2048
"""Tokens of the longest window that exports are verified with, where the model's positions allow it."""

_BESIDE = 512
"""Tokens of the longest window that they are verified with beside others."""

_LIMITS = {"fp32": ("min", 0.99999), "bf16": ("mean", 0.999)}
"""Cosine of token vectors that an export must reach. Rounding in bf16 scatters, so there no single token speaks for it."""


@dataclass(frozen=True)
class Library:
    """A library that computes graphs on CPUs; `operators.encoders.<name>.LIBRARY`."""

    name: str
    packages: tuple[str, ...]
    """That a worker needs; their versions are part of an export's identity."""
    tools: tuple[str, ...]
    """Further ones that making exports needs."""
    precisions: tuple[str, ...]
    write: Callable[[Path, Path], None]
    """From a traced ONNX file to the graph in a folder."""
    open: Callable[[Path, str, int], Run]
    """The graph in a folder, to compute in a precision with so many threads. ValueError where this CPU cannot."""
    quantize: Callable[[Path, Path, Sequence[Inputs]], None]
    """From the graph in one folder to its int8 form in another, calibrated on the inputs."""

    def identify(self, layout: Layout, precision: str) -> Identity:
        """What an export of the model is made of here."""
        return identify(layout, self.name, precision, self.packages)


class Exported:
    """A graph as an encoder. `encode` makes float32 [T, H] on the CPU."""

    padded = True
    concurrent = False  # one call has all threads
    device = torch.device("cpu")

    def __init__(self, run: Run, layout: Layout) -> None:
        self._run = run
        self._token_types = takes_token_types(layout.model_type)
        self.hidden_size = layout.hidden_size

    def encode(self, pack: Pack) -> Tensor:
        """float32 [T, H]"""
        made = rectangles(pack, with_token_types=self._token_types)
        return torch.from_numpy(self._run(made.inputs).reshape(-1, self.hidden_size)[made.slots])


def load(library: Library, layout: Layout, device: str, precision: str, exports: Exports | None) -> Exported:
    """The encoder over the model's export, which is made in the cache where it is not there yet; it takes torch's threads.

    ValueError where the model cannot be exported, where an export is damaged, and where one in int8 is missing or is not the one
    that the job was planned with."""
    if device != "cpu":
        raise ValueError(f"backend {library.name} computes on CPUs, not on {device}; set runtime.device to cpu")
    wanted, identity = exports or Exports(), library.identify(layout, precision)
    export = find(identity, wanted.directory)
    if export is None and precision == "int8":
        raise ValueError(missing_int8(identity, wanted.directory))
    export = export or make_exact(library, layout, precision, cache())
    if precision == "int8":
        _check_planned(export, identity, wanted)
    export.check()
    return open_export(library, layout, export.folder, precision)


def _check_planned(export: Export, identity: Identity, wanted: Exports) -> None:
    planned = wanted.digests.get(identity.name)
    if planned is None:
        raise ValueError(
            f"{export.folder} is not among the int8 exports that the job was planned with ({', '.join(wanted.digests)}); "
            f"here are {_versions(identity)}; have the same versions and the same weights on all machines"
        )
    if planned != export.digest:
        raise ValueError(f"{export.folder} was made again since the job was planned; run the job again")


def open_export(library: Library, layout: Layout, folder: Path, precision: str) -> Exported:
    """The encoder over the graph in `folder`."""
    return Exported(library.open(folder, precision, torch.get_num_threads()), layout)


def make_exact(library: Library, layout: Layout, precision: str, root: Path) -> Export:
    """The export of a model in fp32 or bf16 in the directory `root`: the one that is there, else made and verified."""
    return make(library.identify(layout, precision), root, lambda folder: _build(library, layout, precision, folder))


def missing_int8(identity: Identity, directory: str | None) -> str:
    """What to say where an int8 export is not there."""
    places = f"{directory} or {cache()}" if directory else str(cache())
    return (
        f"there is no int8 export {identity.name} in {places}, of these weights and by {_versions(identity)}; it is calibrated "
        "on the job's own input: make it with `tidemill export CONFIG --to DIR`, and set runtime.exports to DIR, where every "
        "worker sees it"
    )


def _versions(identity: Identity) -> str:
    return ", ".join(f"{name} {version}" for name, version in identity.versions.items())


def _build(library: Library, layout: Layout, precision: str, folder: Path) -> Mapping[str, Any]:
    exact = reference.load(layout, "cpu", "fp32", padded=True)  # also refuses incomplete weights
    with tempfile.TemporaryDirectory(dir=folder.parent) as traced:
        file = Path(traced) / "model.onnx"
        _trace(layout, file)
        library.write(file, folder)
    found = _compare(open_export(library, layout, folder, precision), exact, layout)
    kind, limit = _LIMITS[precision]
    if not found[kind] >= limit:
        raise ValueError(
            f"the {library.name} export of this {layout.model_type} model does not compute what the model does: {kind} cosine of "
            f"token vectors {found[kind]:.6f}, and {limit} is needed in {precision}; use backend torch"
        )
    return {"verification": found}


class _Hidden(torch.nn.Module):
    """A transformers encoder as a function of tensors."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        return hidden


def _trace(layout: Layout, file: Path) -> None:
    """Write the model's ONNX graph: int64 [B, L] inputs to float32 [B, L, H], for any B and L."""
    from transformers import AutoModel  # as in encoders.torch: planning does not have to wait for it

    with quiet():
        model = AutoModel.from_pretrained(  # a directory that was checked  # nosec B615
            str(layout.transformer_dir),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="eager",
        ).eval()
    example = rectangles(_windows(layout, [17, 14, 5]), with_token_types=takes_token_types(layout.model_type)).inputs
    # Tracing warns of every Python branch that it follows, and that torch may drop it one day. _compare judges the outcome.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Hidden(model).eval(),
            tuple(torch.from_numpy(values) for values in example.values()),
            str(file),
            input_names=list(example),
            output_names=["hidden"],
            dynamic_axes={name: {0: "windows", 1: "tokens"} for name in (*example, "hidden")},
            opset_version=_OPSET,
            dynamo=False,
        )


def _compare(encoder: Encoder, exact: Encoder, layout: Layout) -> dict[str, float]:
    """Cosine of token vectors over seeded random windows in rectangles of several shapes."""
    beside = min(layout.max_positions or _BESIDE, _BESIDE)
    cosines = []
    for lengths in ([_LONGEST], [beside, beside // 2, 1], [33, 30, 17, 2], [7], [beside - 1, 3], [1, 1]):
        pack = _windows(layout, lengths)
        cosines.append(torch.nn.functional.cosine_similarity(encoder.encode(pack).float(), exact.encode(pack)))
    found = torch.cat(cosines)
    return {"tokens": len(found), "mean": float(found.mean()), "min": float(found.min())}


def _windows(layout: Layout, lengths: Sequence[int]) -> Pack:
    """Windows of seeded random tokens, cut to what the model's positions allow."""
    vocabulary = (read_json(layout.transformer_dir / "config.json", dict) or {})["vocab_size"]
    sizes = np.minimum(lengths, layout.max_positions or _LONGEST)
    ids = np.random.default_rng(0).integers(0, vocabulary, sizes.sum()).astype(np.int32)
    return Pack(ids, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32), np.arange(len(sizes)))
