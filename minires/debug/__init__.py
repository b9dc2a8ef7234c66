"""The reader's tools: find the line and the number in question. Imported by nothing else; they cost nothing unused."""

from minires.debug.anomaly import Anomaly, detect_anomaly
from minires.debug.comparison import Comparison, LayerRow, compare
from minires.debug.stopping import Watch, stop_before_backward, watch

__all__ = [
    "Anomaly",
    "Comparison",
    "LayerRow",
    "Watch",
    "compare",
    "detect_anomaly",
    "stop_before_backward",
    "watch",
]
