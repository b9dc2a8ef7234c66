"""What all optimisers share: groups of parameters with options, and what is remembered about each parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from minires.engine.modes import no_grad
from minires.engine.tensor import Tensor
from minires.kernels.backend import Array, device_of, is_array, one_launch, to_device


def launch(step: Callable[..., None], p: Array, *others: Any) -> None:
    """Run ``step(p, *others)``, a chain of element-wise lines in place; on a GPU as one kernel, see one_launch."""
    one_launch(step, p)(p, *others)


class Optimizer:
    """Base of the optimisers. Subclasses write ``update(state, p, grad, group)``, which moves one parameter in place.

    Attributes: param_groups, a dict for each group with "params" and its options; state, what update remembers, a dict
    for each parameter, by the parameter's place over all groups.
    Source: torch.optim.Optimizer.
    """

    #: The names of what update remembers about a parameter.
    remembers: tuple[str, ...] = ()

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]):
        """Errors: TypeError for other things than parameters; ValueError for none, or options out of range."""
        self.name = type(self).__name__
        if not isinstance(params, Iterable):
            raise TypeError(f"{self.name}: expected model.parameters(), got {type(params).__name__}")
        given = list(params)
        if not given:
            raise ValueError(f"{self.name}: expected parameters, got none")
        if not isinstance(given[0], dict):
            given = [{"params": given}]
        self.defaults = self.checked(defaults)
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[int, dict[str, Any]] = {}
        for group in given:
            self.add_param_group(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """One more group: a dict with "params" and options of its own, the defaults for the others.

        Errors: ValueError for a group without "params", for unknown options, and for a parameter that is there already;
            TypeError for what is no parameter.
        """
        unknown = set(group) - set(self.defaults) - {"params"}
        if "params" not in group or unknown:
            known = ", ".join(self.defaults)
            raise ValueError(f'{self.name}: a group needs "params" and knows {known}, got {", ".join(group)}')
        tensors = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        seen = {id(p) for p in self.parameters()}
        for tensor in tensors:
            if not isinstance(tensor, Tensor) or not tensor.is_leaf or tensor.dtype.kind != "f":
                raise TypeError(f"{self.name}: expected floating-point leaf Tensors, got {tensor!r}")
            if id(tensor) in seen:
                raise ValueError(f"{self.name}: a parameter of shape {tensor.shape} appears twice")
            seen.add(id(tensor))
        options = {name: value for name, value in group.items() if name != "params"}
        self.param_groups.append({**self.checked({**self.defaults, **options}), "params": tensors})

    def checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options with plain floats (a Tensor is welcome here, and not in the formula).

        Errors: ValueError for a number that is negative or not finite, betas that are not two numbers below 1, and
            nesterov without momentum; subclasses may add what else they require.
        """
        checked = {}
        for name, value in options.items():
            if isinstance(value, (tuple, list)) and name == "betas":
                checked[name] = tuple([float(one) for one in value])
            else:
                try:
                    checked[name] = value if isinstance(value, bool) else float(value)
                except TypeError as error:
                    raise TypeError(f"{self.name}: {name} must be a number, got {value!r}") from error
            if not isinstance(checked[name], tuple) and (checked[name] < 0 or not math.isfinite(checked[name])):
                raise ValueError(f"{self.name}: {name} must be a finite number of at least 0, got {value}")
        betas = checked.get("betas", (0.0, 0.0))
        if not isinstance(betas, tuple) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{self.name}: betas must be two numbers of at least 0 and below 1, got {betas}")
        if checked.get("nesterov") and (checked.get("momentum", 0) <= 0 or checked.get("dampening", 0) != 0):
            raise ValueError(f"{self.name}: nesterov needs a momentum above 0 and no dampening")
        return checked

    def parameters(self) -> list[Tensor]:
        """Every parameter of every group, in the order that ``state`` counts."""
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients (or set them to zero)."""
        for p in self.parameters():
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.array[...] = 0

    @no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient, in place."""
        place = 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if p.grad.shape != p.shape:
                        raise ValueError(
                            f"{self.name}: a parameter of shape {p.shape} has a gradient of shape {p.grad.shape}"
                        )
                    state = self.state.setdefault(place, {})
                    self.check_device(p, {"gradient": p.grad.array, **state})
                    self.update(state, p.array, p.grad.array, group)
                place += 1

    def check_device(self, p: Tensor, state: dict[str, Any]) -> None:
        """Errors: ValueError where the model was moved and its gradient, or what is remembered about it, was not."""
        for name, value in state.items():
            if is_array(value) and device_of(value) != p.device:
                raise ValueError(
                    f"{self.name}: a parameter is on {p.device} and its {name} on {device_of(value)}: move the model "
                    "before the first step, or make a new optimizer and load the old one's state_dict()"
                )

    def update(self, state: dict[str, Any], p: Array, grad: Array, group: dict[str, Any]) -> None:
        """Move one parameter."""
        raise NotImplementedError(f"{self.name} has no update()")

    def state_dict(self) -> dict[str, Any]:
        """The options of every group and the state of every parameter, laid out as PyTorch's; arrays are copied."""
        state = {
            place: {name: value.copy() if is_array(value) else value for name, value in kept.items()}
            for place, kept in self.state.items()
        }
        return {"state": state, "param_groups": self.groups_by_place()}

    def groups_by_place(self) -> list[dict[str, Any]]:
        """The options of every group, with the places of its parameters instead of them."""
        groups, place = [], 0
        for group in self.param_groups:
            places = list(range(place, place + len(group["params"])))
            place += len(places)
            groups.append({**group, "params": places})
        return groups

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state_dict(). Everything is checked before anything is changed.

        Errors: ValueError for other groups than here, and for a state that belongs to no parameter here.
        """
        try:
            groups, states = list(state_dict["param_groups"]), dict(state_dict["state"])
            sizes = [len(group["params"]) for group in groups]
        except (KeyError, TypeError, ValueError) as error:
            message = f'{self.name}.load_state_dict: expected "state" and "param_groups" as state_dict() gives them'
            raise ValueError(message) from error
        expected = [len(group["params"]) for group in self.param_groups]
        if sizes != expected:
            raise ValueError(f"{self.name}.load_state_dict: expected groups of {expected} parameters, got {sizes}")
        checked = []
        for group, own in zip(groups, self.param_groups, strict=True):
            options = {name: group.get(name, own[name]) for name in self.defaults}
            if "initial_lr" in group:
                options["initial_lr"] = group["initial_lr"]
            checked.append(self.checked(options))
        tensors = self.parameters()
        loaded: dict[int, dict[str, Any]] = {}
        for key, kept in states.items():
            place = int(key)
            if not 0 <= place < len(tensors):
                raise ValueError(f"{self.name}.load_state_dict: there is no parameter {place} here")
            there = {name: value for name, value in kept.items() if value is not None}
            if there and set(there) != set(self.remembers):
                expected_names, names = " and ".join(self.remembers), " and ".join(map(str, there))
                message = f"expected {expected_names} of parameter {place}, got {names}"
                raise ValueError(f"{self.name}.load_state_dict: {message}")
            loaded[place] = {name: self.own(value, tensors[place], name) for name, value in there.items()}
        for group, options in zip(self.param_groups, checked, strict=True):
            group.update(options)
        self.state = loaded

    def own(self, value: Any, p: Tensor, name: str) -> Any:
        """A remembered value as the optimiser's own: a copy where the parameter is, or a plain number.

        Errors: ValueError for an array of another shape than the parameter's.
        """
        if name == "step":
            return int(value)
        array = value.array if isinstance(value, Tensor) else value
        if not is_array(array):
            array = np.asarray(array)
        if array.shape != p.shape or array.dtype.kind != "f":
            raise ValueError(
                f"{self.name}.load_state_dict: {name} of shape {array.shape} belongs to no parameter of shape {p.shape}"
            )
        return to_device(array, device_of(p.array)).astype(p.dtype, copy=True)
