import asyncio
import threading

import pytest

from encryption.errors import Busy
from encryption.keys import Passphrase
from encryption.pool import KdfPool
from encryption.service import EncryptionService
from tests.encryption.samples import KEY_ID, KEYRING, PASSPHRASE, without_a_free_thread


class Work:
    """Runs in a thread until it is told to finish; says when it began."""

    def __init__(self) -> None:
        self._began = threading.Event()
        self._finish = threading.Event()

    def __call__(self) -> str:
        self._began.set()
        assert self._finish.wait(10)
        return "done"

    async def began(self) -> None:
        assert await asyncio.to_thread(self._began.wait, 10)

    def has_begun(self) -> bool:
        return self._began.is_set()

    def finish(self) -> None:
        self._finish.set()


async def test_threads_run_a_queue_waits_and_the_next_is_refused() -> None:
    """With one thread and a queue of one, the third caller gets Busy at once; the two others are served."""
    pool, first, second = KdfPool(threads=1, queue=1), Work(), Work()
    running = asyncio.create_task(pool.run(first))
    await first.began()
    waiting = asyncio.create_task(pool.run(second))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await pool.run(Work())
    assert not second.has_begun()
    first.finish()
    second.finish()
    assert await running == await waiting == "done"
    assert repr(pool) == "KdfPool(threads=1, queue=1, held=0)"
    await pool.close()


async def test_a_caller_who_is_cancelled_while_waiting_gives_up_its_place() -> None:
    """What has not begun never does, and the next caller may wait instead."""
    pool, first, never, third = KdfPool(threads=1, queue=1), Work(), Work(), Work()
    running = asyncio.create_task(pool.run(first))
    await first.began()
    waiting = asyncio.create_task(pool.run(never))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    next_one = asyncio.create_task(pool.run(third))
    await asyncio.sleep(0)
    first.finish()
    third.finish()
    assert await running == await next_one == "done"
    await pool.close()
    assert not never.has_begun()


async def test_a_caller_who_is_cancelled_while_its_work_runs_keeps_its_place_until_the_thread_has_finished() -> None:
    """Cancelling must not make room: the thread is still busy, whoever has lost interest."""
    pool, work = KdfPool(threads=1, queue=0), Work()
    running = asyncio.create_task(pool.run(work))
    await work.began()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    with pytest.raises(Busy):
        await pool.run(Work())
    work.finish()
    await pool.close()
    assert repr(pool) == "KdfPool(threads=1, queue=0, held=0)"


async def test_work_that_raises_frees_its_place_and_tells_its_caller() -> None:
    """An error is the caller's, not the pool's."""
    pool = KdfPool(threads=1, queue=0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0)
    await pool.close()


async def test_a_closed_pool_finishes_what_it_accepted_and_takes_nothing_more() -> None:
    """Close waits for the waiting too; later work is a mistake of the caller, told as RuntimeError, and holds no place."""
    pool, first, second = KdfPool(threads=1, queue=1), Work(), Work()
    tasks = [asyncio.create_task(pool.run(first)), asyncio.create_task(pool.run(second))]
    await first.began()
    closing = asyncio.create_task(pool.close())
    first.finish()
    second.finish()
    await closing
    assert await asyncio.gather(*tasks) == ["done", "done"]
    with pytest.raises(RuntimeError):
        await pool.run(Work())
    assert repr(pool) == "KdfPool(threads=1, queue=1, held=0)"


@pytest.mark.parametrize(("threads", "queue", "named"), [(0, 1, "threads .* 0"), (1, -1, "queue .* -1")])
def test_wrong_sizes_are_refused_where_they_are_written(threads: int, queue: int, named: str) -> None:
    """A pool that could serve nobody is not made."""
    with pytest.raises(ValueError, match=named):
        KdfPool(threads=threads, queue=queue)


async def test_a_full_pool_refuses_passphrases_and_serves_key_ids() -> None:
    """The bulkhead keeps the expensive kind of call from taking the cheap kind with it."""
    async with EncryptionService(KEYRING, kdf_threads=1, kdf_queue=0) as service:
        envelope = await service.encrypt(PASSPHRASE, "text")
        async with without_a_free_thread(service):
            with pytest.raises(Busy):
                await service.encrypt(PASSPHRASE, "text")
            with pytest.raises(Busy):
                await service.decrypt(PASSPHRASE, envelope)
            assert await service.decrypt(KEY_ID, await service.encrypt(KEY_ID, "text")) == "text"
        assert await service.decrypt(PASSPHRASE, envelope) == "text"


async def test_a_cancelled_encryption_leaves_the_service_whole() -> None:
    """The caller sees its own cancellation, the others their envelopes."""
    async with EncryptionService(kdf_threads=1, kdf_queue=2) as service:
        tasks = [asyncio.create_task(service.encrypt(Passphrase(f"passphrase {n}"), "text")) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [False, True, False]
        assert await service.decrypt(Passphrase("passphrase 2"), tasks[2].result()) == "text"
