//! Dialogues that hold a benchmark's documents: by runs of 13 words that both have (the length of GPT-3's check, appendix
//! C of Brown et al., 2020).
//!
//! A document's fields are looked at one by one: question, context, choices, worked answers, without the prompt around
//! them and without examples. Questions of 8 to 12 words (fields that end in a question mark: most of TruthfulQA's) count
//! as one run; what is shorter is everybody's. A run that more than ten documents have is the benchmark's own wording and
//! is passed over. Case, spacing and punctuation do not matter. One run is enough.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;

use super::Dialogue;
use super::words::{Hashed, Word, gram, grams, words};

/// Words a run.
const RUN: usize = 13;
/// Whole questions of so many words count too.
const SHORTEST_QUESTION: usize = 8;
/// A run that more documents have is passed over.
const MOST_DOCUMENTS: u32 = 10;

/// The runs of all documents, 12 bytes and a table's slack each.
#[derive(Default)]
pub struct Benchmarks {
    documents: Vec<Named>,
    /// By length, so that the few short runs are looked up in a table of their own: the first document that has a run.
    runs: BTreeMap<usize, Runs<u32>>,
}

type Runs<T> = HashMap<u64, T, BuildHasherDefault<Hashed>>;

/// A document by task (with the subject, of MMLU) and row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub task: String,
    pub row: usize,
}

/// What a document of a benchmark says.
pub struct Document<'a> {
    pub name: Named,
    pub questions: &'a [String],
    pub answers: &'a [String],
}

/// What a dialogue has in common with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap<'a> {
    pub document: &'a Named,
    /// How many runs.
    pub runs: usize,
    /// The first of them, as the dialogue has it.
    pub text: String,
}

/// Collects runs. What is counted while documents come is dropped in [`Builder::finish`].
#[derive(Default)]
pub struct Builder {
    documents: Vec<Named>,
    runs: BTreeMap<usize, Runs<Count>>,
}

struct Count {
    first: u32,
    last: u32,
    documents: u32,
}

impl Builder {
    pub fn add(&mut self, document: Document) {
        let number = self.documents.len() as u32;
        self.documents.push(document.name);
        for (texts, question) in [(document.questions, true), (document.answers, false)] {
            for text in texts {
                let found = words(text);
                if question && text.trim_end().ends_with('?') && (SHORTEST_QUESTION..RUN).contains(&found.len()) {
                    self.count(found.len(), gram(&found), number);
                }
                grams(&found, RUN).for_each(|run| self.count(RUN, run, number));
            }
        }
    }

    fn count(&mut self, length: usize, run: u64, number: u32) {
        let runs = self.runs.entry(length).or_default();
        let count = runs.entry(run).or_insert(Count { first: number, last: number, documents: 1 });
        count.documents += u32::from(count.last != number);
        count.last = number;
    }

    pub fn finish(self) -> Benchmarks {
        let rare = |runs: Runs<Count>| -> Runs<u32> {
            let rare = runs.into_iter().filter(|(_, count)| count.documents <= MOST_DOCUMENTS);
            rare.map(|(run, count)| (run, count.first)).collect()
        };
        let runs = self.runs.into_iter().map(|(length, runs)| (length, rare(runs))).collect();
        Benchmarks { documents: self.documents, runs }
    }
}

impl Benchmarks {
    /// Documents and runs.
    pub fn counts(&self) -> (usize, usize) {
        (self.documents.len(), self.runs.values().map(HashMap::len).sum())
    }

    /// The document that `dialogue` has most runs of (of equals the first).
    pub fn overlap(&self, dialogue: &Dialogue) -> Option<Overlap<'_>> {
        let mut found: HashMap<u32, (usize, String)> = HashMap::new();
        for message in &dialogue.messages {
            let all = words(&message.content);
            for (length, runs) in &self.runs {
                for run in all.windows(*length) {
                    if let Some(&document) = runs.get(&gram(run)) {
                        found.entry(document).or_insert_with(|| (0, spelled(&message.content, run))).0 += 1;
                    }
                }
            }
        }
        let most = found.into_iter().max_by_key(|(document, (runs, _))| (*runs, std::cmp::Reverse(*document)));
        most.map(|(document, (runs, text))| Overlap { document: &self.documents[document as usize], runs, text })
    }
}

fn spelled(text: &str, run: &[Word]) -> String {
    run.first()
        .zip(run.last())
        .map_or(String::new(), |(first, last)| text[first.place.start..last.place.end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Message, Role};

    fn benchmarks(documents: &[(&str, &str)]) -> Benchmarks {
        let mut builder = Builder::default();
        for (row, (question, answer)) in documents.iter().enumerate() {
            let name = Named { task: "some".to_owned(), row };
            builder.add(Document { name, questions: &[(*question).to_owned()], answers: &[(*answer).to_owned()] });
        }
        builder.finish()
    }

    fn dialogue(texts: [&str; 2]) -> Dialogue {
        let messages = vec![Message::new(Role::User, texts[0]), Message::new(Role::Assistant, texts[1])];
        Dialogue { place: "x".to_owned(), messages, cut_tail: false }
    }

    const LONG: &str = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen";

    #[test]
    fn thirteen_words_in_a_row_are_an_overlap() {
        let benchmarks = benchmarks(&[("Nothing of it", "nor here"), (LONG, "")]);
        let found = |question: &str| benchmarks.overlap(&dialogue([question, "Yes."]));
        let whole = found(&format!("Tell me: {}!", LONG.to_uppercase())).unwrap();
        assert_eq!((whole.document.row, whole.runs), (1, 2));
        assert!(whole.text.starts_with("ONE TWO") && whole.text.ends_with("THIRTEEN"), "{}", whole.text);
        let part = LONG.trim_end_matches(" fourteen");
        assert_eq!(found(part).unwrap().runs, 1);
        assert_eq!(found(part.trim_end_matches(" thirteen")), None, "twelve are none");
        assert_eq!(benchmarks.overlap(&dialogue(["one two three four five six seven", &LONG[34..]])), None);
        assert_eq!(benchmarks.counts(), (2, 2));
    }

    #[test]
    fn a_question_of_eight_words_counts_whole_and_an_answer_does_not() {
        let eight = "What happens if you crack your knuckles often?";
        let text = format!("I ask you, {eight} Tell me.");
        assert_eq!(benchmarks(&[(eight, "")]).overlap(&dialogue([&text, "x"])).unwrap().runs, 1);
        assert_eq!(benchmarks(&[("", eight)]).overlap(&dialogue([&text, "x"])), None);
        assert_eq!(benchmarks(&[("What happens if you crack your knuckles?", "")]).counts().1, 0, "seven words");
    }

    #[test]
    fn a_wording_of_more_than_ten_documents_is_passed_over() {
        let with =
            |documents: usize| benchmarks(&vec![(LONG, LONG); documents]).overlap(&dialogue([LONG, "x"])).is_some();
        assert!(with(10) && !with(11));
    }
}
