"""What a person sees of a long run: how far it is, how long it will take, and how to stop it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

SHOWN_EVERY = 0.1  # seconds


class Forecast:
    """How many seconds a run still needs: the steps, and the evaluations between them.

    What an evaluation takes is measured; before the first one, an image costs a third of what it costs in training,
    which goes forward once and backward twice.
    Args: steps, evaluations, of the whole run; batch_size and test_size, in images.
    """

    def __init__(self, steps: int, evaluations: int, batch_size: int, test_size: int):
        self.steps_left = steps
        self.evaluations_left = evaluations
        self.evaluation_in_steps = test_size / batch_size / 3
        self.seconds, self.count = 0.0, 0.0  # of the last steps: older ones count less and less
        self.evaluation_seconds: float | None = None
        self.first = True

    def step(self, seconds: float) -> None:
        """A step was made. The first is left out: it opens files and fills caches."""
        self.steps_left -= 1
        if self.first:
            self.first = False
            return
        if self.seconds > 60:
            self.seconds, self.count = self.seconds / 2, self.count / 2
        self.seconds, self.count = self.seconds + seconds, self.count + 1

    def evaluation(self, seconds: float) -> None:
        """An evaluation was made."""
        self.evaluations_left -= 1
        self.evaluation_seconds = seconds

    def seconds_left(self) -> float | None:
        """The forecast; None before anything is known."""
        if self.count == 0:
            return None
        step = self.seconds / self.count
        evaluation = self.evaluation_seconds
        if evaluation is None:
            evaluation = step * self.evaluation_in_steps
        return self.steps_left * step + self.evaluations_left * evaluation


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 5 h 10 min, 2 days 3 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} days {hours % 24} h"


class ProgressBar:
    """A tqdm bar over the steps of a run, with loss, accuracy, and the forecast in place of tqdm's own."""

    def __init__(self, done: int, total: int, forecast: Forecast, shown: bool = True):
        from tqdm.auto import tqdm

        self.visible = shown

        self.forecast = forecast
        self.bar = tqdm(
            total=total,
            initial=done,
            unit="batch",
            disable=not shown,
            desc="training",
            bar_format="{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )
        self.begun = self.shown = time.perf_counter()

    def step(self, seconds: float, numbers: Callable[[], tuple[float, float]]) -> None:
        """A step was made. numbers() gives loss and accuracy so far; it is called only when they are shown."""
        self.forecast.step(seconds)
        self.bar.update()
        now = time.perf_counter()
        if now - self.shown >= SHOWN_EVERY:
            self.shown = now
            loss, accuracy = numbers()
            left = self.forecast.seconds_left()
            ahead = "" if left is None else f", {duration(left)} left"
            self.bar.set_postfix_str(f"loss={loss:.4f}, accuracy={accuracy:.2%}{ahead}", refresh=False)

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        if self.visible:
            self.bar.write(line)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()


class Interruption:
    """Ctrl-C as a wish: the first is noted in ``wanted``, to be followed between two steps; a second stops at once.

    Only the main thread is ever interrupted, and a handler of the caller's own is left alone.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self.wanted = False
        self.active = False

    def handle(self, number: int, frame: Any) -> None:
        """What SIGINT calls."""
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
        if self.shown:
            os.write(2, b"\nstopping after this step (Ctrl-C again stops at once)\n")  # print() may be at work

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self.active = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self.active:
            signal.signal(signal.SIGINT, self.handle)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.active:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Shielded:
    """A part that Ctrl-C does not cut short: people press it twice."""

    def __enter__(self) -> None:
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __exit__(self, *error: Any) -> None:
        if self.main:
            signal.signal(signal.SIGINT, self.before)
