"""A drawing as SVG text, from a handful of shapes: for docs/figures.py.

Text stays text. The card is white with a border, so a figure reads on light and on dark pages.
A browser chooses the font, so widths are estimates: `text_width` is on the wide side.
"""
from html import escape
from unicodedata import east_asian_width

FONTS = ("-apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', 'PingFang SC', "
         "'Microsoft YaHei', 'Noto Sans CJK SC', 'Noto Sans SC', sans-serif")
CODE_FONTS = ("ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', "
              "'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', monospace")
INK, QUIET, LINE, PALE_LINE = "#1f2328", "#57606a", "#8c959f", "#d0d7de"
BLUE, PALE_BLUE = "#0969da", "#ddf4ff"
GREEN, PALE_GREEN = "#1a7f37", "#dafbe1"
ORANGE, PALE_ORANGE = "#bc4c00", "#fff1e5"
GREY, PALE_GREY = "#6e7781", "#e4e8ec"


def text_width(text: str, size: float) -> float:
    """0.6 em a letter, 1 em a Chinese one."""
    return sum(1.0 if east_asian_width(c) in "WF" else 0.6 for c in text) * size


class Drawing:
    def __init__(self, width: int, height: int, title: str):
        self.size = width, height
        self.title = title
        self.shapes = []

    def rect(self, x, y, width, height, fill="white", stroke=LINE, line=1.2, radius=6, **more):
        self.add("rect", x=x, y=y, width=width, height=height, rx=radius, fill=fill,
                 stroke=stroke, stroke_width=line, **more)

    def text(self, x, y, text, size=13, fill=INK, anchor="middle", bold=False, code=False):
        """One line; y is its middle."""
        self.add("text", escape(text, quote=False), x=x, y=y + 0.35 * size, font_size=size,
                 fill=fill, text_anchor=anchor, font_weight="600" if bold else None,
                 class_="code" if code else None)

    def line(self, points, color=LINE, width=1.4, dash=None, arrow=False):
        """Through these points; with an arrow's head at the last one."""
        self.add("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in points), fill="none",
                 stroke=color, stroke_width=width, stroke_dasharray=dash,
                 marker_end=f"url(#{color[1:]})" if arrow else None)

    def arrow(self, *points, color=QUIET, dash=None):
        self.line(points, color, dash=dash, arrow=True)

    def box(self, x, y, width, height, *lines, fill="white", stroke=LINE, ink=INK, line=1.2,
            size=13):
        """A rectangle with lines of text in its middle. A line is text, or a dict of `text`'s
        arguments."""
        self.rect(x, y, width, height, fill, stroke, line)
        pitch = 1.3 * size
        top = y + height / 2 - pitch * (len(lines) - 1) / 2
        for i, given in enumerate(lines):
            given = given if isinstance(given, dict) else {"text": given}
            self.text(x + width / 2, top + pitch * i, **{"size": size, "fill": ink, **given})

    def add(self, tag, content=None, **attributes):
        given = "".join(f' {name.strip("_").replace("_", "-")}="{_show(value)}"'
                        for name, value in attributes.items() if value is not None)
        self.shapes.append(f"<{tag}{given}/>" if content is None else
                           f"<{tag}{given}>{content}</{tag}>")

    def svg(self) -> str:
        width, height = self.size
        heads = [f'<marker id="{color[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                 f'markerHeight="7" markerUnits="userSpaceOnUse" orient="auto">'
                 f'<path d="M0,0.5 L8,4 L0,7.5 z" fill="{color}"/></marker>'
                 for color in (QUIET, LINE, BLUE, GREEN, ORANGE, GREY)]
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="{FONTS}">',
            f"<title>{escape(self.title, quote=False)}</title>",
            f"<style>.code {{ font-family: {CODE_FONTS} }}</style>",
            "<defs>", *heads, "</defs>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" '
            f'fill="#ffffff" stroke="{PALE_LINE}"/>',
            *self.shapes, "</svg>", ""])


def _show(value) -> str:
    return escape(value, quote=False) if isinstance(value, str) else f"{round(value, 2):g}"
