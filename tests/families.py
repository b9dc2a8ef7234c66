"""One network of every family, as MiniRes builds it and as torch_resnet.py does, with weights that need no file.

``fill`` writes the same numbers into both, from a seeded generator and the order of the names. ``fingerprint`` keeps of
a large array its norm and eight entries, so that the golden file stays small.
"""

from typing import NamedTuple

import numpy as np

from minires import create_model

IMAGENET = {"widths": (64, 128, 256, 512), "stem": "imagenet", "option": "B"}
CIFAR = {"widths": (16, 32, 64), "stem": "cifar", "option": "A"}
R18, R50 = (2, 2, 2, 2), (3, 4, 6, 3)
CLASSES = 7


class Family(NamedTuple):
    model: str  # the name and options for create_model
    options: dict
    torch: dict  # the arguments of torch_resnet.ResNet
    image: tuple  # (N, C, H, W)


SMALL, TINY = (4, 3, 33, 40), (4, 3, 16, 12)

FAMILIES = {
    "resnet18": Family("resnet18", {}, {"block": "BasicBlock", "layers": R18, **IMAGENET}, SMALL),
    "resnet50": Family("resnet50", {}, {"block": "Bottleneck", "layers": R50, **IMAGENET}, SMALL),
    "resnext50": Family(
        "resnext50_32x4d", {}, {"block": "Bottleneck", "layers": R50, "groups": 32, "base": 4, **IMAGENET}, SMALL
    ),
    "wide_resnet50": Family(
        "wide_resnet50_2", {}, {"block": "Bottleneck", "layers": R50, "base": 128, **IMAGENET}, SMALL
    ),
    "resnet50 v1": Family(
        "resnet50",
        {"stride_in": "1x1"},
        {"block": "Bottleneck", "layers": R50, "stride_in": "1x1", **IMAGENET},
        SMALL,
    ),
    "resnet50 dilated": Family(
        "resnet50",
        {"replace_stride_with_dilation": (False, True, True)},
        {"block": "Bottleneck", "layers": R50, "dilate": (False, True, True), **IMAGENET},
        SMALL,
    ),
    "resnet18 option A": Family(
        "resnet18", {"shortcut": "A"}, {"block": "BasicBlock", "layers": R18, **IMAGENET, "option": "A"}, SMALL
    ),
    "resnet18 option C": Family(
        "resnet18", {"shortcut": "C"}, {"block": "BasicBlock", "layers": R18, **IMAGENET, "option": "C"}, SMALL
    ),
    "resnet20": Family("resnet20", {}, {"block": "BasicBlock", "layers": (3, 3, 3), **CIFAR}, TINY),
    "resnet20 option B": Family(
        "resnet20", {"shortcut": "B"}, {"block": "BasicBlock", "layers": (3, 3, 3), **CIFAR, "option": "B"}, TINY
    ),
    "plain18": Family("plain18", {}, {"block": "PlainBlock", "layers": R18, **IMAGENET}, SMALL),
    "plain20": Family("plain20", {}, {"block": "PlainBlock", "layers": (3, 3, 3), **CIFAR}, TINY),
    "preact_resnet18": Family("preact_resnet18", {}, {"block": "PreActBlock", "layers": R18, **IMAGENET}, SMALL),
    "preact_resnet50": Family("preact_resnet50", {}, {"block": "PreActBottleneck", "layers": R50, **IMAGENET}, SMALL),
    "preact_resnet20": Family(
        "preact_resnet20",
        {"final_norm": True},
        {"block": "PreActBlock", "layers": (3, 3, 3), "final_norm": True, **CIFAR},
        TINY,
    ),
}


def minires_network(name, **more):
    family = FAMILIES[name]
    return create_model(family.model, num_classes=CLASSES, **family.options, **more)


def torch_network(name):
    import torch_resnet

    return torch_resnet.ResNet(num_classes=CLASSES, **FAMILIES[name].torch)


def weights(shapes):
    """Values for every name of a state_dict, drawn in its order; counters stay 0."""
    rng = np.random.default_rng(7)
    values = {}
    for name, shape in shapes.items():
        uniform = rng.random(shape)
        if len(shape) == 4:
            values[name] = (2 * uniform - 1) * np.sqrt(6 / (shape[0] * shape[2] * shape[3]))
        elif len(shape) == 2:
            values[name] = (2 * uniform - 1) / np.sqrt(shape[1])
        elif name.endswith("bn3.weight"):
            values[name] = 0.2 * uniform + 0.1  # a calm branch, as in trained networks: float32 can follow it
        elif name.endswith(("running_var", "weight")):
            values[name] = 0.5 + uniform
        elif len(shape) == 1:
            values[name] = uniform - 0.5
        else:
            values[name] = np.zeros(shape, np.int64)
    return values


def batch(name, seed=0):
    """Images, labels, and an upstream gradient for the logits."""
    shape = FAMILIES[name].image
    rng = np.random.default_rng([seed, 3])
    return 2 * rng.random(shape) - 1, rng.integers(0, CLASSES, shape[0]), 2 * rng.random((shape[0], CLASSES)) - 1


def fingerprint(array):
    """The norm of an array and eight of its entries, spread evenly."""
    flat = np.asarray(array, np.float64).ravel()
    places = np.linspace(0, flat.size - 1, 8).astype(int)
    return np.concatenate([[np.linalg.norm(flat)], flat[places]])


def torch_results(name):
    """Everything that PyTorch computes for a family: names to arrays, in float64."""
    import torch

    network = torch_network(name).double()
    values = weights({key: tuple(value.shape) for key, value in network.state_dict().items()})
    network.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in values.items()})
    images, _, dy = batch(name)
    results = {"evaluation": network.eval()(torch.from_numpy(images)).detach().numpy()}
    x = torch.from_numpy(images).requires_grad_()
    logits = network.train()(x)
    logits.backward(torch.from_numpy(dy))
    results.update({"logits": logits.detach().numpy(), "dx": x.grad.numpy()})
    results.update({f"grad {key}": p.grad.numpy() for key, p in network.named_parameters()})
    results.update({f"buffer {key}": value.numpy() for key, value in network.named_buffers()})
    return results


STEPS, TRAINED = 20, {"resnet20": 0.1, "resnet18": 0.02, "resnet50": 0.02, "resnext50": 0.02}


def torch_training(name):
    """The state of a family after twenty steps of SGD by PyTorch, in float64."""
    import torch

    network = torch_network(name).double()
    values = weights({key: tuple(value.shape) for key, value in network.state_dict().items()})
    network.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in values.items()})
    optimizer = torch.optim.SGD(network.parameters(), lr=TRAINED[name], momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 15])
    for step in range(STEPS):
        images, labels, _ = batch(name, seed=step % 4)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(images)), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        schedule.step()
    return {"loss": np.asarray(loss.item()), **{key: value.numpy() for key, value in network.state_dict().items()}}
