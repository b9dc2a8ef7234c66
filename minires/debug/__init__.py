"""The reader's tools: see what a network did, operation by operation.

with debug.record() as record: ...      every operation with its numbers: a table, a CSV file, a chart, a page
"""

from minires.debug.record import Record, record

__all__ = ["Record", "record"]
