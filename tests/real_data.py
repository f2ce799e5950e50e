"The real data sets, where they are."
import os
from pathlib import Path

import pytest

from clad import data as clad_data
from clad.data import load_dataset
from clad.images import ImageSet


def real(dataset: str) -> tuple[ImageSet, ImageSet]:
    "The real set under $CLAD_DATA, or a skip that says what is missing."
    root = os.environ.get("CLAD_DATA")
    if dataset != "digits" and not root:
        pytest.skip(f"$CLAD_DATA is not set, so the real {dataset} is not checked")
    if dataset != "digits" and (missing := clad_data._SOURCES[dataset].missing(Path(root))):
        pytest.skip(f"$CLAD_DATA does not hold {dataset} ({missing[0].relative_to(root)} is missing)")
    return load_dataset(dataset, root, download=False)
