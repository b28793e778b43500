"""Many items in a process pool: only the items that crash or hang are lost."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.data.workers.thread_pool import WorkerError


def square(number):
    """What a test asks of each item; some end their process, or hang it."""
    if number in (5, 6, 21):
        os.abort()
    if number == 13:
        signal.raise_signal(signal.SIGKILL)
    if number == 30:
        time.sleep(600)
    return number * number


def count_then_crash(number) -> Iterator[int]:
    yield from range(number)
    os.abort()


def count(number) -> Iterator[int]:
    yield from range(number)


@pytest.fixture
def pool():
    with ProcessPool(2, "vjepa-test", modules=(__name__,)) as made:
        yield made


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_lost_items_are_errors_and_the_others_all_come(pool, chunk_size):
    found = dict(pool.imap(square, range(40), lambda _: 5.0, chunk_size))
    lost = {number: str(result) for number, result in found.items() if number in (5, 6, 13, 21, 30)}
    assert all(isinstance(found[number], WorkerError) for number in lost)
    assert "signal 6" in lost[5] and "signal 6" in lost[6] and "signal 6" in lost[21]
    assert "signal 9" in lost[13] and "takes more than 5 s" in lost[30]
    expected = {number: number * number for number in range(40) if number not in lost}
    assert {number: result for number, result in found.items() if number not in lost} == expected


def test_items_are_taken_as_they_are_needed(pool):
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield -number

    results = pool.imap(abs, items(), chunk_size=3)
    next(results)
    assert len(taken) == 2 * 2 * 3  # a chunk running and one waiting for each of two processes


def test_what_a_function_raises_ends_the_iteration(pool):
    results = pool.imap(float, ["1", "2", "three", "4"], chunk_size=1)
    with pytest.raises(ValueError, match="three"):
        list(results)


def test_the_time_limit_is_of_an_item_not_of_a_chunk(pool):
    slow = dict(pool.imap(time.sleep, [1.5] * 3 + [0.0], lambda _: 4.0, chunk_size=4))
    assert slow == {1.5: None, 0.0: None}


def test_the_items_of_a_generator(pool):
    assert pool.submit(count, 3).result() == [0, 1, 2]
    assert pool.submit(count, 0).result() == []
    with pytest.raises(WorkerError) as error:
        pool.submit(count_then_crash, 3).result()
    assert error.value.items == [0, 1, 2]


def test_modules_are_imported_before_the_fork():
    program = "'tabnanny' in __import__('sys').modules"  # nothing else imports it
    for modules, expected in [((), False), (("tabnanny",), True)]:
        with ProcessPool(1, "vjepa-test", modules=modules) as pool:
            assert pool.submit(eval, program).result() is expected
