"""Pictures: text from people is text, and numbers on an axis are written in one way."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from minires.debug.plots import plot_confusion, plot_curves, plot_runs
from minires.train.training import Epoch

LINE = Epoch(1, 0.1, 1.0, 0.5, 1.0, 0.5)
NAMES = ["cost_$5_$10", "$_", "_hidden", "a\\b{$^$}"]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures, save = [], Figure.savefig

    def note(figure, *arguments, **options):
        figures.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", note)
    return figures


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_titles_are_text(tmp_path, drawn, name):
    plot_curves([LINE], tmp_path / "curves.png", title=name)
    plot_curves([], tmp_path / "curves.png", title=name)
    plot_confusion(np.eye(2, dtype=int), tmp_path / "confusion.png", name, [name, "b"])
    assert drawn[0].axes[0].get_title() == name and drawn[2].axes[0].get_title() == name
    assert [text.get_text() for text in drawn[2].axes[0].get_yticklabels()] == [name, "b"]


def test_every_run_is_in_the_legend_as_it_is_called(tmp_path, drawn):
    plot_runs([*[(name, [LINE]) for name in NAMES], ("_empty", [])], tmp_path / "compare.png")
    shown = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert shown == [*[f"{name}: 50.00%" for name in NAMES], "_empty: no epoch"]


@pytest.mark.parametrize("losses", [(0.61, 0.69), (0.0812, 0.0813), (0.3, 2.5), (0.02, 3.0), (1e-7, 40.0), (0.5, 0.5)])
def test_losses_are_plain_numbers_on_a_logarithmic_axis(tmp_path, drawn, losses):
    history = [Epoch(i + 1, 0.1, loss, 0.5, loss, 0.5) for i, loss in enumerate(losses)]
    plot_curves(history, tmp_path / "curves.png")
    plot_runs([("one", history)], tmp_path / "compare.png")
    for figure in drawn:
        axes = figure.axes[0]
        low, high = axes.get_ylim()
        ticks = [text.get_text().replace("\N{MINUS SIGN}", "-") for text in axes.get_yticklabels(which="both")]
        inside = [text for text in ticks if text and low <= float(text) <= high]  # float: no mathtext
        assert axes.get_yscale() == "log" and len(inside) >= 2 and len(set(inside)) == len(inside), ticks


def test_a_loss_that_is_no_number_is_drawn_on_a_plain_axis(tmp_path, drawn):
    plot_curves([LINE, LINE._replace(epoch=2, train_loss=float("inf"))], tmp_path / "curves.png")
    assert drawn[0].axes[0].get_yscale() == "linear"
