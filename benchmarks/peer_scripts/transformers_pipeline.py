"""Embed the `text` of a folder of Parquet files with transformers' feature extraction pipeline and mean pooling.

python transformers_pipeline.py CORPUS OUT MODEL
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import pipeline

MAX_TOKENS = 256  # as sentence-transformers reads for this model

corpus, out, name = sys.argv[1:]
extract = pipeline("feature-extraction", model=name, device="cpu")
print("ready", flush=True)
table = pq.read_table(corpus, columns=["doc_id", "text"])
cut = {"truncation": True, "max_length": MAX_TOKENS}
vectors = []
texts = table["text"].to_pylist()
lengths = [len(ids) for ids in extract.tokenizer(texts, **cut)["input_ids"]]
# The pipeline gives padding's vectors too: the length says where they start.
for length, states in zip(lengths, extract(texts, batch_size=32, return_tensors=True, tokenize_kwargs=cut), strict=True):
    mean = states[0, :length].mean(0).numpy()
    vectors.append(mean / np.linalg.norm(mean))
Path(out).mkdir(parents=True, exist_ok=True)
pq.write_table(pa.table({"doc_id": table["doc_id"], "vector": vectors}), f"{out}/vectors.parquet")
