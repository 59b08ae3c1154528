"""The array type that measures take and return."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
