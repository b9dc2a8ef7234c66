"""The generator that draws initial weights and dropout masks where no other is given.

It starts from seed 0 in every process, so that a program without a seed gives the same bits twice too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def get_rng_state() -> dict[str, Any]:
    """Where MiniRes's own generator stands, as plain numbers and text (json.dumps takes them)."""
    return default_generator().bit_generator.state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put MiniRes's own generator where get_rng_state() found it.

    Errors: ValueError for what is no such state; the generator then stays where it is.
    """
    try:
        default_generator().bit_generator.state = state
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"set_rng_state: expected what get_rng_state() gave: {error}") from error
