"""A graph as text that other programs draw: Graphviz's DOT and Mermaid. Neither program is needed to write it."""

from __future__ import annotations

from minires.debug.fold import Graph, Vertex


def dot(graph: Graph, title: str = "") -> str:
    """The graph in DOT. ``dot -Tsvg graph.dot`` draws it."""
    lines = ["digraph minires {", '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="sans-serif"];']
    if title:
        lines.append(f"  label={dot_string(title)}; labelloc=t;")
    for i, vertex in enumerate(graph.vertices):
        label = dot_string(f"{vertex.title}\n{vertex.second_line}")
        lines.append(f"  n{i} [label={label}{dot_look(vertex)}];")
    for a, b in graph.edges:
        lines.append(f"  n{a} -> n{b};")
    return "\n".join([*lines, "}"]) + "\n"


def dot_string(text: str) -> str:
    """A quoted string of DOT: what would end it or mean something is escaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", " ").replace("\n", "\\n")
    return f'"{escaped}"'


def dot_look(vertex: Vertex) -> str:
    """Attributes that tell leaves, modules and additions from other operations."""
    if vertex.kind == "leaf":
        return ", shape=ellipse"
    if vertex.kind == "module":
        return ", peripheries=2, fillcolor=gray95"
    return ", fillcolor=gray20, fontcolor=white" if vertex.title in ("residual_add", "add") else ""


def mermaid(graph: Graph, title: str = "") -> str:
    """The graph as a Mermaid flowchart, which GitHub, GitLab and Jupyter draw in Markdown."""
    lines = ["flowchart TD"]
    if title:
        lines.insert(0, f"---\ntitle: {yaml_string(title)}\n---")
    shapes = {"leaf": ("([", "])"), "module": ("[[", "]]"), "operation": ("[", "]")}
    for i, vertex in enumerate(graph.vertices):
        before, behind = shapes[vertex.kind]
        lines.append(f'  n{i}{before}"{escaped(vertex.title)}<br/>{escaped(vertex.second_line)}"{behind}')
    for a, b in graph.edges:
        lines.append(f"  n{a} --> n{b}")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Mermaid's text: everything but letters, digits and what is surely plain as #code;."""
    return "".join(c if c.isalnum() or c in " _.,()-" else f"#{ord(c)};" for c in text)


def yaml_string(text: str) -> str:
    """A quoted string of YAML, in which a title stands."""
    line = " ".join(text.split())
    return '"' + line.replace("\\", "\\\\").replace('"', '\\"') + '"'
