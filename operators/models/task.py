"""The part of a task's model behind its encoder, run by transformers' own code on vectors that we computed.

`AutoModelFor<Task>` is loaded and its encoder taken out; in its place stands a module that hands on the vectors it is given. So
every family's pooler and classifier is exactly transformers', without a word about families here.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from operators.models.files import read_json
from operators.models.layout import Layout
from operators.models.quiet import quiet


@dataclass(frozen=True)
class TaskConfig:
    """What config.json says of a model's task."""

    labels: tuple[str, ...]
    """`id2label`, in the order of the ids."""
    problem_type: str | None
    """regression, single_label_classification, multi_label_classification, or not said."""
    raw: dict[str, Any]
    """The whole file."""


def read_task(layout: Layout, task: str) -> TaskConfig:
    """The model's task by its config.json. ValueError where it was not made for `task` (transformers' `For<Task>`)."""
    file = layout.transformer_dir / "config.json"
    config: dict[str, Any] = read_json(file, dict)
    architectures = [str(name) for name in config.get("architectures") or []]
    if not any(name.endswith(f"For{task}") for name in architectures):
        raise ValueError(f"{file}: architectures {', '.join(architectures) or 'none'}; this head needs a model for {task}")
    labels = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(int(config.get("num_labels", 2)))}
    if not isinstance(labels, dict) or sorted(labels, key=_number) != [str(i) for i in range(len(labels))]:
        raise ValueError(f"{file}: id2label must number its labels from 0, each once")
    return TaskConfig(
        tuple(str(labels[str(i)]) for i in range(len(labels))),
        config.get("problem_type"),
        config,
    )


def _number(text: object) -> int:
    return int(str(text)) if str(text).isdigit() else -1


class TaskModel:
    """A loaded task's head, in float32 on `device`. `task` is transformers' name, as in `AutoModelForTokenClassification`.

    ValueError where the files lack weights of the head."""

    def __init__(self, layout: Layout, task: str, device: torch.device) -> None:
        auto: Any = getattr(transformers, f"AutoModelFor{task}")
        with quiet():
            self._model, found = auto.from_pretrained(
                str(layout.transformer_dir),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        missing = sorted([*found["missing_keys"], *(str(m[0]) for m in found["mismatched_keys"])])
        if missing:
            raise ValueError(
                f"{layout.transformer_dir}: {len(missing)} weights are missing or of another shape, the first is {missing[0]}; "
                f"the model's head for {task} must be in its files"
            )
        prefix = self._model.base_model_prefix
        self._handed = _Handed(getattr(self._model, prefix))
        setattr(self._model, prefix, self._handed)
        self._model.to(device).eval()

    def __call__(self, hidden_BLH: Tensor) -> Any:
        """transformers' output of the task's model for these vectors of its encoder, as if every position were real."""
        self._handed.given.hidden = hidden_BLH.float()
        mask = torch.ones(hidden_BLH.shape[:-1], dtype=torch.long, device=hidden_BLH.device)
        return self._model(inputs_embeds=hidden_BLH, attention_mask=mask)


class _Handed(nn.Module):
    """Stands where an encoder was; its output is what it was handed."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.given = threading.local()  # `hidden`: several threads may use one head at once
        self.embeddings = getattr(encoder, "embeddings", None)  # heads of masked language models may be tied to them
        self.pooler = getattr(encoder, "pooler", None)
        self.pooler_activation = getattr(encoder, "pooler_activation", None)

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        given: Tensor = self.given.hidden
        hidden = given.view(-1, *given.shape[-2:])  # multiple choice hands on [B, choices, L, H]
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=self._pool(hidden))

    def _pool(self, hidden: Tensor) -> Tensor | None:
        if self.pooler is None:
            return None
        # ALBERT's pooler is a plain linear layer; BERT's takes the whole sequence.
        pooled: Tensor
        if isinstance(self.pooler, nn.Linear):
            assert self.pooler_activation is not None
            pooled = self.pooler_activation(self.pooler(hidden[:, 0]))
        else:
            pooled = self.pooler(hidden)
        return pooled
