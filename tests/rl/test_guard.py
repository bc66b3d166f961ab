from caravan.training.rl.guard import CollapseGuard

GOOD = {"objective/verified": 0.5, "completions/clipped_ratio": 0.1, "entropy": 0.8, "kl": 0.1}


def after(steps):
    guard = CollapseGuard()
    for step in steps:
        guard.watch(GOOD | step)
    return guard


def test_a_steady_policy_has_not_collapsed():
    guard = after([{}] * 50)
    assert (guard.reason, guard.collapsed_steps) == (None, 0)


def test_lost_answers_lost_end_tokens_and_lost_entropy_are_noticed(caplog):
    start = [{}] * 12
    assert "from 50.0% to 10.0%" in after([*start, *[{"objective/verified": 0.1}] * 10]).reason
    assert "end token" in after([*start, *[{"completions/clipped_ratio": 0.9}] * 10]).reason
    assert "entropy" in after([*start, *[{"entropy": 0.0}] * 10]).reason
    assert sum("may have collapsed" in r.message for r in caplog.records) == 3


def test_steps_without_a_verifiable_prompt_say_nothing_of_verified_ones():
    bare = {name: value for name, value in GOOD.items() if name != "objective/verified"}
    for steps in ([bare] * 30, [GOOD] * 12 + [bare] * 20):
        guard = CollapseGuard()
        for step in steps:
            guard.watch(step)
        assert guard.reason is None


def test_the_guard_goes_on_from_its_state():
    steps = [{}] * 12 + [{"objective/verified": 0.0}] * 20
    half = after(steps[:20])
    resumed = CollapseGuard(**half.state())
    for step in steps[20:]:
        resumed.watch(GOOD | step)
    assert resumed == after(steps)
    assert resumed.collapsed_steps > 0
