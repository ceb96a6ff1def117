"""numba's `njit` with a cache on disk that costs time when it fails, and never the run."""

from __future__ import annotations

import contextlib
import functools
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

CHECK_BYTES = 4

# A piece is part of the kernel that calls it. Counting references to its array arguments, as numba does at
# every call, takes five times as long as the battle; a piece creates no arrays, so that none need counting.
_PIECE: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": True, "_nrt": False}
piece = numba.njit(**_PIECE)


class _CheckedFile(IndexDataCacheFile):
    """Cache files that end in a checksum: a flipped bit of machine code would crash, or compute wrongly."""

    def _dump(self, obj: Any) -> bytes:
        data = super()._dump(obj)
        return data + zlib.crc32(data).to_bytes(CHECK_BYTES, "big")  # unpickling stops before it

    def _load_data(self, name: str) -> Any:
        data = Path(self._data_path(name)).read_bytes()
        if zlib.crc32(data[:-CHECK_BYTES]).to_bytes(CHECK_BYTES, "big") != data[-CHECK_BYTES:]:
            raise ValueError(f"{name} is damaged.")
        return super()._load_data(name)


class _ForgivingCache(FunctionCache):
    """A function's cache; what cannot be read is compiled anew, what cannot be written is left out."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _CheckedFile(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # damaged pickles raise anything
            with contextlib.suppress(OSError):
                self.flush()  # else a damaged index stays for ever
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:  # a full disk, an index that stays damaged
            _say_uncached()


@functools.cache
def _say_uncached() -> None:
    """Print once why every start will compile."""
    print(
        "numba's cache cannot be written: kernels are compiled anew at each start, for up to a minute. Set "
        "NUMBA_CACHE_DIR to a folder that can be written.",
        file=sys.stderr,
        flush=True,
    )


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """numba.njit(cache=True, **options), also where no folder can be written or what is in it is damaged."""

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        try:
            dispatcher._cache = _ForgivingCache(function)  # as its enable_caching() sets numba's own
        except (RuntimeError, OSError):  # a checkout that cannot be written, and no home
            _say_uncached()
        return dispatcher

    return compiled
