//! What a config.json says and leaves out.

use serde_json::json;

use super::*;

/// The keys without a default.
fn bare(model_type: &str) -> Value {
    json!({"model_type": model_type, "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128,
           "num_hidden_layers": 2, "num_attention_heads": 16})
}

fn with(model_type: &str, key: &str, value: Value) -> Result<ModelConfig> {
    let mut json = bare(model_type);
    json[key] = value;
    ModelConfig::from_json(&json, "some/config.json")
}

fn refused(model_type: &str, key: &str, value: Value) -> String {
    let error = with(model_type, key, value).expect_err("this must be refused");
    let error = format!("{error:#}");
    assert!(error.starts_with("some/config.json: "), "{error}");
    error
}

#[test]
fn defaults_are_those_of_transformers() {
    let read = |model_type: &str| ModelConfig::from_json(&bare(model_type), "config.json").unwrap();
    let (llama, mistral, mixtral) = (read("llama"), read("mistral"), read("mixtral"));
    assert_eq!((llama.num_key_value_heads, mistral.num_key_value_heads, mixtral.num_key_value_heads), (16, 8, 8));
    assert_eq!((llama.rms_norm_eps, mistral.rms_norm_eps, mixtral.rms_norm_eps), (1e-6, 1e-6, 1e-5));
    assert_eq!((llama.rope_theta, mistral.rope_theta, mixtral.rope_theta), (1e4, 1e4, 1e6));
    assert_eq!((llama.sliding_window, mistral.sliding_window, mixtral.sliding_window), (None, Some(4096), None));
    assert_eq!((llama.max_position_embeddings, mixtral.max_position_embeddings), (2048, 131_072));
    assert_eq!((llama.head_dim, llama.tie_word_embeddings, llama.mixture), (4, false, None));
    assert_eq!(mixtral.mixture, Some(Mixture { experts: 8, top_k: 2, router_aux_loss_coef: 0.001, normalize: true }));
}

#[test]
fn null_is_not_the_same_as_absent() {
    assert_eq!(with("mistral", "num_key_value_heads", Value::Null).unwrap().num_key_value_heads, 16);
    assert_eq!(with("mistral", "sliding_window", Value::Null).unwrap().sliding_window, None);
    assert_eq!(with("llama", "sliding_window", json!(7)).unwrap().sliding_window, None, "Llama has none");
    assert_eq!(with("llama", "head_dim", json!(32)).unwrap().head_dim, 32);
}

#[test]
fn rope_is_read_under_its_old_and_new_names() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192, "rope_theta": 5e5});
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(with("llama", "rope_scaling", llama3.clone()).unwrap().rope_scaling, expected);
    let newer = with("llama", "rope_parameters", llama3).unwrap();
    assert_eq!((newer.rope_scaling, newer.rope_theta), (expected, 5e5));
    let linear = RopeScaling::Linear { factor: 2.0 };
    for key in ["type", "rope_type"] {
        assert_eq!(with("llama", "rope_scaling", json!({key: "linear", "factor": 2.0})).unwrap().rope_scaling, linear);
    }
    let default = with("llama", "rope_parameters", json!({"rope_type": "default", "rope_theta": 3.0})).unwrap();
    assert_eq!((default.rope_scaling, default.rope_theta), (RopeScaling::None, 3.0));
    assert_eq!(with("llama", "rope_scaling", Value::Null).unwrap().rope_scaling, RopeScaling::None);
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    assert!(refused("llama", "model_type", json!("qwen2_moe")).contains("model_type `qwen2_moe`"));
    assert!(refused("llama", "attention_bias", json!(true)).contains("`attention_bias`"));
    assert!(refused("llama", "mlp_bias", json!(true)).contains("`mlp_bias`"));
    assert!(refused("llama", "hidden_act", json!("gelu")).contains("`hidden_act` is gelu"));
    assert!(refused("llama", "partial_rotary_factor", json!(0.5)).contains("`partial_rotary_factor` is 0.5"));
    let quantized = json!({"quant_method": "gptq"});
    assert!(refused("llama", "quantization_config", quantized).contains("gptq"));
    let yarn = json!({"rope_type": "yarn", "factor": 2.0});
    assert!(refused("llama", "rope_scaling", yarn).contains("rope type `yarn`"));
}

#[test]
fn impossible_numbers_name_their_key() {
    for (key, value) in [
        ("vocab_size", json!(0)),
        ("hidden_size", json!(-64)),
        ("hidden_size", json!(1u64 << 40)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_attention_heads", json!(2.5)),
        ("intermediate_size", json!("128")),
        ("intermediate_size", Value::Null),
        ("rms_norm_eps", json!(0.0)),
        ("rope_theta", json!("big")),
        ("num_key_value_heads", json!(5)),
        ("num_attention_heads", json!(7)),
        ("tie_word_embeddings", json!("yes")),
        ("head_dim", json!(3)),
        ("rope_scaling", json!("linear")),
        ("model_type", json!(3)),
    ] {
        let error = refused("llama", key, value.clone());
        assert!(error.contains(key), "{key} = {value}: {error}");
    }
    assert!(refused("llama", "rope_scaling", json!({"type": "linear"})).contains("`factor` is missing"));
    assert!(refused("mixtral", "num_experts_per_tok", json!(9)).contains("more than num_local_experts 8"));
    assert!(refused("mixtral", "router_aux_loss_coef", json!(-1)).contains("router_aux_loss_coef"));
    assert!(ModelConfig::from_json(&json!([]), "config.json").is_err());
}
