"""Work that is run to its end, whatever happens to the task that waits for it."""

import asyncio
import gc
import logging
import threading
import time

import pytest

from frontend.tasks import NUM_THREADS, in_thread, run_to_end, start_threads


class Work:
    """Takes until it is let go, then returns 7 or raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.go = asyncio.Event()
        self.error = error
        self.done = False

    async def run(self) -> int:
        await self.go.wait()
        self.done = True
        if self.error is not None:
            raise self.error
        return 7


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_result_and_the_error_of_the_work_come_through() -> None:
    work = Work()
    work.go.set()
    assert await run_to_end(work.run()) == 7
    error = LookupError("x")
    failing = Work(error)
    failing.go.set()
    with pytest.raises(LookupError) as caught:
        await run_to_end(failing.run())
    assert caught.value is error


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_cancelled_task_waits_for_the_end_and_is_cancelled_then(times: int) -> None:
    work = Work()
    task = asyncio.create_task(run_to_end(work.run()))
    for _ in range(times):
        await settle()
        task.cancel()
    await settle()
    assert not task.done()
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.done
    assert task.cancelled()


async def test_a_cancellation_outweighs_an_error_of_the_work(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(LookupError("x"))
    task = asyncio.create_task(run_to_end(work.run()))
    await settle()
    task.cancel()
    await settle()
    work.go.set()
    with caplog.at_level(logging.ERROR), pytest.raises(asyncio.CancelledError):
        await task
    del work, task
    gc.collect()
    await settle()
    assert caplog.records == []  # 'Task exception was never retrieved'


async def test_a_task_cancelled_before_it_began_does_not_begin_the_work() -> None:
    work = Work()
    coroutine = work.run()
    task = asyncio.create_task(run_to_end(coroutine))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not work.done
    coroutine.close()


async def test_work_that_is_itself_cancelled_is_cancelled() -> None:
    work = Work(asyncio.CancelledError())
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run_to_end(work.run()), 5)


async def test_a_timeout_comes_after_the_work() -> None:
    work = Work()
    asyncio.get_running_loop().call_later(0.05, work.go.set)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run_to_end(work.run())
    assert work.done


async def test_a_call_in_a_thread_leaves_the_loop_free_and_gives_its_result() -> None:
    main = threading.get_ident()
    go = threading.Event()

    def call(first: int, *, second: int) -> tuple[int, bool]:
        assert go.wait(5)
        return first + second, threading.get_ident() == main

    task = asyncio.create_task(in_thread(call, 3, second=4))
    await asyncio.sleep(0.01)
    assert not task.done()
    go.set()
    assert await task == (7, False)


async def test_an_error_in_a_thread_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 1, 0)


async def test_what_a_thread_uses_may_be_freed_after_it_even_when_cancelled() -> None:
    freed = threading.Event()
    began = threading.Event()
    used_after_free = threading.Event()

    def call() -> None:
        began.set()
        time.sleep(0.1)
        if freed.is_set():
            used_after_free.set()

    async def owner() -> None:
        try:
            await in_thread(call)
        finally:
            freed.set()

    task = asyncio.create_task(owner())
    assert await asyncio.to_thread(began.wait, 5)
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert freed.is_set()
    await asyncio.sleep(0.15)
    assert not used_after_free.is_set()


async def test_the_threads_are_there_from_the_start_and_stay_as_many():
    def workers() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("worker")}

    start_threads(asyncio.get_running_loop())
    before = workers()
    assert len(before) == NUM_THREADS
    await asyncio.gather(*(in_thread(time.sleep, 0.01) for _ in range(4 * NUM_THREADS)))
    assert workers() == before
