"""Exercises: write the kernels yourself, and be told what is wrong.

    minires exercise list
    minires exercise start batch_norm_backward
    minires exercise check batch_norm_backward
    minires exercise hint batch_norm_backward
    minires exercise solution batch_norm_backward

The shipped kernel is the solution: a blank file is its source without its steps. ``table`` lists the exercises,
``stages`` says what a check does, ``hints`` holds the hints for each diagnosed mistake.

For a course: ``minires exercise grade`` writes Gradescope's results.json, ``pytest --exercise NAME FILE`` runs the
stages as tests (``pytest_plugin``), and ``minires exercise new`` prints how to make an exercise of one's own kernel.
"""
