"""Engines: what both do with units and stages, and that a build gives the same bytes on either."""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import psutil
import pytest
import ray
import torch
from datasets_compared import snapshot
from light_recipe import GOLDEN_OPTIONS
from toy_stages import Buggy, Hungry, Meeting, Mortal, NoModel, Number, Quick, Slow, Square, Squares, Sums, Unlucky

from pipeline.build import build
from pipeline.config.recipe import RecipeError, load_recipe
from pipeline.engine import ray_engine
from pipeline.engine.base import Engine, NodesLost, Stage
from pipeline.engine.choice import EngineNeeds, check_engine, open_engine
from pipeline.engine.local import LocalEngine
from pipeline.engine.ray_engine import RayEngine
from pipeline.media.faults import trace_of
from pipeline.passes.embed_worker import limit_threads
from pipeline.state.units import BuildStopped, UnitResult


@pytest.fixture(scope="module")
def ray_running(ray_cluster: str) -> Iterator[RayEngine]:
    engine = RayEngine(ray_cluster)
    yield engine
    engine.close()


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return LocalEngine(2) if request.param == "local" else request.getfixturevalue("ray_running")


def test_units_enter_at_the_stage_that_takes_them_and_every_result_comes_out(engine):
    stages = [Stage(Squares, (), Number, cpus=0.5), Stage(Sums, (100,), Square, cpus=0.5)]
    units = [*map(Number, range(20)), Square(7)]
    results = list(engine.run(iter(units), stages))
    assert sum(result.of == "square" for result in results) == 20
    assert sorted(result.amount for result in results if result.of == "sum") == sorted(
        [*(i**2 + 100 for i in range(20)), 107]
    )


def test_a_full_disk_and_a_model_that_cannot_be_loaded_stop_the_pass_with_one_line(engine):
    with pytest.raises(OSError, match="No space left on device"):
        list(engine.run(map(Number, range(6)), [Stage(Unlucky, (), Number, cpus=0.5)]))
    with pytest.raises(BuildStopped, match="NoModel cannot start: the weights cannot be loaded"):
        list(engine.run([Number(1)], [Stage(NoModel, (), Number, cpus=0.5)]))


def test_the_local_engine_lends_each_worker_to_one_thread_and_makes_no_more_than_there_is_room_for():
    workers, busy, most = [], set(), []

    class Exclusive:
        def __init__(self) -> None:
            workers.append(self)

        def __call__(self, unit: Number) -> UnitResult:
            assert self not in busy
            busy.add(self)
            most.append(len(busy))
            time.sleep(0.01)
            busy.remove(self)
            return UnitResult("exclusive", 1.0)

    results = list(LocalEngine(4).run(map(Number, range(30)), [Stage(Exclusive, (), Number, cpus=2.0)]))
    assert len(results) == 30
    assert len(workers) == max(most) == 2


def test_a_worker_gets_as_many_units_at_once_as_its_stage_says(engine):
    stage = Stage(Meeting, (), Number, cpus=0.0, gpus=1.0, at_once=3)
    if engine.name == "ray":  # has no GPU here
        stage = replace(stage, cpus=1.0, gpus=0.0)
    results = list(engine.run(map(Number, range(6)), [stage]))
    assert sorted(result.amount for result in results) == [0, 1, 2, 3, 4, 5]


def test_the_units_of_a_process_that_was_killed_run_again_in_another(engine, tmp_path):
    stage = Stage(Mortal, (tmp_path / "killed",), Number, cpus=1.0, own_process=True)
    if engine.name == "ray":  # an actor is a process anyway; here one that has two units at once
        stage = replace(stage, at_once=2)
    results = list(engine.run(map(Number, range(6)), [stage]))
    assert (tmp_path / "killed").exists()
    assert os.getpid() not in {int(result.of) for result in results}
    assert sorted(result.amount for result in results) == [0, 1, 2, 3, 4, 5]


def test_a_process_that_needs_too_much_memory_stops_the_pass_in_one_line():
    with pytest.raises(BuildStopped, match="a process of Hungry: needed more than the 8000 MB"):
        list(LocalEngine(1).run([Number(3)], [Stage(Hungry, (), Number, cpus=1.0, own_process=True)]))


@pytest.mark.parametrize("own_process", [False, True])
def test_an_error_in_the_program_comes_out_as_it_was_raised(engine, capfd, own_process):
    with pytest.raises(KeyError) as caught:
        list(engine.run([Number(3)], [Stage(Buggy, (), Number, cpus=1.0, own_process=own_process)]))
    assert caught.value.args == (3,)
    assert "{1: 1.0}[unit.value]" in trace_of(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_local_engine_gives_back_the_threads_of_opencv_and_torch():
    class Modest:
        def __call__(self, unit: Number) -> UnitResult:
            limit_threads()
            return UnitResult("modest", 1.0)

    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(2)
    torch.set_num_threads(2)
    list(LocalEngine(1).run([Number(1)], [Stage(Modest, (), Number, cpus=1.0)]))
    assert (cv2.getNumThreads(), torch.get_num_threads()) == (2, 2)
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


def test_the_local_engine_takes_units_as_it_needs_them_and_stops_when_its_reader_does():
    taken = []

    def units() -> Iterator[Number]:
        for i in range(1000):
            taken.append(i)
            yield Number(i)

    running = LocalEngine(2).run(units(), [Stage(Squares, (), Number, 0.5), Stage(Sums, (0,), Square, 0.5)])
    next(running)
    running.close()
    assert len(taken) < 10
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_a_build_on_ray_has_the_bytes_of_a_local_one_and_leaves_ray_running(
    golden_dataset, ray_running, sample_videos, tmp_path
):
    sources = [str(sample_videos[name]) for name in ("bikes", "bigbuckbunny")]
    callbacks = list(ray.data.DataContext.get_current().custom_execution_callback_classes)
    killed = threading.Thread(target=kill, args=("ray::MapWorker", "pipeline.media.isolation.sandbox"), daemon=True)
    killed.start()
    build(sources, str(tmp_path / "dataset"), load_recipe("embedded", GOLDEN_OPTIONS))  # Ray runs: auto takes it
    killed.join(60)
    assert not killed.is_alive()
    assert snapshot(tmp_path / "dataset") == snapshot(golden_dataset)
    assert ray.is_initialized()
    assert list(ray.data.DataContext.get_current().custom_execution_callback_classes) == callbacks
    with pytest.raises(BuildStopped, match=r"already called ray\.init"):
        RayEngine(cores=7)


def kill(*commands: str) -> None:
    """The first process of this one's family with each of these words in its command."""
    for words in commands:
        while not any(_killed(process, words) for process in psutil.Process().children(recursive=True)):
            time.sleep(0.01)


def _killed(process: psutil.Process, words: str) -> bool:
    try:
        if any(words in word for word in process.cmdline()):
            process.kill()
            return True
    except psutil.Error:
        pass
    return False


def test_a_stage_does_not_run_far_ahead_of_a_slow_one(ray_running, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "AHEAD", 4)
    stages = [Stage(worker, (str(tmp_path),), takes, 1.0) for worker, takes in ((Quick, Number), (Slow, Square))]
    ahead = [result.amount for result in ray_running.run(map(Number, range(60)), stages)]
    assert len(ahead) == 60
    assert max(ahead) <= 24  # 8 on an idle machine: two units more with each worker; without the limit nearly 60


def test_a_pass_that_stands_still_since_a_node_was_lost_is_given_up(ray_running, monkeypatch):
    nodes = iter([set(), {"gone"}])
    monkeypatch.setattr(ray_engine, "QUIET", 0.0)
    monkeypatch.setattr(ray_engine, "_stuck", lambda ops: True)
    monkeypatch.setattr(ray_engine, "_lost_nodes", lambda: next(nodes, {"gone"}))
    with pytest.raises(NodesLost, match="the cluster lost 1 of its nodes"):
        list(ray_running.run(map(Number, range(4)), [Stage(Unlucky, (), Number, 0.5)]))


def test_a_build_begins_again_when_nodes_are_lost_and_keeps_count(golden_dataset, sample_videos, tmp_path, monkeypatch):
    """The second run of the passes goes on with what the first has committed, in tables and in the closing numbers."""
    sources = [str(sample_videos[name]) for name in ("bikes", "bigbuckbunny")]
    run, lost = LocalEngine.run, []

    def losing(self: LocalEngine, units: Any, stages: Sequence[Stage]) -> Iterator[UnitResult]:
        yield from run(self, units, stages)
        if len(stages) == 2 and not lost:  # of scan and embed
            lost.append(True)
            raise NodesLost("the cluster lost 1 of its nodes")

    monkeypatch.setattr(LocalEngine, "run", losing)
    built = build(sources, str(tmp_path / "dataset"), load_recipe("embedded", GOLDEN_OPTIONS), engine="local")
    assert lost
    assert snapshot(tmp_path / "dataset") == snapshot(golden_dataset)
    passes = built.info["passes"]
    assert passes["sources"]["amount"] == 2
    assert passes["scan"]["amount"] == pytest.approx(sum(row["duration"] for row in built.sources))
    assert passes["embed"]["amount"] == built.clips.num_rows


def test_a_worker_whose_output_is_not_seen_by_the_build_stops_it(sample_videos, tmp_path, monkeypatch):
    """As where each node has a folder of its own under this path."""
    run = LocalEngine.run

    def elsewhere(self: LocalEngine, units: Any, stages: Sequence[Stage]) -> Iterator[UnitResult]:
        for result in run(self, units, stages):
            Path(tmp_path, "dataset", result.fragment).unlink()
            yield result

    monkeypatch.setattr(LocalEngine, "run", elsewhere)
    monkeypatch.setattr("pipeline.passes.run.SHARED_SECONDS", 0.1)
    with pytest.raises(BuildStopped, match="OUT is not shared by all nodes"):
        build([str(sample_videos["bikes"])], str(tmp_path / "dataset"), load_recipe("embedded"), engine="local")


def test_options_that_contradict_each_other_are_refused_before_any_work():
    for name, needs, address, gpus, words in (
        ("auto", EngineNeeds(1, gpu=False, ray=False), None, True, "no model of this recipe"),
        ("local", EngineNeeds(1, gpu=False, ray=False), "auto", False, "cannot join a cluster"),
        ("local", EngineNeeds(1, gpu=False, ray=True), None, False, "ray_llm"),
    ):
        with pytest.raises(RecipeError, match=words):
            check_engine(name, needs, address, gpus)
    with (
        pytest.raises(BuildStopped, match="no GPU"),
        open_engine("local", EngineNeeds(1, gpu=True, ray=False), None, 1, True),
    ):
        pass


def test_the_private_parts_of_ray_that_the_engine_uses_are_there():
    """A new version of Ray that breaks one of these says here which."""
    from ray.data._internal.execution.backpressure_policy import BackpressurePolicy
    from ray.data._internal.execution.execution_callback import ExecutionCallback
    from ray.data._internal.execution.interfaces import PhysicalOperator
    from ray.data._internal.execution.operators.actor_pool_map_operator import _ActorPool, _ActorState
    from ray.data._internal.execution.streaming_executor import StreamingExecutor
    from ray.data._internal.execution.streaming_executor_state import OpState

    assert {"output_dependencies", "get_autoscaling_actor_pools", "num_active_tasks"} <= set(dir(PhysicalOperator))
    assert hasattr(OpState, "total_enqueued_input_blocks")
    assert "op" in inspect.signature(BackpressurePolicy.can_add_input).parameters
    assert "self._topology" in inspect.getsource(BackpressurePolicy)
    assert {"before_execution_starts", "on_execution_step"} <= set(dir(ExecutionCallback))
    assert "self._topology" in inspect.getsource(StreamingExecutor)
    assert "self._running_actors" in inspect.getsource(_ActorPool)
    assert {"num_tasks_in_flight", "is_restarting"} <= set(_ActorState.__dataclass_fields__)
    context = {"op_resource_reservation_ratio", "execution_no_progress_timeout_s", "custom_execution_callback_classes"}
    assert context <= set(vars(ray.data.DataContext.get_current()))
    assert {"copy", "_set_current"} <= set(dir(ray.data.DataContext))
