"""Runs side by side, from files that are damaged."""

import pytest

from minires import cli
from minires.data.binary import CheckpointError
from minires.train import comparison
from minires.train.training import Epoch


@pytest.mark.parametrize("epoch", ["inf", "-inf", "nan", "1e300", "0", "1.5"])
def test_compare_refuses_epochs_that_cannot_be(tmp_path, capsys, epoch):
    (tmp_path / "config.json").write_text('{"model": "a", "data": "b", "seed": 0}')
    (tmp_path / "metrics.csv").write_text(",".join(Epoch._fields) + f"\n{epoch},0.1,1,0.5,1,0.5\n")
    with pytest.raises(CheckpointError, match="metrics.csv is damaged: ValueError: expected whole epochs"):
        comparison.read_run(tmp_path)
    assert cli.main(["compare", str(tmp_path)]) == 2 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["Infinity", "NaN", "1e300", "-1", "1" + "0" * 400])
def test_compare_refuses_seconds_that_cannot_be(tmp_path, capsys, seconds):
    config = f'{{"model": "a", "data": "b", "seed": 0, "result": {{"seconds": {seconds}}}}}'
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "metrics.csv").write_text(",".join(Epoch._fields) + "\n1,0.1,1,0.5,1,0.5\n")
    with pytest.raises(CheckpointError, match="config.json is damaged"):
        comparison.read_run(tmp_path)
    assert cli.main(["compare", str(tmp_path)]) == 2 and "Traceback" not in capsys.readouterr().err
