"""Which cases of large matrices, and which slow tests, `make test` leaves to `make full`."""

# Of a test over a matrix, the cases that `make test` runs, "" for none; the others have the mark `full`.
SEVEN = r"(?:llava|llava_next|qwen2_5_vl|qwen3_vl|internvl|smolvlm|gemma3)"  # families of every kind of tower, mask and position
QUICK = {
    "test_any_length.py::test_artifacts_of_schema_2_still_answer": "",
    "test_any_length.py::test_code_that_fixes_the_length_is_exported_for_one": "",
    "test_any_length.py::test_prompts_of_every_length": r"capacity|aircache|periodic",
    "test_any_picture.py::test_answers_as_the_compiled_model": r"llava-cut|qwen2_5_vl-share",
    "test_any_picture.py::test_pictures_too_small_for_a_count_of_tokens": "",
    "test_any_picture.py::test_static_targets_pad_a_picture": r"llava|qwen2_5_vl",
    "test_any_size.py::test_dynamo_traces_no_graph_twice": r"cuts and a capacity",
    "test_any_size.py::test_forty_batches_need_few_graphs": r"qwen2_5_vl|llava_next",
    "test_any_size.py::test_whatever_the_schedule": r"cuts and a capacity|adaptive budgets",
    "test_bounded_cache.py::test_beams_choose_as_the_full_model_where_nothing_is_dropped": r"h2o|sparsevila|lightvlm",
    "test_bounded_cache.py::test_with_room_for_everything_nothing_changes_in_any_family": r"step-.*|.*-llava",
    "test_dialogues.py::test_entries_chosen_for_the_first_question_serve_the_second_worse": "",
    "test_folder.py::test_an_export_killed_on_its_way_leaves_the_old_one": "",
    "test_load.py::test_opens_only_the_buckets_it_needs": "",
    "test_pipelines.py::test_the_ci_job_runs": "",
    "test_pipelines.py::test_the_python_call_runs": "",
    "test_tensorrt.py::test_build_script_names_every_graph": "",
    "test_frozen.py::test_visual_tokens_leave_a_layer_as_they_came": SEVEN,
    "test_families.py::test_a_reduced_row_does_not_depend_on_its_batch": SEVEN,
    "test_families.py::test_decoding_equals_a_prefill_of_everything_so_far": SEVEN,
    "test_families.py::test_every_layer_caches_the_scheduled_tokens": SEVEN,
    "test_families.py::test_keeping_everything_changes_nothing": rf"{SEVEN}-.*|.*-ragged pictures",
    "test_schedules.py::test_answers_as_the_compiled_model": r"none|periodic|sparsevila|lightvlm, a share",
    "test_schedules.py::test_salience_of_a_tower_with_its_patches_in_another_order": r"qwen2_5_vl",
}
