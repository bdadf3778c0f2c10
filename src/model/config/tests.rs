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
    let mut both = bare("llama");
    both["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 3.0});
    both["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0});
    let error = format!("{:#}", ModelConfig::from_json(&both, "config.json").unwrap_err());
    assert!(error.contains("`rope_scaling` and `rope_parameters`"), "{error}");
    both["rope_scaling"] = json!({"rope_type": "default"});
    assert_eq!(ModelConfig::from_json(&both, "").unwrap().rope_scaling, RopeScaling::None);
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    assert!(refused("llama", "model_type", json!("qwen2_moe")).contains("model_type `qwen2_moe`"));
    assert!(refused("llama", "attention_bias", json!(true)).contains("`attention_bias`"));
    assert!(refused("llama", "mlp_bias", json!(true)).contains("`mlp_bias`"));
    assert!(refused("llama", "hidden_act", json!("gelu")).contains("`hidden_act` is gelu"));
    assert!(refused("llama", "partial_rotary_factor", json!(0.5)).contains("`partial_rotary_factor` is 0.5"));
    assert!(refused("phi3", "partial_rotary_factor", json!(0.1)).contains("rotates 0 numbers of a head of 4"));
    let quantized = json!({"quant_method": "gptq"});
    assert!(refused("llama", "quantization_config", quantized).contains("gptq"));
    let unknown = json!({"rope_type": "ntk", "factor": 2.0});
    assert!(refused("llama", "rope_scaling", unknown).contains("rope type `ntk`"));
    for kind in ["yarn", "dynamic"] {
        assert!(refused("llama", "rope_scaling", json!({"type": kind})).contains("`factor` is missing"), "{kind}");
    }
    let turned = json!({"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 2.0});
    assert!(refused("llama", "rope_scaling", turned).contains("beta_slow 2 is above beta_fast 1"));
}

#[test]
fn yarn_is_a_ramp_from_fast_pairs_to_slow_ones() {
    let mut table = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096});
    let read = |table: &Value| with("llama", "rope_scaling", table.clone()).unwrap().rope(0);
    // theta 1e4 and 64 numbers: pair i turns 4096 / (2 pi 1e4^(i / 32)) times in 4096 positions, which is 32 at
    // i = 10.47 and 1 at i = 22.5; so pairs up to 10 stay, those from 23 on are four times slower, and 11 is 1/13 so.
    let (frequencies, plain) =
        (read(&table).inverse_frequencies(64, false), Rope { theta: 1e4, scaling: RopeScaling::None });
    let plain = plain.inverse_frequencies(64, false);
    let slower: Vec<f32> = plain.iter().zip(&frequencies).map(|(plain, found)| found / plain).collect();
    assert!(slower[..=10].iter().all(|ratio| *ratio == 1.0), "{slower:?}");
    assert!(slower[23..].iter().all(|ratio| *ratio == 0.25), "{slower:?}");
    assert!((slower[11] - (12.0 / 13.0 + 0.25 / 13.0)).abs() < 1e-6, "{slower:?}");
    assert!((read(&table).amplitude() - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
    (table["mscale"], table["mscale_all_dim"]) = (json!(2.0), json!(1.0));
    assert!((read(&table).amplitude() - (0.2 * 4f32.ln() + 1.0) / (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
    table["attention_factor"] = json!(1.5);
    assert_eq!(read(&table).amplitude(), 1.5);
}

#[test]
fn dynamic_scaling_is_none_within_the_trained_length() {
    let config = with("llama", "rope_scaling", json!({"type": "dynamic", "factor": 4.0})).unwrap();
    assert_eq!((config.rope_scaling, config.max_position_embeddings), (RopeScaling::Dynamic, 2048));
}

#[test]
fn phi_3_rotates_a_part_in_both_spellings() {
    let inner = json!({"rope_type": "default", "partial_rotary_factor": 0.5});
    for (key, value) in [("partial_rotary_factor", json!(0.5)), ("rope_parameters", inner)] {
        let config = with("phi3", key, value).unwrap();
        assert_eq!((config.head_dim, config.rotary_dim), (4, 2), "{key}");
    }
    assert_eq!(with("phi3", "partial_rotary_factor", Value::Null).unwrap().rotary_dim, 4);
}

#[test]
fn dense_layers_stand_beside_mixtures() {
    let mut json = bare("qwen3_moe");
    for (key, value) in
        [("num_hidden_layers", json!(4)), ("decoder_sparse_step", json!(2)), ("mlp_only_layers", json!([1]))]
    {
        json[key] = value;
    }
    let config = ModelConfig::from_json(&json, "").unwrap();
    let layers: Vec<(bool, usize)> =
        (0..4).map(|layer| (config.mixture_of(layer).is_some(), config.feed_forward_width(layer))).collect();
    assert_eq!(layers, [(false, 128), (false, 128), (false, 128), (true, 768)]);
    assert_eq!(config.widest_feed_forward(), 8 * 768);
    let every = with("qwen3_moe", "mlp_only_layers", json!([])).unwrap();
    assert!(every.dense_widths.is_empty() && every.mixture_of(0).is_some());
    assert!(refused("qwen3_moe", "mlp_only_layers", json!(["1"])).contains("mlp_only_layers"));
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

/// A window for every layer, and none; `layers` of `config`.
fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    (0..config.num_hidden_layers).map(|layer| config.window(layer)).collect()
}

#[test]
fn families_differ_by_their_defaults() {
    let read = |model_type: &str| with(model_type, "num_key_value_heads", json!(4)).unwrap();
    let (qwen2, qwen3, gemma2) = (read("qwen2"), read("qwen3"), read("gemma2"));
    let phi3 = ModelConfig::from_json(&bare("phi3"), "config.json").unwrap();
    assert!(refused("qwen2", "vocab_size", json!(10)).contains("num_key_value_heads 32"), "the default");
    assert!(qwen2.attention_bias && !qwen2.head_norms && !qwen3.attention_bias && qwen3.head_norms);
    assert_eq!((qwen2.head_dim, qwen3.head_dim, gemma2.head_dim, phi3.head_dim), (4, 128, 256, 4));
    assert_eq!((gemma2.attention_softcap, gemma2.final_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma2.attention_scale, phi3.attention_scale), (1.0 / 16.0, 0.5));
    assert_eq!((gemma2.embedding_scale, phi3.embedding_scale), (Some(8.0), None));
    assert!(gemma2.tie_word_embeddings && gemma2.sandwich_norms && gemma2.norm_plus_one);
    assert_eq!((gemma2.activation, phi3.activation), (Activation::GeluTanh, Activation::Silu));
    assert_eq!((phi3.num_key_value_heads, phi3.rms_norm_eps), (16, 1e-5));
    let uncapped = with("gemma2", "final_logit_softcapping", Value::Null).unwrap();
    assert_eq!(uncapped.final_softcap, None, "null is not the default");
    let mut json = bare("qwen3_moe");
    json.as_object_mut().unwrap().remove("intermediate_size");
    let moe = ModelConfig::from_json(&json, "config.json").unwrap();
    assert_eq!((moe.intermediate_size, moe.num_key_value_heads), (768, 4));
    let mixture = Mixture { experts: 128, top_k: 8, router_aux_loss_coef: 0.001, normalize: false };
    assert_eq!(moe.mixture, Some(mixture));
    for key in ["num_experts", "num_local_experts"] {
        assert_eq!(with("qwen3_moe", key, json!(16)).unwrap().mixture.unwrap().experts, 16, "{key}");
    }
}

#[test]
fn each_layer_has_its_window() {
    assert_eq!(windows(&with("mistral", "sliding_window", json!(7)).unwrap()), [Some(7), Some(7)]);
    let mut json = bare("qwen2");
    (json["sliding_window"], json["num_key_value_heads"]) = (json!(7), json!(4));
    assert_eq!(windows(&ModelConfig::from_json(&json, "").unwrap()), [None, None], "it is not used");
    (json["use_sliding_window"], json["max_window_layers"]) = (json!(true), json!(1));
    assert_eq!(windows(&ModelConfig::from_json(&json, "").unwrap()), [None, Some(7)]);
    assert_eq!(windows(&with("gemma2", "sliding_window", json!(7)).unwrap()), [Some(7), None]);
    assert_eq!(windows(&with("gemma3_text", "sliding_window_pattern", json!(1)).unwrap()), [None, None]);
    let types = json!(["full_attention", "sliding_attention"]);
    assert_eq!(windows(&with("gemma2", "layer_types", types).unwrap()), [None, Some(4096)]);
    assert!(refused("gemma2", "layer_types", json!(["full_attention"])).contains("1 entries for 2 layers"));
    let chunked = json!(["full_attention", "chunked_attention"]);
    assert!(refused("gemma2", "layer_types", chunked).contains("chunked_attention"));
}

#[test]
fn gemma_3_has_two_rotary_embeddings_in_both_spellings() {
    let mut old = bare("gemma3_text");
    old["num_hidden_layers"] = json!(6);
    old["rope_theta"] = json!(5e5);
    old["rope_local_base_freq"] = json!(5e3);
    old["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0});
    let mut new = bare("gemma3_text");
    new["num_hidden_layers"] = json!(6);
    new["rope_parameters"] = json!({
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
    });
    for json in [old, new] {
        let config = ModelConfig::from_json(&json, "").unwrap();
        assert_eq!(config.rope(0), Rope { theta: 5e3, scaling: RopeScaling::None });
        assert_eq!(config.rope(5), Rope { theta: 5e5, scaling: RopeScaling::Linear { factor: 8.0 } });
    }
    let plain = ModelConfig::from_json(&bare("gemma3_text"), "").unwrap();
    assert_eq!((plain.rope_theta, plain.rope(0).theta), (1e6, 1e4));
}

#[test]
fn longrope_is_read_with_both_its_factors() {
    let table = json!({"type": "su", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]});
    let mut json = bare("phi3");
    json["rope_scaling"] = table.clone();
    (json["max_position_embeddings"], json["original_max_position_embeddings"]) = (json!(131_072), json!(4096));
    let config = ModelConfig::from_json(&json, "").unwrap();
    let RopeScaling::LongRope { short_factor, attention_factor, .. } = &config.rope_scaling else {
        panic!("{:?}", config.rope_scaling)
    };
    assert_eq!(*short_factor, [1.0, 2.0]);
    // sqrt(1 + ln 32 / ln 4096) = sqrt(1 + 5/12)
    assert!((attention_factor - (17.0f64 / 12.0).sqrt()).abs() < 1e-12);
    assert_eq!((config.max_position_embeddings, config.short_length()), (131_072, 4096));
    assert_eq!(config.rope(0).inverse_frequencies(4, false), [1.0, 1.0 / (2.0 * 100.0)]);
    assert_eq!(config.rope(0).inverse_frequencies(4, true), [1.0 / 3.0, 1.0 / (4.0 * 100.0)]);
    let refused = |key: &str, value: Value| {
        let mut table = table.clone();
        table[key] = value;
        refused("phi3", "rope_scaling", table)
    };
    assert!(refused("short_factor", json!([1.0])).contains("`short_factor` has 1 numbers; 4 rotated ones need 2"));
    assert!(refused("long_factor", Value::Null).contains("long_factor"));
    assert!(refused("short_factor", json!([1.0, 0.0])).contains("expected numbers above 0"));
}

#[test]
fn what_a_family_has_and_is_not_computed_is_refused() {
    assert!(refused("qwen3", "attention_bias", json!(true)).contains("`attention_bias`"));
    assert!(refused("gemma3_text", "use_bidirectional_attention", json!(true)).contains("bidirectional"));
    assert!(refused("gemma2", "hidden_activation", json!("gelu")).contains("`hidden_activation` is gelu"));
}
