"""Hugging Face directories: what transformers computes, what comes back, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import CONFIGS, checkpoint_of
from reference import forward

from pyllama2c import Model
from pyllama2c.checkpoint import cast, open_checkpoint, tensor_shapes, to_float32
from pyllama2c.checkpoint.huggingface import hf_name, load_hf, to_half_split, to_interleaved
from pyllama2c.checkpoint.safetensors_file import SafetensorsFile, write_safetensors
from pyllama2c.config import ModelConfig
from pyllama2c.convert import convert
from pyllama2c.convert.huggingface import write_hf
from pyllama2c.errors import ArgumentError, CheckpointError, TokenizerError

IDS = [1, 5, 3, 90, 17, 5, 2]


def write(directory: Path, config: ModelConfig, dtype: str = "float32") -> Path:
    directory.mkdir(exist_ok=True)
    write_hf(directory, checkpoint_of(config), dtype, {"bos_token_id": 1, "eos_token_id": 2})
    return directory


def edit(directory: Path, **changes: Any) -> Path:
    """Change fields of config.json; None removes one."""
    path = directory / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return directory


def transformers_logits(directory: Path, ids: list[int]) -> Any:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_computes_the_same(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    ids = [i % config.vocab_size for i in IDS]
    logits = transformers_logits(write(tmp_path, config), ids)
    assert np.abs(logits - forward(config, checkpoint_of(config).tensors, ids)).max() < 1e-4


def test_transformers_honours_theta_and_eps(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIGS["grouped-query"], rope_theta=500.0, norm_eps=0.1)
    logits = transformers_logits(write(tmp_path, config), IDS)
    tensors = checkpoint_of(config).tensors
    assert np.abs(logits - forward(config, tensors, IDS)).max() < 1e-4
    assert np.abs(logits - forward(CONFIGS["grouped-query"], tensors, IDS)).max() > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_exact(tmp_path: Path, name: str) -> None:
    original = checkpoint_of(CONFIGS[name])
    back = load_hf(write(tmp_path, original.config))
    assert back.config == original.config
    for tensor, weight in original.tensors.items():
        np.testing.assert_array_equal(back.tensors[tensor], weight)


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("name", ["grouped-query", "untied", "odd sizes"])
def test_hf_to_llama2c_to_hf_is_bit_equal(tmp_path: Path, name: str, version: str) -> None:
    first = write(tmp_path / "first", CONFIGS[name])
    convert(first, tmp_path / "model.bin", to=version)
    convert(tmp_path / "model.bin", tmp_path / "second")
    one, two = ((d / "model.safetensors").read_bytes() for d in (first, tmp_path / "second"))
    assert one == two
    assert json.loads((first / "config.json").read_text()) == json.loads(
        (tmp_path / "second" / "config.json").read_text()
    )


@pytest.mark.parametrize("name", ["grouped-query", "multi-query", "untied"])
def test_models_made_by_transformers(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    ours = CONFIGS[name]
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=ours.vocab_size,
            hidden_size=ours.dim,
            intermediate_size=ours.hidden_dim,
            num_hidden_layers=ours.n_layers,
            num_attention_heads=ours.n_heads,
            num_key_value_heads=ours.n_kv_heads,
            max_position_embeddings=ours.max_seq_len,
            rms_norm_eps=1e-4,
            rope_parameters={"rope_type": "default", "rope_theta": 1234.0},
            tie_word_embeddings=ours.tied_embeddings,
            initializer_range=0.3,
        )
    )
    # Sharded, as large models are.
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    checkpoint = load_hf(tmp_path)
    assert checkpoint.config == dataclasses.replace(ours, rope_theta=1234.0, norm_eps=1e-4)
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(forward(checkpoint.config, checkpoint.tensors, IDS) - expected).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_is_honoured(tmp_path: Path, dtype: str) -> None:
    config = CONFIGS["grouped-query"]
    write(tmp_path / "wide", config)
    convert(tmp_path / "wide", tmp_path / "narrow", dtype=dtype)
    stored = SafetensorsFile(tmp_path / "narrow" / "model.safetensors")
    assert {info.dtype for info in stored.tensors.values()} == {dtype}
    narrow = open_checkpoint(tmp_path / "narrow")
    assert narrow.dtype == dtype
    for name, weight in checkpoint_of(config).tensors.items():
        np.testing.assert_array_equal(narrow.tensors[name], cast(weight, dtype))
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "narrow")
    assert str(model.dtype) == f"torch.{dtype}"
    # Narrow again without being asked; wide only when asked, and then exactly.
    assert convert(tmp_path / "narrow", tmp_path / "same").dtype == dtype
    convert(tmp_path / "narrow", tmp_path / "wide again", dtype="float32")
    wide = open_checkpoint(tmp_path / "wide again")
    for name, weight in narrow.tensors.items():
        np.testing.assert_array_equal(wide.tensors[name], to_float32(weight))


def test_float16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    model = checkpoint_of(CONFIGS["multi-head"])
    tensors = dict(model.tensors)
    tensors["norm.weight"] = tensors["norm.weight"] * np.float32(1e5)
    model = dataclasses.replace(model, tensors=tensors)
    with pytest.raises(ArgumentError, match=r"norm\.weight.*float16"):
        write_hf(tmp_path, model, "float16", {})


def test_layouts_are_each_others_inverse() -> None:
    weight = np.arange(24 * 5, dtype=np.float32).reshape(24, 5)
    split = to_half_split(weight, 3)
    # The first head's rows 0 1 2 3 4 5 6 7 become its pairs' firsts, then their seconds.
    assert split[:8, 0].tolist() == [weight[i, 0] for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    np.testing.assert_array_equal(to_interleaved(split, 3), weight)


def test_the_library_loads_a_directory(tmp_path: Path) -> None:
    from pyllama2c import Model

    config = dataclasses.replace(CONFIGS["grouped-query"], rope_theta=500.0, norm_eps=0.1)
    expected = forward(config, checkpoint_of(config).tensors, IDS)
    with Model(write(tmp_path, config)) as model:
        assert model.config == config
        assert np.abs(model.logits(IDS) - expected).max() < 1e-4


def test_the_special_tokens_of_a_directory(tmp_path: Path) -> None:
    from pyllama2c import Model

    directory = edit(write(tmp_path, CONFIGS["untied"]), bos_token_id=7, eos_token_id=[61, 62])

    def reason(model: Model, token: int) -> str:
        return model.generate("", logit_bias={token: 1e6}, max_tokens=2).finish_reason

    (tmp_path / "generation_config.json").write_text("{}")
    with Model(directory) as model:
        assert model._encode("") == [7]
        assert [reason(model, token) for token in (1, 2, 61, 62)] == ["length"] * 2 + ["stop"] * 2
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    with Model(directory) as model:
        assert [reason(model, token) for token in (5, 61)] == ["stop", "length"]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(
        CheckpointError, match=r"generation_config.json: eos_token_id is \['</s>'\]"
    ):
        load_hf(directory)


def test_a_byte_level_tokenizer_leaves_token_ids(tmp_path: Path) -> None:
    from pyllama2c import Model

    content = {"model": {"type": "BPE"}, "decoder": {"type": "ByteLevel"}}
    write(tmp_path, CONFIGS["untied"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with Model(tmp_path) as model:
        assert model.generate([1, 5], max_tokens=1, ignore_eos=True).token_ids
        with pytest.raises(TokenizerError, match=r"byte-level BPE .* is not supported: pass"):
            model.generate("Once")


def test_config_of_transformers_4(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIGS["grouped-query"], rope_theta=500000.0)
    directory = edit(write(tmp_path, config), rope_parameters=None, rope_scaling=None)
    assert load_hf(directory).config == config
    # One that leaves out whatever has a default.
    config = ModelConfig(32, 80, 2, 4, 4, 96, 2048, norm_eps=1e-6, tied_embeddings=False)
    optional = ["num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings"]
    optional += ["rms_norm_eps", "rope_theta", "rope_parameters", "tie_word_embeddings"]
    optional += ["attention_bias", "mlp_bias", "architectures"]
    directory = edit(write(tmp_path, config), **dict.fromkeys(optional))
    assert load_hf(directory).config == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"architectures": None, "model_type": "qwen2"}, "qwen2"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": 7}, "rope_parameters"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling has 'factor' and no rope_type"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "'full_attention'"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3.* of num_attention_heads"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected"),
        ({"num_key_value_heads": 8}, r"k_proj.weight has the shape \(32, 64\)"),
        ({"vocab_size": 97}, "embed_tokens"),
        ({"num_hidden_layers": 2}, r"layers\.2\..* has no place"),
        ({"num_hidden_layers": 4}, r"layers\.3\..* is missing"),
        ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers is 2147483647, but there are only"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight is missing"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    directory = edit(write(tmp_path, CONFIGS["grouped-query"]), **changes)
    with pytest.raises(CheckpointError, match=message):
        load_hf(directory)


def _rewrite(directory: Path, tensors: dict[str, Any]) -> None:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    with (directory / "model.safetensors").open("wb") as file:
        write_safetensors(file, shapes, "float32", tensors.__getitem__, {})


def _stored(directory: Path) -> dict[str, Any]:
    file = SafetensorsFile(directory / "model.safetensors")
    return {name: file.read(name).copy() for name in file.tensors}


def test_tied_model_with_a_stored_head(tmp_path: Path) -> None:
    directory = write(tmp_path, CONFIGS["multi-head"])
    tensors = _stored(directory)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    _rewrite(directory, tensors)
    assert "output.weight" not in load_hf(directory).tensors
    # Stored once, under the head's name.
    table = tensors.pop("model.embed_tokens.weight")
    _rewrite(directory, tensors)
    np.testing.assert_array_equal(load_hf(directory).tensors["tok_embeddings.weight"], table)
    tensors["model.embed_tokens.weight"] = table
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    _rewrite(directory, tensors)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        load_hf(directory)


def test_auto_keeps_every_tensor_of_several_dtypes(tmp_path: Path) -> None:
    config = CONFIGS["multi-head"]
    mixed, narrow = write(tmp_path / "mixed", config), write(tmp_path / "bf16", config, "bfloat16")
    names = [hf_name(name) for name in tensor_shapes(config)]

    def split(*not_narrow: str) -> None:
        shards = {
            name: "wide" if name in not_narrow else "narrow" for name in [*names, *not_narrow]
        }
        weight_map = {name: f"{shard}.safetensors" for name, shard in shards.items()}
        index = mixed / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))

    (narrow / "model.safetensors").rename(mixed / "narrow.safetensors")
    (mixed / "model.safetensors").rename(mixed / "wide.safetensors")
    split(*(name for name in names if name != "model.embed_tokens.weight"))
    assert load_hf(mixed).dtype == "float32"
    convert(mixed, tmp_path / "packed.safetensors")
    with Model(mixed) as model, Model(tmp_path / "packed.safetensors") as packed:
        assert model.info()["dtype"] == packed.info()["dtype"] == "float32"
        expected = Model(mixed, dtype="float32").logits([1, 5, 9])
        np.testing.assert_array_equal(model.logits([1, 5, 9]), expected)
    # The norms are float32 whatever the matrices are.
    split(*(name for name in names if "norm" in name))
    assert Model(mixed).info()["dtype"] == "bfloat16"
    # What is dropped does not count: frequencies are float32 in any model.
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    _rewrite(mixed, {frequencies: np.ones(4, np.float32)})
    (mixed / "model.safetensors").rename(mixed / "wide.safetensors")
    split(frequencies)
    assert load_hf(mixed).dtype == "bfloat16"


def test_stored_frequencies_are_ignored_and_biases_refused(tmp_path: Path) -> None:
    directory = write(tmp_path, CONFIGS["multi-head"])
    tensors = _stored(directory)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    _rewrite(directory, tensors)
    assert set(load_hf(directory).tensors) == set(tensor_shapes(CONFIGS["multi-head"]))
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(32, np.float32)
    _rewrite(directory, tensors)
    with pytest.raises(CheckpointError, match=r"q_proj\.bias"):
        load_hf(directory)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"lm_head.weight": "../secret.safetensors"}, "no name of a file beside it"),
        ({"lm_head.weight": "missing.safetensors"}, "shard missing.safetensors is missing"),
        ({"lm_head.weight": "shard.safetensors"}, r"lm_head\.weight is missing"),
        ({"lm_head.weight": 3}, "no name of a file"),
        ([], "weight_map is missing"),
    ],
)
def test_bad_indices(tmp_path: Path, weight_map: Any, message: str) -> None:
    directory = write(tmp_path, CONFIGS["multi-head"])
    (directory / "model.safetensors").rename(directory / "shard.safetensors")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        load_hf(directory)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a":' * 100_000])
def test_config_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    directory = write(tmp_path, CONFIGS["multi-head"])
    (directory / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="JSON"):
        load_hf(directory)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)
    write(tmp_path, CONFIGS["multi-head"])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)


def test_bfloat16_rounds_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    edges = [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7F7FFF, 0x7F800000, 0x80000001]
    numbers = np.concatenate([bits, np.array(edges, np.uint32)]).view(np.float32)
    numbers = numbers[np.isnan(numbers) | (np.abs(numbers) < 3.3e38) | np.isinf(numbers)]
    ours = cast(numbers, "bfloat16")
    theirs = torch.from_numpy(numbers).to(torch.bfloat16).view(torch.int16).numpy()
    is_nan = np.isnan(numbers)
    np.testing.assert_array_equal(ours[~is_nan], theirs.view(np.uint16)[~is_nan])
    assert np.isnan(to_float32(ours[is_nan])).all()
    with pytest.raises(ArgumentError, match="bfloat16 cannot hold"):
        cast(np.array([3.4028235e38], np.float32), "bfloat16")


def test_the_stories_of_a_real_model(shared: Path, tmp_path: Path) -> None:
    """Through transformers, what llama2.c tells: greedy, grouped-query attention included."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    convert(
        shared / "checkpoints" / "stories260K.bin",
        tmp_path / "hf",
        tokenizer=shared / "tokenizers" / "tok512.model",
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    with np.load(shared / "oracle" / "logits_stories260K.npz") as oracle, torch.no_grad():
        logits = model(torch.tensor(oracle["token_ids"])[None]).logits[0]
        assert np.abs(logits.numpy() - oracle["logits"]).max() < 1e-4
    cases = [
        case
        for case in json.loads((shared / "oracle" / "generate.json").read_text())
        if case["temperature"] == 0 and case["checkpoint"] == "stories260K.bin"
    ]
    assert len(cases) >= 3
    torch.set_num_threads(1)  # the model is too small to share
    for case in cases:
        inputs = tokenizer(case["prompt"], return_tensors="pt")
        # llama2.c counts BOS among its steps but not among what it prints.
        new = case["steps"] + 1 - inputs.input_ids.shape[1]
        (ids,) = model.generate(**inputs, do_sample=False, max_new_tokens=new)
        assert tokenizer.decode(ids, skip_special_tokens=True) == case["stdout"].removesuffix("\n")
