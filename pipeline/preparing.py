"""From documents to what encoders read of them: token ids once for each tokenizer, companions and window counts for each view.

The results stand in columns of the documents, so that they travel with them from the worker that tokenizes to the one that
encodes. Columns that start with two underscores never reach the output.
"""

from __future__ import annotations

from functools import cached_property
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.inputs import Companions, Ids, Inputs, Tokens, make_inputs, repeat_companions
from operators.models.layout import Layout, read_layout
from operators.models.repository import Repository, resolve
from operators.packing import Frame
from operators.schema import N_SEGMENTS, N_TOKENS, TEXT, TRUNCATED
from operators.tokenization import Tokenizer
from pipeline.errors import Incomplete
from pipeline.recipe import ModelRecipe, Recipe, Tokenization, View

SAME_TEXT = "__same_text"
"""Column of numbers, the same for documents of a piece with the same text; absent where more than the text counts."""

Reasons = dict[int, tuple[str, str]]
"""Row -> reason and detail."""


class Preparer:
    """Tokenizes and measures for all tasks of a recipe; loads tokenizers when they are first used, and never weights."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._layouts: dict[ModelRecipe, Layout] = {}
        self._states: dict[ModelRecipe, tuple[Repository, tuple[object, ...]]] = {}
        self._lock = Lock()  # one thread may prepare while another loads models

    def layout(self, model: ModelRecipe) -> Layout:
        """The layout of a model's files, which are looked for once: they may lie in an object store.

        Incomplete where they are not those that the run was planned with."""
        with self._lock:
            if model.full not in self._layouts:
                try:
                    repository = resolve(model.source, model.revision)
                    state = repository.state  # taken first: what changes while they are hashed or read shows in it
                    changed = repository.fingerprint != model.fingerprint
                    layout = read_layout(repository.path)
                except (ValueError, OSError) as error:
                    raise _changed(model, f"cannot be read here ({error})") from error
                if changed:
                    raise _changed(model, "is not what the run was planned with")
                self._states[model.full] = (repository, state)
                self._layouts[model.full] = layout
            return self._layouts[model.full]

    def check_unchanged(self) -> None:
        """Incomplete where a model's files were touched since they were read. Weights on a CPU are mapped from their file, so
        bytes that are written into it would become weights."""
        with self._lock:
            states = list(self._states.items())
        for model, (repository, state) in states:
            try:
                same = repository.state == state
            except (ValueError, OSError):
                same = False
            if not same:
                raise _changed(model, "was changed during the run")

    @cached_property
    def tokenizers(self) -> dict[Tokenization, Tokenizer]:
        """One for each tokenization."""
        made = {t: self.tokenizer(t.model, t.prompt) for t in self._recipe.tokenizations}
        for tokenization, tokenizer in made.items():
            if tokenizer.fingerprint != tokenization.fingerprint:
                raise _changed(tokenization.model, "has another tokenizer than the run was planned with")
        return made

    def tokenizer(self, model: ModelRecipe, prompt: str) -> Tokenizer:
        """A model's own tokenizer."""
        layout = self.layout(model)
        return Tokenizer(layout.transformer_dir, prompt=prompt, lowercase=layout.do_lower_case)

    def frame(self, view: View) -> Frame:
        """What stands around the texts in the windows of a view."""
        tokenizer = self.tokenizers[view.tokenization]
        return tokenizer.pair_frame() if view.companion else tokenizer.frame

    def unfit(self, documents: pa.Table) -> Reasons:
        """Rows that lack what a head reads beside the text."""
        reasons: Reasons = {}
        for name in self._recipe.columns:
            column = documents[name].combine_chunks()
            for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
                reasons.setdefault(row, ("bad_value", f"column {name!r} is null, and a task reads it"))
            if not pa.types.is_list(column.type):
                continue
            holes = np.zeros(len(column), bool)
            items, parents = column.flatten(), pc.list_parent_indices(column)
            holes[parents.filter(items.is_null()).to_numpy()] = True
            if pa.types.is_list(items.type):
                inner = pc.list_parent_indices(items).filter(items.flatten().is_null())
                holes[parents.take(inner).to_numpy()] = True
            for row in np.flatnonzero(holes).tolist():
                reasons.setdefault(row, ("bad_value", f"column {name!r} holds a null in its list, and a task reads it"))
            if any(view.companion and view.companion.column == name for view in self._recipe.views):
                for row in np.flatnonzero(column.value_lengths().to_numpy(zero_copy_only=False) == 0).tolist():
                    reasons.setdefault(row, ("bad_value", f"column {name!r} is an empty list, and a task reads it"))
        return reasons

    def prepare(self, documents: pa.Table) -> tuple[pa.Table, Reasons]:
        """Add ids, companions and counts, take away the text where no head reads it; and the rows that are too long."""
        texts = documents[TEXT].combine_chunks()
        if self._recipe.text_decides:
            documents = _append(documents, {SAME_TEXT: pc.dictionary_encode(texts).indices})
        if not self._recipe.wants_text:
            documents = documents.drop_columns([TEXT])
        for i, (tokenization, tokenizer) in enumerate(self.tokenizers.items()):
            tokens = tokenizer.tokenize(texts, offsets=self._recipe.wants_offsets(tokenization))
            documents = _append(documents, _token_columns(i, tokens))
        reasons: Reasons = {}
        for i, view in enumerate(self._recipe.views):
            if view.companion and view.companion.column:
                column = documents[view.companion.column].combine_chunks()
                documents = _append(
                    documents, {f"__{i}_companions": _tokenize_column(self.tokenizers[view.tokenization], column)}
                )
            inputs = self.inputs(documents, view)
            # The windows of a document are the same beside each of its companions: its first entry speaks for it.
            entries = np.searchsorted(inputs.entry_document, np.arange(documents.num_rows))
            counts = {
                N_TOKENS: pa.array(inputs.tokens.lengths, pa.int32()),
                N_SEGMENTS: pa.array(inputs.segments.n_segments[entries], pa.int32()),
                TRUNCATED: pa.array(inputs.segments.truncated[entries]),
            }
            documents = _append(documents, {count_column(i, name): values for name, values in counts.items()})
            why = "more tokens than one window holds" + (" beside its second text" if view.companion else "")
            for row in inputs.entry_document[inputs.segments.too_long].tolist():
                reasons.setdefault(row, ("too_long", why))
        return documents, reasons

    def inputs(self, documents: pa.Table, view: View) -> Inputs:
        """What an encoder reads of prepared documents."""
        tokens = _tokens(documents, self._recipe.tokenizations.index(view.tokenization))
        companions = None
        if view.companion:
            column = f"__{self._recipe.views.index(view)}_companions"
            companions = (
                _companions(documents[column].combine_chunks(), first=view.companion.first)
                if view.companion.column
                else repeat_companions(self._fixed(view), documents.num_rows, first=view.companion.first)
            )
        names = [*self._recipe.columns, *([TEXT] if self._recipe.wants_text else [])]
        return make_inputs(tokens, view.windowing, companions, documents.select(names))

    def _fixed(self, view: View) -> list[Ids]:
        """Ids of companions that are the same for every document."""
        assert view.companion
        tokens = self.tokenizers[view.tokenization].tokenize(pa.array(view.companion.texts, pa.large_string()))
        return np.split(tokens.ids, tokens.bounds[1:-1])


def _changed(model: ModelRecipe, what: str) -> Incomplete:
    return Incomplete(
        f"model {model.source} {what}; nothing is recorded with it. Have the same files on all machines, leave them as they are "
        "while a run works, and run the same command again"
    )


def count_column(view: int, name: str) -> str:
    """Where a count of the view numbered `view` stands until the output is made."""
    return f"__{view}_{name}"


def _token_columns(number: int, tokens: Tokens) -> dict[str, pa.Array]:
    bounds = pa.array(tokens.bounds, pa.int64())
    columns = {f"__t{number}_ids": pa.LargeListArray.from_arrays(bounds, pa.array(tokens.ids, pa.int32()))}
    if tokens.spans is not None and tokens.words is not None:
        columns[f"__t{number}_words"] = pa.LargeListArray.from_arrays(bounds, pa.array(tokens.words, pa.int32()))
        flat = pa.array(np.ascontiguousarray(tokens.spans).reshape(-1), pa.int32())
        columns[f"__t{number}_spans"] = pa.LargeListArray.from_arrays(bounds, pa.FixedSizeListArray.from_arrays(flat, 2))
    return columns


def _tokens(documents: pa.Table, number: int) -> Tokens:
    ids = documents[f"__t{number}_ids"].combine_chunks()
    spans = words = None
    if f"__t{number}_spans" in documents.column_names:
        words = documents[f"__t{number}_words"].combine_chunks().flatten().to_numpy()
        pairs = documents[f"__t{number}_spans"].combine_chunks().flatten()
        spans = pairs.flatten().to_numpy().reshape(-1, 2)
    return Tokens(ids.flatten().to_numpy(), _bounds(ids), spans, words)


def _tokenize_column(tokenizer: Tokenizer, column: pa.Array) -> pa.Array:
    """list<list<int32>>: the ids of each companion of each document."""
    listed = pa.types.is_list(column.type)
    texts = column.flatten() if listed else column
    tokens = tokenizer.tokenize(texts.cast(pa.large_string()))
    ids = pa.LargeListArray.from_arrays(pa.array(tokens.bounds), pa.array(tokens.ids, pa.int32()))
    bounds = _bounds(column) if listed else np.arange(len(column) + 1)
    return pa.LargeListArray.from_arrays(pa.array(bounds, pa.int64()), ids)


def _companions(column: pa.Array, *, first: bool) -> Companions:
    ids = column.flatten()
    document = np.repeat(np.arange(len(column)), np.diff(_bounds(column)))
    return Companions(document, ids.flatten().to_numpy(), _bounds(ids), first)


def _bounds(column: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """int64 [N + 1]: where the lists of a column without nulls start in its flattened values."""
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _append(documents: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    for name, column in columns.items():
        documents = documents.append_column(name, column)
    return documents
