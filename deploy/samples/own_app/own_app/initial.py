"""Write the sample's initial weights: ``python -m own_app.initial initial.safetensors``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tacit.core.artifacts import save_arrays

FEATURES = 3  # age, trestbps, thalach

if __name__ == "__main__":
    save_arrays(Path(sys.argv[1]), {"weights": np.zeros(FEATURES + 1, dtype=np.float32)})
