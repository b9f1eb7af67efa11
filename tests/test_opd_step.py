"""The step benchmark in small: same work, figures, promises. The whole: `benchmarks/opd_step.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.opd_step import contestants_of, run_work
from benchmarks.opd_step_parts.contestants import BARE, LOOP, OURS, TRL, TRL_BF16, forget_threads
from benchmarks.opd_step_parts.four_works import QUICK, Works, without_context
from benchmarks.opd_step_parts.machine import floor_seconds
from benchmarks.opd_step_parts.ours import Contestant as Ours
from benchmarks.opd_step_parts.tables import broken_promises, check_faults, context_percent
from benchmarks.opd_step_parts.works import Work, read_work
from benchmarks.peers.environment import pins
from benchmarks.peers.mlx_loop import Contestant as MlxLoop
from tests.tiny import tiny_config, write_tiny_model

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "opd_step.py"
RATES = {"flops": 1e9, "bandwidth": 1e9}


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works(write_tiny_model(tmp_path / "model"), "cpu", QUICK, 3, tmp_path)


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_ours_and_the_loop_compute_the_same_on_fixed_completions_and_write_equally_many_tokens(
    works: Works, name: str
) -> None:
    work = works.make(name)
    contestants: dict[str, Any] = {OURS: Ours(work), LOOP: MlxLoop(work)}
    checks = {key: contestant.check() for key, contestant in contestants.items()}
    assert check_faults(checks, is_bf16=False) == []
    assert checks[LOOP]["loss"] > 0.01 and checks[LOOP]["gradient_norm"] > 0.01
    for contestant in contestants.values():
        found = contestant.step()
        assert found["new_tokens"] == work.rows * work.new_tokens
        assert found["step"] == pytest.approx(found["rollout"] + found["teacher"] + found["update"])


def test_another_adapter_is_not_the_same_work(works: Works, tmp_path: Path) -> None:
    work = works.make("a")
    checks = {OURS: Ours(replace(work, lora_scale=2.01)).check(), LOOP: MlxLoop(work).check()}
    (fault,) = check_faults(checks, is_bf16=False)
    assert OURS in fault and LOOP in fault


def test_bfloat16_may_differ_by_its_own_rounding_and_no_other_contestant_may() -> None:
    def checks(name: str) -> dict[str, dict[str, float]]:
        return {TRL: {"loss": 1.0, "gradient_norm": 2.0}, name: {"loss": 1.0, "gradient_norm": 2.04}}

    assert check_faults(checks(TRL_BF16), is_bf16=False) == []
    assert len(check_faults(checks(OURS), is_bf16=False)) == 1
    assert len(check_faults({**checks(OURS), OURS: {"loss": float("nan"), "gradient_norm": 2.0}}, False)) == 1


def test_every_work_has_prompts_of_its_exact_length_and_no_prompt_twice(works: Works) -> None:
    for name, length in (("a", QUICK.prompt_length), ("b", QUICK.long_prompt_length), ("c", QUICK.prompt_length)):
        prompts = [prompt for batch in works.make(name).batches for prompt in batch]
        assert {len(prompt.ids) for prompt in prompts} == {length}
        assert len({prompt.ids for prompt in prompts}) == len(prompts)
    context = works.make("c")
    assert len(context.batches[0][0].teacher_ids) > QUICK.prompt_length + QUICK.context_length
    bare = without_context(context)
    assert bare.batches[0][0].teacher_ids == bare.batches[0][0].ids and bare.system_prompt is None


def test_a_work_survives_its_journey_as_a_file(works: Works, tmp_path: Path) -> None:
    work = works.make("d")
    work.write(tmp_path / "work.json")
    assert read_work(tmp_path / "work.json") == work


def test_trl_takes_part_where_it_can_and_the_context_is_compared_with_none(works: Works) -> None:
    chosen = [OURS, LOOP, TRL, TRL_BF16]
    assert list(contestants_of(works.make("a"), chosen)) == chosen
    assert list(contestants_of(works.make("c"), chosen)) == [OURS, BARE, LOOP]
    assert contestants_of(works.make("a"), chosen)[TRL_BF16].dtype == "bfloat16"


def test_the_floor_is_the_formula_by_hand(works: Works) -> None:
    work = works.make("b")
    config = tiny_config()
    assert (config["hidden_size"], config["intermediate_size"], config["vocab_size"]) == (32, 64, 259)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64  # queries and output, keys and values of half the heads, the MLP
    trunk, head = 2.0 * 2 * layer, 2.0 * 259 * 32
    prompts, new = 2 * 60, 2 * 2 * 6
    floor = floor_seconds(work, RATES)
    weights = 4.0 * (trunk + head) / 2
    assert floor["rollout"] == pytest.approx((prompts * trunk + max(new * (trunk + head), 6 * weights)) / 1e9)
    assert floor["teacher"] == pytest.approx(((prompts + new) * trunk + new * head) / 1e9)
    assert floor["update"] == pytest.approx(2 * floor["teacher"])
    assert floor["step"] == pytest.approx(floor["rollout"] + floor["teacher"] + floor["update"])
    arithmetic = prompts * trunk + new * (trunk + head) + 3 * ((prompts + new) * trunk + new * head)
    assert floor["matmul"] == pytest.approx(arithmetic / 1e9)


def test_what_is_slower_or_larger_than_promised_is_said() -> None:
    kept: dict[str, Any] = {
        TRL: {"ours_over_it": 0.75, "ours_over_its_memory": 0.6},
        LOOP: {"ours_over_it": 0.6, "ours_over_its_memory": 9.0},
    }
    assert broken_promises("a", kept, None) == []
    broken = {TRL: {"ours_over_it": 0.76, "ours_over_its_memory": 0.61}, LOOP: {"ours_over_it": 0.61}}
    assert len(broken_promises("a", broken, None)) == 3
    assert len(broken_promises("b", kept, None)) == 1 and broken_promises("c", broken, 5.0) == []
    assert len(broken_promises("c", kept, 5.1)) == 1


def test_the_cost_of_a_context_leaves_the_rollout_out() -> None:
    bare = {"rollout": 5.0, "teacher": 1.0, "update": 4.0, "step": 10.0}
    found = {"rollout": 9.0, "teacher": 1.25, "update": 4.25, "step": 14.5}
    assert context_percent({OURS: {"rounds": [found]}, BARE: {"rounds": [bare]}}) == pytest.approx(5.0)


def test_torch_is_installed_first() -> None:
    assert pins()[0].startswith("torch==") and any(pin.startswith("trl==") for pin in pins())


def test_a_whole_work_runs_in_child_processes_in_turns(
    works: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    forget_threads()
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    work: Work = works.make("a")
    found = run_work(work, [OURS, LOOP], 1, RATES, tmp_path)
    assert found["broken"] == [] and list(found["contestants"]) == [OURS, LOOP]
    assert found["contestants"][LOOP]["ours_over_it"] > 0 and found["context_percent"] is None
    assert all(contestant["peak_rss_bytes"] > 20e6 for contestant in found["contestants"].values())


@pytest.mark.slow
def test_the_script_runs_all_works_in_small(tmp_path: Path) -> None:
    model, result = write_tiny_model(tmp_path / "model"), tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--model", str(model), "--contestants", "ours,mlx"]
    done = subprocess.run(
        [*command, "--steps", "1", "--json", str(result)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(result.read_text(encoding="utf-8"))
    assert list(figures["works"]) == ["a", "b", "c", "d"] and figures["rates"]["flops"] > 0
