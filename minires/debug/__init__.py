"""The reader's tools: find the line and the number in question. Imported by nothing else; they cost nothing unused.

with debug.record() as record: ...            every operation with its numbers: a table, a CSV file, a chart, a page
with debug.detect_anomaly(): ...              stops at the first wrong number, and at arrays changed under a backward
debug.step()                                  pdb at the next line, stepping over checks and NumPy
with debug.stop_before_backward(name): ...    the debugger, before the backward of a layer
debug.compare(model, reference, x)            where two models part, layer by layer
debug.draw(tensor_or_model, path)             the graph as a picture (.svg, .png) or as text (.dot, .mmd)
debug.watch(tensor)                           a line whenever its gradient grows
"""

from minires.debug.anomaly import Anomaly, detect_anomaly
from minires.debug.comparison import Comparison, LayerRow, compare
from minires.debug.draw import draw
from minires.debug.record import Record, record
from minires.debug.stopping import Watch, step, stop_before_backward, watch

__all__ = [
    "Anomaly",
    "Comparison",
    "LayerRow",
    "Record",
    "Watch",
    "compare",
    "detect_anomaly",
    "draw",
    "record",
    "step",
    "stop_before_backward",
    "watch",
]
