"""docs/trace.png and its Chinese twin: `python docs/trace_picture.py` opens docs/trace.html in
Chromium and takes a picture of what it shows. After a change of the page or its layout.
"""
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin

DOCS = Path(__file__).resolve().parent
sys.path.append(str(DOCS.parent / "tests"))

from browser import BROWSER, BROWSERS, browse  # noqa: E402

PICTURES = {"en": DOCS / "trace.png", "zh": DOCS / "trace.zh.png"}
WIDTH, HEIGHT = 1120, 1040
# The page in a frame that is scrolled to its second heading, and a number that is pointed at: that
# of the token which decided the last answer.
FRAME = """<body style="margin: 0"><iframe style="width: %dpx; height: %dpx; border: 0"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, last = [...page.querySelectorAll(".stripes")].at(-1);
  frame.contentWindow.scrollTo(0, page.querySelectorAll("h2")[1].offsetTop - 10);
  const changes = [...last.querySelectorAll("[data-key=true_A]")].map(c => Math.abs(c.where.value));
  last.querySelectorAll("[data-key=A]")[changes.indexOf(Math.max(...changes))].onclick();
};
frame.src = "trace.html#%s";
</script>"""


def digest() -> str:
    """Of what the pictures show: the data, and the layout; not the lines of the functions."""
    html = (DOCS / "trace.html").read_text(encoding="utf-8")
    data = html.split('id="data">')[1].split("</script>")[0]
    layout = (DOCS.parent / "support" / "trace.html").read_text(encoding="utf-8")
    return hashlib.sha256((data + layout).encode()).hexdigest()


def draw(language: str, file: Path) -> None:
    if BROWSER is None:
        sys.exit(f"trace_picture.py: error: found none of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copy(DOCS / "trace.html", folder)
        (folder / "frame.html").write_text(FRAME % (WIDTH, HEIGHT, language), encoding="utf-8")
        browse(folder, "--hide-scrollbars", "--allow-file-access-from-files",
               "--blink-settings=preferredColorScheme=1", f"--window-size={WIDTH},{HEIGHT}",
               "--virtual-time-budget=2000", f"--screenshot={folder / 'picture.png'}",
               (folder / "frame.html").as_uri())
        picture = Image.open(folder / "picture.png").convert("RGB")
    # 96 colours are enough, at a third of the size.
    noted = PngImagePlugin.PngInfo()
    noted.add_text("Sources", digest())
    picture.quantize(96, dither=Image.Dither.NONE).save(file, optimize=True, pnginfo=noted)


if __name__ == "__main__":
    for language, file in PICTURES.items():
        draw(language, file)
