"""draw(): the graph of a computation as a picture or as text, folded by module to a chosen depth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.data.checkpoint import write_whole
from minires.debug.fold import Graph, folded
from minires.engine.modes import enable_grad
from minires.engine.tensor import Tensor
from minires.models import INPUTS
from minires.nn import Conv2d, Linear, Module
from minires.nn.state import in_mode

PICTURES = (".svg", ".png")
TEXTS = (".dot", ".mmd", ".mermaid")


def draw(
    what: Tensor | Module,
    path: str | os.PathLike,
    depth: int | None = None,
    input_shape: Sequence[int] | None = None,
    example: Any = None,
    title: str = "",
) -> None:
    """Draw how a tensor was computed, or what a model computes: operations from top to bottom, shortcuts at the side.

    What takes no gradient (images, labels, constants) is not in the recorded graph, and not in the picture; nor are the
    parameters of modules. A model runs once in evaluation mode and is left as it was.
    Args: what, a computed Tensor or a Module; path, where to write: .svg or .png, .dot (Graphviz), .mmd or .mermaid;
        depth, how far modules are opened: 0 draws a model as one box, 1 its parts, 2 their parts, None every operation;
        input_shape, of one image without the batch, or example, a whole input (a Tensor or array, or a tuple of them),
        for a model (by default an image of the size that ``minires summary`` takes); title, above a picture.
    Errors: TypeError for what is neither Tensor nor Module; ValueError for an unknown ending, a depth below 0, a tensor
        without a graph, a model that does not run on the input; OSError where the file cannot be written. A file that
        was there is replaced only when the new one is complete.
    """
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if ending not in PICTURES + TEXTS:
        raise ValueError(f"draw: expected a path ending in {', '.join(PICTURES + TEXTS)}, got {os.fspath(path)!r}")
    graph = graph_of(what, depth, input_shape, example)
    if ending == ".dot":
        from minires.debug.text import dot

        content = dot(graph, title).encode()
    elif ending in TEXTS:
        from minires.debug.text import mermaid

        content = mermaid(graph, title).encode()
    else:
        from minires.debug.picture import picture

        content = picture(graph, ending[1:], title)
    write_whole(path, content)


def graph_of(
    what: Tensor | Module, depth: int | None = None, input_shape: Sequence[int] | None = None, example: Any = None
) -> Graph:
    """The graph that draw() draws: vertices from the inputs on, and edges between them. All else as there."""
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 0):
        raise ValueError(f"draw: depth must be None (every operation) or an integer from 0, got {depth!r}")
    if isinstance(what, Module):
        outputs, inputs = outputs_of(what, input_shape, example)
    elif isinstance(what, Tensor):
        if input_shape is not None or example is not None:
            raise ValueError("draw: input_shape and example are for a model, a Tensor was computed already")
        outputs, inputs = [what], []
    else:
        raise TypeError(f"draw: expected a Tensor or a Module, got {type(what).__name__}")
    nodes = [output.node for output in outputs if output.node is not None]
    if not nodes:
        if isinstance(what, Module):
            raise ValueError(f"draw: {type(what).__name__} gave nothing that a gradient flows through")
        why = (
            "it is a leaf" if what.requires_grad else "nothing was recorded: no input requires a gradient, or no_grad()"
        )
        raise ValueError(f"draw: the tensor of shape {what.shape} has no graph, {why}")
    return folded(nodes, inputs, depth)


def outputs_of(model: Module, input_shape: Sequence[int] | None, example: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Run a model once: the Tensors that came out, and those that went in (made to require a gradient).

    Errors: ValueError where it does not run, or gives no Tensor.
    """
    if input_shape is not None and example is not None:
        raise ValueError("draw: give input_shape or example, not both")
    first = next(iter(model.parameters()), None)
    dtype, device = (np.dtype(np.float32), "cpu") if first is None else (first.dtype, first.device)
    if example is None:
        shape = default_shape(model) if input_shape is None else tuple(input_shape)
        example = np.zeros((1, *shape), dtype)
    given = example if isinstance(example, (tuple, list)) else (example,)
    inputs = []
    for one in given:
        x = one.detach().to(device=device) if isinstance(one, Tensor) else Tensor(one, device=device)
        inputs.append(x.to(dtype=dtype).requires_grad_() if x.dtype.kind == "f" else x)
    try:
        with in_mode(model, False), enable_grad():
            output = model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(x.shape) for x in inputs)
        raise ValueError(
            f"draw: {type(model).__name__} did not run on an input of shape {shapes}: {error} "
            "(input_shape= is the shape of one image, without the batch; example= a whole input)"
        ) from error
    outputs = tensors_in(output)
    if not outputs:
        raise ValueError(f"draw: expected {type(model).__name__} to give a Tensor, got {type(output).__name__}")
    return outputs, inputs


def default_shape(model: Module) -> tuple[int, ...]:
    """The shape of one input that a model was probably made for: what its first layer takes, in its family's size.

    Errors: ValueError where no layer tells.
    """
    for module in model.modules():
        if isinstance(module, Linear):
            return (module.in_features,)
        if isinstance(module, Conv2d):
            imagenet, cifar, mnist = INPUTS["imagenet"], INPUTS["cifar"], INPUTS["mnist"]
            family = imagenet if module.kernel_size == (7, 7) else mnist if module.in_channels == 1 else cifar
            return (module.in_channels, *family[1:])
    raise ValueError(f"draw: {type(model).__name__} does not tell what it takes: give input_shape= or example=")


def tensors_in(output: Any) -> list[Tensor]:
    """The Tensors in what a model returned: one, or a tuple, list or dict of them."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if not isinstance(output, (tuple, list)):
        return []
    return [tensor for part in output for tensor in tensors_in(part)]
