"""MiniRes's own errors. Everything else is one of Python's."""


class CheckpointError(ValueError):
    """A file of weights that cannot be read: damaged, of another kind, or asking for what no tensor needs."""


class DataError(ValueError):
    """A file of images or labels that cannot be read: damaged, cut short, of another kind or of the wrong size."""
