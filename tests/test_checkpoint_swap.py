"""Another checkpoint takes over while robots are connected."""

import pytest
import torch
from serving_policies import TellingPolicy, WaitingPolicy, toy_observation
from serving_sessions import ask, serving

from embodied.errors import UserError


def test_a_swapped_checkpoint_goes_on_with_the_sessions():
    with serving(TellingPolicy()) as sessions:
        ask(sessions)
        ask(sessions)
        sessions.swap(TellingPolicy(), "def", toy_observation())
        answer = ask(sessions)
    assert answer.policy == "def" and answer.episode == 1
    assert answer.asked_s == pytest.approx(0.8) and answer.chunk.actions[0, 1] == 0


def test_a_stale_answer_names_the_weights_that_its_chunk_came_from():
    slow = WaitingPolicy()
    with serving(TellingPolicy()) as sessions:
        before = ask(sessions)
        sessions.swap(slow, "def", toy_observation())
        slow.go.clear()
        stale = ask(sessions, executed=1, deadline_s=0.05)
        slow.go.set()
        after = ask(sessions, executed=1)
    assert stale.stale and stale.policy == before.policy != "def"
    assert after.policy == "def"


class ThreadCountingPolicy(TellingPolicy):
    """Notes with how many threads of torch each step runs."""

    def __init__(self):
        super().__init__()
        self.threads = set()

    def step(self, histories, states, executed):
        self.threads.add(torch.get_num_threads())
        return super().step(histories, states, executed)


def test_a_swapped_checkpoint_is_warmed_up_with_as_many_threads_as_it_is_served_with():
    before, others = torch.get_num_threads(), ThreadCountingPolicy()
    try:
        torch.set_num_threads(3)  # of whoever swaps: not the thread that computes
        with serving(TellingPolicy(), threads=2) as sessions:
            sessions.swap(others, "def", toy_observation())
            ask(sessions)
        assert others.threads == {2} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_checkpoint_of_another_spec_is_not_swapped_in():
    from toy_specs import absolute_spec

    with serving(TellingPolicy()) as sessions:
        with pytest.raises(UserError, match="the same robot and task, toy/reach; found another one"):
            sessions.swap(TellingPolicy(spec=absolute_spec()), "def", toy_observation())
        with pytest.raises(UserError, match="found another one .history: 2 against 1.; start another server"):
            sessions.swap(TellingPolicy(history=2), "def", toy_observation())
        assert ask(sessions).policy == "abc"
