"Detectors that are done at once and stand in for real ones in the tests of runs and records."
import os

import numpy as np

from clad.base import Detector
from clad.settings import SETTINGS


class DistanceToMean(Detector):
    """Distance to the mean of the group means (of the image means, without groups).

    `shift` does nothing, it is there to be overridden. Where the variable FITS names a file, each fit adds a line.
    """

    fits = 0

    def __init__(self, *, shift=0.0, alpha=0.05, calibration_fraction=0.1, random_state=0, verbose=False,
                 device="auto"):
        super().__init__(alpha=alpha, calibration_fraction=calibration_fraction, random_state=random_state,
                         verbose=verbose, device=device)
        self.shift = shift

    @classmethod
    def settings(cls, name, dataset=None, scenario=None):
        if name not in SETTINGS:
            raise ValueError(f"unknown settings {name!r}: choose from {', '.join(SETTINGS)}")
        return {"calibration_fraction": 0.0}

    def _fit(self, images, groups, work):
        type(self).fits += 1
        if os.environ.get("FITS"):
            with open(os.environ["FITS"], "a") as file:
                file.write("fit\n")
        if groups is None:
            self.mean_ = images.mean(0)
            return
        first = np.sort(np.unique(groups, return_index=True)[1])    # in the order of the images, whatever the numbers
        self.mean_ = np.mean([images[groups == groups[i]].mean(0) for i in first], 0)

    def _score(self, images):
        return -np.linalg.norm((images - self.mean_).reshape(len(images), -1), axis=1)
