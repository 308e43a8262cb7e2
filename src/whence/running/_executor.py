"""Independent pieces of work in a `concurrent.futures.Executor`, here or in other processes."""

import pickle
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import jax


def check_executor(executor: Any) -> None:
    """Raise `ValueError` unless this has an executor's `submit`, or is None."""
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise ValueError(
            "`executor` must be a `concurrent.futures.Executor`, such as a "
            f"`ProcessPoolExecutor` or Dask's `client.get_executor()`; got {executor!r}."
        )


def run_all(
    executor: Any,
    function: Callable[..., Any],
    calls: Sequence[tuple],
    on_progress: Callable[[int, int], None] | None = None,
    *,
    part: bool = False,
) -> list[Any]:
    """Return `function(*call)` of every call, in order; an error cancels what has not begun.

    Ctrl-C does so, too: what has begun is finished.

    Args:
        executor: Threads share this process and what it has compiled. To any other executor
            work is sent as bytes, with the precision in use here.
        function: A module-level function.
        calls: Arguments of each call.
        on_progress: Called with calls done and calls in all.
        part: Whether, after Ctrl-C, the results of the first calls may be returned.

    Raises:
        KeyboardInterrupt: If Ctrl-C came before there were such results.
        ValueError: If work is to be sent that cannot be pickled.
    """
    here = isinstance(executor, ThreadPoolExecutor)
    is_double = bool(jax.config.jax_enable_x64)
    take = lambda future: future.result() if here else _unpacked(future.result())
    futures, results = [], []
    try:
        for call in calls:
            if here:
                futures.append(executor.submit(function, *call))
            else:
                futures.append(executor.submit(_there, _packed(function, call), is_double))
        for future in futures:
            results.append(take(future))
            if on_progress:
                on_progress(sum(future.done() for future in futures), len(calls))
    except KeyboardInterrupt:
        if not part:
            raise
        waiting = [future.cancel() for future in futures]
        with suppress(KeyboardInterrupt, CancelledError):  # there, or of the second Ctrl-C
            for future in futures[len(results) : (*waiting, True).index(True)]:
                results.append(take(future))
        if not results:
            raise
    finally:
        for future in futures:
            future.cancel()
    return results


def _packed(function, call) -> bytes:
    try:
        return pickle.dumps((function, call))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        try:
            import cloudpickle
        except ImportError:
            raise ValueError(
                f"What `executor` is to do cannot be sent to another process: {error}. Put "
                "models and functions into a module, or install `cloudpickle`."
            ) from error
        return cloudpickle.dumps((function, call))


def _there(payload: bytes, is_double: bool) -> tuple[bytes, list[tuple[type, str]]]:
    """Do a piece of work in another process."""
    # Before anything is unpickled: arrays are made in the precision in use.
    jax.config.update("jax_enable_x64", is_double)
    function, call = pickle.loads(payload)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*call)
    return pickle.dumps(result), [(w.category, str(w.message)) for w in caught]


def _unpacked(sent: tuple[bytes, list[tuple[type, str]]]) -> Any:
    for category, message in sent[1]:
        warnings.warn(message, category, stacklevel=4)
    return pickle.loads(sent[0])
