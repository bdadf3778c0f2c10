//! Chat templates [minijinja]: a conversation as the text the model was trained on.

use anyhow::Result;

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
pub struct ChatTemplate {}

impl ChatTemplate {
    /// `bos`, `eos`: the strings of `{{ bos_token }}` and `{{ eos_token }}`.
    pub fn new(_template: &str, _bos: Option<&str>, _eos: Option<&str>) -> Result<ChatTemplate> {
        todo!()
    }

    /// The conversation as text, as transformers' `apply_chat_template(tokenize=False)` renders it.
    pub fn render(&self, _messages: &[Message], _add_generation_prompt: bool) -> Result<String> {
        todo!()
    }
}
