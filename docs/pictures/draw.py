"""Draw the pictures of the pages as SVG files: `python docs/pictures/draw.py`.

`digits.png` comes from `python examples/mnist.py --steps 50000` instead.
"""

from pathlib import Path
from xml.sax.saxutils import escape

BLUE, ORANGE, GRAY, WHITE = "#dbe9f6", "#fde3c8", "#eeeeee", "#ffffff"
DARK, ACCENT = "#333333", "#c05a00"


class Picture:
    """Collects shapes, from the top left corner, in pixels."""

    def __init__(self, name, width, height, title):
        self.name = name
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
            f'height="{height}" viewBox="0 0 {width} {height}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="15">',
            f"<title>{escape(title)}</title>",
            "<defs>" + self._head("dark", DARK)
            + self._head("accent", ACCENT) + "</defs>",
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    @staticmethod
    def _head(name, color):
        return (f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" '
                'markerWidth="7" markerHeight="7" orient="auto">'
                f'<path d="M0,0 L10,5 L0,10 z" fill="{color}"/></marker>')

    def text(self, x, y, words, anchor="middle", color=DARK, weight="normal",
             size=15):
        for number, line in enumerate(words.split("\n")):
            self.parts.append(
                f'<text x="{x}" y="{y + number * (size + 4)}" fill="{color}" '
                f'text-anchor="{anchor}" font-weight="{weight}" '
                f'font-size="{size}">{escape(line)}</text>')

    def box(self, x, y, width, height, words, fill=BLUE, dashed=False):
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" '
            f'fill="{fill}" stroke="{DARK}"{dash}/>')
        lines = words.count("\n") + 1
        self.text(x + width / 2, y + height / 2 + 5 - (lines - 1) * 9.5, words)

    def arrow(self, *points, accent=False):
        color = ACCENT if accent else DARK
        head = "accent" if accent else "dark"
        dash = ' stroke-dasharray="6 4"' if accent else ""
        line = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f'<polyline points="{line}" fill="none" stroke="{color}" '
            f'stroke-width="1.6"{dash} marker-end="url(#{head})"/>')

    def save(self, folder):
        path = folder / f"{self.name}.svg"
        path.write_text("\n".join([*self.parts, "</svg>", ""]), "utf-8")


def way_of_x():
    """Draw what a layer does with its input in training and in testing."""
    picture = Picture("way_of_x", 860, 370,
                      "The way of x through training and testing")
    rows = {"Training": 40, "Testing": 280}
    for name, y in rows.items():
        picture.text(20, y - 12, name, "start", weight="bold")
        middle = y + 30
        picture.text(34, middle + 5, "x")
        picture.arrow((48, middle), (270, middle))
        picture.box(270, y, 190, 60, "normalize\n(x − mean) / (std + ε)")
        picture.arrow((460, middle), (500, middle))
        picture.box(500, y, 140, 60, "scale and shift\n· gamma + beta")
        picture.arrow((640, middle), (680, middle))
        picture.box(680, y, 110, 60, "nonlinearity")
        picture.arrow((790, middle), (825, middle))
        picture.text(838, middle + 5, "y")
    picture.box(80, 150, 170, 60, "mean and std\nof the batch", ORANGE)
    picture.arrow((165, 70), (165, 150))
    picture.arrow((250, 170), (320, 170), (320, 100))
    picture.box(410, 150, 170, 60, "running averages\nof mean and std", GRAY)
    picture.arrow((250, 195), (410, 195), accent=True)
    picture.text(330, 214, "moved by each batch,\nwith weight alpha",
                 color=ACCENT, size=13)
    picture.arrow((495, 210), (495, 250), (365, 250), (365, 280))
    return picture


def application():
    """Draw what an application of a layer leaves in a graph."""
    picture = Picture("application", 860, 400,
                      "What an application of a layer leaves in a graph")
    picture.text(20, 28, "In the graph that get_output() returns", "start",
                 weight="bold")
    picture.text(34, 85, "x")
    picture.arrow((48, 80), (110, 80))
    picture.box(110, 50, 150, 60, "normalize by the\nbatch's statistics")
    picture.arrow((260, 80), (430, 80))
    picture.box(430, 50, 150, 60, "marker\n(returns its input)", ORANGE)
    picture.arrow((580, 80), (690, 80))
    picture.text(705, 85, "y", "start")
    picture.arrow((185, 110), (185, 150), (460, 150), (460, 110))
    picture.text(195, 170, "statistics and count of the batch", "start",
                 size=13)
    picture.box(560, 140, 270, 60, "aliases of mean and std,\nwith a "
                "placeholder as next value", GRAY)
    picture.arrow((560, 170), (520, 170), (520, 110))
    picture.text(20, 243, "In the function that theano.function() makes",
                 "start", weight="bold")
    picture.text(34, 300, "x")
    picture.arrow((48, 295), (110, 295))
    picture.box(110, 265, 150, 60, "normalize by the\nbatch's statistics")
    picture.arrow((260, 295), (690, 295))
    picture.text(705, 300, "y", "start")
    picture.arrow((185, 325), (185, 360), (320, 360), accent=True)
    picture.text(196, 350, "statistics", "start", color=ACCENT, size=13)
    picture.box(320, 335, 310, 50, "(1 − alpha) · average + alpha · batch",
                ORANGE)
    picture.arrow((630, 360), (690, 360), accent=True)
    picture.box(690, 335, 130, 50, "mean and std", GRAY)
    return picture


def passes():
    """Draw the passes of exact accumulation over a network of two layers."""
    picture = Picture("passes", 860, 392,
                      "The passes of exact accumulation, for two layers")
    columns = ["sizes", "forward 1", "forward 2", "backward 2", "backward 1",
               "gradients"]
    cells = {
        "parameters": [None, None, None, None, None, "sum ∂"],
        "loss": [None, None, None, "∂ loss", "∂ loss", "∂ loss"],
        "batch norm 2": [None, None, "pool", "sum ∂", "use ∂", "use ∂"],
        "batch norm 1": [None, "pool", "use", "use", "sum ∂", "use ∂"],
        "micro-batches": ["count", "read", "read", "read", "read", "read"],
    }
    left, width, top, height = 130, 118, 50, 52
    for number, title in enumerate(columns):
        picture.text(left + number * width + 52, 30, title, weight="bold",
                     size=14)
    for row, (name, entries) in enumerate(cells.items()):
        y = top + row * (height + 10)
        picture.text(left - 12, y + 31, name, "end", size=14)
        for number, words in enumerate(entries):
            x = left + number * width
            if words is None:
                continue
            found = words in ("pool", "sum ∂", "count")
            picture.box(x, y, 104, height, words, ORANGE if found else BLUE)
    picture.text(left, 380, "Orange: what the pass finds for the full batch. "
                 "Blue: what it uses. ∂: derivatives of the loss.",
                 "start", size=13)
    return picture


def main():
    """Write all pictures beside this script."""
    folder = Path(__file__).resolve().parent
    for draw in (way_of_x, application, passes):
        draw().save(folder)


if __name__ == "__main__":
    main()
