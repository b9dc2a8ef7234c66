"""What all tests share: the note about PyTorch in the summary, and a hypothesis profile without a deadline."""

import importlib.util

from hypothesis import HealthCheck, settings

TORCH = importlib.util.find_spec("torch") is not None

settings.register_profile(
    "minires",
    deadline=None,  # speed lives in a benchmark, not in a test
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("minires")


def pytest_terminal_summary(terminalreporter):
    if TORCH:
        import torch

        terminalreporter.write_line(f"live comparisons ran against PyTorch {torch.__version__}")
    else:
        terminalreporter.write_line("PyTorch is not installed: live comparisons were skipped, golden files were used")
