//! Checkpoints that open, and one test a way in which their files can lie.

mod tiny;

use std::os::unix::fs::FileExt;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Meta;
use fireval::memory::Memory;
use fireval::model::config::{ModelConfig, RopeScaling};
use fireval::model::decoder::Decoder;
use fireval::model::home::{DecoderUser, Held, Home, Stored};
use fireval::model::names;
use fireval::weights::writer::{Planned, Writer};
use fireval::weights::{Checkpoint, Dtype, Format};
use serde_json::{Value, json};
use tiny::{dense_config, message, set, write_folder, write_gguf, write_json};

fn folder(model_type: &str, dtype: Dtype) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &dense_config(model_type), dtype);
    folder
}

fn config(checkpoint: &Checkpoint) -> ModelConfig {
    ModelConfig::of(checkpoint).unwrap()
}

/// Opens, checks and decodes everything.
fn read_all(path: &Path) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    let config = ModelConfig::of(&checkpoint)?;
    names::check(&checkpoint, &config)?;
    for name in checkpoint.names() {
        checkpoint.stored(name)?.to_f32()?;
    }
    Ok(())
}

#[test]
fn a_folder_gives_its_tensors_in_every_dtype() {
    for (dtype, format, within) in
        [(Dtype::F32, Format::F32, 0.0), (Dtype::F16, Format::F16, 1e-3), (Dtype::BF16, Format::BF16, 8e-3)]
    {
        let folder = folder("llama", dtype);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let config = config(&checkpoint);
        names::check(&checkpoint, &config).unwrap();
        let mut bytes = 0;
        for (name, shape) in names::tensors(&config) {
            let stored = checkpoint.tensor(&name, &shape).unwrap();
            assert_eq!(stored.format, format);
            bytes += stored.bytes.len() as u64;
            for (value, written) in stored.to_f32().unwrap().iter().zip(tiny::weights(&name, &shape)) {
                assert!((value - written).abs() <= within * written.abs().max(1e-4), "{name}: {value} {written}");
            }
        }
        assert_eq!(checkpoint.weights_bytes(), bytes);
        assert_eq!(checkpoint.files(), [folder.path().join("model.safetensors")]);
    }
}

/// Splits the tiny model into shards.
fn sharded() -> tempfile::TempDir {
    let source = folder("mistral", Dtype::F32);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let sharded = tempfile::tempdir().unwrap();
    let plan = checkpoint.names().into_iter().map(|name| {
        let shape = checkpoint.stored(name).unwrap().shape;
        Planned { name: name.to_owned(), dtype: Dtype::F32, shape, nf4: false }
    });
    let mut writer = Writer::create(sharded.path(), plan.collect(), 40_000).unwrap();
    for name in checkpoint.names() {
        writer.write(name, &checkpoint.stored(name).unwrap().to_f32().unwrap()).unwrap();
    }
    assert!(writer.finish().unwrap().len() > 2);
    std::fs::copy(source.path().join("config.json"), sharded.path().join("config.json")).unwrap();
    sharded
}

fn index_path(folder: &Path) -> std::path::PathBuf {
    folder.join("model.safetensors.index.json")
}

fn edit_index(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let mut index: Value = serde_json::from_slice(&std::fs::read(index_path(folder)).unwrap()).unwrap();
    edit(&mut index);
    write_json(&index_path(folder), &index);
}

#[test]
fn shards_open_as_one() {
    let sharded = sharded();
    let checkpoint = Checkpoint::open(sharded.path()).unwrap();
    let config = config(&checkpoint);
    names::check(&checkpoint, &config).unwrap();
    for (name, shape) in names::tensors(&config) {
        assert_eq!(checkpoint.tensor(&name, &shape).unwrap().to_f32().unwrap(), tiny::weights(&name, &shape));
    }
    assert!(checkpoint.files().len() > 2);
}

#[test]
fn a_single_file_counts_before_an_index() {
    let sharded = sharded();
    let single = folder("mistral", Dtype::F32);
    std::fs::copy(single.path().join("model.safetensors"), sharded.path().join("model.safetensors")).unwrap();
    edit_index(sharded.path(), |index| index["weight_map"] = json!({"model.norm.weight": "gone.safetensors"}));
    assert_eq!(Checkpoint::open(sharded.path()).unwrap().files().len(), 1);
}

#[test]
fn a_missing_shard_is_named() {
    let sharded = sharded();
    let shard = Checkpoint::open(sharded.path()).unwrap().files()[1].to_owned();
    std::fs::remove_file(&shard).unwrap();
    let error = message(Checkpoint::open(sharded.path()));
    assert!(error.contains("model-00002-of-") && error.contains("is missing"), "{error}");
}

#[test]
fn an_index_that_names_a_tensor_its_shard_lacks_is_an_error() {
    let sharded = sharded();
    edit_index(sharded.path(), |index| {
        index["weight_map"]["model.extra.weight"] = index["weight_map"]["model.norm.weight"].clone();
    });
    let error = message(Checkpoint::open(sharded.path()));
    assert!(error.contains("index.json") && error.contains("`model.extra.weight`"), "{error}");
}

#[test]
fn an_index_may_not_lead_out_of_its_folder() {
    let sharded = sharded();
    edit_index(sharded.path(), |index| index["weight_map"]["model.norm.weight"] = json!("../other.safetensors"));
    let error = message(Checkpoint::open(sharded.path()));
    assert!(error.contains("not a plain file name"), "{error}");
}

#[test]
fn a_broken_index_is_named() {
    let sharded = sharded();
    for contents in ["{\"weight_map\": {\"a\"", "{}", "[]", "{\"weight_map\": {}}", "{\"weight_map\": {\"a\": 3}}"] {
        std::fs::write(index_path(sharded.path()), contents).unwrap();
        let error = message(Checkpoint::open(sharded.path()));
        assert!(error.contains("model.safetensors.index.json"), "{contents}: {error}");
    }
}

#[test]
fn what_is_not_a_model_says_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let error = message(Checkpoint::open(empty.path()));
    assert!(error.contains("config.json: missing"), "{error}");
    write_json(&empty.path().join("config.json"), &dense_config("llama"));
    assert!(message(Checkpoint::open(empty.path())).contains("no weights"));
    std::fs::write(empty.path().join("model.gguf"), b"GGUF").unwrap();
    assert!(message(Checkpoint::open(empty.path())).contains("give its own path"));
    std::fs::write(empty.path().join("pytorch_model.bin"), b"PK").unwrap();
    let error = message(Checkpoint::open(empty.path()));
    assert!(error.contains("pytorch_model.bin") && error.contains("convert them to safetensors"), "{error}");
    assert!(message(Checkpoint::open(&empty.path().join("pytorch_model.bin"))).contains("not a model"));
    assert!(message(Checkpoint::open(&empty.path().join("nothing"))).contains("no such file"));
    std::fs::write(empty.path().join("config.json"), "[1]").unwrap();
    assert!(message(Checkpoint::open(empty.path())).contains("not a JSON object"));
    std::fs::write(empty.path().join("config.json"), "{").unwrap();
    assert!(message(Checkpoint::open(empty.path())).contains("not valid JSON"));
}

#[test]
fn a_missing_tensor_and_a_wrong_shape_are_named() {
    let folder = folder("llama", Dtype::F32);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = message(checkpoint.tensor("model.norm.bias", &[32]));
    assert!(error.contains("model.safetensors: tensor `model.norm.bias` is missing"), "{error}");
    let error = message(checkpoint.tensor("model.norm.weight", &[33]));
    assert!(error.contains("`model.norm.weight` has shape [32]") && error.contains("[33]"), "{error}");
    assert!(error.contains("model.safetensors") && error.contains("config.json"), "{error}");
}

#[test]
fn a_tensor_without_a_place_is_an_error() {
    let folder = folder("llama", Dtype::F32);
    let mut config = dense_config("llama");
    config["num_hidden_layers"] = json!(1);
    write_json(&folder.path().join("config.json"), &config);
    let error = message(read_all(folder.path()));
    assert!(error.contains("`model.layers.1.") && error.contains("no place"), "{error}");
    // A tied head that is stored all the same is no such thing.
    config["num_hidden_layers"] = json!(2);
    config["tie_word_embeddings"] = json!(true);
    write_json(&folder.path().join("config.json"), &config);
    read_all(folder.path()).unwrap();
}

/// Does nothing with it.
struct Ignore;

impl DecoderUser for Ignore {
    type Output = ();

    fn take<D: Decoder>(self, _: D) -> anyhow::Result<()> {
        Ok(())
    }
}

#[test]
fn a_model_with_a_tensor_that_nothing_uses_is_not_run() {
    let folder = folder("llama", Dtype::F32);
    let held = Held { dtype: Dtype::F32, nf4: false };
    let memory = Memory(u64::MAX);
    let open = || Stored { checkpoint: folder.path(), adapter: None, home: Home::Cpu, held, memory }.open(Ignore);
    open().unwrap();
    let mut config = dense_config("llama");
    config["num_hidden_layers"] = json!(1);
    write_json(&folder.path().join("config.json"), &config);
    let error = message(open());
    assert!(error.contains("`model.layers.1.") && error.contains("no place"), "{error}");
}

/// A safetensors file of that header, with `data` bytes behind it.
fn write_safetensors(path: &Path, header: &str, data: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_lying_safetensors_header_is_an_error() {
    let folder = folder("llama", Dtype::F32);
    let path = folder.path().join("model.safetensors");
    for (header, data) in [
        (r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#, 7),
        (r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#, 9),
        (r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}"#, 12),
        (r#"{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}"#, 8),
        (r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}"#, 8),
        (r#"{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}"#, 8),
        (r#"{"a": {"dtype": "F32", "shape": [18446744073709551615, 8], "data_offsets": [0, 8]}}"#, 8),
        (r#"{"a": {"dtype": "F32", "shape": [2]}}"#, 8),
        (r#"{"a": "#, 8),
    ] {
        write_safetensors(&path, header, data);
        let error = message(Checkpoint::open(folder.path()));
        assert!(error.contains("model.safetensors: "), "{header}: {error}");
        assert!(error.contains("fetch"), "{header}: {error}");
    }
    std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(message(Checkpoint::open(folder.path())).contains("not a whole safetensors file"));
    std::fs::write(&path, b"").unwrap();
    assert!(message(Checkpoint::open(folder.path())).contains("the file is empty"));
}

#[test]
fn a_tensor_of_another_encoding_is_refused_when_it_is_asked_for() {
    let folder = folder("llama", Dtype::F32);
    let header = r#"{"a": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}"#;
    write_safetensors(&folder.path().join("model.safetensors"), header, 2);
    let error = message(Checkpoint::open(folder.path()).unwrap().tensor("a", &[2]));
    assert!(error.contains("tensor `a` is stored as I8"), "{error}");
}

#[test]
fn a_safetensors_file_cut_anywhere_is_an_error() {
    let folder = folder("llama", Dtype::F16);
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(97).chain([7, 8, 9, whole.len() - 1]) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(Checkpoint::open(folder.path()).is_err(), "{length} bytes");
    }
}

/// The tiny model as a GGUF in a new folder.
fn gguf(config: &Value, dtype: GgmlDType, edit: impl FnOnce(&mut Vec<(String, Meta)>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), config, Dtype::F32);
    write_gguf(&folder.path().join("model.gguf"), folder.path(), dtype, edit);
    folder
}

#[test]
fn a_gguf_gives_the_hubs_tensors() {
    let mut mixtral = dense_config("mixtral");
    mixtral["num_local_experts"] = json!(3);
    for (stated, model_type) in
        [(dense_config("llama"), "llama"), (dense_config("mistral"), "llama"), (mixtral, "mixtral")]
    {
        let folder = gguf(&stated, GgmlDType::F32, |_| {});
        let checkpoint = Checkpoint::open(&folder.path().join("model.gguf")).unwrap();
        let found = config(&checkpoint);
        assert_eq!(checkpoint.config_json()["model_type"], model_type);
        assert_eq!((found.rms_norm_eps, found.head_dim, found.tie_word_embeddings), (1e-5, 16, false));
        assert_eq!(
            found.mixture.map(|mixture| (mixture.experts, mixture.top_k)),
            match model_type {
                "mixtral" => Some((3, 2)),
                _ => None,
            }
        );
        names::check(&checkpoint, &found).unwrap();
        for (name, shape) in names::tensors(&found) {
            let values = checkpoint.tensor(&name, &shape).unwrap().to_f32().unwrap();
            assert_eq!(values, tiny::weights(&name, &shape), "{name}");
        }
    }
}

#[test]
fn quantised_rows_come_back_in_the_hubs_order() {
    let folder = gguf(&dense_config("llama"), GgmlDType::Q8_0, |_| {});
    let checkpoint = Checkpoint::open(&folder.path().join("model.gguf")).unwrap();
    for name in ["model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"] {
        let stored = checkpoint.stored(name).unwrap();
        assert_eq!(stored.format, Format::Ggml(GgmlDType::Q8_0));
        for (value, written) in stored.to_f32().unwrap().iter().zip(tiny::weights(name, &stored.shape)) {
            assert!((value - written).abs() < 4e-3, "{name}: {value} {written}");
        }
    }
}

#[test]
fn a_gguf_without_output_is_tied() {
    let mut tied = dense_config("llama");
    tied["tie_word_embeddings"] = json!(true);
    let folder = gguf(&tied, GgmlDType::BF16, |_| {});
    let checkpoint = Checkpoint::open(&folder.path().join("model.gguf")).unwrap();
    assert!(config(&checkpoint).tie_word_embeddings);
    names::check(&checkpoint, &config(&checkpoint)).unwrap();
}

#[test]
fn a_ggufs_rope_scaling_is_read_or_refused() {
    let scaled = |kind: Option<&str>, factor: Option<f32>| {
        let folder = gguf(&dense_config("llama"), GgmlDType::F32, |metadata| {
            if let Some(kind) = kind {
                set(metadata, "llama.rope.scaling.type", Meta::String(kind.to_owned()));
            }
            if let Some(factor) = factor {
                set(metadata, "llama.rope.scaling.factor", Meta::F32(factor));
            }
        });
        Checkpoint::open(&folder.path().join("model.gguf"))
    };
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_eq!(config(&scaled(Some("linear"), Some(4.0)).unwrap()).rope_scaling, linear);
    assert_eq!(config(&scaled(None, Some(4.0)).unwrap()).rope_scaling, linear);
    assert_eq!(config(&scaled(Some("none"), None).unwrap()).rope_scaling, RopeScaling::None);
    assert!(message(scaled(Some("spiral"), Some(4.0))).contains("rope scaling `spiral`"));
    assert!(message(scaled(Some("linear"), None)).contains("its factor is missing"));
    assert!(message(scaled(Some("yarn"), None)).contains("its factor is missing"));
}

#[test]
fn a_ggufs_yarn_is_what_the_hubs_config_would_say() {
    let opened = |numbers: &[(&str, f32)]| {
        let folder = gguf(&dense_config("llama"), GgmlDType::F32, |metadata| {
            set(metadata, "llama.rope.scaling.type", Meta::String("yarn".to_owned()));
            for (key, number) in numbers {
                set(metadata, &format!("llama.rope.scaling.{key}"), Meta::F32(*number));
            }
        });
        Checkpoint::open(&folder.path().join("model.gguf"))
    };
    let scaling = |numbers: &[(&str, f32)]| config(&opened(numbers).unwrap()).rope_scaling;
    let plain = |attention_factor: f64| RopeScaling::Yarn {
        factor: 4.0,
        attention_factor,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        original_max_position_embeddings: dense_config("llama")["max_position_embeddings"].as_u64().unwrap() as usize,
    };
    let grown = 0.1 * 4f64.ln() + 1.0;
    assert_eq!(scaling(&[("factor", 4.0)]), plain(grown));
    assert_eq!(scaling(&[("factor", 4.0), ("yarn_ext_factor", -1.0)]), plain(grown));
    assert_eq!(scaling(&[("factor", 4.0), ("yarn_attn_factor", 1.25)]), plain(1.25));
    assert_eq!(scaling(&[("factor", 4.0), ("yarn_log_multiplier", 1.0)]), plain(1.0));
    let RopeScaling::Yarn { beta_fast, beta_slow, original_max_position_embeddings, .. } = scaling(&[
        ("factor", 4.0),
        ("yarn_beta_fast", 8.0),
        ("yarn_beta_slow", 2.0),
        ("original_context_length", 16.0),
    ]) else {
        panic!("not YaRN")
    };
    assert_eq!((beta_fast, beta_slow, original_max_position_embeddings), (8.0, 2.0, 16));
    let error = message(opened(&[("factor", 4.0), ("yarn_ext_factor", 0.5)]));
    assert!(error.contains("`llama.rope.scaling.yarn_ext_factor` is 0.5; only 1 opens"), "{error}");
}

#[test]
fn llama3s_rope_factors_are_found_again() {
    // theta 10000 and 16 dimensions: wavelengths 2 pi 10000^(i / 8) = 6.3, 19.9, 62.8, 198.7, 628.3, 1987, 6283, 19869.
    // Of 8192 positions, those under 2048 stay, those over 8192 are stretched 8 times; 6283 has 8192 / 6283 = 1.3038
    // waves, so smooth = 0.3038 / 3 = 0.10127 and the factor 1 / (0.89873 / 8 + 0.10127) = 4.6812.
    let open = |factors: &[f32]| {
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &dense_config("llama"), Dtype::F32);
        let path = folder.path().join("model.gguf");
        tiny::write_gguf_with(&path, folder.path(), GgmlDType::F32, |_| {}, &[("rope_freqs.weight", factors.to_vec())]);
        Checkpoint::open(&path)
    };
    let found = open(&[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 4.6812, 8.0]).unwrap();
    assert_eq!(
        config(&found).rope_scaling,
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192
        }
    );
    assert_eq!(config(&open(&[1.0; 8]).unwrap()).rope_scaling, RopeScaling::None);
    let error = message(open(&[1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.6812, 8.0]));
    assert!(error.contains("`rope_freqs.weight`") && error.contains("not Llama 3's"), "{error}");
}

#[test]
fn a_gguf_of_another_architecture_is_refused_by_name() {
    let refused = |key: &str, value: Meta| {
        let folder = gguf(&dense_config("llama"), GgmlDType::F32, |metadata| set(metadata, key, value));
        message(Checkpoint::open(&folder.path().join("model.gguf")))
    };
    let error = refused("general.architecture", Meta::String("falcon".to_owned()));
    assert!(error.contains("model.gguf: architecture `falcon`"), "{error}");
    let error = refused("llama.block_count", Meta::String("two".to_owned()));
    assert!(error.contains("`llama.block_count` is not a count"), "{error}");
    let error = refused("llama.attention.key_length", Meta::U32(32));
    assert!(error.contains("16 of 32 dimensions"), "{error}");
    let error = refused("llama.attention.head_count", Meta::U32(5));
    assert!(error.contains("do not divide into halves of 5 heads"), "{error}");
    let error = refused("llama.logit_scale", Meta::F32(0.5));
    assert!(error.contains("`llama.logit_scale` is 0.5"), "{error}");
    let error = refused("split.count", Meta::U16(3));
    assert!(error.contains("model.gguf: one of 3 parts"), "{error}");
    for alignment in [Meta::U32(0), Meta::U32(3), Meta::U64(1 << 40), Meta::I32(-8)] {
        let error = refused("general.alignment", alignment);
        assert!(error.contains("`general.alignment`"), "{error}");
    }
}

#[test]
fn a_gguf_cut_anywhere_is_an_error() {
    let folder = gguf(&dense_config("llama"), GgmlDType::Q4_1, |_| {});
    let path = folder.path().join("model.gguf");
    let whole = std::fs::read(&path).unwrap();
    let cut = folder.path().join("cut.gguf");
    for length in (0..whole.len()).step_by(61) {
        std::fs::write(&cut, &whole[..length]).unwrap();
        let error = message(Checkpoint::open(&cut));
        assert!(error.contains("cut.gguf"), "{length} bytes: {error}");
    }
    std::fs::write(&cut, &whole[..whole.len() - 64]).unwrap();
    assert!(message(Checkpoint::open(&cut)).contains("beyond the end of the file"));
}

#[test]
fn no_byte_of_a_gguf_header_can_bring_the_program_down() {
    let folder = gguf(&dense_config("llama"), GgmlDType::Q4_1, |_| {});
    let path = folder.path().join("model.gguf");
    let whole = std::fs::read(&path).unwrap();
    let header = whole.windows(6).rposition(|window| window == b"output").unwrap() + 80;
    no_byte_can(&path, header, &[0x00, 0x7f, 0xff]);
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    for family in ["gemma3", "phi3", "qwen3-moe"] {
        std::fs::copy(families.join(family).with_extension("gguf"), &path).unwrap();
        no_byte_can(&path, 1500, &[0x7f]);
    }
}

/// Opens the file with each of the first bytes wrong in turn.
fn no_byte_can(path: &Path, header: usize, wrongs: &[u8]) {
    let whole = std::fs::read(path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let mut refused = 0;
    for place in 0..header.min(whole.len()) {
        for &wrong in wrongs {
            file.write_all_at(&[wrong], place as u64).unwrap();
            refused += usize::from(read_all(path).is_err());
        }
        file.write_all_at(&whole[place..=place], place as u64).unwrap();
    }
    read_all(path).unwrap();
    assert!(refused > header / 4, "{refused} of {header} places matter");
}
