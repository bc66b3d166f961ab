"""What `caravan logs` leaves of a log that KFP has written around the stages' lines."""

from __future__ import annotations

from caravan_pipelines.launch.local_log import growing, lines_of, stage_lines

TWO_AT_ONCE = """\
19:58:41.899 - INFO - Executing task 'evaluate'
/venv/kfp/local/subprocess_task_handler.py:81: RuntimeWarning: You may be attemping to run a task
  warnings.warn(
19:58:41.901 - INFO - Executing task 'evaluate'
/venv/kfp/local/subprocess_task_handler.py:81: RuntimeWarning: You may be attemping to run a task
  warnings.warn(
19:58:41.958 - INFO - Streamed logs:

            [KFP Executor 2026-11-26 19:58:41,973 INFO]: Looking for component `evaluate` in ...
            [KFP Executor 2026-11-26 19:58:41,975 INFO]: Got executor_input:
            {
                "inputs": {
                    "parameterValues": {
                        "rlvr": "b424df74454197ef1ae223e8cd401e5dd50e87f9ef537276777c0f4e1bdf8a50",
                        "models": [
                            "evaluate-base",
        2026-11-26 19:58:42,001 WARNING caravan.evals.scoring: 3 replies were cut
                            "evaluate-sft"
                        ],
                        "metadata": {}
                    }
                }
            }
            {"time": "2026-11-26T19:58:43", "level": "info", "message": "half done"}
            2026-11-26 19:59:07,076 INFO root: Wrote executor output file to /home/output.json.


19:59:14.749 - INFO - Task 'evaluate' finished with status SUCCESS
19:59:14.749 - INFO - Task 'evaluate' outputs:
    Output: 'df693122290ca9d32c9ef9354bcf66923a80a3c44fb08ba425da96c2ee7aaaf9'
    summary: Markdown( name='summary',
                       uri='/home/runs/kfp/for-loop-2-iteration-1/evaluate/summary',
                       metadata={} )
    metrics: Metrics( name='metrics',
                      uri='/home/runs/kfp/for-loop-2-iteration-1/evaluate/metrics',
                      metadata={'math/undecided': 0.0, 'chat/truncated': 0.2} )
    --------------------------------------------------------------------------------
"""

NOT_STARTED = """\
19:58:41.899 - INFO - Executing task 'sft'
19:58:41.958 - INFO - Streamed logs:

    [KFP Executor 2026-11-26 19:58:41,973 INFO]: Loading KFP component "sft" from /tmp/c.py
    Traceback (most recent call last):
      File "/venv/kfp/dsl/executor_main.py", line 89, in executor_main
        module = utils.load_module(
    ModuleNotFoundError: No module named 'caravan_pipelines'
19:58:42.393 - ERROR - Task 'sft' finished with status FAILURE
"""


def test_the_lines_of_stages_that_ran_at_once_are_left():
    assert [line.strip() for line in stage_lines(TWO_AT_ONCE.splitlines(keepends=True))] == [
        "19:58:41.899 - INFO - Executing task 'evaluate'",
        "19:58:41.901 - INFO - Executing task 'evaluate'",
        "2026-11-26 19:58:42,001 WARNING caravan.evals.scoring: 3 replies were cut",
        '{"time": "2026-11-26T19:58:43", "level": "info", "message": "half done"}',
        "19:59:14.749 - INFO - Task 'evaluate' finished with status SUCCESS",
    ]


def test_why_a_stage_has_not_started_stays():
    left = [line.strip() for line in stage_lines(NOT_STARTED.splitlines(keepends=True))]
    assert left[0].endswith("Executing task 'sft'")
    assert left[1] == "Traceback (most recent call last):"
    assert left[-2] == "ModuleNotFoundError: No module named 'caravan_pipelines'"
    assert left[-1].endswith("finished with status FAILURE")


OF_TWO = """\
19:58:41.899 - INFO - Executing task 'sft'
    2026-11-26 19:58:42,001 INFO sft caravan.training.fit: sft goes on at step 3 of 9
    2026-11-26 19:58:42,002 WARNING evaluate-base caravan.evals.scoring: sft caravan: 3 replies
    2026-11-26 19:58:43,000 ERROR sft[1] caravan.stages.ranks.worker: it failed
    Traceback (most recent call last):
    {"time": "2026-11-26T19:58:43", "level": "info", "stage": "evaluate-base", "message": "half"}
    {"time": "2026-11-26T19:58:43", "level": "info", "stage": "sft", "message": "done"}
19:58:42.393 - ERROR - Task 'sft' finished with status FAILURE
"""


def test_the_lines_of_one_stage_are_told_from_those_of_another():
    left = [line.strip() for line in lines_of("sft", OF_TWO.splitlines(keepends=True))]
    ends = ("step 3 of 9", "it failed", "recent call last):", '"message": "done"}')
    assert [line.endswith(end) for line, end in zip(left, ends, strict=True)] == [True] * 4


def test_a_log_that_grows_is_read_to_its_end_in_whole_lines(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("one\ntw")
    goes_on = iter([True, False])
    with path.open() as log, path.open("a") as writer:
        lines = growing(log, lambda: next(goes_on))
        assert next(lines) == "one\n"
        writer.write("o\nthree\n")
        writer.flush()
        assert list(lines) == ["two\n", "three\n"]
