//! `tojson` as transformers sets it up: Python's `json.dumps(value, ensure_ascii=False)`, with `indent` where asked.
//! (Jinja's own escapes `<`, `>`, `&` and `'` for HTML, which no chat model was trained on.)

use std::io;

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// The filter: `value | tojson` or `value | tojson(indent=4)`.
pub fn tojson(value: Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = indent.or(options.get("indent")?);
    let text = match indent {
        Some(width) => written(&value, PrettyFormatter::with_indent(" ".repeat(width.min(32)).as_bytes())),
        None => written(&value, OneLine),
    };
    text.map(Value::from_safe_string).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

fn written<F: Formatter>(value: &Value, formatter: F) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(String::from_utf8(bytes).expect("serde_json writes UTF-8"))
}

/// Python's separators on one line: `", "` and `": "`.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
