"""Tools for looking inside a computation.

draw(tensor_or_model, path)    the graph as a picture (.svg, .png) or as text (.dot, .mmd)
"""

from minires.debug.draw import draw

__all__ = ["draw"]
