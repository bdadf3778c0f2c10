//! Chat prompts with the models' answers side by side.

use serde::Serialize;

use super::super::samples::question;
use super::text::{Cut, beginning};
use crate::samples::{Answered, Sheet};

/// Characters shown of a prompt and of an answer.
const PROMPT: usize = 4_000;
const ANSWER: usize = 8_000;

#[derive(Serialize)]
pub struct View<'a> {
    how: String,
    prompts: Vec<PromptView<'a>>,
}

#[derive(Serialize)]
struct PromptView<'a> {
    question: Cut,
    answers: Vec<AnswerView<'a>>,
}

#[derive(Serialize)]
struct AnswerView<'a> {
    model: &'a str,
    /// Of its colour, where it is compared on this page.
    series: Option<usize>,
    text: Cut,
    tokens: usize,
    is_cut: bool,
}

/// `compared`: the models of the page, in the order of their colours.
pub fn view<'a>(sheet: &'a Sheet, compared: &[&str]) -> View<'a> {
    let prompt = |prompt: &'a Answered| {
        let answer = |(model, answer): (&'a crate::samples::Answering, &crate::samples::Answer)| AnswerView {
            model: &model.model,
            series: compared.iter().position(|name| *name == model.model).map(super::charts::series),
            text: beginning(answer.text.trim(), ANSWER),
            tokens: answer.tokens,
            is_cut: answer.is_cut,
        };
        PromptView {
            question: beginning(&question(prompt), PROMPT),
            answers: sheet.models.iter().zip(&prompt.answers).map(answer).collect(),
        }
    };
    View { how: sheet.describe(), prompts: sheet.prompts.iter().map(prompt).collect() }
}
