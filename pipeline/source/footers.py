"""What a Parquet footer says, taken for true only as far as it can be: pyarrow's own objects trust it.

Two kinds of damage do more than fail. Asked for the metadata of a column chunk that contradicts the schema, pyarrow ends the
process, while its reader reports the same as an error. And a count of rows that no file could hold would be cut into pieces
without end.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import pyarrow.parquet as pq

from pipeline.source.storage import Corrupt

_ROWS_PER_BYTE = 4096
"""A file of constants or nulls comes near it."""
_FEW_ROWS = 2**20
"""So many are believed of any file."""


def check_counts(metadata: pq.FileMetaData, size: int) -> None:
    """Corrupt where the row groups of a file of `size` bytes cannot have as many rows as they say."""
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise Corrupt(f"the footer promises {metadata.num_rows} rows, but its row groups {sum(rows)}")
    if sum(rows) > max(_FEW_ROWS, _ROWS_PER_BYTE * size):
        raise Corrupt(f"the footer promises {sum(rows)} rows in {size} bytes")


def check_chunks(metadata: pq.FileMetaData, size: int, columns: list[str], groups: Iterable[int]) -> None:
    """Corrupt or one of Arrow's errors where the metadata of these columns' chunks contradicts itself; nothing is read."""
    reader = pq.ParquetFile(_Unreadable(size), metadata=metadata, pre_buffer=False)
    for group in groups:
        try:
            reader.read_row_group(group, columns=columns, use_threads=False)
        except _AskedForData:
            continue


class _AskedForData(Exception):
    """The reader found nothing wrong up to where it reads pages."""


class _Unreadable(io.RawIOBase):
    """A file of which only the size is known."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        raise _AskedForData
