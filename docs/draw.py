"""Draws docs/rooms.svg (who imports whom, read from the sources) and docs/method.svg (data flow of HFGD).

python docs/draw.py
"""

import ast
import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "hfgd_jax"
INK, PAPER, LINE, PROTECTED = "#1f2933", "#ffffff", "#7b8794", "#c2410c"
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 128, 34, 22, 46, 24

Graph = dict[str, set[str]]


def room_imports() -> Graph:
    """For each file and folder at the top of the package, those that its modules import."""
    found: Graph = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        room = parts[0]
        if room == "__init__":
            continue
        found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
                inner = node.module.split(".")[1:]
                found[room] |= {inner[0]} if inner else {alias.name for alias in node.names}
            elif isinstance(node, ast.Constant) and re.fullmatch(r"hfgd_jax(\.\w+)+", str(node.value)):
                found[room].add(node.value.split(".")[1])  # what `cli` loads by name
    return {room: {other for other in others if other in found} - {room} for room, others in found.items()}


def reduced(graph: Mapping[str, Iterable[str]]) -> Graph:
    """The graph without arrows that others imply (its transitive reduction); it has no circles."""

    def reach(room: str) -> set[str]:
        direct = set(graph[room])
        return direct.union(*map(reach, direct))

    return {
        room: {other for other in others if not any(other in reach(third) for third in others)}
        for room, others in graph.items()
    }


def layers(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The rooms by the length of their longest chain of imports, the longest first."""

    def depth(room: str) -> int:
        return 1 + max(map(depth, graph[room]), default=-1)

    depths = {room: depth(room) for room in graph}
    return [sorted(r for r in graph if depths[r] == d) for d in range(max(depths.values()), -1, -1)]


def draw_rooms() -> str:
    """The SVG of the rooms; an arrow is an import, one that others imply is left out."""
    graph = reduced(room_imports())
    rows = layers(graph)
    width = 2 * MARGIN + max(map(len, rows)) * (BOX_WIDTH + GAP_X) - GAP_X
    places = {}
    for y, row in enumerate(rows):
        left = (width - len(row) * (BOX_WIDTH + GAP_X) + GAP_X) / 2
        for x, room in enumerate(row):
            places[room] = (left + x * (BOX_WIDTH + GAP_X), MARGIN + y * (BOX_HEIGHT + GAP_Y))
    height = MARGIN + len(rows) * (BOX_HEIGHT + GAP_Y) - GAP_Y + MARGIN
    parts = [
        _arrow(places[room][0] + BOX_WIDTH / 2, places[room][1] + BOX_HEIGHT,
               places[other][0] + BOX_WIDTH / 2, places[other][1])
        for room in graph for other in sorted(graph[room])
    ]  # fmt: skip
    parts += [_box(x, y, room, is_file=(PACKAGE / f"{room}.py").exists()) for room, (x, y) in places.items()]
    return _svg(width, height, parts, "Who imports whom in hfgd_jax")


def draw_method() -> str:
    """The SVG of HFGD's data flow, with the places where gradients stop."""
    at = {
        "image": (20, 150),
        "backbone": (180, 150),
        "context encoder (CAE)": (380, 60),
        "high": (600, 60),
        "class tokens": (760, 150),
        "guide logits": (930, 60),
        "upsampler": (380, 240),
        "axial attention": (560, 240),
        "low": (760, 240),
        "logits": (930, 240),
    }
    size = {name: max(80, 8 * len(name) + 24) for name in at}

    def side(name: str, right: bool) -> tuple[float, float]:
        x, y = at[name]
        return x + (size[name] if right else 0), y + BOX_HEIGHT / 2

    def join(a: str, b: str, note: str = "", stopped: bool = False) -> str:
        return _arrow(*side(a, True), *side(b, False), note=note, color=PROTECTED if stopped else LINE)

    parts = [
        join("image", "backbone"),
        join("backbone", "context encoder (CAE)", "f32"),
        join("context encoder (CAE)", "high"),
        join("high", "guide logits"),
        join("class tokens", "guide logits"),
        join("backbone", "upsampler", "f4 f8 f16 ", stopped=True),
        _arrow(630, 60 + BOX_HEIGHT, 450, 240, note="high", color=PROTECTED),
        join("upsampler", "axial attention"),
        join("axial attention", "low"),
        join("low", "logits"),
        join("class tokens", "logits", stopped=True),
    ]
    for name, (x, y) in at.items():
        parts.append(_box(x, y, name, width=size[name]))
    notes = [
        (20, 320, PROTECTED, "orange: stop_gradient - the student reads it and does not train it"),
        (760, 44, INK, "the teacher's loss trains tokens and backbone"),
        (760, 300, INK, "the student's loss trains upsampler and attention"),
    ]
    parts += [_text(x, y, text, color, anchor="start") for x, y, color, text in notes]
    return _svg(1150, 340, parts, "HFGD: the data flow and where gradients stop")


def _box(x: float, y: float, name: str, *, is_file: bool = False, width: float = BOX_WIDTH) -> str:
    radius = 2 if is_file else 8
    rect = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX_HEIGHT}" rx="{radius}" '
    rect += f'fill="{PAPER}" stroke="{INK}"/>'
    return rect + _text(x + width / 2, y + BOX_HEIGHT / 2 + 5, name, INK)


def _text(x: float, y: float, text: str, color: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{color}">{html.escape(text)}</text>'


def _arrow(x1: float, y1: float, x2: float, y2: float, *, note: str = "", color: str = LINE) -> str:
    head = "protected" if color == PROTECTED else "plain"
    line = f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{color}" '
    line += f'marker-end="url(#{head})"/>'
    return line + (_text((x1 + x2) / 2 - 8, (y1 + y2) / 2 - 8, note, color, "end") if note else "")


def _svg(width: float, height: float, parts: Iterable[str], title: str) -> str:
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{color}"/></marker>'
        for name, color in (("plain", LINE), ("protected", PROTECTED))
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
    head += f'font-family="sans-serif" font-size="14"><title>{title}</title><defs>{heads}</defs>'
    back = f'<rect width="{width:g}" height="{height:g}" fill="{PAPER}"/>'
    return "\n".join([head + back, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    (DOCS / "rooms.svg").write_text(draw_rooms())
    (DOCS / "method.svg").write_text(draw_method())
