"""The engine: a Tensor remembers how it was made, and ``backward()`` walks that memory in reverse."""
