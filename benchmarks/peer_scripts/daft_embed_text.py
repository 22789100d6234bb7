"""Embed the `text` of a folder of Parquet files with Daft's embed_text, which runs sentence-transformers.

python daft_embed_text.py CORPUS OUT MODEL
"""

import sys

import daft
from daft.functions import embed_text

corpus, out, name = sys.argv[1:]
frame = daft.read_parquet(f"{corpus}/*.parquet")
frame = frame.with_column("vector", embed_text(daft.col("text"), provider="transformers", model=name))
frame.select("doc_id", "vector").write_parquet(out)
