"""Read YAML that people write. Files that are large, ambiguous, or would run code or fill the memory are refused."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import yaml

__all__ = ["read_yaml"]


def read_yaml(path: Path, expected: str = "a few lines of YAML", most_bytes: int = 1 << 20) -> Any:
    """The plain values in a YAML file: mappings, lists, text, numbers, dates.

    Args:
        path: the file.
        expected: what it must contain, for messages.
        most_bytes: size of the largest file that is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no regular file, a larger one, or not YAML; or an alias, a tag of Python, or a key that occurs
            twice. The message is one line that names the file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: is not a regular file; it must contain {expected}.")
        if status.st_size > most_bytes:
            raise ValueError(
                f"{path}: has {status.st_size} bytes, at most {most_bytes} are read; it must contain {expected}."
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read as YAML ({error}). Correct it there.") from error
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError(f"{path}: cannot be read as YAML (nested too deeply). Correct it there.") from error
    except Exception as error:  # YAML's constructors raise more than YAMLError, for example on dates
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as YAML ({reason}). Correct it there.") from error


class _Loader(yaml.SafeLoader):
    """Without aliases: ten lines of them can stand for 10⁹ entries. A key that occurs twice is a mistake."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not used here; write it out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} occurs twice in one mapping", node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3 for text and 1.0e-3 for a number; people write the first.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
