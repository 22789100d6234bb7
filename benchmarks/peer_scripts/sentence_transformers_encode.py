"""Embed the `text` of a folder of Parquet files with sentence-transformers.

python sentence_transformers_encode.py CORPUS OUT MODEL
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer

corpus, out, name = sys.argv[1:]
model = SentenceTransformer(name, device="cpu")
print("ready", flush=True)
table = pq.read_table(corpus, columns=["doc_id", "text"])
vectors = model.encode(table["text"].to_pylist())
Path(out).mkdir(parents=True, exist_ok=True)
column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
pq.write_table(pa.table({"doc_id": table["doc_id"], "vector": column}), f"{out}/vectors.parquet")
