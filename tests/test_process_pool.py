"""The process pool: results in order, processes that die. A file of its own, since its processes import it."""

from __future__ import annotations

import functools

import pytest
from pool_workers import make_mortal, make_square, make_suicide, make_waiting

from embodied.errors import UserError
from embodied.process_pool import ProcessPool, SerialPool, pool_of


def test_processes_give_results_in_order():
    with ProcessPool(make_square, 2) as pool:
        assert list(pool.map(range(20))) == [(item, item * item) for item in range(20)]


def test_a_result_is_there_before_that_of_an_item_that_takes_longer(tmp_path):
    with ProcessPool(functools.partial(make_waiting, tmp_path), 2) as pool:
        came = []
        for item, result in pool.map_as_completed(range(10)):
            came.append((item, result))
            (tmp_path / str(item)).touch()
    assert sorted(came) == [(item, item * item) for item in range(10)]
    assert came.index((0, 0)) >= 2


def test_nothing_is_lost_or_done_twice_where_processes_die_and_results_come_as_they_are_there(tmp_path):
    with ProcessPool(functools.partial(make_mortal, tmp_path), 2) as pool:
        assert sorted(pool.map_as_completed(range(10))) == [(item, item * item) for item in range(10)]


def test_processes_that_die_again_and_again_are_reported():
    message = "expected 1 simulation processes that live to the end; found 3 that died one after another"
    with ProcessPool(make_suicide, 1) as pool, pytest.raises(UserError, match=message):
        list(pool.map(range(2)))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_dies_is_replaced_and_its_work_done_again(tmp_path, workers):
    with ProcessPool(functools.partial(make_mortal, tmp_path), workers) as pool:
        assert list(pool.map(range(10))) == [(item, item * item) for item in range(10)]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_pool_needs_a_worker():
    with pytest.raises(UserError, match="workers of at least 1; found 0"):
        ProcessPool(make_square, 0)


def test_no_worker_is_this_process():
    with pool_of(make_square, 0) as pool:
        assert isinstance(pool, SerialPool) and list(pool.map(range(5))) == [(n, n * n) for n in range(5)]
    assert isinstance(pool_of(make_square, 2), ProcessPool) and isinstance(pool_of(make_square, None), ProcessPool)
    with pytest.raises(UserError, match="workers of at least 1; found -1; set workers=1 or more, or 0 for none"):
        pool_of(make_square, -1)
