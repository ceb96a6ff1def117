"""What is wrong with a command line, in a sentence, before anything is done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def out_of_range(args: Any, ranges: Mapping[str, tuple[float, float]]) -> str:
    """Of the first flag with a value, one of several perhaps, that is not within its bounds; else empty."""
    for name, (low, high) in ranges.items():
        given = getattr(args, name)
        for value in given if isinstance(given, tuple) else (given,):
            if not low <= value <= high:
                return f"--{name.replace('_', '-')} must be between {low:g} and {high:g}, got {value}."
    return ""


def nowhere(flag: str, path: str | Path | None) -> str:
    """Of a file that a flag names, if its folder does not exist; else empty."""
    missing = path and not Path(path).resolve().parent.is_dir()
    return f"--{flag} {path} is in a folder that does not exist." if missing else ""


def no_folder(flag: str, path: Path) -> str:
    """Of a folder that a flag names, if it is not there and cannot be made; else empty."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return ""
    return f"--{flag} {path} cannot be made or written to; give another folder."
