"""Run notebooks the way nbdev_test does and store their outputs in them.

usage: python tools/save_outputs.py NOTEBOOK...

Cells marked `#| eval: false` and cells whose flag is listed in `tst_flags` (settings.ini) are not run and keep the
outputs they have; sources are left as they are. Pictures are stored with a palette of 256 colours, which makes them
less than half as large, and those that are still large (photographs) as JPEG. Run `nbdev_clean` afterwards.
"""
import base64
import io
import os
import sys
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.config import get_config
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor
from PIL import Image


def shrink(output) -> None:
    "Replace a PNG in a cell output by the same picture with a palette, or by a JPEG where that stays large."
    encoded = output.get("data", {}).get("image/png")
    if encoded:
        encoded = "".join(encoded)
        picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
        buffer = io.BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        output["data"]["image/png"] = min(base64.b64encode(buffer.getvalue()).decode(), encoded, key=len)
        if len(output["data"]["image/png"]) > 60_000:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=80)
            jpeg = base64.b64encode(buffer.getvalue()).decode()
            if len(jpeg) < len(output["data"]["image/png"]):
                output["data"]["image/jpeg"] = jpeg
                del output["data"]["image/png"]


def run(path: Path, flags: set[str]) -> None:
    "Execute one notebook and write its outputs back; the first failing cell raises."
    notebook = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    executed = set()

    def skip(cell) -> bool:
        directives = getattr(cell, "directives_", {}) or {}
        if cell.cell_type != "code" or flags & directives.keys():
            return True
        if directives.get("eval:", [""])[0].lower() == "false":
            return True
        executed.add(cell.id)
        cell["outputs"] = []    # a cell that shows nothing any more would keep what it showed before
        return False

    with working_directory(path.parent):
        CaptureShell(path).run_all(notebook, exc_stop=True, preproc=skip)
    outputs = {cell.id: cell.get("outputs", []) for cell in notebook.cells if cell.id in executed}
    for output in (output for cell_outputs in outputs.values() for output in cell_outputs):
        shrink(output)
    stored = read_nb(path)
    for cell in stored.cells:
        if cell.id in outputs:
            cell["outputs"] = outputs[cell.id]
    write_nb(stored, path)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    os.environ["IN_TEST"] = "1"
    config = get_config()
    sys.path.insert(0, str(config.config_path))
    for name in sys.argv[1:]:
        run(Path(name).resolve(), set(config.tst_flags.split()))
