"""Module: a piece of a network that knows its parameters, its buffers and its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minires.engine.modes import mode
from minires.engine.tensor import Tensor
from minires.kernels.backend import to_device
from minires.nn.checks import check_depth, check_kind, check_mode, check_registration, target_of
from minires.nn.methods import Methods
from minires.nn.state import LoadResult, matched


class Parameter(Tensor):
    """A Tensor that a Module learns: assigning it to an attribute registers it. requires_grad=False freezes it."""

    def __init__(self, data: Any, requires_grad: bool = True):
        super().__init__(data, requires_grad=requires_grad)


class Module(Methods):
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
        check_kind(name, value, self.kind_of(name))
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self.buffer_names = tuple([other for other in self.buffer_names if other != name])

    def kind_of(self, name: str) -> type | None:
        """What an attribute holds for good, because of what it holds now; None for anything."""
        for kind in (Parameter, Module):
            if isinstance(vars(self).get(name), kind):
                return kind
        return Tensor if name in self.buffer_names else None

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Assign a parameter, or None, by name. Errors: TypeError for anything else; KeyError for a name in use."""
        check_registration(self, name, parameter, Parameter)
        setattr(self, name, parameter)

    def register_buffer(self, name: str, buffer: Tensor | None) -> None:
        """As register_parameter, for a tensor that is saved with the module and not learned, as a running mean is."""
        check_registration(self, name, buffer, Tensor)
        setattr(self, name, buffer)
        if name not in self.buffer_names:
            self.buffer_names = (*self.buffer_names, name)

    def add_module(self, name: str, module: Module | None) -> None:
        """As register_parameter, for a child."""
        check_registration(self, name, module, Module)
        setattr(self, name, module)

    # ---- Walking the tree ------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules right below this one, with their names."""
        return iter([(name, value) for name, value in vars(self).items() if isinstance(value, Module)])

    def children(self) -> Iterator[Module]:
        """The modules right below this one."""
        return iter([child for _, child in self.named_children()])

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """This module and all below it with dotted names, parents first; one used twice comes once, or by each name."""
        found: list[tuple[str, Module]] = []
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [(prefix, self)]  # a deep network does not meet the recursion limit
        while stack:
            name, module = stack.pop()
            if id(module) in seen and remove_duplicate:
                continue
            check_depth(self, name)
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
                if isinstance(tensor, Parameter) == parameters:
                    found.setdefault(id(tensor), (f"{prefix}.{name}" if prefix else name, tensor))
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

    # ---- Modes and gradients ---------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Module:
        """Training mode for this module and all below: batch norm uses the batch, dropout drops."""
        check_mode(mode)
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

        Args: state_dict, names to Tensors or arrays; strict, whether missing and unexpected names are errors; rename,
            for other names: ``{"linear": "fc"}`` reads ``linear.weight`` as ``fc.weight``. DataParallel's ``module.``
            is dropped.
        Returns: the missing and the unexpected names.
        Errors: RuntimeError that lists every missing, unexpected and wrongly shaped key; the module keeps what it had.
        """
        own = self.state_dict()
        arrays, passed_over = matched(type(self).__name__, own, state_dict, strict, rename or {})
        for name, array in arrays.items():
            own[name].array[...] = to_device(array, own[name].device)
        return passed_over

    def to(self, *where: Any, dtype: Any = None, device: str | None = None) -> Module:
        """Move every parameter and buffer to a device, or to a floating-point dtype; in place, returns itself.

        Errors: TypeError for a dtype that is not floating point; RuntimeError for a device that is not there.
        """
        dtype, device = target_of(where, dtype, device)
        for tensor in [*self.parameters(), *self.buffers()]:
            if dtype is not None and tensor.dtype.kind == "f":
                tensor.array = tensor.array.astype(dtype)
            if device is not None:
                tensor.array = to_device(tensor.array, device)
            if tensor.grad is not None:
                tensor.grad = tensor.grad.to(dtype=tensor.dtype, device=tensor.device)
        return self
