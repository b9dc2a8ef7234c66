"""What modules and layers refuse, and in which words. Each is one call in the code that it guards."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.engine.tensor import Tensor
from minires.kernels.backend import check_device

# ---- Modules: attributes and names -------------------------------------------------------------------------------


def check_kind(name: str, value: Any, kind: type | None) -> None:
    """An attribute that is a Parameter, a Module or a buffer (kind Tensor) takes another one, or None.

    Errors: TypeError for anything else.
    """
    if kind is None or value is None or isinstance(value, kind):
        return
    if kind.__name__ == "Parameter":
        raise TypeError(f"{name} is a Parameter: assign a Parameter or None, or change its values under no_grad()")
    now = "buffer" if kind is Tensor else kind.__name__
    raise TypeError(f"{name} is a {now}: assign a {kind.__name__} or None, got {type(value).__name__}")


def check_registration(module: Any, name: str, value: Any, kind: type) -> None:
    """What register_parameter, register_buffer (kind Tensor) and add_module take.

    Errors: TypeError for what is neither None nor of the kind; KeyError for a name that is empty, has a dot, or means
        something else already.
    """
    if value is not None and not isinstance(value, kind):
        methods = {"Parameter": "register_parameter", "Tensor": "register_buffer"}
        if kind.__name__ in methods:
            what = f"{methods[kind.__name__]}: {name} must be a {kind.__name__} or None"
        else:
            what = f"{type(module).__name__}: part {name} must be a Module"
        raise TypeError(f"{what}, got {type(value).__name__}")
    now = getattr(module, name, None)
    if not name or "." in name or (now is not None and not isinstance(now, kind)):
        raise KeyError(f"a name must be new, not empty and without a dot, got {name!r}")
    if kind is Tensor and type(now).__name__ == "Parameter":
        raise KeyError(f"register_buffer: {name} is a Parameter")


def check_depth(module: Any, name: str) -> None:
    """Errors: RuntimeError for a dotted name as long as only a module that is a part of itself has."""
    if name.count(".") > 500:
        raise RuntimeError(f"{type(module).__name__} contains itself: {name[:60]}...")


def check_mode(mode: Any) -> None:
    """Errors: ValueError for a mode that is neither True nor False."""
    if not isinstance(mode, bool):
        raise ValueError(f"train: mode must be True or False, got {mode!r}")


def target_of(where: tuple[Any, ...], dtype: Any, device: str | None) -> tuple[Any, str | None]:
    """The dtype and the device that ``Module.to("cuda")`` or ``to(float64, device="cpu")`` means; None for as it is.

    Errors: TypeError for a dtype that is not floating point; RuntimeError for a device that is not there.
    """
    for one in where:
        if isinstance(one, str) and (one == "cpu" or one.startswith("cuda")):
            device = one
        else:
            dtype = one
    if device is not None:
        device = check_device(device)
    if dtype is not None and np.dtype(dtype).kind != "f":
        raise TypeError(f"Module.to: expected a floating-point dtype, got {np.dtype(dtype)}")
    return dtype, device


# ---- Layers: sizes -----------------------------------------------------------------------------------------------


def check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    """Errors: ValueError for a convolution's channels that are not positive, or that groups does not divide."""
    if groups < 1 or in_channels < 1 or out_channels < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"Conv2d: in_channels and out_channels must be positive and divisible by groups, "
            f"got in_channels={in_channels}, out_channels={out_channels}, groups={groups}"
        )


def check_features(num_features: int) -> None:
    """Errors: ValueError for batch norm of no channel."""
    if num_features < 1:
        raise ValueError(f"BatchNorm2d: num_features must be positive, got {num_features}")


def check_images(x: Any, num_features: int) -> None:
    """Errors: ValueError for what is not (N, num_features, H, W)."""
    shape = getattr(x, "array", x).shape
    if len(shape) != 4 or shape[1] != num_features:
        raise ValueError(f"BatchNorm2d: expected (N, {num_features}, H, W), got {shape}")


def check_sizes(in_features: int, out_features: int) -> None:
    """Errors: ValueError for a linear layer's sizes below 1."""
    if in_features < 1 or out_features < 1:
        raise ValueError(f"Linear: sizes must be positive, got in {in_features}, out {out_features}")
