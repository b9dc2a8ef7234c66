"""A whole run: recipes, epochs, checkpoints, several workers, evaluation, prediction, comparison."""

from minires.train.evaluation import evaluate
from minires.train.recipes import RECIPES, TrainOptions
from minires.train.training import fit, train_step

__all__ = ["RECIPES", "TrainOptions", "evaluate", "fit", "train_step"]
