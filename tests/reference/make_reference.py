"""Writes the golden files beside it: what PyTorch computes, for machines that have no PyTorch.

Run it again only when an operation is added (at the end of the table: each draws by its place), and then for the
operations alone: ``python tests/reference/make_reference.py operations`` (needs PyTorch).
operations.npz: for each operation three cases, with inputs, options, a random upstream gradient, the output and all
gradients, in float64. networks.npz: a BasicBlock, a Bottleneck and a small ResNet with their state, before and after
one training step. families.npz: of one network of every family, fingerprints of logits, gradients and statistics, and
of the weights after twenty steps of SGD.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from families import FAMILIES, TRAINED, fingerprint, torch_results, torch_training  # noqa: E402
from networks import INPUTS, torch_networks  # noqa: E402
from operations import RUNNING, run_torch, sizes_from  # noqa: E402

CASES = 3


def encode(value, arrays, key):
    """An option as JSON; arrays and slices in it as marked objects."""
    if isinstance(value, np.ndarray):
        arrays[key] = value
        return {"array": key}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, tuple):
        return {"tuple": [encode(v, arrays, f"{key}.{i}") for i, v in enumerate(value)]}
    return value


def write_operations():
    arrays, index = {}, {}
    for operation in RUNNING:
        index[operation.name] = []
        for case in range(CASES):
            rng = np.random.default_rng([case, len(index)])
            inputs, options = operation.sample(sizes_from(rng), rng)
            dy = rng.standard_normal(np.shape(operation.forward(*inputs, **options)[0]))
            y, grads = run_torch(operation, inputs, options, dy)
            key = f"{operation.name}/{case}"
            arrays[f"{key}/dy"], arrays[f"{key}/y"] = dy, y
            for i, array in enumerate(inputs):
                arrays[f"{key}/in{i}"] = array
                if grads[i] is not None:
                    arrays[f"{key}/grad{i}"] = grads[i]
            encoded = {name: encode(value, arrays, f"{key}/{name}") for name, value in options.items()}
            index[operation.name].append({"inputs": len(inputs), "options": encoded})
    np.savez_compressed(HERE / "operations.npz", index=json.dumps(index), **arrays)


def write_networks():
    arrays = {}
    for name, network in torch_networks().items():
        rng = np.random.default_rng(5)
        network.double().train()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.from_numpy(0.5 * rng.standard_normal(tuple(parameter.shape))))
        for key, value in network.state_dict().items():
            arrays[f"{name}/before/{key}"] = value.numpy().copy()
        x = torch.from_numpy(rng.standard_normal(INPUTS[name])).requires_grad_()
        y = network(x)
        dy = torch.from_numpy(rng.standard_normal(tuple(y.shape)))
        y.backward(dy)
        arrays.update({f"{name}/x": x.detach().numpy(), f"{name}/dy": dy.numpy(), f"{name}/dx": x.grad.numpy()})
        arrays[f"{name}/y"] = y.detach().numpy()
        for key, parameter in network.named_parameters():
            arrays[f"{name}/grad/{key}"] = parameter.grad.numpy()
        for key, value in network.state_dict().items():
            arrays[f"{name}/after/{key}"] = value.numpy().copy()
        arrays[f"{name}/evaluation"] = network.eval()(x).detach().numpy()
    np.savez_compressed(HERE / "networks.npz", **arrays)


def write_families():
    arrays = {}
    for name in FAMILIES:
        results = torch_results(name)
        arrays[f"{name}/names"] = np.array(list(results))
        arrays[f"{name}/results"] = np.stack([fingerprint(value) for value in results.values()])
        print(name, "done", flush=True)
    for name in TRAINED:
        results = torch_training(name)
        arrays[f"{name}/trained names"] = np.array(list(results))
        arrays[f"{name}/trained"] = np.stack([fingerprint(value) for value in results.values()])
        print(name, "trained", flush=True)
    np.savez_compressed(HERE / "families.npz", **arrays)


if __name__ == "__main__":
    parts = {"operations": write_operations, "networks": write_networks, "families": write_families}
    for name in sys.argv[1:] or parts:
        parts[name]()
    for path in sorted(HERE.glob("*.npz")):
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB")
