"""What a model directory says about itself, laid out as by sentence-transformers or plain transformers; JSON only, no weights.

Both dialects of `1_Pooling/config.json` are read: booleans such as `pooling_mode_mean_tokens`, and `pooling_mode`, which wins.
Without modules.json the model is its transformer with mean pooling, as in sentence-transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from operators.models.files import entry, read_json, whole_number

MODEL_TYPES = (
    "albert",
    "bert",
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
"""Encoders that run, each compared with sentence-transformers in the tests."""

_OFFSET_POSITIONS = ("camembert", "mpnet", "roberta", "xlm-roberta")
"""Families whose position ids start behind the padding id (in MPNet's code always 1): it costs them padding_idx + 1 positions."""

_POOLING_BOOLEANS = {
    "pooling_mode_cls_token": "cls",  # no password  # nosec B105
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Old dialect to new, in the order in which several are concatenated."""

_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")


@dataclass(frozen=True)
class Dense:
    """A linear layer with an activation, weights in `directory`."""

    directory: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str
    """Name of the class in torch.nn."""


@dataclass(frozen=True)
class LayerNorm:
    """A layer normalization with weights in `directory`."""

    directory: Path
    dimension: int


@dataclass(frozen=True)
class Normalize:
    """Division by the L2 norm."""


Module = Dense | LayerNorm | Normalize


@dataclass(frozen=True)
class Layout:
    """A model as its JSON files describe it."""

    transformer_dir: Path
    model_type: str
    hidden_size: int
    max_positions: int | None
    """Tokens that the position embeddings allow, special tokens included; None where the model states no limit."""
    max_seq_length: int | None
    """Tokens of a window as sentence-transformers would cut, special tokens included; None where the files do not say."""
    do_lower_case: bool
    pooling: tuple[str, ...]
    """Modes in the order in which their results are concatenated."""
    include_prompt: bool
    """Whether the prompt's tokens take part in pooling."""
    splade_dir: Path | None
    """Directory of a sparse encoder's pooling, which pools the logits of a masked language model; `pooling` is empty then."""
    modules: tuple[Module, ...]
    """What follows pooling, in order; dropout, which does nothing outside training, is left out."""
    directories: tuple[Path, ...]
    """All directories with files that matter, the model's own first."""
    prompts: dict[str, str]
    default_prompt_name: str | None

    @property
    def pooled_size(self) -> int:
        """Width of a pooled vector, before `modules`."""
        return self.hidden_size * len(self.pooling)

    @property
    def dimension(self) -> int:
        """Width of the model's vectors."""
        sizes = [m.out_features for m in self.modules if isinstance(m, Dense)]
        return sizes[-1] if sizes else self.pooled_size

    @property
    def normalizes(self) -> bool:
        """Whether the model's vectors have length 1."""
        return bool(self.modules) and isinstance(self.modules[-1], Normalize)

    @property
    def weights_dirs(self) -> tuple[Path, ...]:
        """Directories that hold weights."""
        return (self.transformer_dir, *(m.directory for m in self.modules if not isinstance(m, Normalize)))


def read_layout(path: Path) -> Layout:
    """The layout of the model directory `path`. ValueError, naming the file, where it is incomplete or of an unknown kind."""
    modules = _read_modules(path)
    transformer_dir = path / modules[0][1] if modules else path
    config = read_json(transformer_dir / "config.json", dict)
    if config is None:
        raise ValueError(f"{transformer_dir} holds no config.json, so it is not a model's directory")
    model_type = str(config.get("model_type"))
    if model_type not in MODEL_TYPES:
        raise ValueError(f"{transformer_dir}/config.json: model_type {model_type!r} does not run; {', '.join(MODEL_TYPES)} do")
    hidden_size = whole_number(config, ("hidden_size", "dim"), transformer_dir)
    settings_file, settings = _transformer_settings(transformer_dir)
    _check_task(settings, [kind for kind, _ in modules], transformer_dir)
    pooling, include_prompt = _read_pooling(path, modules, hidden_size)
    top_file = path / "config_sentence_transformers.json"
    top = read_json(top_file, dict) or {}
    layout = Layout(
        transformer_dir=transformer_dir,
        model_type=model_type,
        hidden_size=hidden_size,
        max_positions=_max_positions(config, model_type, transformer_dir / "config.json"),
        max_seq_length=entry(settings, "max_seq_length", int, settings_file),
        do_lower_case=bool(settings.get("do_lower_case")),
        pooling=pooling,
        include_prompt=include_prompt,
        splade_dir=next((path / directory for kind, directory in modules if kind == "SpladePooling"), None),
        modules=tuple(m for kind, directory in modules[2:] if (m := _read_module(kind, path / directory))),
        directories=tuple(dict.fromkeys([path, transformer_dir, *(path / directory for _, directory in modules)])),
        prompts={name: prompt for name, prompt in (entry(top, "prompts", dict, top_file) or {}).items() if prompt is not None},
        default_prompt_name=entry(top, "default_prompt_name", str, top_file),
    )
    _check_widths(layout, path)
    return layout


def _transformer_settings(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The first file of sentence-transformers' own settings that says something, and what it says."""
    for name in _TRANSFORMER_CONFIGS:
        if settings := read_json(directory / name, dict):
            return directory / name, settings
    return directory / _TRANSFORMER_CONFIGS[0], {}


def _check_task(settings: dict[str, Any], kinds: list[str], directory: Path) -> None:
    task = settings.get("transformer_task", "fill-mask" if "MLMTransformer" in kinds else "feature-extraction")
    wanted = "fill-mask" if "SpladePooling" in kinds else "sequence-classification" if kinds == _CROSS else "feature-extraction"
    if task != wanted:
        raise ValueError(f"{directory}: transformer_task {task!r} does not give what is pooled behind it; {wanted} does")


def _read_modules(path: Path) -> list[tuple[str, str]]:
    """Kind and relative directory of each module; empty without modules.json."""
    file = path / "modules.json"
    listed = read_json(file, list)
    if listed is None:
        return []
    for module in listed:
        if not isinstance(module, dict) or any(type(module.get(k)) is not t for k, t in _MODULE_KEYS.items()):
            raise ValueError(f"{file}: each module needs an idx that is a number, and a type and a path that are strings")
    modules = []
    for module in sorted(listed, key=lambda m: int(m["idx"])):
        package, _, kind = module["type"].rpartition(".")
        if package.split(".")[0] != "sentence_transformers" or kind not in _KINDS:
            raise ValueError(f"{file}: module type {module['type']!r} is unknown; known last names are {', '.join(_KINDS)}")
        inside = PurePosixPath(module["path"])
        if inside.is_absolute() or ".." in inside.parts:
            raise ValueError(f"{file}: module path {module['path']!r} leads out of the model's directory")
        modules.append((kind, module["path"]))
    kinds = [kind for kind, _ in modules]
    dense = kinds[:2] == ["Transformer", "Pooling"] and not set(_STARTS) & set(kinds[2:])
    sparse = kinds in (["Transformer", "SpladePooling"], ["MLMTransformer", "SpladePooling"])
    if not dense and not sparse and kinds != _CROSS:
        raise ValueError(
            f"{file} lists {', '.join(kinds)}; a model starts with one Transformer and one Pooling, "
            "or is one Transformer and one SpladePooling, or a cross-encoder's one Transformer"
        )
    return modules


_MODULE_KEYS = {"idx": int, "type": str, "path": str}
_STARTS = ("Transformer", "MLMTransformer", "Pooling", "SpladePooling")
_CROSS = ["Transformer"]
"""A CrossEncoder of sentence-transformers: its scores are those of the transformer's own classifier."""
_KINDS = (*_STARTS, "Dense", "LayerNorm", "Normalize", "Dropout")


def _read_pooling(path: Path, modules: list[tuple[str, str]], hidden_size: int) -> tuple[tuple[str, ...], bool]:
    """Modes, and whether the prompt takes part."""
    if not modules:
        return ("mean",), True
    if len(modules) == 1 or modules[1][0] == "SpladePooling":
        return (), True
    directory = path / modules[1][1]
    config = read_json(directory / "config.json", dict)
    if config is None:
        raise ValueError(f"{directory} holds no config.json, so the pooling is unknown")
    modes = config.get("pooling_mode", [new for old, new in _POOLING_BOOLEANS.items() if config.get(old)] or ["mean"])
    modes = tuple(modes) if isinstance(modes, list) else (modes,)
    unknown = [m for m in modes if m not in _POOLING_BOOLEANS.values()]
    if unknown or not modes:
        raise ValueError(
            f"{directory}/config.json: pooling {unknown} is unknown; there are: {', '.join(_POOLING_BOOLEANS.values())}"
        )
    width = config.get("embedding_dimension", config.get("word_embedding_dimension", hidden_size))
    if width != hidden_size:
        raise ValueError(f"{directory}/config.json pools vectors of {width}, but the transformer's have {hidden_size}")
    return modes, bool(config.get("include_prompt", True))


def _read_module(kind: str, directory: Path) -> Module | None:
    """A module that follows pooling; None for dropout."""
    config = read_json(directory / "config.json", dict) or {}
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ValueError(f"{directory}/config.json: {key} {config[key]!r} is not supported; only sentence_embedding is")
    if kind == "Normalize":
        return Normalize()
    if kind == "LayerNorm":
        return LayerNorm(directory, whole_number(config, ("dimension",), directory))
    return _dense(config, directory) if kind == "Dense" else None


def _dense(config: dict[str, Any], directory: Path) -> Dense:
    if config.get("use_residual"):
        raise ValueError(f"{directory}/config.json: use_residual is not supported")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = str(activation).rpartition(".")[2]
    if not str(activation).startswith("torch.nn.") or name not in _ACTIVATIONS:
        raise ValueError(
            f"{directory}/config.json: activation_function {activation!r} is not one of torch.nn's {', '.join(_ACTIVATIONS)}"
        )
    takes, gives = (whole_number(config, (key,), directory) for key in ("in_features", "out_features"))
    return Dense(directory, takes, gives, bias=bool(config.get("bias", True)), activation=name)


def _check_widths(layout: Layout, path: Path) -> None:
    width = layout.pooled_size
    for module in layout.modules:
        takes = module.in_features if isinstance(module, Dense) else module.dimension if isinstance(module, LayerNorm) else width
        if takes != width:
            raise ValueError(f"{path}: {type(module).__name__} takes vectors of {takes}, but what is before it gives {width}")
        width = module.out_features if isinstance(module, Dense) else width


def _max_positions(config: dict[str, Any], model_type: str, file: Path) -> int | None:
    positions = entry(config, "max_position_embeddings", int, file)
    if positions is None or positions < 1:
        return None
    padding = 1 if model_type == "mpnet" else entry({"pad_token_id": 1, **config}, "pad_token_id", int, file) or 0  # nosec B105
    return positions - (padding + 1 if model_type in _OFFSET_POSITIONS else 0)
