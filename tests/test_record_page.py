"""The page of a record: whole, escaped, complete in itself, and drawn by a browser where there is one."""

import functools
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import minires.functional as F
import numpy as np
import pytest

import minires
from minires import Tensor, debug, nn, no_grad
from minires.debug import folding, page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EMPTY = {"meta", "input", "path"}  # elements without an end


class Reader(HTMLParser):
    """Every element with its attributes and its depth of <details>; an end tag that does not fit is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), "an attribute twice"
        self.elements.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)


@functools.cache
def recorded(name, **options):
    model = minires.create_model(name, num_classes=5, **options)
    rng = np.random.default_rng(0)
    with debug.record() as record:
        x = Tensor(rng.standard_normal((2, 3, 32, 32)), dtype="float32")
        F.cross_entropy(model(x), rng.integers(0, 5, 2)).backward()
    return record


def check(record, text):
    """The page against the record: its form, and every operation with its numbers. Returns: its elements."""
    assert not re.search(r"https?://|//[\w-]+\.|\bsrc=|\bhref=|@import|url\(", text), "a page asks for nothing"
    reader = Reader(text)
    details = [attributes for tag, attributes in reader.elements if tag == "details"]
    operations = [attributes for attributes in details if attributes["class"].split()[0] == "op"]
    assert [a["id"] for a in operations] == [f"op{row.number}" for row in record]
    parts = re.split(r'<details class="op[^>]* id="op\d+"', text)[1:]
    for row, attributes, part in zip(record, operations, parts, strict=True):
        sources = [x for x in row.inputs if x.row is not None or (len(x.shape) > 1 and not x.parameter)]
        ids = [f"op{x.row}" if x.row is not None else f"given{x.given}" for x in sources]
        assert attributes["data-from"].split() == ids
        assert attributes["data-text"].startswith(f"{row.module} {row.operation} ".lower())
        cells = dict(re.findall(r"<th>([^<]*)</th><td>([^<]*)</td>", part))
        assert html.unescape(cells["operation"]) == f"{row.operation}, number {row.number}"
        assert (cells["mean"], cells["std"]) == (f"{row.mean:.6g}", f"{row.std:.6g}")
        assert cells["gradient norm"] == ("-" if row.grad_norm is None else f"{row.grad_norm:.6g}")
        assert part.count("<svg") == (1 if row.grad_histogram is None else 2)
        for line in row.lines:
            assert f"<code>{html.escape(line.text)}</code>" in part
    return reader


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_every_operation_is_on_the_page(name, tmp_path):
    record = recorded(name)
    record.save_html(tmp_path / "trace.html", title="A <network> & its numbers")
    text = (tmp_path / "trace.html").read_text(encoding="utf-8")
    check(record, text)
    assert len(record) == {"resnet20": 72, "resnet50": 176}[name]
    assert "<title>A &lt;network&gt; &amp; its numbers</title>" in text and "<!--" not in text
    assert len(text) < 1_000_000


def names(parts):
    """A tree of groups as nested lists of names."""
    return [
        part.operation if not isinstance(part, folding.Group) else [part.name, *names(part.parts)] for part in parts
    ]


def test_folded_into_stem_stages_blocks_and_head():
    block = ["conv2d", "batch_norm", "relu", "conv2d", "batch_norm", "residual_add", "relu"]
    assert names(folding.fold(recorded("resnet8").rows)) == [
        [
            "ResNet",
            ["stem", "conv2d", "batch_norm", "relu"],
            ["layer1", ["0", *block]],
            ["layer2", ["0", "shortcut_a", *block]],
            ["layer3", ["0", "shortcut_a", *block]],
            ["head", "global_avg_pool", "reshape", "linear"],
        ],
        "cross_entropy",
    ]


def blocks(parts):
    """The groups two levels inside a network: its blocks."""
    return [
        block for stage in parts[0].parts if getattr(stage, "path", "").startswith("layer") for block in stage.parts
    ]


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("resnet8", {}, ["identity", "downsample", "downsample"]),
        ("resnet8", {"shortcut": "B"}, ["identity", "downsample", "downsample"]),
        ("resnet50", {}, [*(["downsample", *["identity"] * n] for n in (2, 3, 5, 2))]),
        ("plain20", {}, [None] * 9),
        ("preact_resnet20", {}, [*["identity"] * 3, *["downsample", "identity", "identity"] * 2]),
    ],
)
def test_shortcuts(name, options, expected):
    found = [folding.shortcut(block) for block in blocks(folding.fold(recorded(name, **options).rows))]
    assert found == [one for some in expected for one in (some if isinstance(some, list) else [some])]


class Projected(nn.Module):
    """A block that computes its shortcut last, and adds with +."""

    def __init__(self):
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.projection = nn.Conv2d(2, 3, 1)

    def forward(self, x):
        y = self.second(self.first(x))
        return y + self.projection(x)


def test_a_shortcut_of_ones_own():
    with debug.record() as record:
        Projected()(Tensor(np.ones((2, 2, 4, 5)), dtype="float32"))
    assert [[x.given for x in row.inputs if x.given is not None] for row in record] == [[0], [], [0], []]
    (block,) = folding.fold(record.rows)
    assert folding.shortcut(block) == "projection"
    text = page.render(record.rows, "")
    check(record, text)
    assert "shortcut: projection" in text and text.count('class="given"') == 1


def test_a_network_that_ran_twice_is_there_twice():
    model = minires.create_model("resnet8")
    with no_grad(), debug.record() as record:
        for _ in range(2):
            model(Tensor(np.zeros((1, 3, 8, 8)), dtype="float32")).exp()
    tree = folding.fold(record.rows)
    assert [part.operation if not isinstance(part, folding.Group) else part.name for part in tree] == [
        "ResNet",
        "exp",
    ] * 2


def test_everything_foreign_is_escaped(tmp_path):
    evil = '<script>alert("1")</script><!--GRAPH-->'
    model = type("<b>Evil", (nn.Sequential,), {})()
    model.add_module('"><script>alert(1)<', nn.ReLU())
    model.add_module("'&amp;", nn.ReLU())
    x = Tensor(np.array([[1.0, -2.0]]), requires_grad=True)
    code = compile(f"y = model(x) + 0  # {evil}", str(tmp_path / f"{evil.replace('/', '')}.py"), "exec")
    (tmp_path / f"{evil.replace('/', '')}.py").write_text(f"y = model(x) + 0  # {evil}")
    with debug.record() as record:
        exec(code, {"model": model, "x": x})
    text = page.render(record.rows, evil)
    check(record, text)
    assert text.count("<script>") == 1 and "<b>Evil" not in text and "&lt;b&gt;Evil" in text
    assert "&lt;script&gt;alert(1)&lt;" in text and "&amp;amp;" in text
    assert text.count("alert(") == text.count("&gt;alert(") and text.count("&lt;!--GRAPH--&gt;") >= 3


def test_names_that_are_no_text(tmp_path):
    """A file's name may hold bytes that are no UTF-8."""
    code = compile("y = x.exp()", "odd\udcff.py", "exec")
    with debug.record() as record:
        exec(code, {"x": Tensor([1.0])})
    record.save_html(tmp_path / "trace.html")
    record.to_csv(tmp_path / "ops.csv")
    assert "odd\\udcff.py" in (tmp_path / "trace.html").read_text(encoding="utf-8")


def test_what_is_not_finite_is_marked():
    with np.errstate(all="ignore"), debug.record() as record:
        Tensor([0.0, 1.0]).log()
        Tensor([1.0]).exp()
    text = page.render(record.rows, "")
    check(record, text)
    assert text.count('<summary class="bad">') == 1 and "1 values of the result" in text


def test_a_page_of_nothing():
    assert "No operation was recorded" in page.render([], "") and Reader(page.render([], ""))


def browse(address, profile):
    """The page as the browser has it after its scripts."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: the page's script was not run")
def test_a_browser_draws_the_edges(tmp_path):
    record = recorded("resnet20")
    record.save_html(tmp_path / "trace.html")
    target = next(row for row in record if row.module == "layer2.0" and row.operation == "residual_add")
    found = browse((tmp_path / "trace.html").as_uri() + f"#op{target.number}", tmp_path / "profile")
    drawn = found[found.index('<svg id="edges"') : found.index("</svg>")]
    # layer2.0 is open: the way past its downsample, and the shortcut, are arcs; its addition is a plus.
    arcs = re.findall(r'<path class="short" d="M80 [\d.]+Q', drawn)
    assert len(arcs) == 2 and drawn.count('class="plus"') == 1
    assert (
        drawn.count('class="folded"') == 10 and drawn.count('class="dot"') == 7 + 2
    )  # in the block; the images, and the loss
    assert re.search(rf'<details class="op join" id="op{target.number}"[^>]* open=""', found)


STEPS = """
const said = [];
const key = name => document.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
const type = text => { search.value = text; search.dispatchEvent(new Event("input")); };
const open = () => groups.filter(group => group.open).length;
const here = () => document.activeElement.querySelector("b")?.textContent;
said.push(open());
type("CONV2D layer2"); said.push(found.value, operations.filter(one => !one.hidden).length);
type("no such thing"); said.push(found.value);
key("Escape"); said.push(open(), operations.filter(one => one.hidden).length);
key("/"); said.push(document.activeElement.id);
key("ArrowDown"); said.push(here());
key("ArrowDown"); said.push(here());
key("ArrowRight"); key("ArrowDown"); said.push(here());
key("ArrowRight"); said.push(document.activeElement.parentElement.open);
key("ArrowLeft"); key("ArrowLeft"); said.push(here());
key("ArrowUp"); said.push(here());
const buttons = [...document.querySelectorAll("[data-depth]")].map(button => { button.click(); return open(); });
said.push(...buttons);
document.title = JSON.stringify(said);
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: the page's script was not run")
def test_a_browser_searches_and_follows_the_keys(tmp_path):
    text = page.render(recorded("resnet20").rows, "")
    (tmp_path / "trace.html").write_text(text.replace("</body>", f"<script>{STEPS}</script></body>"), encoding="utf-8")
    found = browse((tmp_path / "trace.html").as_uri(), tmp_path / "profile")
    said = json.loads(html.unescape(re.search("<title>(.*?)</title>", found)[1]))
    assert said == [
        4,  # the network and its three stages
        "6 of 72 operations",
        6,
        "0 of 72 operations",
        *(4, 0),  # as before the search
        "search",
        "ResNet",
        "stem",
        "conv1",
        True,
        "stem",
        "ResNet",
        *(1, 4, 15),  # stages; blocks; everything: the network, stem, head, three stages and nine blocks
    ]
