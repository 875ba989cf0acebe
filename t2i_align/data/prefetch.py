"""Doing the next pieces of work ahead of time, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Value = TypeVar("Value")


class Prefetcher(Generic[Key, Value]):
    """``load(key)``, with the keys that follow already being loaded by other threads.

    Pillow, Arrow and torch release the interpreter lock where the time goes, so threads decode in parallel
    and share the source's memory. An exception in ``load`` is raised by `get`.

    Args:
        load: computes a value; must be safe to call from several threads.
        following: the key after a key.
        workers: threads, and keys loaded ahead; 0 loads on demand in the calling thread.
    """

    def __init__(self, load: Callable[[Key], Value], following: Callable[[Key], Key], workers: int) -> None:
        self._load, self._following, self._workers = load, following, workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pairs") if workers else None
        self._ahead: dict[Key, Future[Value]] = {}

    def get(self, key: Key) -> Value:
        """The value of a key."""
        if self._pool is None:
            return self._load(key)
        wanted = [key]
        for _ in range(self._workers):
            wanted.append(self._following(wanted[-1]))
        for stale in self._ahead.keys() - set(wanted):
            self._ahead.pop(stale).cancel()
        for each in wanted:
            if each not in self._ahead:
                self._ahead[each] = self._pool.submit(self._load, each)
        return self._ahead.pop(key).result()

    def close(self) -> None:
        """Stop the threads; what they are loading is thrown away."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._ahead.clear()


def map_ahead(
    function: Callable[[Item], Value], items: Iterable[Item], workers: int, ahead: int = 4
) -> Iterator[Value]:
    """``map`` in threads, in order, with at most ``ahead`` results per thread waiting; memory stays flat.

    Args:
        function: safe to call from several threads.
        items: its arguments.
        workers: threads; 0 computes in the calling thread.
        ahead: results per thread computed before they are asked for.
    """
    if workers == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[Value]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="pairs") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers * ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
