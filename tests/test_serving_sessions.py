"""Sessions of the server: nobody sees anybody else, everybody has an answer at the deadline."""

import queue
import threading
import time

import numpy as np
import pytest
from serving_policies import TellingPolicy, WaitingPolicy, toy_observation
from serving_sessions import LONG_S, ask, serving
from toy_policies import DIFFUSION, SDP, toy_policy, toy_stream

from embodied.errors import UserError
from embodied.serving.answers import from_now_on
from embodied.serving.registry import SessionsFull, SessionTaken
from embodied.serving.served_session import Frame
from embodied.session import Session


def bare(policy, stream, seed):
    session = Session(policy)
    session.reset(seed)
    return [session.act(observation).actions for observation in stream]


def streams(policy, count, length=6):
    """Each session's observations: Ta steps apart, different for every session."""
    apart_s = policy.action_steps * policy.spec.dt_s
    made = [toy_stream(seed, length) for seed in range(count)]
    for stream in made:
        for t, observation in enumerate(stream):
            observation.time_s = t * apart_s
    return made


def served(sessions, stream, name):
    sessions.open(name, name)
    frames = [Frame(observation, observation.time_s) for observation in stream]
    return [sessions.act(name, name, frame, deadline_s=LONG_S).chunk.actions for frame in frames]


def together(sessions, all_streams):
    """What each session gets while all of them ask at once."""
    answers = {}

    def robot(index):
        answers[index] = served(sessions, all_streams[index], f"robot {index}")

    threads = [threading.Thread(target=robot, args=(index,)) for index in range(len(all_streams))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[index] for index in range(len(all_streams))]


@pytest.mark.parametrize("settings", [SDP, DIFFUSION], ids=["sdp", "diffusion"])
def test_alone_or_among_32_a_session_gets_bit_equal_actions(settings):
    policy = toy_policy({**settings, "history": 1})
    all_streams = streams(policy, 32)
    with serving(policy) as sessions:
        among = together(sessions, all_streams)
    for index in (0, 17, 31):
        with serving(policy) as sessions:
            alone = served(sessions, all_streams[index], "alone")
        assert np.array_equal(among[index], alone)


def test_actions_are_those_of_a_session_in_this_process():
    from embodied.policies.seeded_noise import mixed_seed

    policy = toy_policy({**SDP, "history": 1})
    stream = streams(policy, 1)[0]
    with serving(policy, seed=5) as sessions:
        assert np.array_equal(served(sessions, stream, "a"), bare(policy, stream, mixed_seed(5, 1)))


@pytest.mark.parametrize("settings", [SDP, DIFFUSION], ids=["sdp", "diffusion"])
def test_batched_actions_differ_by_rounding_alone(settings):
    policy = toy_policy({**settings, "history": 1})
    all_streams = streams(policy, 16)
    with serving(policy) as sessions:
        alone = [served(sessions, stream, f"{index}") for index, stream in enumerate(all_streams)]
    with serving(policy, largest_batch=8) as sessions:
        sizes = []
        step = policy.step
        policy.step = lambda histories, *rest: sizes.append(len(histories)) or step(histories, *rest)
        among = together(sessions, all_streams)
    assert max(sizes) > 1
    assert np.abs(np.asarray(among) - np.asarray(alone)).max() < 1e-5


def test_without_a_clock_an_observation_is_as_much_later_as_was_executed():
    with serving(TellingPolicy()) as sessions:
        times = [ask(sessions, executed=executed).asked_s for executed in (None, None, 1, 2)]
        assert times == pytest.approx([0.0, 0.4, 0.5, 0.7])
        rows = ask(sessions, executed=3).chunk.actions[0]
    assert rows == pytest.approx([1.0, 4, 3])  # observed at 1 s, the fifth step, 3 executed


def test_with_a_clock_what_was_executed_follows_from_the_time():
    with serving(TellingPolicy()) as sessions:
        executed = [ask(sessions, time_s=time_s).chunk.actions[0, 2] for time_s in (0.0, 0.2, 0.5, 2.0)]
    assert executed[1:] == [2, 3, 4]  # no more than a chunk has


def test_a_name_belongs_to_one_client_until_it_is_closed():
    with serving(TellingPolicy()) as sessions:
        ask(sessions, "arm", "one")
        with pytest.raises(SessionTaken, match="session 'arm' to be free; found another client that holds it"):
            sessions.open("arm", "two")
        with pytest.raises(UserError, match="an open session; found none called 'arm'"):
            sessions.act("arm", "two", Frame(toy_observation()))
        sessions.close("arm", "two")  # not theirs
        assert ask(sessions, "arm", "one").chunk.actions[0, 1] == 1
        sessions.close_all("one")
        assert ask(sessions, "arm", "two").chunk.actions[0, 1] == 0


def test_there_is_a_limit_of_sessions():
    with serving(TellingPolicy(), most_sessions=2) as sessions:
        ask(sessions, "a")
        ask(sessions, "b")
        with pytest.raises(SessionsFull, match="at most 2 sessions; found one more"):
            sessions.open("c", "robot")
        sessions.close("a", "robot")
        sessions.open("c", "robot")


def test_a_reset_forgets_everything_and_draws_other_noise():
    policy = toy_policy({**SDP, "history": 1})
    stream = streams(policy, 1)[0]
    with serving(policy) as sessions:
        first = served(sessions, stream, "a")
        sessions.reset("a", "a")
        second = served(sessions, stream, "a")
        sessions.reset("a", "a", seed=7)
        third = served(sessions, stream, "a")
    assert not np.array_equal(first, second)
    assert np.array_equal(third, bare(policy, stream, 7))


def test_another_episode_id_is_a_reset():
    with serving(TellingPolicy()) as sessions:
        sessions.open("a", "robot")
        counts = []
        for episode in ("one", "one", "two", "two"):
            sessions.begin_episode("a", "robot", episode)
            counts.append(ask(sessions).chunk.actions[0, 1])
    assert counts == [0, 1, 0, 1]


def test_a_session_that_was_silent_for_long_begins_a_new_episode():
    with serving(TellingPolicy(), reset_after_s=0.5) as sessions:
        assert [ask(sessions).episode for _ in range(2)] == [1, 1]
        time.sleep(0.7)
        answer = ask(sessions)
    assert (answer.episode, answer.asked_s, answer.chunk.actions[0, 1]) == (2, 0.0, 0)


def test_observations_alone_keep_a_session_awake():
    with serving(TellingPolicy(history=2), reset_after_s=1.0) as sessions:
        ask(sessions)
        for _ in range(4):
            time.sleep(0.3)
            sessions.observe("a", "robot", Frame(toy_observation()))
        assert (ask(sessions, executed=4).episode, ask(sessions, earlier=[toy_observation()]).episode) == (1, 1)


def test_a_stale_request_gets_the_newest_chunk_at_its_deadline():
    policy = WaitingPolicy()
    with serving(policy) as sessions:
        ask(sessions, time_s=0.0)
        policy.go.clear()
        began_s = time.monotonic()
        answer = ask(sessions, time_s=0.1, deadline_s=0.05)
        took_s = time.monotonic() - began_s
        assert answer.stale and not answer.late and answer.reason == "deadline"
        assert 0.05 <= took_s < 5.0
        assert answer.observed_s == 0.0 and answer.asked_s == 0.1
        actions, start_s, valid = from_now_on(answer, policy.spec.action)
        assert (len(actions), start_s, valid) == (4, pytest.approx(0.1), 3)
        policy.go.set()
        # That request's own chunk was computed meanwhile, and is the newest now.
        following = ask(sessions, time_s=0.2)
        assert following.chunk.actions[0] == pytest.approx([0.2, 2, 1])


def test_without_a_chunk_that_is_of_use_a_request_is_computed_and_late():
    policy = WaitingPolicy()
    with serving(policy) as sessions:
        for time_s in (0.0, 0.4):  # the first of the episode; then one whose predecessor is over
            policy.go.clear()
            threading.Timer(0.1, policy.go.set).start()
            answer = ask(sessions, time_s=time_s, deadline_s=0.02)
            assert answer.late and not answer.stale and answer.observed_s == time_s


def test_a_waiting_request_is_superseded_by_a_newer_one_and_by_a_reset():
    policy = WaitingPolicy()
    with serving(policy) as sessions:
        ask(sessions, time_s=0.0)
        ask(sessions, "other", time_s=0.0)
        policy.go.clear()
        policy.begun.clear()
        box = queue.SimpleQueue()

        def submit(name, time_s):
            return sessions.submit(name, "robot", Frame(toy_observation(), time_s), box.put, deadline_s=LONG_S)

        submit("other", 0.1)  # keeps the thread busy
        assert policy.begun.wait(10)
        submit("a", 0.1)
        submit("a", 0.2)
        superseded = box.get(timeout=10)
        assert superseded.stale and superseded.reason == "superseded" and superseded.asked_s == 0.1
        sessions.reset("a", "robot")
        refused = box.get(timeout=10)
        assert "one request at a time; found a new episode" in str(refused)
        policy.go.set()
        assert box.get(timeout=10).session == "other"
        assert ask(sessions, time_s=0.0).chunk.actions[0, 1] == 0


def test_the_most_urgent_request_is_computed_first():
    policy = WaitingPolicy()
    with serving(policy) as sessions:
        for name in "abc":
            sessions.open(name, "robot")
        policy.go.clear()
        policy.begun.clear()
        box = queue.SimpleQueue()
        for name, deadline_s in (("a", 9), ("b", 8), ("c", 7)):
            sessions.submit(name, "robot", Frame(toy_observation()), box.put, deadline_s=deadline_s)
            assert policy.begun.wait(10)
        policy.go.set()
        assert [box.get(timeout=10).session for _ in range(3)] == ["a", "c", "b"]


def test_one_session_whose_observation_fails_spoils_no_batch():
    class Picky(WaitingPolicy):
        def step(self, histories, states, executed):
            if any(history[-1].state["point"][0] > 5 for history in histories):
                raise FloatingPointError("too far")
            return super().step(histories, states, executed)

    policy = Picky()
    with serving(policy, largest_batch=4) as sessions:
        for name in "abcd":
            sessions.open(name, "robot")
        policy.go.clear()
        policy.begun.clear()
        outcomes = {name: queue.SimpleQueue() for name in "abcd"}
        for name, value in (("a", 0), ("b", 9), ("c", 0), ("d", 0)):
            frame = Frame(toy_observation(value))
            sessions.submit(name, "robot", frame, outcomes[name].put, deadline_s=LONG_S)
            assert policy.begun.wait(10)
        policy.go.set()
        found = {name: box.get(timeout=10) for name, box in outcomes.items()}
    assert "FloatingPointError: too far" in str(found.pop("b"))
    assert all(answer.chunk.actions[0, 1] == 0 for answer in found.values())


def test_actions_that_are_no_numbers_never_leave_and_the_session_begins_anew():
    class Broken(TellingPolicy):
        def step(self, histories, states, executed):
            chunks, states = super().step(histories, states, executed)
            if histories[0][-1].state["point"][0] > 5:
                chunks[0].actions[0, 0] = np.nan
            return chunks, states

    with serving(Broken()) as sessions:
        ask(sessions)
        with pytest.raises(UserError, match="finite actions of the policy; found .*nan"):
            sessions.act("a", "robot", Frame(toy_observation(9.0)), deadline_s=LONG_S)
        assert ask(sessions).chunk.actions[0, 1] == 0


def test_frames_left_out_are_refused_repeated_or_brought_along():
    with serving(TellingPolicy(history=2)) as sessions:
        ask(sessions)
        with pytest.raises(UserError, match=r"one observation every 0.100 s.*found 0.400 s since the last one"):
            ask(sessions)
        assert not ask(sessions, earlier=[toy_observation()]).history_repeated
    with serving(TellingPolicy(history=2)) as sessions:
        ask(sessions)
        for _ in range(4):
            sessions.observe("a", "robot", Frame(toy_observation()))
        assert ask(sessions, time_s=0.4).asked_s == 0.4
    with serving(TellingPolicy(history=2), repeats_history=True) as sessions:
        assert [ask(sessions).history_repeated for _ in range(2)] == [False, True]


@pytest.mark.parametrize("executed", [5, -1, "2", True])
def test_what_cannot_have_been_executed_is_refused(executed):
    with (
        serving(TellingPolicy()) as sessions,
        pytest.raises(UserError, match="executed a whole number between 0 and 4"),
    ):
        ask(sessions, executed=executed)


def test_what_waits_at_the_end_is_answered_and_nobody_hangs_after_it():
    policy = WaitingPolicy()
    with serving(policy) as sessions:
        for name in "ab":
            sessions.open(name, "robot")
        policy.go.clear()
        box = queue.SimpleQueue()
        for name in "ab":
            sessions.submit(name, "robot", Frame(toy_observation()), box.put, deadline_s=LONG_S)
        threading.Timer(0.05, policy.go.set).start()
        sessions.stop()
        assert {box.get(timeout=1).session for _ in range(2)} == {"a", "b"}
        with pytest.raises(UserError, match="a server that runs; found one that has stopped"):
            ask(sessions)


def test_no_garbage_is_collected_while_a_robot_waits():
    import gc

    was_enabled = []

    class Watching(TellingPolicy):
        def step(self, *words):
            was_enabled.append(gc.isenabled())
            return super().step(*words)

    with serving(Watching()) as sessions:
        was_enabled.clear()
        ask(sessions)
    assert was_enabled == [False] and gc.isenabled()


def test_a_policy_that_never_ends_is_an_error_and_no_hang():
    policy = WaitingPolicy()
    with serving(policy, longest_wait_s=0.1) as sessions:
        policy.go.clear()
        with pytest.raises(UserError, match="an answer of the policy within 0.1 s; found none"):
            ask(sessions, deadline_s=0.05)
