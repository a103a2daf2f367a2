"""Selection of the engine that runs a build."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import pyarrow as pa

from pipeline.config.recipe import RecipeError
from pipeline.engine.base import Engine

EngineName = Literal["auto", "local", "ray"]
SMALL_BYTES = 1 << 30  # total size of sources below which a build finishes before the start of Ray pays off


class EngineNeeds(NamedTuple):
    """The properties of a build that decide which engine runs it."""

    size: int  # bytes of all sources
    gpu: bool  # whether a model of the recipe runs on a GPU if one is available
    ray: bool  # whether a pass runs only on Ray


def check_engine(name: EngineName, needs: EngineNeeds, address: str | None, wait_for_gpu: bool) -> None:
    """Raise RecipeError for options that contradict each other or the recipe."""
    if wait_for_gpu and not needs.gpu:
        raise RecipeError("--gpus: no model of this recipe runs on a GPU")
    if name == "local" and address is not None:
        raise RecipeError("--engine local and --address: the local engine cannot join a cluster")
    if name == "local" and needs.ray:
        raise RecipeError("--engine local: the recipe's captioner ray_llm runs only on Ray")


@contextmanager
def open_engine(
    name: EngineName, needs: EngineNeeds, address: str | None, cores: int | None, wait_for_gpu: bool
) -> Iterator[Engine]:
    """Context manager that yields the engine `name` and closes it; `auto` is `local` for small builds, else `ray`."""
    engine: Engine
    if name == "local" or (name == "auto" and address is None and not needs.ray and _is_small(needs)):
        from pipeline.engine.local import LocalEngine

        engine = LocalEngine(cores, needs.gpu, wait_for_gpu)
    else:
        from pipeline.engine.ray_engine import RayEngine  # takes seconds to import

        engine = RayEngine(address, cores, wait_for_gpu)
    try:
        yield engine
    finally:
        engine.close()
        _release_memory()


def _release_memory() -> None:
    """Return freed memory to the system. Otherwise glibc keeps memory between the few blocks that are still in use, and
    a process that runs many builds grows by about 1 MB per build."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError):  # C libraries other than glibc have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def _is_small(needs: EngineNeeds) -> bool:
    """Return whether starting Ray would take longer than it saves; False if this process already uses Ray."""
    running = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    return needs.size < SMALL_BYTES and not running
