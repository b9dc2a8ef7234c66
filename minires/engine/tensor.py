"""The engine: a Tensor is an array that remembers how it was made, and ``backward()`` walks that memory in reverse.

    y = apply(forward, backward, a, b)    runs      y, cache = forward(a.array, b.array)
                                          keeps     Node(backward, cache, parents: what made a, what made b)
    y.backward()                          runs      da, db = backward(dy, cache), the newest Node first

That is all of it. What goes in and what comes out is held against the contract in armour.py: ``prepare`` chooses the
kernel (the fast one, or inside ``minires.textbook()`` the one that was named) and opens the Tensors, ``recorded`` lists
the parents, ``checked`` pairs them with their gradients; all say in words what is wrong, and can be stepped over. What
is switched on, and who watches, is in modes.py; what numbers and arrays become, in convert.py.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

from minires.engine.armour import (
    FREED,
    accumulate,
    checked,
    done,
    explained,
    failed,
    first_gradient,
    name_of,
    prepare,
    ready,
    recorded,
    returned,
    users_line,
)
from minires.engine.convert import as_tensor, make_array
from minires.engine.modes import mode, module_path
from minires.engine.operators import Operators
from minires.kernels.backend import Array, add

numbers = count(1)


class Node:
    """One operation that has run: what its backward needs, and where it was called."""

    __slots__ = {
        "operation": "its name, such as ``conv2d``",
        "backward": "the kernel: gradients = backward(dy, cache)",
        "cache": "what the kernel's forward kept",
        "parents": "of each input: the Node that made it, the leaf Tensor that it is, or None: no gradient is wanted",
        "shape": "of the result",
        "grad": "the sum of what has arrived so far, while backward() runs",
        "retained": "a weak reference to the result, where it asked for retain_grad()",
        "number": "a Node is newer than its parents, and has a larger number",
        "where": "file and line of the call",
        "modules": "that were being called, the outermost first",
    }

    def __init__(self, operation: str, backward: Callable, cache: Any, parents: tuple, shape: tuple[int, ...]):
        self.operation, self.backward, self.cache, self.parents, self.shape = operation, backward, cache, parents, shape
        self.grad = self.retained = None
        self.number, self.where, self.modules = next(numbers), users_line(), tuple(mode.modules)

    @property
    def module(self) -> str:
        """The dotted name of the module that made it, such as ``layer2.0.conv1``; "" outside every module."""
        return module_path(self.modules)

    @property
    def freed(self) -> bool:
        """Whether a backward() has been through it and let go of the cache."""
        return self.cache is FREED

    def __repr__(self) -> str:
        inside = f" by {self.module}" if self.module else ""
        return f"<{self.operation} made{inside} at {self.where[0]}, line {self.where[1]}>"


def wrap(array: Array) -> Tensor:
    """A Tensor around an array, sharing its memory, outside every graph."""
    return as_tensor(Tensor, array)


def apply(forward: Callable, backward: Callable, *inputs: Tensor | None, **options: Any) -> Tensor:
    """Run a kernel on tensors, ``forward(*arrays, **options)``, and remember it where a gradient is wanted.

    Args: forward and backward, a pair with the contract of ``minires.kernels``; inputs, Tensors on one device, or None
        for an array that is left out.
    Returns: a Tensor with the kernel's result.
    Errors: ValueError for inputs on two devices, and whatever the kernel raises.
    """
    try:
        run, run_back, arrays = prepare(forward, backward, inputs, options)  # the fast pair, or the reader's own
        y, cache = returned(run(*arrays, **options), run)
    except Exception as error:
        raise explained(error, forward, inputs)  # noqa: B904  # with a note, or in better words
    result = as_tensor(Tensor, y)
    parents = recorded(inputs, result)  # of each input: the Node that made it, the leaf that it is, or None
    if parents:
        result._requires_grad, result.node = True, Node(name_of(backward), run_back, cache, parents, y.shape)
    for watcher in mode.watchers:
        watcher.after_forward(result, cache, backward, inputs)
    return result


class Tensor(Operators):
    """An array with a memory of how it was made.

    Args: data, numbers, nested lists, an array or a Tensor (copied); requires_grad, whether backward() is to leave a
        gradient here; dtype, of NumPy (float32 where Python floats come, an array's own otherwise); device, "cpu" or
        "cuda".
    Errors: TypeError for data that is not numbers, or for integers with requires_grad; ValueError for ragged lists;
        RuntimeError for a device that is not there.
    """

    __slots__ = ("array", "_requires_grad", "grad", "node", "__weakref__")

    array: Array
    grad: Tensor | None
    node: Node | None
    apply = staticmethod(apply)
    wrap = staticmethod(wrap)

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None):
        self.array = make_array(data, dtype, device)
        self._requires_grad, self.grad, self.node = False, None, None
        if requires_grad:
            self.requires_grad = True

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Leave in .grad of every leaf the gradient of this tensor with respect to it, added to what is there.

        Args: gradient, of the loss with respect to this tensor, of its shape (1, if left out for a single value);
            retain_graph, keep the caches so that backward() can be called again.
        Errors: RuntimeError for a tensor that no gradient flows to, for more than one value without a gradient, and
            for a graph whose caches are freed; ValueError for a gradient of another shape. No leaf is changed then.
        """
        dy = first_gradient(self, gradient)
        if self.node is None:
            accumulate(self, dy)
            return
        node, self.node.grad = self.node, dy
        waiting = [(-node.number, node)]  # a heap of the Nodes that a gradient has reached
        leaves: dict[Tensor, Array] = {}
        try:
            while waiting:
                node = heappop(waiting)[1]  # the newest: whatever adds to its gradient is newer still, and was here
                ready(node)
                for parent, grad in checked(node, node.backward(node.grad, node.cache)):
                    if isinstance(parent, Tensor):
                        leaves[parent] = add(leaves[parent], grad) if parent in leaves else grad
                    elif parent.grad is not None:
                        parent.grad = add(parent.grad, grad)  # not in place: another parent may hold the same array
                    else:
                        parent.grad = grad
                        heappush(waiting, (-parent.number, parent))
                done(node, retain_graph)
            for leaf, grad in leaves.items():
                accumulate(leaf, grad)  # leaf.grad += grad
        except BaseException as error:  # Ctrl-C too
            raise failed(error, node, self.node)  # noqa: B904  # the error itself, with a note
