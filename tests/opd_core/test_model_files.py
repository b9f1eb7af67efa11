"""Model and adapter folders read by their files, and whether they fit each other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from opd_core.adapter_files import changed_parameters, check_adapter_fits, inspect_adapter, read_adapter
from opd_core.errors import CompatibilityError, ModelFileError, PathError
from opd_core.model_files import inspect_model, known_models, read_model, resolve_model
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.tensor_files import read_header
from opd_core.tokenizer_files import same_tokenizer
from tests.model_folders import edit_json, make_adapter, make_model, tokenizer, write_json


@pytest.fixture(autouse=True)
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the models of the machine it runs on."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def home(tmp_path: Path) -> HomePaths:
    home = HomePaths(tmp_path / "home")
    home.prepare()
    return home


def test_model_folder_is_described_by_its_files(tmp_path: Path) -> None:
    info = read_model(make_model(tmp_path / "m"))
    assert (info.model_type, info.hidden_size, info.num_layers, info.vocab_size) == ("llama", 32, 2, 16)
    assert info.num_parameters == 16 * 32 + 32 + 2 * (32 * 32 + 16 * 32 + 32 * 48)
    assert info.eos_token_ids == (2,) and info.context_length == 512 and info.quantization is None


def test_quantised_weights_count_unpacked_and_their_scales_not_at_all(tmp_path: Path) -> None:
    plain, packed = read_model(make_model(tmp_path / "plain")), read_model(make_model(tmp_path / "packed", bits=4))
    assert packed.num_parameters == plain.num_parameters
    assert packed.quantization == "4-bit, group 32"


def test_stop_ids_of_generation_config_win(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    write_json(model / "generation_config.json", {"eos_token_id": [2, 7]})
    assert read_model(model).eos_token_ids == (2, 7)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("key", ["auto_map", "model_file"])
def test_model_that_asks_to_run_its_own_code_is_refused(tmp_path: Path, file: str, key: str) -> None:
    model = make_model(tmp_path / "m")
    edit_json(model / file, **{key: "evil.py"})
    with pytest.raises(ModelFileError, match=key):
        read_model(model)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match=r"pickled.*mlx_lm\.convert"):
        read_model(model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_missing_file_is_a_problem_that_names_what_lacks(tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path / "m")
    (model / name).unlink()
    problem = inspect_model(model).problem
    assert problem is not None and str(model) in problem
    assert {"tokenizer_config.json": "chat template"}.get(name, name.partition(".")[2]) in problem


def test_missing_shard_is_named(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    shards = {"a.weight": "model.safetensors", "b.weight": "model-00002-of-00002.safetensors"}
    write_json(model / "model.safetensors.index.json", {"weight_map": shards})
    with pytest.raises(ModelFileError, match="model-00002-of-00002"):
        read_model(model)


@pytest.mark.parametrize("keep", [4, 200, -1])
def test_weights_cut_short_are_refused(tmp_path: Path, keep: int) -> None:
    model = make_model(tmp_path / "m")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        read_model(model)


def test_header_length_is_capped_before_anything_is_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.safetensors"
    file.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelFileError, match="header length"):
        read_header(file)


def test_header_as_mlx_writes_it_without_metadata_is_read(tmp_path: Path) -> None:
    header = '{"__metadata__":null,"a":{"data_offsets":[0,24],"dtype":"F32","shape":[2,3]}}'
    file = tmp_path / "mlx.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(24))
    assert read_header(file).tensors["a"].shape == (2, 3) and read_header(file).metadata == {}


@pytest.mark.parametrize("header", ["[]", '{"a": 1}', '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'])
def test_header_of_another_form_is_refused(tmp_path: Path, header: str) -> None:
    file = tmp_path / "odd.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(ModelFileError, match="damaged"):
        read_header(file)


def test_model_is_found_by_name_and_by_path(home: HomePaths) -> None:
    model = make_model(home.models / "tiny")
    roots = Roots.of(home.home)
    assert resolve_model("tiny", home, roots) == model.resolve() == resolve_model(str(model), home, roots)


def test_cached_hub_model_is_found_at_its_main_revision(home: HomePaths, empty_hub_cache: Path) -> None:
    folder = empty_hub_cache / "models--org--tiny"
    make_model(folder / "snapshots" / "aaa")
    make_model(folder / "snapshots" / "bbb")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("aaa")
    assert resolve_model("org/tiny", home, Roots.of(home.home)).name == "aaa"
    assert list(known_models(home)) == ["org/tiny"]


def test_unknown_name_lists_the_models_there_are(home: HomePaths) -> None:
    make_model(home.models / "tiny")
    with pytest.raises(PathError, match=r"'tinny' is no model.*Models here: tiny\..*opd import-gguf"):
        resolve_model("tinny", home, Roots.of(home.home))


def test_gguf_file_is_refused_with_the_import_command(home: HomePaths) -> None:
    with pytest.raises(PathError, match="opd import-gguf"):
        resolve_model(str(home.home / "model.gguf"), home, Roots.of(home.home))


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "./tiny", "models/tiny/x", "tiny\x00", "-"])
def test_name_that_is_no_name_reaches_no_folder(home: HomePaths, name: str) -> None:
    make_model(home.home.parent / "outside")
    with pytest.raises(PathError):
        resolve_model(name, home, Roots.of(home.home))


def test_paths_outside_the_roots_are_refused_also_through_links_and_name_prefixes(home: HomePaths) -> None:
    roots = Roots.of(home.home)
    sibling = make_model(home.home.with_name("home2"))
    (home.models / "link").symlink_to(sibling)
    for attempt in (str(sibling), "link", f"{home.home}/../home2"):
        with pytest.raises(PathError, match=r"outside.*OPD_ROOTS"):
            resolve_model(attempt, home, roots)
    assert resolve_model(str(sibling), home, Roots.of(home.home, extra=[sibling])) == sibling.resolve()


def test_weights_linked_in_from_outside_the_roots_are_refused(home: HomePaths) -> None:
    model, outside = make_model(home.models / "tiny"), make_model(home.home.parent / "outside")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(outside / "model.safetensors")
    with pytest.raises(PathError, match=r"model\.safetensors.*link"):
        resolve_model("tiny", home, Roots.of(home.home))


def test_file_where_a_folder_is_wanted_is_named(home: HomePaths) -> None:
    file = home.home / "x.txt"
    file.write_text("x")
    with pytest.raises(PathError, match="not a folder"):
        Roots.of(home.home).check(file, "base_model_path", "folder")
    with pytest.raises(PathError, match="is a folder"):
        Roots.of(home.home).check(home.models, "prompts_path", "file")


def test_output_folders_lie_in_the_home_or_where_a_person_said(tmp_path: Path, home: HomePaths) -> None:
    roots = Roots.of(home.home, extra=[tmp_path / "read"], outputs=[tmp_path / "write"])
    assert roots.check_output(home.home / "new", "checkpoint_dir") == (home.home / "new").resolve()
    assert roots.check_output(tmp_path / "write" / "new", "checkpoint_dir")
    with pytest.raises(PathError, match="OPD_CHECKPOINT_DIR"):
        roots.check_output(tmp_path / "read" / "new", "checkpoint_dir")


def test_adapter_is_described_by_its_files(tmp_path: Path) -> None:
    info = read_adapter(make_adapter(tmp_path / "a", model="org/base"))
    assert (info.rank, info.scale, info.fine_tune_type, info.num_layers) == (4, 2.0, "lora", 2)
    assert info.keys == ("self_attn.q_proj", "self_attn.v_proj") and info.base_model == "org/base"


def test_adapters_mlx_lm_would_not_load_have_a_problem(tmp_path: Path) -> None:
    full = make_adapter(tmp_path / "full", fine_tune_type="full")
    alpha = make_adapter(tmp_path / "alpha", lora_parameters={"rank": 4, "alpha": 8})
    peft = tmp_path / "peft"
    peft.mkdir()
    (peft / "adapter_model.safetensors").touch()
    problems = [str(inspect_adapter(folder).problem) for folder in (full, alpha, peft)]
    assert "'full'" in problems[0] and "'alpha'" in problems[1] and "PEFT" in problems[2]


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapter_fits_the_plain_and_the_quantised_form_of_its_base(tmp_path: Path, bits: int | None, kind: str) -> None:
    check_adapter_fits(make_adapter(tmp_path / "a", kind=kind), make_model(tmp_path / "m", bits=bits))


@pytest.mark.parametrize("bits", [None, 4])
def test_adapter_of_a_wider_base_is_refused_with_the_first_tensor_and_both_shapes(
    tmp_path: Path, bits: int | None
) -> None:
    with pytest.raises(CompatibilityError, match=r"layers\.0\.self_attn\.q_proj\.lora_a.*\(64, 4\).*\(32, 4\)"):
        check_adapter_fits(make_adapter(tmp_path / "a", hidden=64), make_model(tmp_path / "m", bits=bits))


def test_adapter_of_a_deeper_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompatibilityError, match=r"layers\.2\..*lacks"):
        check_adapter_fits(make_adapter(tmp_path / "a", layers=(0, 1, 2)), make_model(tmp_path / "m"))


def test_adapter_whose_tensors_have_another_rank_than_its_config_is_refused(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a")
    config = json.loads((adapter / "adapter_config.json").read_text())
    edit_json(adapter / "adapter_config.json", lora_parameters=config["lora_parameters"] | {"rank": 8})
    with pytest.raises(CompatibilityError, match=r"\(32, 4\).*\(32, 8\)"):
        check_adapter_fits(adapter, make_model(tmp_path / "m"))


def test_size_of_a_new_adapter_counts_the_chosen_or_all_linear_layers(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", bits=4)
    assert changed_parameters(model, 4, ("self_attn.q_proj",)) == 2 * 4 * (32 + 32)
    assert changed_parameters(model, 4, None) == 2 * 4 * ((32 + 32) + (16 + 32) + (32 + 48))


def test_same_tokenizer_in_another_spelling_is_the_same(tmp_path: Path) -> None:
    one, other = make_model(tmp_path / "one"), make_model(tmp_path / "other")
    written = tokenizer(merges=[["a", "b"], ["c", "d"], ["ab", "cd"]])
    vocabulary = dict(reversed(written["model"]["vocab"].items()))
    write_json(other / "tokenizer.json", written | {"model": written["model"] | {"vocab": vocabulary}, "extra": 1})
    assert same_tokenizer(one, other) is None


def test_tokenizers_that_differ_give_the_reason(tmp_path: Path) -> None:
    one = make_model(tmp_path / "one")
    vocabulary = tokenizer()["model"]["vocab"]
    changed = {
        "vocabularies differ.*'b' is id 2 and id 3": tokenizer(vocab=vocabulary | {"b": 3, "c": 2}),
        "merge rules differ": tokenizer(merges=["c d", "a b", "ab cd"]),
        "added tokens differ": tokenizer() | {"added_tokens": [{"id": 0, "content": "<eos>"}]},
    }
    for number, (reason, contents) in enumerate(changed.items()):
        other = make_model(tmp_path / f"other{number}")
        write_json(other / "tokenizer.json", contents)
        assert re.search(reason, same_tokenizer(one, other) or "")


def test_logits_too_narrow_for_the_tokenizer_are_a_reason_and_mere_padding_is_none(tmp_path: Path) -> None:
    one = make_model(tmp_path / "one")
    assert same_tokenizer(one, make_model(tmp_path / "padded", vocabulary=24)) is None
    assert "7 logits" in str(same_tokenizer(one, make_model(tmp_path / "narrow", vocabulary=7)))
