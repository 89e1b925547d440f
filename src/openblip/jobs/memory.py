"""Detection of out-of-memory errors, whichever library raised them."""

from __future__ import annotations

# The words of torch's allocators on Linux and macOS, on Windows, and of CUDA and MPS; of cuBLAS; and of the C++
# library, whose error OpenVINO passes on.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "bad_alloc",
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, means that a machine or a GPU ran out of memory."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return True
        if isinstance(cause, RuntimeError) and any(words in str(cause) for words in _WORDS):
            return True
        causes.append(cause)
        cause = cause.__cause__
    return False
