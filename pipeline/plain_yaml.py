"""YAML as data alone: no tags of Python, and bounded in bytes, values and nesting before anything is built from it.

A few lines with anchors can stand for billions of values; they are counted in the parsed tree, where each stands once.
"""

from __future__ import annotations

from typing import Any

import yaml

LARGEST = 2**20
"""Bytes of a config."""
_MOST_VALUES = 100_000
"""Keys and values with every alias written out."""
_DEEPEST = 50
_LONGEST_INTEGER = 4000
"""Digits; the standard library refuses more than 4300."""


def read(text: str) -> Any:
    """The one document in `text`. yaml.YAMLError where it is none, or beyond the bounds."""
    if len(text) > LARGEST:
        raise yaml.YAMLError(f"more than {LARGEST} characters")
    _check_depth(text)
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError(f"nested more than {_DEEPEST} deep") from None
    except (ValueError, OverflowError, TypeError) as error:  # a date or a number that is none
        raise yaml.YAMLError(f"a value that cannot be read ({type(error).__name__})") from None
    finally:
        loader.dispose()


def scalar(text: str) -> Any:
    """The value that `text` spells; `text` itself where it is no YAML."""
    try:
        return read(text)
    except yaml.YAMLError:
        return text


def _check_depth(text: str) -> None:
    """yaml.YAMLError where the text is nested too deeply; it is read no further than that."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"nested more than {_DEEPEST} deep")


def _check(root: yaml.Node) -> None:
    """yaml.YAMLError where the tree below `root` is too large or too deep with every alias written out, or holds itself."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"nested more than {_DEEPEST} deep")
        if isinstance(node, yaml.ScalarNode):
            if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _LONGEST_INTEGER:
                raise yaml.YAMLError("a number of too many digits")
            return 1
        if id(node) not in sizes:
            inside = [child for pair in node.value for child in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in inside)
        return sizes[id(node)]

    if size(root, 0) > _MOST_VALUES:
        raise yaml.YAMLError(f"more than {_MOST_VALUES} values")
