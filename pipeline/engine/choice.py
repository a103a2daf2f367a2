"""The choice of the engine that a build runs on."""

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
SMALL_BYTES = 1 << 30  # of all sources: a smaller build finishes before starting Ray pays off


class EngineNeeds(NamedTuple):
    """The properties of a build that decide which engine runs it."""

    size: int  # bytes of all sources
    gpu: bool  # whether a model of the recipe runs on a GPU where there is one
    ray: bool  # whether a pass runs only on Ray


def check_engine(name: EngineName, needs: EngineNeeds, address: str | None, wait_for_gpu: bool) -> None:
    """Raise RecipeError for options that contradict each other or the recipe."""
    if wait_for_gpu and not needs.gpu:
        raise RecipeError("--gpus, and no model of this recipe runs on one")
    if name == "local" and address is not None:
        raise RecipeError("--engine local and --address: the local engine joins no cluster")
    if name == "local" and needs.ray:
        raise RecipeError("--engine local, and the recipe's captioner is ray_llm, which runs on Ray")


@contextmanager
def open_engine(
    name: EngineName, needs: EngineNeeds, address: str | None, cores: int | None, wait_for_gpu: bool
) -> Iterator[Engine]:
    """Yield the engine called `name` and close it on leaving; `auto` is `local` for small builds on this machine."""
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
    """Return the memory that the build has freed to the system. glibc keeps it otherwise, in pieces between the few
    blocks that live on: a process that builds again and again grows by about 1 MB a build."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _is_small(needs: EngineNeeds) -> bool:
    """Return whether starting Ray would take longer than it saves; False where this process already uses Ray."""
    running = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    return needs.size < SMALL_BYTES and not running
