"""Tasks whose score guessing might give as well."""

import json

import pytest

from funcnet_plugin.evaluation.lm_eval_tasks import Tasks
from funcnet_plugin.tasks import metric, write_task


def write(folder, name, n, choices, **changes):
    data = folder / f"{name}.jsonl"
    answers = [f" {i}" for i in range(choices)]
    record = {"question": "How many?", "answers": answers, "right": 0}
    data.write_text("".join(json.dumps(record) + "\n" for _ in range(n)))
    body = {
        "output_type": "multiple_choice", "doc_to_text": "question", "doc_to_choice": "answers",
        "doc_to_target": "right", "metric_list": [metric("acc", "mean", higher_is_better=True)],
    }  # fmt: skip
    return write_task(folder, name, data, body | changes)


@pytest.fixture
def tasks(tmp_path):
    write(tmp_path, "two", 100, 2)
    write(tmp_path, "four", 100, 4)
    open_answer = {"output_type": "loglikelihood", "doc_to_target": "{{answers[0]}}"}
    write(tmp_path, "open", 100, 2, **open_answer)
    return lambda limit=None: Tasks(["two", "four", "open"], str(tmp_path), limit)


def test_a_score_within_two_errors_of_guessing_is_at_chance(tasks):
    # errors of 100 guesses: 5.0 points of two answers, 4.3 of four
    assert tasks().at_chance({"two": 0.59, "four": 0.33, "open": 0.0}) == {"two": 0.5, "four": 0.25}
    assert tasks().at_chance({"two": 0.61, "four": 0.34, "open": 0.0}) == {}


def test_fewer_questions_make_chance_wider(tasks):
    assert tasks(limit=25).at_chance({"two": 0.69, "four": 0.43, "open": 0.0}) == {"two": 0.5}
    assert Tasks([]).at_chance({}) == {}
