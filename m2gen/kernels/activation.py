"""The constants of the activations in generated C++ (templates/cpp/_lib/activation.jinja)."""

from __future__ import annotations

import math
from functools import lru_cache

ACTIVATIONS = ("gelu", "relu", "silu")
EXPONENTIAL = tuple(repr(1 / math.factorial(i)) for i in range(8))  # Taylor: enough for float32 up to ln(2) / 2


@lru_cache(maxsize=1)
def erfcx() -> tuple[float, ...]:
    """exp(z^2) erfc(z) for z >= 0 as a polynomial in t = 1 / (1 + z/2), relative error 4e-8: its coefficients.

    By least squares on Chebyshev's points, up to z = 9.5, where erfc is below float32's range.
    """
    import numpy as np

    first = 1 / (1 + 9.5 / 2)
    t = (1 + first) / 2 + (1 - first) / 2 * np.cos(np.pi * (np.arange(2000) + 0.5) / 2000)
    z = 2 / t - 2
    exact = np.array([math.exp(at * at) * math.erfc(at) for at in z])
    terms = np.vander(t, 10, increasing=True) / exact[:, None]
    return tuple(float(one) for one in np.linalg.lstsq(terms, np.ones_like(t), rcond=None)[0])
