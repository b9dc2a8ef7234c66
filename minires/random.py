"""The generator that draws initial weights and dropout masks where no other is given.

It starts from seed 0 in every process, so that a program without a seed gives the same bits twice too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_generator: np.random.Generator | None = None


def manual_seed(seed: int) -> np.random.Generator:
    """Start MiniRes's own generator anew. NumPy's global state is not touched.

    Returns: the generator.
    """
    global _generator
    import numpy as np  # numpy.random is half of what importing NumPy costs: only when something is drawn

    _generator = np.random.default_rng(seed)
    return _generator


def default_generator(generator: np.random.Generator | None = None) -> np.random.Generator:
    """``generator`` where one is given, MiniRes's own otherwise.

    Errors: TypeError for what is not a numpy.random.Generator.
    """
    if generator is None:
        return _generator or manual_seed(0)
    import numpy as np

    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"generator: expected numpy.random.default_rng(seed), got {generator!r}")
    return generator
