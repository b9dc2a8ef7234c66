"""``minires bench``: how fast MiniRes is beside PyTorch on the same work, in one run on one machine."""
