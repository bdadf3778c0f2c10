//! Just enough YAML to write: mappings and sequences as blocks, scalars as JSON, which all versions of YAML read alike.
//!
//! A reader of YAML 1.1 takes an unquoted `2026-11-28` for a date and `no` for false, so every text is quoted. (The
//! packages that write YAML turn on features of serde that would have it and everything above it built twice.)

use serde::Serialize;
use serde_json::Value;

/// `value` as a YAML document.
pub fn to_string(value: &impl Serialize) -> serde_json::Result<String> {
    let mut text = String::new();
    write(&serde_json::to_value(value)?, 0, &mut text);
    Ok(text)
}

/// Writes `value` where the first line is already indented, and following ones are to be by `depth` spaces.
fn write(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (index, (key, value)) in fields.iter().enumerate() {
                indent(index, depth, text);
                text.push_str(key);
                text.push(':');
                // A sequence may stand as far left as its key.
                let depth = if value.is_array() { depth } else { depth + 2 };
                after_key(value, depth, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                indent(index, depth, text);
                text.push_str("- ");
                write(item, depth + 2, text);
            }
        }
        Value::String(words) => text.push_str(&(quoted(words) + "\n")),
        Value::Object(_) | Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {
            text.push_str(&format!("{value}\n"));
        }
    }
}

fn after_key(value: &Value, depth: usize, text: &mut String) {
    let block =
        value.as_object().map_or_else(|| value.as_array().is_some_and(|items| !items.is_empty()), |o| !o.is_empty());
    if block {
        text.push('\n');
        text.push_str(&" ".repeat(depth));
    } else {
        text.push(' ');
    }
    write(value, depth, text);
}

fn indent(index: usize, depth: usize, text: &mut String) {
    if index > 0 {
        text.push_str(&" ".repeat(depth));
    }
}

/// JSON's quotes and escapes are YAML's; characters that YAML does not count as printable (YAML 1.2.2, section 5.1) are
/// escaped too.
fn quoted(words: &str) -> String {
    let json = Value::from(words).to_string();
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use yaml_rust2::{Yaml, YamlLoader};

    use super::*;

    /// What the other reader made of it, as JSON.
    fn read(yaml: &Yaml) -> Value {
        match yaml {
            Yaml::Real(text) => json!(text.parse::<f64>().unwrap()),
            Yaml::Integer(number) => json!(number),
            Yaml::String(text) => json!(text),
            Yaml::Boolean(flag) => json!(flag),
            Yaml::Array(items) => items.iter().map(read).collect(),
            Yaml::Hash(fields) => Value::Object(
                fields.iter().map(|(key, value)| (key.as_str().unwrap().to_owned(), read(value))).collect(),
            ),
            Yaml::Null => Value::Null,
            Yaml::Alias(_) | Yaml::BadValue => panic!("{yaml:?}"),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let value = json!({
            "model-index": [{
                "name": "no",
                "results": [
                    {"task": {"type": "a: b # c"}, "value": 68.09, "whole": 70.0, "shots": 25, "verified": false},
                    {"deep": [["x", "y"], [], {}], "date": "2026-11-28T16:11:45Z", "none": null},
                ],
            }],
            "odd": ["", "~", "1e3", "012", "'\"\\", "two\nlines\t", "- x", "\u{7f}\u{85}\u{2028}ü 漢 🦀", " space "],
        });
        let text = to_string(&value).unwrap();
        assert_eq!(read(&YamlLoader::load_from_str(&text).unwrap()[0]), value, "{text}");
        assert!(!text.contains(['\u{7f}', '\u{85}', '\u{2028}']), "stricter readers stop at these: {text}");
    }

    #[test]
    fn blocks_look_as_people_write_them() {
        let value = json!({"a": [{"b": 1, "c": {"d": "x"}}], "e": []});
        assert_eq!(to_string(&value).unwrap(), "a:\n- b: 1\n  c:\n    d: \"x\"\ne: []\n");
    }
}
