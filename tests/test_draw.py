"""debug.draw: what the graph is, how it folds, where it goes, and that every format can be read."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import minires.functional as F
import numpy as np
import pytest

import minires
from minires import Tensor, models, nn
from minires.debug import draw
from minires.debug.fold import folded, members_behind
from minires.debug.layout import lay_out
from minires.debug.text import dot_string
from minires.engine.tensor import Node

rng = np.random.default_rng(0)


def graph_of(*arguments, **options):
    from minires.debug.draw import graph_of

    return graph_of(*arguments, **options)


def leaf(*shape):
    return Tensor(rng.standard_normal(shape), requires_grad=True)


def titles(graph):
    return [vertex.title for vertex in graph.vertices]


def paths_into(graph, vertex):
    return [a for a, b in graph.edges if b == vertex]


def behind(graph, vertex):
    """This vertex and everything it was computed from."""
    found, stack = set(), [vertex]
    while stack:
        i = stack.pop()
        found.add(i)
        stack += paths_into(graph, i)
    return found


BLOCKS = {
    "identity": (models.BasicBlock(4, 4), []),
    "option A": (models.BasicBlock(4, 8, 2, models.BlockOptions("A")), ["shortcut_a"]),
    "option B": (models.BasicBlock(4, 8, 2), ["conv2d", "batch_norm"]),
    "Bottleneck": (models.Bottleneck(4, 4), ["conv2d", "batch_norm"]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_two_paths_meet_at_residual_add(name):
    block, shortcut = BLOCKS[name]
    graph = graph_of(block, input_shape=(4, 6, 5))
    add = titles(graph).index("residual_add")
    first, second = paths_into(graph, add)
    assert graph.vertices[0].title == "input" and 0 in behind(graph, first) & behind(graph, second)
    short, long = sorted((behind(graph, first), behind(graph, second)), key=len)
    assert [graph.vertices[i].title for i in sorted(short - {0})] == shortcut
    assert short & long == {0} and len(short | long) == add
    layout = lay_out(len(graph.vertices), graph.edges, 100)
    assert {layout.columns[i] for i in long} == {0} and all(layout.columns[i] == 1 for i in short - {0})
    marked = [edge for edge, is_short in zip(graph.edges, layout.shortcuts, strict=True) if is_short]
    assert len(marked) == len(shortcut) + 1 and marked[0][0] == 0 and marked[-1][1] == add


def test_edges_are_the_parents_of_the_nodes():
    model = minires.create_model("resnet8")
    loss = F.cross_entropy(model(Tensor(rng.standard_normal((3, 3, 8, 6)), dtype="float32")), np.arange(3))
    graph = graph_of(loss)
    members = [vertex.members[0] for vertex in graph.vertices]
    assert members[-1] is loss.node and all(isinstance(member, Node) for member in members)
    for child, member in enumerate(members):
        parents = [parent for parent in member.parents if isinstance(parent, Node)]
        assert sorted(map(id, parents)) == sorted(id(members[a]) for a in paths_into(graph, child))
        assert graph.vertices[child].shape == member.shape
        if member.module:
            assert graph.vertices[child].detail == member.module
    assert all(a < b for a, b in graph.edges)


def test_an_expression_with_its_leaves():
    a, b, unused = leaf(2, 3), leaf(2, 3), Tensor(np.ones((2, 3)))
    graph = graph_of(((a * b + unused) * a).sum())
    assert titles(graph) == ["tensor", "tensor", "multiply", "add", "multiply", "sum"]
    assert graph.edges == [(0, 2), (0, 4), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert graph_of(a * a).edges == [(0, 1), (0, 1)], "x * x passes its gradient on twice"
    assert titles(graph_of(nn.Parameter(np.ones(3)) * 2)) == ["parameter", "multiply"]


def test_a_graph_that_backward_has_freed_is_still_drawn():
    y = (leaf(3) * 2).sum()
    before = graph_of(y)
    y.backward()
    assert graph_of(y).edges == before.edges


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_folding_keeps_the_edges_between_groups(depth):
    model = minires.create_model("resnet14", shortcut="B")
    opened, graph = graph_of(model), graph_of(model, depth)
    # Both ran on their own, so members are matched by their place in the same order.
    flat = [member for vertex in graph.vertices for member in vertex.members]
    outputs = [graph.vertices[-1].members[-1]]
    number = {id(member): i for i, member in enumerate(members_behind(outputs))}
    assert len(flat) == len(number) == len(opened.vertices)
    group = {number[id(m)]: i for i, vertex in enumerate(graph.vertices) for m in vertex.members}
    place = {id(m): i for i, m in enumerate(members_behind([opened.vertices[-1].members[0]]))}
    ends = [
        (place[id(opened.vertices[a].members[0])], place[id(opened.vertices[b].members[0])]) for a, b in opened.edges
    ]
    assert {(group[a], group[b]) for a, b in ends if group[a] != group[b]} == set(graph.edges)
    assert len(set(graph.edges)) == len(graph.edges) and all(a < b for a, b in graph.edges)


def test_what_each_depth_shows():
    model = minires.create_model("resnet20")
    assert [titles(graph_of(model, 0)), graph_of(model, 0).vertices[1].shape] == [["input", "ResNet"], (1, 10)]
    stem, top = ["input", "conv2d", "batch_norm", "relu"], ["global_avg_pool", "reshape", "linear"]
    assert titles(graph_of(model, 1)) == [*stem, "layer1", "layer2", "layer3", *top]
    assert graph_of(model, 1).vertices[4].detail == "3 x BasicBlock"
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    assert titles(graph_of(model, 2)) == [*stem, *blocks, *top]
    everything = graph_of(model)
    assert sum(title == "residual_add" for title in titles(everything)) == 9
    assert graph_of(model, 3).edges == everything.edges, "the ReLU that a block calls twice stays two operations"


class Detour(nn.Module):
    """Calls one module twice, past another one: folded, the two calls would stand on a circle."""

    def __init__(self):
        self.inner, self.relu = Inner(), nn.ReLU()

    def forward(self, x):
        y = self.inner(x)
        return self.inner(self.relu(y), y)


class Inner(nn.Module):
    def __init__(self):
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x, other=None):
        return self.conv(x) if other is None else self.conv(x) + other


def test_a_path_out_of_a_module_and_back_stays_open():
    graph = graph_of(Detour(), 1, input_shape=(2, 4, 3))
    assert titles(graph) == ["input", "conv2d", "relu", "conv2d", "add"]
    assert graph.edges == [(0, 1), (1, 2), (1, 4), (2, 3), (3, 4)]


def test_a_model_is_left_as_it_was():
    model = minires.create_model("resnet8").train()
    model.layer2.eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.numpy().tobytes() for k, v in model.state_dict().items()}
    with minires.no_grad():
        graph_of(model)
    assert [m.training for m in model.modules()] == modes
    assert {k: v.numpy().tobytes() for k, v in model.state_dict().items()} == state
    with pytest.raises(ValueError, match="did not run"):
        graph_of(model, input_shape=(5, 8, 8))
    assert [m.training for m in model.modules()] == modes


def test_what_a_model_is_run_on():
    assert graph_of(minires.create_model("resnet8", in_channels=1)).vertices[0].shape == (1, 1, 28, 28)
    assert graph_of(models.BasicBlock(6, 6).double()).vertices[0].shape == (1, 6, 32, 32)
    assert graph_of(nn.Sequential(nn.Linear(7, 3))).vertices[0].shape == (1, 7)
    model = minires.create_model("resnet8").double().requires_grad_(False)
    assert graph_of(model, example=rng.standard_normal((2, 3, 9, 8))).vertices[-1].shape == (2, 10)
    two = graph_of(Inner(), example=(rng.standard_normal((1, 2, 3, 3)), rng.standard_normal((1, 2, 3, 3))))
    assert titles(two) == ["input", "conv2d", "input", "add"]


def test_a_thousand_layers():
    graph = graph_of(minires.create_model("resnet1202"), input_shape=(3, 2, 2))
    assert sum(title == "residual_add" for title in titles(graph)) == 600
    layout = lay_out(len(graph.vertices), graph.edges, 100)
    for first in layout.pages[1:]:
        assert sum(layout.rows[a] < first <= layout.rows[b] for a, b in graph.edges) == 1, "a block is cut"


def test_boxes_do_not_overlap():
    a, b, c = leaf(3, 3), leaf(3, 3), leaf(3, 3)
    expression = F.cat([a * 2, (b * 3).relu(), (c @ b) @ c * b], dim=1).sum()
    for graph in (graph_of(expression), graph_of(minires.create_model("resnet14", shortcut="C"))):
        layout = lay_out(len(graph.vertices), graph.edges, 1000)
        for i in range(len(graph.vertices)):
            for j in range(i):
                same = layout.columns[i] == layout.columns[j]
                assert not same or abs(layout.rows[i] - layout.rows[j]) >= 1
        assert all(layout.rows[x] < layout.rows[y] for x, y in graph.edges)


# ---- Files -----------------------------------------------------------------------------------------------------------


class Awkward(nn.Module):
    """Names that mean something in DOT, Mermaid, XML and TeX."""

    def __init__(self):
        self.add_module('a"b]\\n<&>$x_1$;#%', nn.Linear(3, 2))

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x.relu()


GRAPHS = {"block": models.BasicBlock(2, 4, 2), "awkward": Awkward(), "expression": (leaf(2) * leaf(2)).sum()}


def dot_graph(text):
    """A reader of the DOT that is written here: labels by node, and edges. Anything else is an error."""
    lines = text.splitlines()
    assert re.fullmatch(r"digraph \w+ \{", lines[0]) and lines[-1] == "}"
    string, value = r'"(?:[^"\\]|\\.)*"', r'(?:"[^"\\]*"|\w+)'
    labels, edges = {}, []
    for line in lines[1:-1]:
        node = re.fullmatch(rf"  n(\d+) \[label=({string})((?:, \w+={value})*)\];", line)
        edge = re.fullmatch(r"  n(\d+) -> n(\d+);", line)
        if node:
            labels[int(node[1])] = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], node[2][1:-1])
        elif edge:
            edges.append((int(edge[1]), int(edge[2])))
        else:
            assert re.fullmatch(rf"  (node \[\w+={value}(, \w+={value})*\]|label={string}; labelloc=t);", line), line
    return labels, edges


def mermaid_graph(text):
    """The same for Mermaid; #code; is what a character is written as."""
    lines = text.splitlines()
    if lines[0] == "---":
        assert re.fullmatch(r'title: "(?:[^"\\]|\\.)*"', lines[1]) and lines[2] == "---"
        lines = lines[3:]
    assert lines[0] == "flowchart TD"
    labels, edges = {}, []
    for line in lines[1:]:
        node = re.fullmatch(r'  n(\d+)(?:\[|\(\[|\[\[)"((?:[\w .,()-]|#\d+;|<br/>)*)"(?:\]|\]\)|\]\])', line)
        edge = re.fullmatch(r"  n(\d+) --> n(\d+)", line)
        assert node or edge, line
        if node:
            decoded = re.sub(r"#(\d+);", lambda m: chr(int(m[1])), node[2].replace("<br/>", "\n"))
            labels[int(node[1])] = decoded
        else:
            edges.append((int(edge[1]), int(edge[2])))
    return labels, edges


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("ending, read", [(".dot", dot_graph), (".mmd", mermaid_graph), (".MERMAID", mermaid_graph)])
def test_text_says_what_the_graph_is(tmp_path, name, ending, read):
    options = {"input_shape": (2, 6, 6)} if name == "block" else {}
    draw(GRAPHS[name], tmp_path / f"graph{ending}", title='a "title"\n\\', **options)
    labels, edges = read((tmp_path / f"graph{ending}").read_text())
    graph = graph_of(GRAPHS[name], **options)
    assert list(labels.values()) == [f"{v.title}\n{v.second_line}" for v in graph.vertices] and edges == graph.edges


def test_a_string_cannot_end_early():
    assert dot_string('\\"\n') == '"\\\\\\"\\n"'


@pytest.mark.parametrize("name", GRAPHS)
def test_svg_is_well_formed_and_has_every_label(tmp_path, name):
    options = {"input_shape": (2, 6, 6)} if name == "block" else {}
    draw(GRAPHS[name], tmp_path / "graph.svg", title="a <title>", **options)
    root = ElementTree.parse(tmp_path / "graph.svg").getroot()
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    graph = graph_of(GRAPHS[name], **options)
    expected = [line for v in graph.vertices for line in (v.title, v.second_line)]
    assert sorted(" ".join(t.split()) for t in texts) == sorted(" ".join(t.split()) for t in [*expected, "a <title>"])


def test_png_is_a_picture_of_a_readable_size(tmp_path):
    from PIL import Image

    draw(minires.create_model("resnet110"), tmp_path / "deep.png", depth=2, input_shape=(3, 4, 4))
    with Image.open(tmp_path / "deep.png") as image:
        width, height = image.size
    assert width < 1500 and height < 2500, "one page"


@pytest.mark.parametrize("ending", ["svg", "png", "dot", "mmd"])
def test_the_same_bytes_every_time(tmp_path, ending):
    model = minires.create_model("resnet8")
    for name in ("a", "b"):
        draw(model, tmp_path / f"{name}.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


@pytest.mark.parametrize(
    "what, options, error, message",
    [
        (leaf(2) * 2, {"path": "x.pdf"}, ValueError, "ending in .svg, .png, .dot, .mmd"),
        (leaf(2) * 2, {"path": "x"}, ValueError, "got 'x'"),
        (leaf(2), {}, ValueError, r"shape \(2,\) has no graph, it is a leaf"),
        (Tensor([1.0]) * 2, {}, ValueError, "no input requires a gradient, or no_grad"),
        (np.ones(3), {}, TypeError, "expected a Tensor or a Module, got ndarray"),
        (leaf(2) * 2, {"input_shape": (2,)}, ValueError, "are for a model"),
        (leaf(2) * 2, {"depth": -1}, ValueError, "depth must be None"),
        (leaf(2) * 2, {"depth": 1.5}, ValueError, "got 1.5"),
        (nn.ReLU(), {}, ValueError, "ReLU does not tell what it takes: give input_shape= or example="),
        (nn.Linear(3, 2), {"input_shape": (4,)}, ValueError, r"Linear did not run on an input of shape \(1, 4\)"),
        (nn.Linear(3, 2), {"input_shape": (3,), "example": np.ones((1, 3))}, ValueError, "not both"),
        (nn.Module(), {"input_shape": (3,)}, ValueError, r"Module has no forward\(\)"),
    ],
)
def test_errors_leave_the_file_that_was_there(tmp_path, what, options, error, message):
    path = tmp_path / options.get("path", "x.svg")
    path.write_text("before")
    named = {key: value for key, value in options.items() if key != "path"}
    with pytest.raises(error, match=message if options.get("path") != "x" else "ending in"):
        draw(what, path, **named)
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_a_model_that_gives_no_tensor_or_no_graph():
    class Shape(nn.Module):
        def forward(self, x):
            return x.shape

    class Largest(nn.Module):
        def forward(self, x):
            return x.argmax()

    with pytest.raises(ValueError, match="expected Shape to give a Tensor, got tuple"):
        graph_of(Shape(), input_shape=(3,))
    with pytest.raises(ValueError, match="Largest gave nothing that a gradient flows through"):
        graph_of(Largest(), input_shape=(3,))


def test_a_dictionary_of_outputs():
    class Two(nn.Module):
        def forward(self, x):
            return {"a": x.relu(), "b": [x.exp().sum()]}

    assert titles(graph_of(Two(), input_shape=(3,))) == ["input", "relu", "exp", "sum"]
    assert len(folded([(leaf(2) * 2).node], [], 5).vertices) == 2


def test_importing_debug_does_not_import_matplotlib():
    code = "import sys, minires.debug; assert 'matplotlib' not in sys.modules; minires.debug.draw"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_on_the_gpu(cuda):
    model = minires.create_model("resnet8").to("cuda")
    assert graph_of(model).edges == graph_of(minires.create_model("resnet8")).edges
