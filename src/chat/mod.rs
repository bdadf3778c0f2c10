//! Chat templates [minijinja]: a conversation as the text the model was trained on.
//!
//! Rendered as transformers' `apply_chat_template(tokenize=False)` does (`utils/chat_template_utils.py`): Jinja with
//! `trim_blocks`, `lstrip_blocks` and loop controls, Python's methods on strings and lists, `raise_exception`,
//! `strftime_now`, and a `tojson` that is Python's `json.dumps` without ASCII escapes. `{% generation %}` marks, which
//! only say what a mask should hold, are read over.

mod clock;
mod json;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

/// A compiled Jinja template of a tokenizer.
pub struct ChatTemplate {
    source: String,
    bos: Option<String>,
    eos: Option<String>,
}

impl Role {
    /// The role as templates and data files spell it.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Role> {
        match name {
            "system" => Ok(Role::System),
            "user" => Ok(Role::User),
            "assistant" => Ok(Role::Assistant),
            other => bail!("unknown role `{other}` (known: system, user, assistant)"),
        }
    }
}

impl Message {
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }
}

impl ChatTemplate {
    /// `bos`, `eos`: the strings of `{{ bos_token }}` and `{{ eos_token }}`. A template that does not parse is an error
    /// that names its line.
    pub fn new(template: &str, bos: Option<&str>, eos: Option<&str>) -> Result<ChatTemplate> {
        let source = without_generation_marks(template);
        environment().template_from_str(&source).map_err(explain).context("the chat template does not parse")?;
        Ok(ChatTemplate { source, bos: bos.map(str::to_owned), eos: eos.map(str::to_owned) })
    }

    /// The template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text, as transformers' `apply_chat_template(tokenize=False)` renders it.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let turns: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.name(), content => message.content })
            .collect();
        let mut given = BTreeMap::from([
            ("messages", Value::from(turns)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        // A special token that the tokenizer lacks is undefined, not none.
        given.extend(self.bos.as_deref().map(|text| ("bos_token", Value::from(text))));
        given.extend(self.eos.as_deref().map(|text| ("eos_token", Value::from(text))));
        environment()
            .render_str(&self.source, Value::from(given))
            .map_err(explain)
            .context("the chat template does not render")
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("the template refuses: {message}")))
    });
    environment.add_function("strftime_now", |format: String| {
        clock::strftime(&format, clock::seconds_now())
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    environment.add_filter("tojson", json::tojson);
    environment
}

/// minijinja's error with its line and its causes, in one.
fn explain(error: Error) -> anyhow::Error {
    let line = error.line().map_or(String::new(), |line| format!("line {line}: "));
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match std::error::Error::source(&error) {
        Some(cause) => anyhow!("{line}{detail}: {cause}"),
        None => anyhow!("{line}{detail}"),
    }
}

/// `{% generation %}…{% endgeneration %}` (transformers' own tag around what an assistant says) as `{% if true %}…`.
fn without_generation_marks(template: &str) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{%") {
        text.push_str(before);
        text.push_str("{%");
        let Some((tag, behind)) = after.split_once("%}") else {
            rest = after;
            break;
        };
        match tag.trim_matches(|mark: char| mark.is_whitespace() || mark == '-' || mark == '+') {
            "generation" => text.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endif")),
            _ => text.push_str(tag),
        }
        text.push_str("%}");
        rest = behind;
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests;
