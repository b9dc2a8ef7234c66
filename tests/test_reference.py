"""Every operation and three networks beside what PyTorch computed, from the golden files: these run everywhere."""

import json
from pathlib import Path

import numpy as np
import pytest
from closeness import assert_close
from networks import minires_networks
from operations import NAMES, OPERATIONS, TEXTBOOK, as_float32, float32_options, run_kernel

import minires

HERE = Path(__file__).parent / "reference"
FILE = np.load(HERE / "operations.npz")
INDEX = json.loads(str(FILE["index"]))


def decode(value):
    if not isinstance(value, dict):
        return value
    kind, content = next(iter(value.items()))
    if kind == "array":
        return FILE[content]
    if kind == "slice":
        return slice(*content)
    if kind == "ellipsis":
        return Ellipsis
    return tuple(decode(v) for v in content)


def same(value):
    return value


def check_operation(operation, case, there=same, back=same):
    """One case of the golden file; there and back carry arrays to where the kernel runs, and its results home."""
    name = operation.name.removesuffix(TEXTBOOK)
    entry = INDEX[name][case]
    key = f"{name}/{case}"
    arrays = [FILE[f"{key}/in{i}"] for i in range(entry["inputs"])]
    options = {name: decode(value) for name, value in entry["options"].items()}
    kinds = [(arrays, options, FILE[f"{key}/dy"], 1e-10)]
    if operation.name != "convert":
        kinds.append((as_float32(arrays), float32_options(options), FILE[f"{key}/dy"].astype(np.float32), 1e-5))
    for inputs, opts, dy, tolerance in kinds:
        y, grads = run_kernel(operation, there(inputs), there(opts), there(dy))
        assert_close(back(y), FILE[f"{key}/y"], tolerance, "y")
        for i in range(entry["inputs"]):
            if f"{key}/grad{i}" in FILE:
                assert_close(back(grads[i]), FILE[f"{key}/grad{i}"], tolerance, f"gradient {i}")


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_operation(operation, case):
    check_operation(operation, case)


def check_network(name, dtype, tolerance, device="cpu"):
    """Outputs, every gradient and every running statistic of a training step, then evaluation with them."""
    file = np.load(HERE / "networks.npz")

    def part(prefix):
        return {k.removeprefix(f"{name}/{prefix}/"): file[k] for k in file if k.startswith(f"{name}/{prefix}/")}

    network = minires_networks()[name].to(dtype).to(device)
    assert list(network.state_dict()) == list(part("before")), "the keys, in PyTorch's order"
    network.load_state_dict(part("before"))
    x = minires.Tensor(file[f"{name}/x"].astype(dtype), requires_grad=True, device=device)
    y = network(x)
    y.backward(file[f"{name}/dy"].astype(dtype))
    assert_close(y.detach().numpy(), file[f"{name}/y"], tolerance, "y")
    assert_close(x.grad.numpy(), file[f"{name}/dx"], tolerance, "dx")
    for key, parameter in network.named_parameters():
        assert_close(parameter.grad.numpy(), file[f"{name}/grad/{key}"], tolerance, key)
    for key, value in part("after").items():
        assert_close(network.state_dict()[key].numpy(), value, tolerance, key)
    network.eval()
    assert_close(network(x).detach().numpy(), file[f"{name}/evaluation"], tolerance, "evaluation")


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-10), (np.float32, 1e-4)])
@pytest.mark.parametrize("name", ["basic_block", "bottleneck", "resnet"])
def test_network(name, dtype, tolerance):
    check_network(name, dtype, tolerance)


def test_golden_files_are_small():
    assert sum(path.stat().st_size for path in HERE.glob("*.npz")) < 2e6
