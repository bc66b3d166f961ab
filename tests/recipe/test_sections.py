"""Sections of which a recipe gives a part."""

from caravan.recipe import EvalTask, LLMJudge, Sampling


def test_what_is_not_said_of_how_replies_are_drawn_is_as_if_nothing_were_said():
    short = {"max_completion_length": 16}
    task = EvalTask.model_validate({"name": "sums", "task": "gsm8k", "sampling": short})
    assert task.sampling == Sampling(temperature=0.0, max_completion_length=16)

    judge = LLMJudge.model_validate({"engine": "judge", "sampling": {"top_p": 0.9}})
    assert judge.sampling == Sampling(temperature=0.0, top_p=0.9, max_completion_length=2048)
    assert judge.derive(sampling=Sampling(temperature=1.0)).sampling.temperature == 1.0
