"""Pictures of a run and of what a network learned.

matplotlib is used through its Figure alone: no window, no global state.
"""

from minires.debug.plots.gradients import gradient_norms, plot_gradient_norms
from minires.debug.plots.inside import feature_maps, plot_feature_maps, plot_filters
from minires.debug.plots.judged import class_accuracy, confident_mistakes, plot_class_accuracy, plot_confident_mistakes
from minires.debug.plots.landscape import loss_landscape, plot_loss_landscape
from minires.debug.plots.runs import plot_confusion, plot_curves, plot_runs

__all__ = [
    "class_accuracy",
    "confident_mistakes",
    "feature_maps",
    "gradient_norms",
    "loss_landscape",
    "plot_class_accuracy",
    "plot_confident_mistakes",
    "plot_confusion",
    "plot_curves",
    "plot_feature_maps",
    "plot_filters",
    "plot_gradient_norms",
    "plot_loss_landscape",
    "plot_runs",
]
