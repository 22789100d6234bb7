"""As ray_plain.py, by someone who looked at `stats()`: small blocks, so that an actor for each core has work, and no dashboard.

python ray_tuned.py CORPUS OUT MODEL
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
ray.init(num_cpus=cores + 1, include_dashboard=False)
dataset = ray.data.read_parquet(corpus, columns=["doc_id", "text"])
dataset = dataset.repartition(target_num_rows_per_block=64)  # Ray's reader makes one block of several small files
dataset = dataset.map_batches(Embedder, fn_constructor_args=(name,), batch_size=64, num_cpus=1, concurrency=cores)
dataset.write_parquet(out)
