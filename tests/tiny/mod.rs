//! Tiny models made on the spot: folders and GGUF files with seeded weights and a tokenizer of a few tokens.
#![allow(dead_code)] // each test file uses a part

use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value as Meta};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use fireval::model::adapter::{Adapter, peft};
use fireval::model::config::ModelConfig;
use fireval::model::names;
use fireval::random::Random;
use fireval::weights::writer::{Planned, SHARD_BYTES, Writer};
use fireval::weights::{Checkpoint, Dtype};
use serde_json::{Value, json};

/// A dense model of two layers, grouped-query attention, whose head size is not hidden / heads.
pub fn dense_config(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 128, "eos_token_id": 1,
    })
}

/// A few steps of rank-4 pairs on `model`, into `tuned`.
pub const RECIPE: &str = r#"
model = "model"
data = ["dialogues.jsonl"]
output = "tuned"
format = "chat-template"
max_tokens = 64
quantization = "none"
dtype = "f32"
steps = 4
seed = 1
[lora]
rank = 4
alpha = 8
targets = ["q_proj", "v_proj"]
[optimizer]
learning_rate = 1e-2
[schedule]
kind = "linear"
[batch]
dialogues = 2
[held_out]
dialogues = 2
"#;

/// Writes a dense model with a byte-level tokenizer (`model`), ten dialogues and [`RECIPE`] (`recipe.toml`) into `folder`.
pub fn write_trainable(folder: &Path) {
    let mut config = dense_config("llama");
    config["vocab_size"] = json!(512);
    std::fs::create_dir(folder.join("model")).unwrap();
    write_folder(&folder.join("model"), &config, Dtype::F32);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dialogues/byte-level").join(name);
        std::fs::copy(fixture, folder.join("model").join(name)).unwrap();
    }
    let line = |index: usize| {
        format!("{{\"conversation\": [{{\"human\": \"Say {index}.\", \"assistant\": \"{index} it is.\"}}]}}\n")
    };
    std::fs::write(folder.join("dialogues.jsonl"), (0..10).map(line).collect::<String>()).unwrap();
    std::fs::write(folder.join("recipe.toml"), RECIPE).unwrap();
}

/// Writes a whole model folder: seeded weights for `config`, tokenizer, config.
pub fn write_folder(folder: &Path, config: &Value, dtype: Dtype) {
    write_folder_with(folder, config, dtype, weights);
}

/// As [`write_folder`], with the weights that `weights` gives by name and shape.
pub fn write_folder_with(folder: &Path, config: &Value, dtype: Dtype, weights: impl Fn(&str, &[usize]) -> Vec<f32>) {
    let checked = ModelConfig::from_json(config, "config.json").unwrap();
    let tensors = names::tensors(&checked);
    let plan =
        tensors.iter().map(|(name, shape)| Planned { name: name.clone(), dtype, shape: shape.clone(), nf4: false });
    let mut writer = Writer::create(folder, plan.collect(), SHARD_BYTES).unwrap();
    for (name, shape) in &tensors {
        writer.write(name, &weights(name, shape)).unwrap();
    }
    writer.finish().unwrap();
    write_json(&folder.join("config.json"), config);
    write_json(&folder.join("tokenizer.json"), &tokenizer_json());
    write_json(&folder.join("tokenizer_config.json"), &json!({"bos_token": "<s>", "eos_token": "</s>"}));
}

/// Writes an adapter as PEFT would one that is put on just those linears; all pairs have one rank and scale.
pub fn write_adapter(folder: &Path, adapter: &Adapter) {
    std::fs::create_dir_all(folder).unwrap();
    safetensors::serialize_to_file(peft::tensors(adapter), None, &folder.join(peft::WEIGHTS_FILE)).unwrap();
    let rank = adapter.pairs.first().map_or(1, |pair| pair.a.rows);
    let alpha = adapter.pairs.first().map_or(1.0, |pair| f64::from(pair.scale) * rank as f64);
    let config =
        json!({"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": "all-linear", "bias": "none"});
    write_json(&folder.join(peft::CONFIG_FILE), &config);
}

pub fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

/// Seeded numbers of the size that real weights have; norms near 1.
pub fn weights(name: &str, shape: &[usize]) -> Vec<f32> {
    let mut random = Random::named(11, name);
    let centre = if shape.len() == 1 { 1.0 } else { 0.0 };
    (0..shape.iter().product()).map(|_| (centre + 0.15 * random.normal()) as f32).collect()
}

/// Byte-level BPE that merges "a b", "ab c" and digits "1 2"; ids 0 to 3 are `<s>`, `</s>`, `<|user|>` and `!`.
pub fn tokenizer_json() -> Value {
    let (tokens, merges) = vocabulary();
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let special = |id: u32, text: &str| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": merges},
    })
}

/// Tokens by id, and merges.
pub fn vocabulary() -> (Vec<String>, Vec<String>) {
    let mut tokens: Vec<String> = ["<s>", "</s>", "<|user|>", "!"].map(str::to_owned).to_vec();
    tokens.extend(('a'..='z').map(String::from));
    tokens.extend(('0'..='9').map(String::from));
    tokens.extend(["Ġ", ".", "ab", "abc", "12", "Ċ", "Ġa"].map(str::to_owned));
    (tokens, ["a b", "ab c", "1 2", "Ġ a"].map(str::to_owned).to_vec())
}

/// The model of a folder as a GGUF, as llama.cpp's converter would write it, every matrix in `dtype`.
pub fn write_gguf(path: &Path, folder: &Path, dtype: GgmlDType, edit: impl FnOnce(&mut Vec<(String, Meta)>)) {
    write_gguf_with(path, folder, dtype, edit, &[]);
}

/// As [`write_gguf`], with more tensors of one dimension.
pub fn write_gguf_with(
    path: &Path,
    folder: &Path,
    dtype: GgmlDType,
    edit: impl FnOnce(&mut Vec<(String, Meta)>),
    more: &[(&str, Vec<f32>)],
) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config = ModelConfig::of(&checkpoint).unwrap();
    let mut tensors: Vec<(String, QTensor)> = Vec::new();
    let mut add = |name: String, tensor: Tensor| {
        let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
        tensors.push((name, QTensor::quantize(&tensor, dtype).unwrap()));
    };
    for (name, shape) in names::tensors(&config) {
        let values = checkpoint.tensor(&name, &shape).unwrap().to_f32().unwrap();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        if let Some(gguf_name) = gguf_name(&name) {
            let heads = if name.contains("q_proj") { config.num_attention_heads } else { config.num_key_value_heads };
            let is_rotated = name.contains("q_proj") || name.contains("k_proj");
            add(gguf_name, if is_rotated { interleaved(&tensor, heads) } else { tensor });
        }
    }
    if let Some(mixture) = config.mixture {
        for layer in 0..config.num_hidden_layers {
            for (part, kind) in [("w1", "gate"), ("w2", "down"), ("w3", "up")] {
                let experts: Vec<Tensor> = (0..mixture.experts)
                    .map(|expert| {
                        let name = format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight");
                        let stored = checkpoint.stored(&name).unwrap();
                        Tensor::from_vec(stored.to_f32().unwrap(), stored.shape.clone(), &Device::Cpu).unwrap()
                    })
                    .collect();
                add(format!("blk.{layer}.ffn_{kind}_exps.weight"), Tensor::stack(&experts, 0).unwrap());
            }
        }
    }
    for (name, values) in more {
        add((*name).to_owned(), Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap());
    }
    let mut metadata = gguf_metadata(&config);
    edit(&mut metadata);
    let metadata: Vec<(&str, &Meta)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// `LlamaModel.permute` of convert_hf_to_gguf.py.
fn interleaved(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = weight.dims2().unwrap();
    let split = weight.reshape((heads, 2, rows / heads / 2, columns)).unwrap();
    split.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
}

fn gguf_name(name: &str) -> Option<String> {
    let fixed = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("block_sparse_moe.gate", "ffn_gate_inp"),
    ];
    let is_expert = name.contains(".experts.");
    (!is_expert).then(|| fixed.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to)))
}

fn gguf_metadata(config: &ModelConfig) -> Vec<(String, Meta)> {
    let (tokens, merges) = vocabulary();
    let kinds = (0..tokens.len()).map(|id| Meta::I32(if id < 2 { 3 } else { 1 })).collect();
    let texts = |texts: Vec<String>| Meta::Array(texts.into_iter().map(Meta::String).collect());
    let number = |value: usize| Meta::U32(value as u32);
    let text = |value: &str| Meta::String(value.to_owned());
    let mut metadata = vec![
        ("general.architecture", text("llama")),
        ("llama.block_count", number(config.num_hidden_layers)),
        ("llama.context_length", number(config.max_position_embeddings)),
        ("llama.embedding_length", number(config.hidden_size)),
        ("llama.feed_forward_length", number(config.intermediate_size)),
        ("llama.attention.head_count", number(config.num_attention_heads)),
        ("llama.attention.head_count_kv", number(config.num_key_value_heads)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(config.rms_norm_eps as f32)),
        ("llama.rope.freq_base", Meta::F32(config.rope_theta as f32)),
        ("llama.rope.dimension_count", number(config.head_dim)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        ("tokenizer.ggml.tokens", texts(tokens)),
        ("tokenizer.ggml.merges", texts(merges)),
        ("tokenizer.ggml.token_type", Meta::Array(kinds)),
        ("tokenizer.ggml.bos_token_id", number(0)),
        ("tokenizer.ggml.eos_token_id", number(1)),
        ("tokenizer.chat_template", text("{{ messages }}")),
    ];
    if let Some(mixture) = config.mixture {
        metadata.push(("llama.expert_count", number(mixture.experts)));
        metadata.push(("llama.expert_used_count", number(mixture.top_k)));
    }
    metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Replaces or adds a metadata entry.
pub fn set(metadata: &mut Vec<(String, Meta)>, key: &str, value: Meta) {
    metadata.retain(|(other, _)| other != key);
    metadata.push((key.to_owned(), value));
}

/// The whole chain of an error, as the program prints it.
pub fn message<T>(result: anyhow::Result<T>) -> String {
    match result {
        Ok(_) => panic!("this must be refused"),
        Err(error) => format!("{error:#}"),
    }
}
