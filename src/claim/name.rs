//! Names of models as cards spell them: `Llama2-70B-Chat`, `meta-llama/Llama-2-70b-chat-hf`, `LLaMA 2 70B chat`.

/// A name in parts, all in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Name {
    organisation: Option<String>,
    /// Words and numbers, in order.
    words: Vec<String>,
    /// `70b`, `8x7b`.
    sizes: Vec<String>,
    /// `v0.1`.
    versions: Vec<String>,
}

/// Words that say in which form a model is stored, not which it is.
const FORMS: [&str; 4] = ["hf", "model", "ours", "our"];

/// Words that tell members of a family from each other.
const KINDS: [&str; 8] = ["chat", "instruct", "base", "it", "sft", "dpo", "rlhf", "tuned"];

impl Name {
    pub fn of(text: &str) -> Name {
        let text = text.split(['(', '（']).next().unwrap_or_default().trim().to_lowercase();
        let (organisation, name) = match text.rsplit_once('/') {
            Some((organisation, name)) => (Some(organisation.trim().to_owned()), name.to_owned()),
            None => (None, text),
        };
        let mut parts = Name { organisation, ..Name::default() };
        let chunks = name.split(|c: char| !c.is_alphanumeric() && c != '.');
        chunks
            .map(|chunk| chunk.trim_matches('.'))
            .filter(|chunk| !chunk.is_empty())
            .for_each(|chunk| parts.add(chunk));
        parts
    }

    /// Sorts a part of a name in: `llama2` is a word and a number.
    fn add(&mut self, chunk: &str) {
        if is_size(chunk) {
            self.sizes.push(chunk.to_owned());
        } else if is_version(chunk) {
            self.versions.push(chunk.to_owned());
        } else if let Some(digit) = chunk.find(|c: char| c.is_ascii_digit()).filter(|&digit| digit > 0) {
            self.words.push(chunk[..digit].to_owned());
            self.add(&chunk[digit..]);
        } else {
            self.words.push(chunk.to_owned());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Equal but for capitals, separators and an organisation that is left out.
    pub fn is(&self, published: &Name) -> bool {
        let same_house = self.organisation.is_none() || self.organisation == published.organisation;
        same_house
            && (&self.words, &self.sizes, &self.versions) == (&published.words, &published.sizes, &published.versions)
    }

    /// Equal but for a version that is left out, the form of storage, and the organisation.
    pub fn may_be(&self, published: &Name) -> bool {
        let versions = self.versions.is_empty() || self.versions == published.versions;
        versions && self.sizes == published.sizes && self.without(&[&FORMS]) == published.without(&[&FORMS])
    }

    /// Of one family, be it of another size, version or kind.
    pub fn is_related(&self, published: &Name) -> bool {
        !self.is_empty() && self.without(&[&FORMS, &KINDS]) == published.without(&[&FORMS, &KINDS])
    }

    /// Whether both say a size, and another one.
    pub fn contradicts(&self, published: &Name) -> bool {
        !self.sizes.is_empty() && !published.sizes.is_empty() && self.sizes != published.sizes
    }

    fn without(&self, left_out: &[&[&str]]) -> Vec<&str> {
        let words = self.words.iter().map(String::as_str);
        words.filter(|word| !left_out.iter().any(|list| list.contains(word))).collect()
    }
}

/// `7b`, `1.5b`, `8x7b`, `160m`.
fn is_size(chunk: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.');
    let stem = chunk.strip_suffix('b').or(chunk.strip_suffix('m'));
    stem.is_some_and(|stem| {
        number(stem) || stem.split_once('x').is_some_and(|(left, right)| number(left) && number(right))
    })
}

fn is_version(chunk: &str) -> bool {
    chunk.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_name() {
        let chat = Name::of("meta-llama/Llama-2-70b-chat-hf");
        assert!(Name::of("llama 2 70B chat hf").is(&chat) && Name::of("LLaMA2-70B-Chat-HF (4 bit)").is(&chat));
        assert!(!Name::of("other/Llama-2-70b-chat-hf").is(&chat) && !Name::of("Llama2-70B-Chat").is(&chat));
        assert!(Name::of("Llama2-70B-Chat").may_be(&chat) && !Name::of("Llama2-70B").may_be(&chat));
        assert!(!Name::of("Llama-2-70b-chat-v1.2").may_be(&chat), "a version of its own");
        let mixtral = Name::of("mistralai/Mixtral-8x7B-Instruct-v0.1");
        assert!(
            Name::of("Mixtral 8x7B Instruct").may_be(&mixtral)
                && !Name::of("Mixtral-8x7B-Instruct-v0.2").may_be(&mixtral)
        );
    }

    #[test]
    fn families_and_sizes() {
        let (wrong, base) = (Name::of("Llama2-65B-Chat"), Name::of("meta-llama/Llama-2-70b-hf"));
        assert!(wrong.is_related(&base) && wrong.contradicts(&base) && !wrong.may_be(&base));
        assert!(!Name::of("Llama-65B").is_related(&base), "the first Llama");
        assert!(!Name::of("Llama-2-mine-7b").is_related(&base) && !Name::of("").is_related(&base));
        assert!(!Name::of("Llama-2").contradicts(&base));
        assert_eq!(Name::of("a/pythia-160m-v1.3.").sizes, ["160m"]);
    }
}
