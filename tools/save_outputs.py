"""Run notebooks the way nbdev_test does and store their outputs in them.

usage: python tools/save_outputs.py NOTEBOOK...

Cells marked `#| eval: false` and cells whose flag is listed in `tst_flags` (settings.ini) are not run and keep the
outputs they have; sources are left as they are. Pictures are stored with a palette of 256 colours, which makes them
less than half as large, and those that are still large (photographs) as JPEG. Run `nbdev_clean` afterwards.
"""
import os
import subprocess
import sys
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.config import get_config
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor

from clad.cli import shrink


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
        shrink(output.get("data", {}))
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
    if len(sys.argv) == 2:
        run(Path(sys.argv[1]).resolve(), set(config.tst_flags.split()))
    else:    # each in a process of its own: settings of plots and threads stay where they were made
        for name in sys.argv[1:]:
            print(name, flush=True)
            subprocess.run([sys.executable, __file__, name], check=True)
