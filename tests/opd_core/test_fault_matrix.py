"""Which test holds each row of the matrix of faults: killed and lingering processes, disks, databases, clocks, inputs.

Rows 20 to 41 and 44; the rest of the matrix is money's and is held by the tests of `money` and `teachers`. Each row
names the tests that inject its fault; here it is checked that they are still there, under these names, and not skipped.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
WORKERS, DATABASE, INPUTS = (f"faults/test_{name}.py" for name in ("workers", "database", "absurd_inputs"))
SUPERVISOR, DEATH, PROCESSES = (
    f"opd_core/control/test_{name}.py" for name in ("supervisor", "worker_death", "processes")
)
DISK, ROOM, KILL_LOOP = "faults/test_disk.py", "opd_core/test_worker_room.py", "test_kill_loop.py"
MIGRATIONS, FILE = "opd_core/state/test_migrations.py", "opd_core/state/test_database.py"

MATRIX: dict[int, tuple[str, dict[str, tuple[str, ...]]]] = {
    20: (
        "worker killed in a step: interrupted at the next look, resumes to the same end",
        {
            DEATH: ("test_a_killed_worker_is_reported_within_a_second",),
            "server/test_end_to_end.py": ("test_a_killed_worker_is_interrupted_and_resumes_to_the_end",),
            "opd_core/training/test_exact_resume.py": ("test_a_run_that_was_killed_half_way_ends_as_its_twin",),
        },
    ),
    21: (
        "worker killed while it publishes a checkpoint: the one before it is whole and the newest",
        {
            KILL_LOOP: (
                "test_a_publication_killed_at_some_of_its_calls_tears_and_loses_nothing",
                "test_a_publication_killed_at_every_write_class_call_tears_and_loses_nothing",
                "test_a_few_kills_of_real_training_break_no_promise",
            )
        },
    ),
    22: (
        "server killed, worker lives: the next server goes on with it",
        {
            WORKERS: ("test_a_new_server_goes_on_with_the_worker_of_a_killed_one_and_starts_no_second",),
            DEATH: ("test_the_worker_outlives_its_server",),
            "server/test_end_to_end.py": ("test_a_run_outlives_its_server_and_a_second_server_sees_it",),
        },
    ),
    23: (
        "reboot: every live row becomes interrupted, nobody is signalled",
        {
            WORKERS: (
                "test_after_a_reboot_every_live_run_is_interrupted_and_nobody_is_signalled",
                "test_a_process_of_this_boot_is_not_taken_for_one_of_another",
            )
        },
    ),
    24: (
        "process number reused: never signalled",
        {
            WORKERS: ("test_not_even_force_signals_a_process_that_has_the_workers_number",),
            SUPERVISOR: ("test_a_reused_process_number_is_not_signalled_by_a_stop",),
            PROCESSES: ("test_a_reused_number_is_never_signalled",),
        },
    ),
    25: (
        "a child of the worker outlives it: its copy of the lock does not keep the run alive",
        {
            DEATH: ("test_a_child_of_a_dead_worker_does_not_keep_it_alive",),
            PROCESSES: ("test_a_lock_does_not_leak_into_other_children",),
            WORKERS: ("test_nothing_here_forks_without_exec",),
        },
    ),
    26: (
        "zombie: not alive",
        {
            WORKERS: ("test_a_zombie_is_dead",),
            PROCESSES: ("test_a_zombie_has_no_identity",),
            DEATH: ("test_the_parent_leaves_no_zombie",),
        },
    ),
    27: (
        "suspended for ten minutes: stalled, not dead, not started again; goes on",
        {
            WORKERS: (
                "test_a_worker_suspended_for_ten_minutes_is_stalled_and_goes_on_when_continued",
                "test_a_suspended_worker_can_be_killed",
            ),
            DEATH: ("test_a_stopped_process_is_not_a_dead_one",),
        },
    ),
    28: (
        "SIGTERM ignored: the group is killed after the grace, and that is recorded",
        {
            WORKERS: (
                "test_a_deaf_worker_is_killed_with_its_children_after_the_grace_and_that_is_recorded",
                "test_the_grace_is_twice_the_slowest_step_and_the_time_to_save",
            ),
            PROCESSES: ("test_killing_takes_the_whole_group",),
        },
    ),
    29: (
        "eight starts at once: one worker; a second run waits; one request id is one run",
        {
            SUPERVISOR: ("test_of_eight_racing_starters_exactly_one_starts_a_worker",),
            "opd_core/control/test_queueing.py": ("test_the_same_request_at_the_same_moment_starts_one_run",),
            "opd_core/control/test_stop_and_resume.py": ("test_what_is_not_over_or_is_complete_cannot_be_resumed",),
        },
    ),
    30: (
        "disk full, database: rolled back whole, and no call is paid for while the run waits",
        {
            FILE: ("test_a_full_disk_is_a_plain_error_and_loses_nothing",),
            DISK: ("test_a_run_on_a_disk_that_fills_up_waits_and_ends_as_its_twin",),
            ROOM: (
                "test_nothing_is_loaded_or_asked_before_there_is_room",
                "test_a_wait_that_cannot_be_recorded_is_a_wait_all_the_same",
            ),
        },
    ),
    31: (
        "disk full, checkpoint: the old one intact, room looked for before a step",
        {
            DISK: ("test_a_checkpoint_that_does_not_fit_leaves_the_earlier_ones_and_no_litter",),
            ROOM: ("test_room_means_room_for_two_more_checkpoints",),
        },
    ),
    32: (
        "a flush fails: no checkpoint is claimed",
        {
            DISK: (
                "test_a_flush_that_fails_is_no_checkpoint",
                "test_a_run_whose_disk_fails_to_flush_ends_without_a_claim_and_resumes_as_its_twin",
            )
        },
    ),
    33: (
        "checkpoint cut, flipped or zeroed: refused; the one before it only when asked for",
        {
            "opd_core/test_checkpoint_files.py": (
                "test_any_damage_to_the_newest_is_refused_and_the_sound_one_before_it_is_named",
                "test_a_missing_file_is_damage_and_not_a_reason_to_take_an_earlier_one",
            ),
            DISK: ("test_from_the_checkpoint_before_a_damaged_one_a_run_ends_as_its_twin",),
            "opd_core/control/test_repair.py": ("test_a_damaged_checkpoint_is_renamed_and_the_one_before_it_named",),
        },
    ),
    34: (
        "database held by another: the tool says busy, the worker waits, nothing is lost",
        {
            DATABASE: (
                "test_a_call_of_a_tool_says_that_the_database_is_busy_and_works_afterwards",
                "test_a_worker_waits_longer_than_any_tool_call",
                "test_a_worker_at_work_loses_nothing_to_a_held_database",
            ),
            "opd_core/state/test_recorder.py": ("test_a_step_outlives_a_busy_database",),
        },
    ),
    35: (
        "a read that becomes a write: waits instead of failing at once",
        {FILE: ("test_a_read_that_becomes_a_write_waits_its_turn_instead_of_failing",)},
    ),
    36: (
        "clocks jump: order, durations and money do not depend on the calendar",
        {
            DATABASE: (
                "test_a_runs_life_does_not_depend_on_the_calendar",
                "test_no_cent_is_lost_or_counted_twice_when_the_calendar_jumps_over_months",
            )
        },
    ),
    37: (
        "schema older, newer, or killed in between: forward with all rows, refused unwritten, old or new",
        {
            MIGRATIONS: (
                "test_every_earlier_schema_comes_forward_with_all_its_rows",
                "test_a_kill_within_a_migration_leaves_the_old_schema_or_the_new_one",
                "test_a_newer_schema_is_not_written_at_all",
                "test_a_copy_is_private_and_complete_or_not_there",
                "test_only_the_newest_few_copies_are_kept",
            )
        },
    ),
    38: (
        "absurd prompt files: refused by line, without being read",
        {
            INPUTS: ("test_two_gigabytes_and_a_line_of_half_of_one_are_refused_without_being_read",),
            "opd_core/test_prompt_files.py": (
                "test_a_bad_line_is_named_with_what_is_wrong",
                "test_byte_order_mark_crlf_and_blank_lines_are_read_over",
                "test_repetitions_are_dropped_and_counted",
                "test_every_cap_is_enforced_and_named",
                "test_a_file_without_prompts_is_refused",
                "test_any_bytes_give_prompts_or_one_clear_error",
            ),
        },
    ),
    39: (
        "deep JSON, NaN, keys twice, huge numbers: refused",
        {
            INPUTS: (
                "test_absurd_json_inside_an_argument_is_refused",
                "test_absurd_numbers_are_refused_by_name",
            )
        },
    ),
    40: (
        "YAML's surprises: refused",
        {
            INPUTS: ("test_absurd_yaml_is_refused",),
            "opd_core/test_config.py": (
                "test_hostile_yaml_is_refused",
                "test_yaml_surprises_are_caught_by_the_types",
            ),
        },
    ),
    41: (
        "hostile texts: escaped, cut, data",
        {
            INPUTS: (
                "test_a_hostile_text_is_shown_escaped_and_short_wherever_it_comes_from",
                "test_a_hostile_prompt_is_a_prompt_and_a_hostile_name_is_shown_escaped",
            ),
            "server/test_tools.py": ("test_a_finished_comparison_gives_the_table_the_ceiling_and_escaped_samples",),
        },
    ),
    44: (
        "out of memory: said, with the peak where it is known; the next run goes on",
        {
            WORKERS: (
                "test_a_worker_out_of_memory_says_so_with_its_peak_and_the_next_run_goes_on",
                "test_a_worker_killed_for_memory_is_interrupted_with_the_peak_of_its_last_step",
            )
        },
    ),
}
"""Row to what must come of it, and the tests (by file) that make the fault and look."""

ROWS = (*range(20, 42), 44)


def test_every_row_of_the_matrix_has_a_test() -> None:
    assert tuple(sorted(MATRIX)) == ROWS


@pytest.mark.parametrize("row", sorted(MATRIX))
def test_the_tests_of_a_row_exist_and_look_at_something(row: int) -> None:
    for name, tests in MATRIX[row][1].items():
        tree = ast.parse((TESTS / name).read_text(encoding="utf-8"))
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for test in tests:
            assert test in functions, f"row {row}: {name} has no {test}"
            looks = any(word in ast.dump(functions[test]) for word in ("Assert(", "'wait_until'", "'raises'"))
            assert looks, f"row {row}: {test} asserts nothing"
