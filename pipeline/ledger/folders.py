"""Folders of a local disk: new names that survive a power failure, and listings that do not take an error for emptiness."""

from __future__ import annotations

import os
from pathlib import Path


def unless_missing(error: OSError) -> None:
    """A folder that is not there has no keys; one that cannot be read may have some."""
    if not isinstance(error, FileNotFoundError):
        raise error


def make_folder(folder: Path) -> None:
    """mkdir -p whose new names survive a power failure."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
