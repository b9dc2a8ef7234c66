"""Module: a piece of a network that knows its parameters, its buffers and its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from minires.engine.modes import mode
from minires.engine.tensor import Tensor
from minires.kernels.backend import check_device, to_device


class Parameter(Tensor):
    """A Tensor that a Module learns: assigning it to a Module's attribute registers it.

    Args: data, as Tensor's; requires_grad, False for a frozen one.
    """

    def __init__(self, data: Any, requires_grad: bool = True):
        super().__init__(data, requires_grad=requires_grad)


class LoadResult(NamedTuple):
    """What load_state_dict(strict=False) passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def translate(state: Mapping[str, Any], own: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    """A state_dict under a module's own names: without DataParallel's ``module.``, and with prefixes renamed.

    Errors: RuntimeError where two names become one.
    """
    prefix = "module."
    wrapped = (
        state and all(str(name).startswith(prefix) for name in state) and not any(n.startswith(prefix) for n in own)
    )
    translated: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise RuntimeError(f"load_state_dict: names must be text, got {name!r}")
        if wrapped:
            name = name.removeprefix(prefix)
        for old, new in rename.items():
            if name == old or name.startswith(f"{old}."):
                name = new + name[len(old) :]
                break
        if name in translated:
            raise RuntimeError(f"load_state_dict: two entries are both called {name} after renaming")
        translated[name] = value
    return translated


class Module:
    """Base of all layers and networks: subclass it, assign parts in ``__init__``, compute in ``forward``.

    There is no registry: a module's parameters and children are those of its attributes that are a Parameter or a
    Module, in the order in which they were first assigned. Buffers are the attributes that register_buffer names.
    """

    training: bool = True
    buffer_names: tuple[str, ...] = ()

    def forward(self, *inputs: Any) -> Any:
        """What the module computes: to be written by the subclass."""
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        mode.modules.append(self)  # so that every operation knows which module made it
        try:
            return self.forward(*inputs, **options)
        finally:
            mode.modules.pop()

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        if isinstance(before, Parameter) and value is not None and not isinstance(value, Parameter):
            raise TypeError(f"{name} is a Parameter: assign a Parameter or None, or change its values under no_grad()")
        if isinstance(before, Module) and value is not None and not isinstance(value, Module):
            raise TypeError(f"{name} is a Module: assign a Module or None, got {type(value).__name__}")
        if name in self.buffer_names and value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} is a buffer: assign a Tensor or None, got {type(value).__name__}")
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self.buffer_names = tuple([other for other in self.buffer_names if other != name])

    def check_name(self, name: str, kind: type) -> None:
        """Errors: KeyError for a name that is empty, has a dot, or means something else already."""
        now = getattr(self, name, None)
        if not name or "." in name or (now is not None and not isinstance(now, kind)):
            raise KeyError(f"a name must be new, not empty and without a dot, got {name!r}")

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Assign a parameter by name; None keeps the place of one that is not there.

        Errors: TypeError for what is no Parameter; KeyError for a name that means something else already.
        """
        if parameter is not None and not isinstance(parameter, Parameter):
            raise TypeError(f"register_parameter: {name} must be a Parameter or None, got {type(parameter).__name__}")
        self.check_name(name, Parameter)
        setattr(self, name, parameter)

    def register_buffer(self, name: str, buffer: Tensor | None) -> None:
        """Assign a tensor that is saved with the module and not learned, such as a running mean.

        Errors: TypeError for what is no Tensor; KeyError for a name that means something else already.
        """
        if buffer is not None and not isinstance(buffer, Tensor):
            raise TypeError(f"register_buffer: {name} must be a Tensor or None, got {type(buffer).__name__}")
        self.check_name(name, Tensor)
        if isinstance(getattr(self, name, None), Parameter):
            raise KeyError(f"register_buffer: {name} is a Parameter")
        setattr(self, name, buffer)
        if name not in self.buffer_names:
            self.buffer_names = (*self.buffer_names, name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Assign a child by name.

        Errors: TypeError for what is no Module; KeyError for a name that is empty, has a dot, or means something else
            already.
        """
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__}: part {name} must be a Module, got {type(module).__name__}")
        self.check_name(name, Module)
        setattr(self, name, module)

    # ---- Walking the tree ------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules right below this one, with their names."""
        return iter([(name, value) for name, value in vars(self).items() if isinstance(value, Module)])

    def children(self) -> Iterator[Module]:
        """The modules right below this one."""
        return iter([child for _, child in self.named_children()])

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """This module and all below it with dotted names, parents first; one used twice comes once, or with each name.

        Walked with a stack: a deep network does not meet the recursion limit.
        """
        found: list[tuple[str, Module]] = []
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [(prefix, self)]
        while stack:
            name, module = stack.pop()
            if id(module) in seen and remove_duplicate:
                continue
            if name.count(".") > 500:
                raise RuntimeError(f"{type(self).__name__} contains itself: {name[:60]}...")
            seen.add(id(module))
            found.append((name, module))
            for child_name, child in reversed(list(module.named_children())):
                stack.append((f"{name}.{child_name}" if name else child_name, child))
        return iter(found)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return iter([module for _, module in self.named_modules()])

    def own_tensors(self) -> list[tuple[str, Tensor]]:
        """The parameters and then the buffers of this module itself, without its children's."""
        parameters = [(name, value) for name, value in vars(self).items() if isinstance(value, Parameter)]
        buffers = [(name, getattr(self, name)) for name in self.buffer_names]
        return parameters + [(name, buffer) for name, buffer in buffers if buffer is not None]

    def named_tensors(self, parameters: bool) -> Iterator[tuple[str, Any]]:
        """Every parameter (or every buffer) of this module and all below it, each once, with its dotted name."""
        found: dict[int, tuple[str, Tensor]] = {}
        for prefix, module in self.named_modules():
            for name, tensor in module.own_tensors():
                if isinstance(tensor, Parameter) == parameters and id(tensor) not in found:
                    found[id(tensor)] = (f"{prefix}.{name}" if prefix else name, tensor)
        return iter(list(found.values()))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, with its dotted name, in the order of registration."""
        return self.named_tensors(parameters=True)

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once, in the order of registration."""
        return iter([parameter for _, parameter in self.named_parameters()])

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Every buffer once, with its dotted name."""
        return self.named_tensors(parameters=False)

    def buffers(self) -> Iterator[Tensor]:
        """Every buffer once."""
        return iter([buffer for _, buffer in self.named_buffers()])

    def get_submodule(self, target: str) -> Module:
        """The module of a dotted name; "" is this one.

        Errors: AttributeError where the path breaks off.
        """
        module: Module = self
        for name in target.split(".") if target else []:
            child = vars(module).get(name)
            if not isinstance(child, Module):
                raise AttributeError(f"{type(module).__name__} has no submodule {name!r} (of {target!r})")
            module = child
        return module

    def apply(self, function: Callable[[Module], None]) -> Module:
        """Call a function on every module, children first, and return this one."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # ---- Modes and gradients ---------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Module:
        """Training mode for this module and all below: batch norm uses the batch, dropout drops.

        Errors: ValueError for a mode that is neither True nor False.
        """
        if not isinstance(mode, bool):
            raise ValueError(f"train: mode must be True or False, got {mode!r}")
        self.training = mode
        for child in self.children():
            child.train(mode)  # a child may have a train() of its own, such as a frozen batch norm
        return self

    def eval(self) -> Module:
        """Evaluation mode: train(False)."""
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients (or set them to zero)."""
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.array[...] = 0

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freeze (False) or free (True) every parameter."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    # ---- Saving, loading, moving -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Every parameter and buffer by its dotted name, sharing their memory (PyTorch's keys in PyTorch's order)."""
        state: dict[str, Tensor] = {}
        for prefix, module in self.named_modules(remove_duplicate=False):
            for name, tensor in module.own_tensors():
                state[f"{prefix}.{name}" if prefix else name] = tensor.detach()
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, rename: Mapping[str, str] | None = None
    ) -> LoadResult:
        """Copy values into parameters and buffers by name. Everything is checked before anything is written.

        The prefix ``module.`` that DataParallel leaves on every name is dropped, and a missing num_batches_tracked (of
        networks saved before PyTorch 0.4.1) keeps its value here.
        Args: state_dict, names to Tensors or arrays; strict, whether missing and unexpected names are errors; rename,
            for other names: ``{"linear": "fc"}`` reads ``linear.weight`` as ``fc.weight``.
        Returns: the missing and the unexpected names.
        Errors: RuntimeError that lists every missing, unexpected and wrongly shaped key; the module keeps what it had.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"load_state_dict: expected names and arrays, got {type(state_dict).__name__}")
        own = self.state_dict()
        state_dict = translate(state_dict, own, rename or {})
        missing = [name for name in own if name not in state_dict and not name.endswith("num_batches_tracked")]
        unexpected = [name for name in state_dict if name not in own]
        problems = []
        arrays = {}
        for name in own:
            if name not in state_dict:
                continue
            value = state_dict[name]
            try:
                array = value.array if isinstance(value, Tensor) else np.asarray(value)
            except Exception as error:  # an array of another library may refuse in its own way
                problems.append(f"{name}: cannot be read as an array: {error}")
                continue
            if own[name].dtype.kind != "f" and array.dtype.kind == "f":
                problems.append(f"{name}: expected integers, got {array.dtype}")
            elif array.shape != own[name].shape:
                problems.append(f"{name}: expected shape {own[name].shape}, got {array.shape}")
            elif array.dtype.kind not in "biuf":
                problems.append(f"{name}: expected numbers, got {array.dtype}")
            else:
                arrays[name] = array
        if strict and missing:
            problems.append(f"missing keys: {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected keys: {', '.join(unexpected)}")
        if problems:
            raise RuntimeError(f"load_state_dict: {type(self).__name__} was not changed:\n  " + "\n  ".join(problems))
        for name, array in arrays.items():
            own[name].array[...] = to_device(array, own[name].device)
        return LoadResult(missing, unexpected)

    def to(self, *where: Any, dtype: Any = None, device: str | None = None) -> Module:
        """Move every parameter and buffer to a device, or to a floating-point dtype; in place, returns itself.

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
        for tensors in (self.parameters(), self.buffers()):
            for tensor in tensors:
                if dtype is not None and tensor.dtype.kind == "f":
                    tensor.array = tensor.array.astype(dtype)
                if device is not None:
                    tensor.array = to_device(tensor.array, device)
                if tensor.grad is not None:
                    tensor.grad = tensor.grad.to(dtype=tensor.dtype, device=tensor.device)
        return self

    def cpu(self) -> Module:
        """Move to the CPU."""
        return self.to("cpu")

    def cuda(self) -> Module:
        """Move to the GPU."""
        return self.to("cuda")

    def float(self) -> Module:
        """Floating-point parameters and buffers as float32."""
        return self.to(np.dtype("float32"))

    def double(self) -> Module:
        """Floating-point parameters and buffers as float64."""
        return self.to(np.dtype("float64"))

    # ---- How it looks ----------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands between the brackets of this module's line; for subclasses."""
        return ""

    def __repr__(self) -> str:
        name = type(self).__name__
        children = list(self.named_children())
        if not children:
            return f"{name}({self.extra_repr()})"
        lines = [f"{name}({self.extra_repr()}"]
        for child_name, child in children:
            text = repr(child).replace("\n", "\n  ")
            lines.append(f"  ({child_name}): {text}")
        return "\n".join(lines) + "\n)"
