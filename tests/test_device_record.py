"""debug.record() of a network on the GPU."""

import minires.functional as F
import numpy as np
import pytest

import minires
from minires import Tensor, debug


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_numbers_are_those_of_the_cpu(cuda, dtype, tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((4, 3, 8, 8)).astype(dtype), rng.integers(0, 10, 4)
    records = []
    for device in ("cpu", "cuda"):
        model = minires.create_model("resnet8", generator=np.random.default_rng(1)).to(device, dtype=np.dtype(dtype))
        x, y = Tensor(images, device=device), Tensor(labels, device=device)
        with debug.record() as record:
            F.cross_entropy(model(x), y).backward()
        records.append(record)
    assert len(records[0]) == len(records[1])
    for cpu, gpu in zip(*records, strict=True):
        assert (cpu.operation, cpu.module, cpu.shape, cpu.inputs) == (gpu.operation, gpu.module, gpu.shape, gpu.inputs)
        close = {"rel": 1e-3, "abs": 1e-5} if dtype == "float32" else {"rel": 1e-9, "abs": 1e-12}
        for name in ("mean", "std", "grad_norm"):
            assert getattr(cpu, name) == pytest.approx(getattr(gpu, name), **close), (cpu.operation, cpu.module, name)
        assert cpu.result_bytes == gpu.result_bytes and gpu.forward_ms > 0 and gpu.backward_ms > 0
    records[1].save_html(tmp_path / "trace.html")
    records[1].plot(tmp_path / "ops.png")
