"""Draws what happens to layers when a person is forgotten: `python docs/draw_layers.py` writes pictures/layers.svg.

It is animated by CSS. Without animation it shows the state after the request.
"""

from __future__ import annotations

from pathlib import Path

PICTURE = Path(__file__).parent / "pictures" / "layers.svg"
SEQUENCES = ((2, 0, 3, 1), (1, 3, 2, 0))
ASKED = 0
WIDTH, HEIGHT, SECONDS = 880, 432, 12
BOX, GAP, TOP, STACK = 44, 8, 118, 300

STYLE = f"""
text {{ font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1d2b2a; }}
.title {{ font-size: 19px; font-weight: 600; }}
.small {{ font-size: 13px; fill: #50605e; }}
.label {{ font-size: 14px; }}
.alive {{ fill: #b9e3dc; stroke: #00796b; stroke-width: 1.5; }}
.head {{ fill: #ffe3a8; stroke: #b07d12; stroke-width: 1.5; }}
.frozen {{ fill: #eceff1; stroke: #90a4ae; stroke-width: 1.5; }}
.gone {{ fill: #ffffff; stroke: #90a4ae; stroke-width: 1.5; stroke-dasharray: 5 4; }}
.flash {{ fill: #e57373; stroke: #b71c1c; stroke-width: 1.5; opacity: 0; }}
.serves {{ fill: #00796b; font-size: 15px; font-weight: 600; }}
.before, .asks {{ opacity: 0; }}
@media (prefers-reduced-motion: no-preference) {{
  .before {{ animation: before {SECONDS}s infinite; }}
  .asks {{ animation: asks {SECONDS}s infinite; }}
  .flash {{ animation: flash {SECONDS}s infinite; }}
  .after {{ animation: after {SECONDS}s infinite; }}
}}
@keyframes before {{ 0%, 46% {{ opacity: 1; }} 52%, 97% {{ opacity: 0; }} 100% {{ opacity: 1; }} }}
@keyframes asks {{ 0%, 24% {{ opacity: 0; }} 28%, 46% {{ opacity: 1; }} 52%, 100% {{ opacity: 0; }} }}
@keyframes flash {{ 0%, 28% {{ opacity: 0; }} 34%, 46% {{ opacity: 1; }} 52%, 100% {{ opacity: 0; }} }}
@keyframes after {{ 0%, 46% {{ opacity: 0; }} 52%, 97% {{ opacity: 1; }} 100% {{ opacity: 0; }} }}
"""


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    """Return a line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, kind: str) -> str:
    """Return a layer."""
    return f'<rect x="{x}" y="{y}" width="{STACK}" height="{BOX}" rx="7" class="{kind}"/>'


def name_slices(slices: tuple[int, ...]) -> str:
    """Return slices by name."""
    return f"slice{'s' if len(slices) > 1 else ''} {', '.join(map(str, slices))}"


def draw_stack(x: float, number: int, sequence: tuple[int, ...], serves_before: bool, serves_after: bool) -> list[str]:
    """Return the layers of one sequence from the top down, before and after the request."""
    left = sequence.index(ASKED)
    middle = x + STACK / 2
    lines = [text(x, TOP - 38, f"Sequence {number}: slices {', '.join(map(str, sequence))}", "label")]
    rows = [TOP + row * (BOX + GAP) for row in range(len(sequence) + 2)]
    for state in ("before", "after"):
        serves = serves_before if state == "before" else serves_after
        length = len(sequence) if state == "before" else left
        lines.append(f'<g class="{state}">')
        if serves:
            lines.append(text(x, TOP - 14, f"● serves, with the head of stage {length}", "serves"))
        else:
            lines.append(text(x, TOP - 14, "in reserve", "small"))
        lines += [box(x, rows[0], "head"), text(middle, rows[0] + 28, f"head of stage {length}", "label", "middle")]
        for stage, _ in enumerate(sequence, 1):
            alive = stage <= length
            seen = name_slices(sequence[:stage])
            words = f"group {stage}, trained on {seen}" if alive else f"group {stage}: pretrained layer"
            lines += [
                box(x, rows[stage], "alive" if alive else "gone"),
                text(middle, rows[stage] + 28, words, "label" if alive else "small", "middle"),
            ]
        lines.append("</g>")
    lines += [box(x, rows[-1], "frozen"), text(middle, rows[-1] + 28, "lower layers, never trained", "label", "middle")]
    for stage in range(left + 1, len(sequence) + 1):
        seen = name_slices(sequence[:stage])
        lines.append(box(x, rows[stage], "flash"))
        words = text(middle, rows[stage] + 28, f"group {stage}, trained on {seen}", "label", "middle")
        lines.append(f'<g class="asks">{words}</g>')
    return lines


def draw() -> str:
    """Return the picture."""
    margin = 60
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>What happens to the layers of a shard when a person in slice 0 is forgotten</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="#ffffff"/>',
        '<g class="before">' + text(margin, 42, "One shard, trained on two sequences of its slices", "title") + "</g>",
        '<g class="after">'
        + text(margin, 42, "After: all that saw slice 0 is revoked; sequence 2 serves on", "title")
        + "</g>",
        '<g class="asks">' + text(WIDTH - margin, 42, "A person in slice 0 asks", "serves", "end") + "</g>",
        *draw_stack(margin, 1, SEQUENCES[0], serves_before=True, serves_after=False),
        *draw_stack(WIDTH - margin - STACK, 2, SEQUENCES[1], serves_before=False, serves_after=True),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw())
