"""The reader's tools for looking inside a computation.

with debug.record() as record: ...      every operation with its numbers: a table, a CSV file, a chart, a page
debug.draw(tensor_or_model, path)       the graph as a picture (.svg, .png) or as text (.dot, .mmd)
"""

from minires.debug.draw import draw
from minires.debug.record import Record, record

__all__ = ["Record", "draw", "record"]
