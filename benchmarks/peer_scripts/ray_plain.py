"""Embed the `text` of a folder of Parquet files with Ray Data, as its guides do: map_batches of a class that holds the model.

python ray_plain.py CORPUS OUT MODEL
"""

import os
import sys

import ray
from sentence_transformers import SentenceTransformer


class Embedder:
    """One actor with the model."""

    def __init__(self, name: str) -> None:
        self.model = SentenceTransformer(name, device="cpu")

    def __call__(self, batch: dict) -> dict:
        """Vectors of a batch of texts."""
        return {"doc_id": batch["doc_id"], "vector": self.model.encode(list(batch["text"]))}


corpus, out, name = sys.argv[1:]
cores = os.cpu_count() or 1
ray.init(num_cpus=cores + 1)  # one more for reading: an actor that reserves every CPU would wait for its input for ever
dataset = ray.data.read_parquet(corpus, columns=["doc_id", "text"])
dataset = dataset.map_batches(Embedder, fn_constructor_args=(name,), batch_size=64, num_cpus=cores, concurrency=1)
dataset.write_parquet(out)
