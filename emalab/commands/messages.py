"""Messages for a terminal."""

from __future__ import annotations

__all__ = ["one_line"]


def one_line(message: object) -> str:
    """A message without line breaks and control characters: names in files may hold some, and a terminal obeys."""
    text = " ".join(str(message).split())
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
