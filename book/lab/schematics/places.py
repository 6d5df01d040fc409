"""Schematic of where EM attention goes in networks of other libraries."""

from __future__ import annotations

from lab.schematics.drawing import Drawing, Schematic

__all__ = ["unit_places"]

_UNIT = "EMA unit"
_BLOCK = "EM attention"

# Network: what it is built of, from input to output, with the shape behind each part.
_NETWORKS: dict[str, tuple[tuple[str, str], ...]] = {
    "ResNet-18": (
        ("layer1, layer2", "128 × 12 × 12"),
        ("layer3", "256 × 6 × 6"),
        (_UNIT, "256 × 6 × 6"),
        ("layer4, fc", "10 classes"),
    ),
    "DeepLabV3": (
        ("ResNet-50", "2048 × 9 × 9"),
        ("reduction", "256 × 9 × 9"),
        (_UNIT, "256 × 9 × 9"),
        ("head", "21 × 65 × 65"),
    ),
    "U-Net": (
        ("encoder", "512 × 4 × 4"),
        (_UNIT, "512 × 4 × 4"),
        ("decoder", "5 × 128 × 128"),
    ),
    "Vision transformer": (
        ("blocks 1 to 6", "1 + 36 tokens"),
        (_BLOCK, "1 + 36 tokens"),
        ("blocks 7 to 12", "10 classes"),
    ),
}


def unit_places() -> Schematic:
    """Where the four examples of the chapter on one's own experiments put EM attention."""
    return Schematic("unit-places", [_chain(name) for name in _NETWORKS])


def _chain(name: str) -> Drawing:
    parts = _NETWORKS[name]
    words = ", then ".join(f"{part} ({shape})" for part, shape in parts)
    row = 62
    top = row * (4 - len(parts)) / 2  # chains of three stand in the middle
    panel = Drawing(
        name, f"From top to bottom, with the shape behind each: {words}.", 150, 4 * row
    )
    for index, (part, shape) in enumerate(parts):
        y = top + row * index + 2
        role = "result" if part in (_UNIT, _BLOCK) else "features"
        panel.box((10, y), (130, 32), part, role=role, kind="small")
        panel.text((80, y + 47), shape, kind="small")
        if index + 1 < len(parts):
            panel.arrow((22, y + 33), (22, y + 59))
    if name == "U-Net":
        first, last = top + 18, top + row * 2 + 18
        panel.arrow((141, first), (147, first), (147, last), (141, last), dashed=True)
    return panel
