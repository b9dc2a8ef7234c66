"""Whether a file can be read as Python, and if not, where it goes wrong."""

from __future__ import annotations

import ast


def parsed(data: bytes) -> ast.Module:
    """The syntax tree of a file's contents.

    Errors: ValueError that names the line, for what is not Python or not text.
    """
    try:
        return ast.parse(data)
    except (SyntaxError, ValueError) as error:
        raise ValueError(problem(data, error)) from None
    except (RecursionError, MemoryError):
        raise ValueError("is not Python that can be read: it is nested too deeply") from None


def problem(data: bytes, error: Exception) -> str:
    """A sentence about the first line that is not Python."""
    if b"\0" in data:
        return f"line {line_of(data, data.index(0))} is not Python (it holds a null byte)"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as undecodable:
        if not getattr(error, "lineno", None) or "codec" in str(error) or "UTF-8" in str(error):
            return f"line {line_of(data, undecodable.start)} is not text in UTF-8"
    message, text = getattr(error, "msg", str(error)), getattr(error, "text", None) or ""
    where = f"line {error.lineno}" if getattr(error, "lineno", None) else "the file"
    return f"{where} is not Python ({message})" + (f": {text.strip()}" if text.strip() else "")


def line_of(data: bytes, place: int) -> int:
    """The number of the line, counted from 1, that holds a byte."""
    return data.count(b"\n", 0, place) + 1
