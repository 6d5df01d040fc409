"""What _toc.yml lists."""

from __future__ import annotations


def toc_entries(node: object) -> list[str]:
    """Every file that _toc.yml names, at any depth."""
    if isinstance(node, dict):
        own = [node[key] for key in ("root", "file") if key in node]
        return own + [entry for value in node.values() for entry in toc_entries(value)]
    return [entry for item in node for entry in toc_entries(item)] if isinstance(node, list) else []
