"""From a shipped function to the file that a student fills in.

The function's own source is cut: signature, docstring, comments and everything that only checks arguments or names
sizes stay, and each step of the mathematics becomes ``raise NotImplementedError("batch_norm_backward, step 3 of 6:
...")``. A step is one name that is computed: all neighbouring statements that write to it, up to the next comment.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import shlex
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minires.exercises.table import Exercise

#: Calls that are given, as no part of the mathematics: these, and whatever stands in a module that only checks
#: arguments and names sizes.
PREPARATIONS = {"array_module", "float", "int"}
PREPARING_MODULES = {"minires.kernels.checks", "minires.kernels.shapes"}

HEADER = '''\
"""Exercise {name}: {title}.

Replace each line that raises NotImplementedError by code of your own; the comments and shapes above it say what it
computes. Names that are imported here, and numpy, are at your service.

{commands}
"""

from __future__ import annotations

'''


class Step(NamedTuple):
    """One step of a function: what it computes, and the lines (counted from 1) of its source that do."""

    title: str
    names: tuple[str, ...]
    shape: str  # the comment that names the shape of the result, or nothing
    lines: list[tuple[int, int]]


def source_of(function: Callable) -> str:
    """A function's source as it is shipped."""
    return textwrap.dedent(inspect.getsource(function))


def stores(node: ast.AST) -> list[str]:
    """The name of every assignment and write in a piece of source, in its order: a name as often as it is written."""
    found = []
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and part.attr == "append" and isinstance(part.value, ast.Name):
            found.append((part.lineno, part.col_offset, part.value.id))
        base = part
        while isinstance(base, ast.Subscript):
            base = base.value
        if isinstance(base, ast.Name) and isinstance(getattr(part, "ctx", None), ast.Store):
            found.append((part.lineno, part.col_offset, base.id))
    return [name for _, _, name in sorted(found)]


def stored_names(node: ast.AST) -> list[str]:
    """The names that a statement computes or writes into, in the order of the source."""
    return list(dict.fromkeys(stores(node)))


def is_given(node: ast.stmt, function: Callable) -> bool:
    """Whether a statement only checks arguments, names sizes, opens the cache or saves memory on demand."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, (ast.Call, ast.Constant)) and not stores(node)
    if isinstance(node, ast.If):
        return (isinstance(node.body[-1], ast.Raise) and not node.orelse) or ast.unparse(node.test) == "inplace"
    if not isinstance(node, ast.Assign):
        return False
    if is_computed(node.value) and not all(name.isupper() for name in stored_names(node)):
        return False
    if all(name.isupper() or name in ("size", "options") for name in stored_names(node)):
        return True
    value = node.value
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        called = function.__globals__.get(value.func.id)
        return value.func.id in PREPARATIONS or getattr(called, "__module__", "") in PREPARING_MODULES
    return isinstance(value, ast.Attribute) or ast.unparse(value) == "cache"


def is_computed(node: ast.AST) -> bool:
    """Whether an expression does arithmetic."""
    return any(isinstance(part, (ast.BinOp, ast.UnaryOp)) for part in ast.walk(node))


def title_of(node: ast.stmt, names: list[str], comment: str, known: set[str]) -> str:
    """What a step is called: the names that it computes, and the beginning of the comment above it.

    Args: known, the names of the steps before.
    """
    if names:
        title = ", ".join(f"{name} again" if name in known else name for name in names if name != "_")
    elif isinstance(node, ast.For):
        title = f"the loop over {ast.unparse(node.target).strip('()')}"
    elif isinstance(node, ast.If):
        title = f"what it returns where {ast.unparse(node.test)}"
    else:
        title = "what it returns"
    phrase = re.split(r"[.:;,]", comment)[0]
    if is_equation(comment):
        return f"{title}, from {phrase}"
    return f"{title}, {phrase[0].lower()}{phrase[1:]}" if phrase else title


def is_equation(comment: str) -> bool:
    """Whether a comment is a line of the derivation, ``y = gamma x_hat + beta``: the steps below are about it."""
    return re.match(r"\w+ = ", comment) is not None


def shape_of(node: ast.stmt, lines: list[str]) -> str:
    """``  # (C, M)`` where the shape of a statement's result is said, in a comment or by what makes the array."""
    last = [] if isinstance(node, ast.For) else [lines[node.end_lineno - 1]]  # in a loop it is of a part
    for line in (*last, lines[node.lineno - 1]):
        if found := re.search(r"  # \([^#]*$", line):
            return found.group(0)
    made = getattr(node, "value", None)
    if isinstance(made, ast.Call) and re.match(r"\w+\.(zeros|ones|empty)\(\(", ast.unparse(made)):
        return f"  # {ast.unparse(made.args[0])}"
    return ""


def steps_of(function: Callable) -> list[Step]:
    """The steps of a function, in order."""
    source = source_of(function)
    lines = source.splitlines()
    body = ast.parse(source).body[0].body
    steps: list[Step] = []
    equation = ""
    for place, node in enumerate(body):
        if place == 0 and ast.get_docstring(ast.parse(source).body[0]) is not None:
            continue
        before = body[place - 1].end_lineno if place else node.lineno - 1
        between = [line.strip() for line in lines[before : node.lineno - 1]]
        comment = " ".join(line.lstrip("# ") for line in between if line.startswith("#"))
        if comment:
            equation = comment if is_equation(comment) else ""
        if is_given(node, function) or is_handing_on(node) and steps:
            continue
        names = [] if contains_return(node) else stored_names(node)
        if isinstance(node, (ast.For, ast.If)):  # what only the inside of the loop needs is no result of the step
            later = {part.id for after in body[place + 1 :] for part in ast.walk(after) if isinstance(part, ast.Name)}
            names = [name for name in names if name in later]
        shape = shape_of(node, lines)
        span = (node.lineno, node.end_lineno)
        last = steps[-1] if steps else None
        if last and not comment and set(names) & set(last.names) and last.lines[-1][1] == body[place - 1].end_lineno:
            more = [name for name in names if name not in last.names]
            title = ", ".join([last.title, *more])
            steps[-1] = Step(title, (*last.names, *more), shape or last.shape, [*last.lines, span])
        else:
            known = {name for step in steps for name in step.names}
            steps.append(Step(title_of(node, names, comment or equation, known), tuple(names), shape, [span]))
    return steps


def is_handing_on(node: ast.stmt) -> bool:
    """Whether this is a return that computes nothing."""
    return isinstance(node, ast.Return) and not is_computed(node.value)


def contains_return(node: ast.AST) -> bool:
    """Whether a statement may leave the function."""
    return any(isinstance(part, ast.Return) for part in ast.walk(node))


def not_written(function: Callable, steps: list[Step], number: int) -> str:
    """The message of one step's NotImplementedError."""
    return f"{function.__name__}, step {number} of {len(steps)}: {steps[number - 1].title}"


def blank_function(function: Callable) -> str:
    """A function's source with a NotImplementedError in the place of each step."""
    lines: list[str | None] = list(source_of(function).splitlines())
    steps = steps_of(function)
    for number, step in enumerate(steps, start=1):
        for first, last in step.lines:
            lines[first - 1 : last] = [None] * (last - first + 1)
        message = not_written(function, steps, number).replace('"', "'")
        lines[step.lines[0][0] - 1] = raising(message, step.shape)
    return "\n".join(line for line in lines if line is not None) + "\n"


def raising(message: str, shape: str) -> str:
    """The line that stands for a step; a long one is broken."""
    line = f'    raise NotImplementedError("{message}"){shape}'
    if len(line) <= 120:
        return line
    parts = textwrap.wrap(message, 100, drop_whitespace=False, break_on_hyphens=False)
    inside = "".join(f'        "{part}"\n' for part in parts)
    return f"    raise NotImplementedError(\n{inside}    ){shape}"


def imports_of(functions: tuple[Callable, ...]) -> tuple[dict[str, list[str]], list[type]]:
    """What the functions use from elsewhere: names by module; and the caches among them."""
    own = {function.__name__ for function in functions}
    found: dict[str, set[str]] = {}
    caches: list[type] = []
    for function in functions:
        module = sys.modules[function.__module__]
        origin = imported_names(module)
        for part in ast.walk(ast.parse(source_of(function))):
            name = part.id if isinstance(part, ast.Name) else ""
            if name in own or not name or hasattr(builtins, name) or not hasattr(module, name):
                continue
            found.setdefault(origin.get(name, module.__name__), set()).add(name)
            value = getattr(module, name)
            if isinstance(value, type) and hasattr(value, "_fields") and value not in caches:
                caches.append(value)
    return {module: sorted(names) for module, names in sorted(found.items())}, caches


def imported_names(module: Any) -> dict[str, str]:
    """Where a module has its imported names from; the empty string marks a whole module (``import numpy as np``)."""
    origin = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            origin.update({alias.asname or alias.name: node.module or "" for alias in node.names})
        elif isinstance(node, ast.Import):
            origin.update({alias.asname or alias.name: "" for alias in node.names})
    return origin


def helpers_of(functions: tuple[Callable, ...]) -> list[Callable]:
    """The functions of the library that the steps call."""
    found: list[Callable] = []
    for function in functions:
        lines = source_of(function).splitlines()
        for first, last in [span for step in steps_of(function) for span in step.lines]:
            for part in ast.walk(ast.parse(textwrap.dedent("\n".join(lines[first - 1 : last])))):
                value = function.__globals__.get(part.id) if isinstance(part, ast.Name) else None
                if inspect.isfunction(value) and value not in (*functions, *found):
                    found.append(value)
    return found


def described(helper: Callable) -> str:
    """A helper's call and the first line of its docstring, as a comment."""
    signature = inspect.signature(helper)
    bare = [argument.replace(annotation=inspect.Parameter.empty) for argument in signature.parameters.values()]
    call = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    says = (inspect.getdoc(helper) or "").partition("\n")[0]
    return f"# {helper.__name__}{call}\n{textwrap.fill(says, 116, initial_indent='#     ', subsequent_indent='#     ')}"


def import_lines(exercise: Exercise) -> str:
    """The import statements of a student's file; as comments what the caches hold, and which functions help."""
    used, caches = imports_of(exercise.functions)
    used.pop("", None)
    standard = {module: names for module, names in used.items() if module.split(".")[0] in sys.stdlib_module_names}
    others = {module: names for module, names in used.items() if module not in standard}
    parts = [section(standard), "import numpy as np", section(others)]
    text = "\n\n".join(part for part in parts if part)
    for cache in caches:
        text += f"\n\n# From {cache.__module__}:\n#\n{textwrap.indent(source_of(cache).rstrip(), '# ')}"
    helpers = helpers_of(exercise.functions)
    if helpers:
        text += "\n\n# Functions that help:\n#\n" + "\n".join(described(helper) for helper in helpers)
    return text


def section(used: dict[str, list[str]]) -> str:
    """Imports, a module a line; long ones with one name a line."""
    text = []
    for module, names in used.items():
        line = f"from {module} import {', '.join(names)}"
        if len(line) > 120:
            line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
        text.append(line)
    return "\n".join(text)


def command_for(action: str, exercise: str, path: str = "", course: str = "") -> str:
    """A command that works where it is read: with the file, where it is not the one that is taken without a name.

    Args: path, the student's file; course, the file that the exercise is from, if it is not MiniRes's own.
    """
    words = ["minires", "exercise", action, exercise]
    if path and Path(path) != Path(f"{exercise}.py"):
        words.append(shlex.quote(path))
    if course:
        words += ["--from", shlex.quote(course)]
    return " ".join(words)


def header_commands(exercise: Exercise, path: str, course: str) -> str:
    """The commands of a file's header, each with what it does."""
    commands = [
        (command_for("check", exercise.name, path, course), "what is right, and what is not"),
        (command_for("hint", exercise.name, path, course), "one of three hints"),
        (command_for("solution", exercise.name, course=course), "the shipped code"),
    ]
    width = max(len(command) for command, _ in commands)
    text = "\n".join(f"    {command.ljust(width)}    {explained}" for command, explained in commands)
    return text.replace("\\", "\\\\")


def blank_file(exercise: Exercise, path: str = "", course: str = "") -> str:
    """The file that ``minires exercise start`` writes; its header names the path and the course to type."""
    commands = header_commands(exercise, path, course)
    text = HEADER.format(name=exercise.name, title=exercise.title, commands=commands) + import_lines(exercise)
    text += f'\n\nEXERCISE = "{exercise.name}"\n'
    for function in exercise.functions:
        text += "\n\n" + blank_function(function)
    return text


def solution(exercise: Exercise) -> str:
    """The shipped functions, with the module that each is from."""
    parts = []
    for function in exercise.functions:
        parts.append(f"# {function.__name__}, as it stands in {function.__module__}\n{source_of(function)}")
    return "\n\n".join(parts)


def solved_file(exercise: Exercise) -> str:
    """A student's file with the shipped code in it."""
    text = import_lines(exercise)
    text = f'from __future__ import annotations\n\n{text}\n\nEXERCISE = "{exercise.name}"\n'
    for function in exercise.functions:
        text += "\n\n" + source_of(function)
    return text
