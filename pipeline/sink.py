"""Writing one piece: data file, quarantine file, record, in this order; and the Arrow schema of the output table."""

from __future__ import annotations

import hashlib
import uuid

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from operators.schema import ID, N_SEGMENTS, N_TOKENS, ROW, SHARD, SHARD_TYPE, TRUNCATED
from pipeline.batch import Batch
from pipeline.ledger.records import Record, write_record
from pipeline.ledger.store import Store


def output_schema(keep: pa.Schema, tasks: dict[str, pa.DataType], own_counts: list[str]) -> pa.Schema:
    """The pinned schema of the output table. `own_counts`: tasks whose tokens or windows differ from the first task's."""
    fields = [pa.field(SHARD, SHARD_TYPE, nullable=False), pa.field(ROW, pa.int64(), nullable=False), *keep]
    fields += [pa.field(ID, pa.string(), nullable=False), *_counts("")]
    for name in own_counts:
        fields += _counts(f"{name}_")
    return pa.schema([*fields, *(pa.field(name, type_) for name, type_ in tasks.items())])


def kept_schema(table: pa.Schema) -> pa.Schema:
    """The kept columns of an `output_schema`."""
    return pa.schema([table.field(i) for i in range(2, table.get_field_index(ID))])


def _counts(prefix: str) -> list[pa.Field]:
    types = {N_TOKENS: pa.int32(), N_SEGMENTS: pa.int32(), TRUNCATED: pa.bool_()}
    return [pa.field(prefix + name, type_, nullable=False) for name, type_ in types.items()]


def fingerprint(schema: pa.Schema) -> str:
    """SHA-256 over names, types and nullability (not over metadata)."""
    return hashlib.sha256(schema.remove_metadata().serialize()).hexdigest()


def shard_column(key: str, rows: int) -> pa.DictionaryArray:
    """`rows` times the shard key, dictionary encoded."""
    return pa.DictionaryArray.from_arrays(pa.nulls(rows, pa.int32()).fill_null(0), pa.array([key], pa.string()))


def write(store: Store, generation: str, batch: Batch) -> tuple[Record, bool]:
    """Put the piece's files and then its record. Returns the record in force, and whether it is ours: the first one wins."""
    attempt = f"{generation}/{batch.id}-{uuid.uuid4().hex[:12]}.parquet"
    data = _put(store, f"data/{attempt}", batch.documents)
    quarantine = _put(store, f"quarantine/{attempt}", batch.quarantine)
    reasons = pc.value_counts(batch.quarantine["reason"].combine_chunks()).to_pylist()
    record = Record(
        piece=batch.id,
        index=batch.index,
        shard=batch.span.shard.key,
        version=batch.span.shard.version,
        start=batch.start,
        span_start=batch.span.start,
        span_stop=batch.span.stop,
        stop=batch.stop,
        piece_bytes=batch.span.piece_bytes,
        generation=generation,
        file=f"data/{attempt}" if data else None,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        quarantine_file=f"quarantine/{attempt}" if quarantine else None,
        rows_in=batch.rows_in,
        rows_out=batch.documents.num_rows,
        quarantined={r["values"]: r["counts"] for r in reasons},
        filtered=0,
        schema=fingerprint(batch.documents.schema),
        statistics=batch.statistics,
        last=batch.last,
    )
    winner = write_record(store, record)
    return winner, winner == record


def _put(store: Store, key: str, table: pa.Table) -> bytes:
    """`table` as a Parquet object at `key`; no object for a table without rows. Returns the bytes written."""
    if not table.num_rows:
        return b""
    sink = pa.BufferOutputStream()
    # Dictionaries never pay for vectors and unique ids; zstd shrinks what is left.
    repeated = [f.name for f in table.schema if pa.types.is_dictionary(f.type) or pa.types.is_string(f.type)]
    pq.write_table(table, sink, compression="zstd", use_dictionary=repeated)
    data: bytes = sink.getvalue().to_pybytes()
    store.put(key, data)
    return data
