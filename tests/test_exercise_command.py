"""minires exercise as it is typed; student files that misbehave; the grader; pytest --exercise."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minires import cli
from minires.exercises import process
from minires.exercises.blank import blank_file, solved_file
from minires.exercises.process import check
from minires.exercises.report import scores
from minires.exercises.table import EXERCISES, load_course

RELU = EXERCISES["relu"]
SOLVED = solved_file(RELU)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_start_to_solution(folder, capsys):
    assert cli.main("exercise list".split()) == 0
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in EXERCISES)

    assert cli.main("exercise start relu".split()) == 0
    assert (folder / "relu.py").read_text() == blank_file(RELU)
    assert cli.main("exercise check relu".split()) == 1
    out = capsys.readouterr().out
    assert "not written yet: relu_forward, step 1 of 1: y" in out and "minires exercise hint relu" in out

    assert cli.main("exercise hint relu".split()) == 0
    assert capsys.readouterr().out == f"hint 1 of 3 (relu): {RELU.hints[0]}\n"

    (folder / "relu.py").write_text(SOLVED)
    assert cli.main("exercise check relu".split()) == 0
    assert "All of it is right." in capsys.readouterr().out

    assert cli.main("exercise solution relu".split()) == 0
    assert "return dy * (cache.y > 0)" in capsys.readouterr().out


def test_hints_go_on_and_begin_again_with_another_cause(folder, capsys):
    def hint():
        assert cli.main("exercise hint linear".split()) == 0
        return capsys.readouterr().out

    solved = solved_file(EXERCISES["linear"])
    (folder / "linear.py").write_text(solved.replace("dx = dy @ cache.w", "dx = -dy @ cache.w"))
    assert cli.main("exercise check linear".split()) == 1
    assert "[sign]" in capsys.readouterr().out
    heads = [hint().split(":")[0] for _ in range(4)]
    assert heads == ["hint 1 of 3 (sign)", "hint 2 of 3 (sign)", "hint 3 of 3 (sign)", "hint 3 of 3 (sign)"]
    (folder / "linear.py").write_text(solved.replace("y = x @ w.T", "y = x @ w.T * 2"))
    assert cli.main("exercise check linear".split()) == 1
    capsys.readouterr()
    assert hint().startswith("hint 1 of 3 (linear)")  # a wrong forward is what the exercise's own hints are about
    (folder / ".minires_exercise.json").write_text("damaged")
    assert hint().startswith("hint 1 of 3 (linear)")


REFUSED = {
    "an unknown exercise": ("start reluu", "unknown exercise 'reluu': did you mean 'relu'?"),
    "a file that is there": ("start relu", "relu.py: is there already"),
    "a folder that is not": ("start linear --dir nowhere", "nowhere: there is no such folder"),
    "no file to check": ("check linear", "linear.py: there is no such file"),
    "no time": ("check relu --time-limit 0", "--time-limit must be positive"),
    "no course": ("list --from nothing.py", "nothing.py: there is no such file"),
    "a course without exercises": ("list --from relu.py", "expected a list called EXERCISES"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, folder, capsys):
    (folder / "relu.py").write_text("mine = True\n")
    arguments, message = REFUSED[name]
    assert cli.main(["exercise", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minires exercise: ") and message in err and err.count("\n") == 1
    assert (folder / "relu.py").read_text() == "mine = True\n"


def test_an_action_is_needed(capsys):
    for arguments in (["exercise"], ["exercise", "chek", "relu"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2
    with pytest.raises(SystemExit):
        cli.main(["exercise", "--help"])
    assert "minires exercise start batch_norm_backward" in capsys.readouterr().out


BACKWARD = "    return dy * (cache.y > 0)"
MISBEHAVING = {
    "loops forever": ("    while True:\n        pass", "gradient", "time-limit", "not done after"),
    "ends the program": ("    import sys\n    sys.exit(0)", "gradient", "crashed", "ends the program (line "),
    "leaves without a word": ("    import os\n    os._exit(0)", "gradient", "crashed", "exit status 0"),
    "kills the process": ("    import os\n    os.abort()", "gradient", "crashed", "ended the Python process"),
    "raises": ("    return dy @ cache.nothing", "gradient", "crashed", "AttributeError"),
    "asks a question": ("    return dy * float(input('x?'))", "gradient", "crashed", "EOFError"),
    "recurses": ("    return relu_backward(dy, cache)", "gradient", "crashed", "RecursionError"),
    "returns nothing": ("    pass", "gradient", "", ""),
    "writes to dy": ("    dy *= cache.y > 0\n    return dy", "", "", ""),
    "is not Python": ("    return dy *", "file", "file", "is not Python"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISBEHAVING)
def test_a_misbehaving_file_is_survived(name, folder):
    code, stage, cause, words = MISBEHAVING[name]
    (folder / "mine.py").write_text(SOLVED.replace(BACKWARD, code))
    start = time.monotonic()
    result = check(RELU, "mine.py", time_limit=8 if name == "loops forever" else 60)
    assert time.monotonic() - start < 60
    failed = result.failure
    assert not result.passed and failed is not None
    if stage:
        assert failed.name == stage, failed
    if cause:
        assert failed.code == cause, failed
    assert words in failed.message
    assert [one.name for one in result.stages] == [
        "file",
        "forward",
        "intermediates",
        "gradient",
        "invariants",
        "training",
    ]


def test_a_function_that_is_missing_is_named(folder):
    (folder / "mine.py").write_text(SOLVED.replace("def relu_backward", "def relu_backwards"))
    assert check(RELU, "mine.py").failure.message == "expected a function called relu_backward, and there is none"


def test_what_a_file_prints_is_shown_apart_and_cut(folder, capsys):
    (folder / "relu.py").write_text(SOLVED + 'print("hello from the file")\nprint("x" * 100_000)\n')
    assert cli.main("exercise check relu".split()) == 0
    out = capsys.readouterr().out
    assert out.index("All of it is right.") < out.index("what your code printed") < out.index("hello from the file")
    assert len(out) < 6000 and "... and more" in out


def test_neighbours_called_like_pythons_modules_do_no_harm(folder):
    """A student keeps sgd.py, random.py and numpy.py beside each other; a helper of one's own can be imported."""
    (folder / "random.py").write_text("raise RuntimeError('not me')\n")
    (folder / "numpy.py").write_text("raise RuntimeError('not me')\n")
    (folder / "my_helper.py").write_text("zero = 0\n")
    (folder / "mine.py").write_text(
        SOLVED.replace(BACKWARD, "    import my_helper\n    return dy * (cache.y > my_helper.zero)")
    )
    result = check(RELU, "mine.py")
    assert result.passed, (result.stages, result.printed)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")
def test_what_a_file_started_ends_with_it(folder):
    code = "    import subprocess, sys\n    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    (folder / "mine.py").write_text(SOLVED.replace(BACKWARD, code + "    while True: pass"))
    start = time.monotonic()
    result = check(RELU, "mine.py", time_limit=6)
    assert result.failure.code == "time-limit" and time.monotonic() - start < 30


def test_grading(folder, capsys):
    (folder / "right.py").write_text(SOLVED)
    (folder / "half.py").write_text(SOLVED.replace(BACKWARD, "    return -dy * (cache.y > 0)"))
    (folder / "blank.py").write_text(blank_file(RELU))
    (folder / "sgd.py").write_text(solved_file(EXERCISES["sgd"]).replace('EXERCISE = "sgd"', ""))
    (folder / "other.py").write_text("print('hello')\n")
    (folder / "broken.py").write_text('EXERCISE = "relu"\ndef relu_forward(:\n')
    files = ["right.py", "half.py", "blank.py", "sgd.py", "other.py", "broken.py", "missing.py"]
    assert cli.main(["exercise", "grade", *files, "--json", "results.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    points = {line.split()[0]: line.split()[2] for line in lines}
    assert points["right.py"] == points["sgd.py"] == "10/10" and points["half.py"] == "4/10"
    assert points["blank.py"] == points["other.py"] == points["broken.py"] == points["missing.py"] == "0/10"
    results = json.loads((folder / "results.json").read_text())
    assert results["score"] == pytest.approx(24) == sum(test["score"] for test in results["tests"])
    for test in results["tests"]:
        assert set(test) == {"name", "score", "max_score", "output"} and 0 <= test["score"] <= test["max_score"]
        assert isinstance(test["output"], str) and test["output"]
    assert sum(test["max_score"] for test in results["tests"]) == pytest.approx(70, abs=1e-2)


def pytest_run(folder, *arguments):
    command = [sys.executable, "-m", "pytest", "-p", "minires.exercises.pytest_plugin", "-p", "no:cacheprovider"]
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_stages_as_tests_of_pytest(folder):
    wrong = SOLVED.replace(BACKWARD, "    return -dy * (cache.y > 0)")
    (folder / "relu.py").write_text(wrong + "print('hello')\n")
    (folder / "good.py").write_text(SOLVED)
    result = pytest_run(folder, "--exercise", "relu", "relu.py", "-v")
    assert result.returncode == 1 and "1 failed, 3 passed, 2 skipped" in result.stdout, result.stdout
    assert "[sign]" in result.stdout and "hello" in result.stdout and "Traceback" not in result.stdout
    assert pytest_run(folder, "--exercise", "relu", "good.py").returncode == 0
    assert "did you mean 'relu'?" in pytest_run(folder, "--exercise", "reluu", "good.py").stderr


@pytest.mark.slow
def test_a_course_with_exercises_of_its_own(folder, capsys):
    """What `minires exercise new` prints is a course that works as it is."""
    assert cli.main("exercise new".split()) == 0
    (folder / "my_exercises.py").write_text(capsys.readouterr().out)
    assert cli.main("exercise start swish --from my_exercises.py".split()) == 0
    assert cli.main("exercise check swish --from my_exercises.py".split()) == 1
    out = capsys.readouterr().out
    assert "not written yet: swish_forward, step 1 of 2: gate, the gate" in out
    blank = (folder / "swish.py").read_text()
    assert "from my_exercises import SwishCache" in blank
    course = (folder / "my_exercises.py").read_text()
    functions = course[course.index("def swish_forward") : course.index("def swish_by_loops")]
    (folder / "swish.py").write_text(blank[: blank.index("def swish_forward")] + functions)
    assert cli.main("exercise check swish --from my_exercises.py".split()) == 0
    (folder / "swish.py").write_text(
        blank[: blank.index("def swish_forward")] + functions.replace("dx = dy", "dx = -dy")
    )
    assert cli.main("exercise check swish --from my_exercises.py".split()) == 1
    command = "exercise hint swish --from my_exercises.py"
    assert capsys.readouterr().out.endswith(f"A hint: minires {command}\n")
    assert cli.main(command.split()) == 0
    assert "(sign)" in capsys.readouterr().out
    assert cli.main("exercise grade swish.py --from my_exercises.py".split()) == 0
    result = pytest_run(folder, "--exercise", "swish", "--exercises-from", "my_exercises.py", "swish.py")
    assert "[sign]" in result.stdout


def test_a_course_is_refused_without_hints_and_pays_for_no_training_that_it_takes_no_part_in(folder, capsys):
    assert cli.main("exercise new".split()) == 0
    course = capsys.readouterr().out
    (folder / "mine.py").write_text(course)
    exercise = load_course("mine.py")["swish"]
    (folder / "swish.py").write_text(solved_file(exercise))
    result = check(exercise, "swish.py", course="mine.py")
    assert result.passed and result.stages[-1].status == "skipped"
    assert sum(highest for _, _, highest, _ in scores(result)) == 10 and len(scores(result)) == 4
    (folder / "short.py").write_text(course + "\nEXERCISES = [one._replace(hints=('a', 'b')) for one in EXERCISES]\n")
    with pytest.raises(ValueError, match="swish: expected three hints"):
        load_course("short.py")


def test_the_process_reports_a_start_that_fails(folder, monkeypatch):
    (folder / "mine.py").write_text(SOLVED)
    monkeypatch.setattr(process, "START", "raise SystemExit('no')")
    with pytest.raises(RuntimeError, match="did not begin"):
        check(RELU, str(Path("mine.py")))


def test_printed_commands_work_as_they_are(folder, capsys):
    (folder / "my sub").mkdir()
    assert cli.main(["exercise", "new"]) == 0
    (folder / "my course.py").write_text(capsys.readouterr().out)
    assert cli.main(["exercise", "start", "--dir", "my sub", "--from", "my course.py", "swish"]) == 0
    words = "minires exercise check swish 'my sub/swish.py' --from 'my course.py'"
    assert capsys.readouterr().out.endswith(f"{words}\n")
    assert words in (folder / "my sub" / "swish.py").read_text()
    assert cli.main(shlex.split(words)[1:]) == 1
    hint = capsys.readouterr().out.splitlines()[-1].removeprefix("A hint: ")
    assert hint == words.replace("check", "hint") and cli.main(shlex.split(hint)[1:]) == 0


@pytest.mark.slow
def test_pytest_wants_a_file_and_an_exercise(folder):
    (folder / "relu.py").write_text(SOLVED.replace(BACKWARD, "    return -dy * (cache.y > 0)"))
    (folder / "test_other.py").write_text("def test_nothing():\n    pass\n")
    for files in ([], ["."]):
        result = pytest_run(folder, "--exercise", "relu", *files)
        assert result.returncode == 4 and "pytest --exercise relu relu.py" in result.stderr + result.stdout
    for more in (["reluu", "relu.py"], ["relu", "relu.py", "--exercises-from", "none.py"]):
        result = pytest_run(folder, "--exercise", *more)
        text = result.stdout + result.stderr
        assert result.returncode == 4 and "--exercise: " in text and "Traceback" not in text
    (folder / "relu.py").rename(folder / "my relu.py")
    result = pytest_run(folder, "--exercise", "relu", "my relu.py")
    assert "minires exercise hint relu 'my relu.py'" in result.stdout
    assert '"sign"' in (folder / ".minires_exercise.json").read_text()


def test_hints_are_kept_for_each_file(folder, capsys):
    (folder / "a.py").write_text(SOLVED.replace(BACKWARD, "    return -dy * (cache.y > 0)"))
    (folder / "b.py").write_text(SOLVED)
    assert [cli.main(["exercise", "check", "relu", file]) for file in ("a.py", "b.py")] == [1, 0]
    capsys.readouterr()
    assert cli.main("exercise hint relu a.py".split()) == 0
    assert capsys.readouterr().out.startswith("hint 1 of 3 (sign)")
    assert cli.main("exercise hint relu b.py".split()) == 0
    assert capsys.readouterr().out == "The last check found nothing wrong.\n"
    assert cli.main("exercise hint relu c.py".split()) == 2
    assert "c.py: there is no such file" in capsys.readouterr().err
    assert cli.main("exercise check relu".split()) == 2
    assert "minires exercise start relu writes it" in capsys.readouterr().err
    (folder / ".minires_exercise.json").write_text('{"relu in a.py": {"code": "sign", "hints": -5}}')
    assert cli.main("exercise hint relu a.py".split()) == 0
    assert capsys.readouterr().out.startswith("hint 1 of 3 (sign)")


FILES = {
    "a null byte": (SOLVED.encode() + b"\0", "null byte"),
    "not text": (b"x = 1\n" + b"y = '\xff'\n" + SOLVED.encode(), "line 2 is not text in UTF-8"),
    "another exercise": (b'EXERCISE = "linear"\n', "its line EXERCISE says that this is 'linear'"),
    "an interrupt": (b"raise KeyboardInterrupt\n", "KeyboardInterrupt (line 1: raise KeyboardInterrupt)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_loaded(name, folder):
    data, words = FILES[name]
    (folder / "mine.py").write_bytes(data)
    failed = check(RELU, "mine.py").failure
    assert words in failed.message and "None" not in failed.message


def test_grading_says_what_a_file_lacks(folder, capsys):
    (folder / "typed.py").write_text(SOLVED.replace('EXERCISE = "relu"', 'EXERCISE: str = "relu"'))
    (folder / "broken.py").write_text('EXERCISE = "relu"\ndef relu_forward(:\n')
    assert cli.main("exercise grade typed.py broken.py --json no/where.json".split()) == 2
    out, err = capsys.readouterr()
    assert "10/10" in out and "line 2 is not Python" in out and err.count("\n") == 1
    assert cli.main("exercise grade typed.py broken.py --json r.json".split()) == 0
    names = [test["name"] for test in json.loads((folder / "r.json").read_text())["tests"]]
    assert names[0].startswith("typed.py: relu") and names[-1] == "broken.py"


def test_a_terminal_that_knows_only_ascii(folder):
    (folder / "relu.py").write_text(SOLVED + "print('\u03b1')\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", "import sys; from minires.cli import main; sys.exit(main(sys.argv[1:]))"]
    arguments = ["exercise", "check", "relu"]
    result = subprocess.run([*command, *arguments], cwd=folder, env=environment, capture_output=True, timeout=120)
    assert result.returncode == 0 and b"\\u03b1" in result.stdout, result.stderr
