"""The prompt that stands before every text: the task's own, one of the model's by name, or the model's default."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator

from operators.models.layout import Layout


class PromptConfig(BaseModel):
    """Settings of heads that know prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | None = None
    prompt_name: str | None = None
    """A prompt by its name in the model's files; without either, the model's default prompt."""

    @model_validator(mode="after")
    def _one_prompt(self) -> PromptConfig:
        if self.prompt is not None and self.prompt_name is not None:
            raise ValueError("prompt and prompt_name are both given; choose one")
        return self


def choose_prompt(config: PromptConfig, layout: Layout) -> str:
    """The prompt, empty where there is none. ValueError where the model's files do not have it."""
    if config.prompt is not None:
        return config.prompt
    if config.prompt_name is None:
        return layout.prompts.get(layout.default_prompt_name or "", "")
    if config.prompt_name not in layout.prompts:
        known = ", ".join(sorted(layout.prompts)) or "none"
        raise ValueError(f"prompt_name {config.prompt_name!r} is not in the model's files; there are: {known}")
    return layout.prompts[config.prompt_name]
