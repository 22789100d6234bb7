"""The task's prompt goes before the model's; names and defaults are looked up in the model's files."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from operators.models.layout import read_layout
from operators.prompts import PromptConfig, choose_prompt
from tests.operators.conftest import MakeModel

PROMPTS = {"q": "query: ", "p": "passage: "}


@pytest.mark.parametrize(
    ("config", "prompt"),
    [
        (PromptConfig(), "passage: "),
        (PromptConfig(prompt_name="q"), "query: "),
        (PromptConfig(prompt="read: "), "read: "),
        (PromptConfig(prompt=""), ""),
    ],
    ids=str,
)
def test_where_the_prompt_comes_from(config: PromptConfig, prompt: str, make_model: MakeModel) -> None:
    assert choose_prompt(config, read_layout(make_model(prompts=PROMPTS, default_prompt_name="p"))) == prompt


def test_a_model_without_prompts_has_none(make_model: MakeModel) -> None:
    layout = read_layout(make_model())
    assert choose_prompt(PromptConfig(), layout) == ""
    with pytest.raises(ValueError, match="prompt_name 'q' is not in the model's files; there are: none"):
        choose_prompt(PromptConfig(prompt_name="q"), layout)


def test_two_prompts_are_refused() -> None:
    with pytest.raises(ValidationError, match="prompt and prompt_name are both given"):
        PromptConfig(prompt="a: ", prompt_name="q")
