//! Claimed figures beside those that were published: under the name that the claim has, or, where nobody published under it,
//! wherever the same figures stand.

use super::average::{Basis, Standing, mean_of_four};
use super::claims::Claim;
use super::name::Name;
use super::number::Printed;
use super::title::task_name;
use crate::published::{HALF, Published};

/// Figures that are no coincidence in a table of thousands of rows.
const TELLING: usize = 3;

/// The published rows, their names read once.
pub struct Directory<'a> {
    rows: Vec<(Name, &'a Published)>,
}

/// What the published rows say of a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum Found<'a> {
    /// A row of this name has these figures.
    Fits(&'a Published),
    /// Rows have this name, or it may mean them, but other figures: the nearest. And whose these are, of the same family.
    Differs {
        row: &'a Published,
        whose: Option<&'a Published>,
    },
    /// No row has this name, but this one has the figures, and nothing in its name speaks against it.
    ByFigures(&'a Published),
    /// No row has this name, and the figures are those of a model that it can't be.
    Misnamed(&'a Published),
    Unknown,
}

/// A claimed figure that was published otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub what: &'static str,
    pub claimed: Printed,
    /// In percent.
    pub published: f64,
}

impl<'a> Directory<'a> {
    pub fn new(rows: &'a [Published]) -> Directory<'a> {
        Directory { rows: rows.iter().map(|row| (Name::of(&row.model), row)).collect() }
    }

    pub fn find(&self, claim: &Claim, standing: &Standing) -> Found<'a> {
        let name = Name::of(claim.model.as_deref().unwrap_or_default());
        let fits = |row: &Published| differences(claim, standing, row).is_empty();
        let fitting = || self.rows.iter().filter(|(_, row)| fits(row));
        let related = fitting().find(|(published, _)| name.is_related(published));
        let named = self.named(&name);
        if let Some(row) = named.iter().copied().find(|row| fits(row)) {
            return Found::Fits(row);
        }
        if let Some(row) = named.into_iter().min_by_key(|row| differences(claim, standing, row).len()) {
            return Found::Differs { row, whose: related.map(|(_, row)| *row) };
        }
        let telling = if compared(claim, standing) >= TELLING { fitting().next() } else { None };
        match related.or(telling) {
            Some((published, row)) if name.contradicts(published) => Found::Misnamed(row),
            Some((_, row)) => Found::ByFigures(row),
            None => Found::Unknown,
        }
    }

    /// The rows of this name; if there are none, those that it may mean.
    fn named(&self, name: &Name) -> Vec<&'a Published> {
        let rows = |test: &dyn Fn(&Name) -> bool| -> Vec<&'a Published> {
            self.rows.iter().filter(|(published, _)| !name.is_empty() && test(published)).map(|(_, row)| *row).collect()
        };
        let exact = rows(&|published| name.is(published));
        if exact.is_empty() { rows(&|published| name.may_be(published)) } else { exact }
    }
}

/// How many figures of a claim a row is held against.
fn compared(claim: &Claim, standing: &Standing) -> usize {
    claim.scores.iter().flatten().count() + usize::from(compared_average(claim, standing).is_some())
}

/// The average where it may be the one that was published: of the six tasks.
fn compared_average<'a>(claim: &'a Claim, standing: &Standing) -> Option<&'a Printed> {
    match standing {
        Standing::MeanOf(Basis::Six) | Standing::Alone | Standing::NoMean { .. } | Standing::Unknown => {
            claim.average.as_ref()
        }
        // It is the mean of scores that are compared themselves.
        Standing::MeanOf(Basis::Four | Basis::Seven | Basis::Shown(_)) => None,
    }
}

/// The figures of `claim` that `row` has otherwise.
pub fn differences(claim: &Claim, standing: &Standing, row: &Published) -> Vec<Difference> {
    let scores = claim.scores.iter().zip(row.scores).enumerate();
    let scores = scores.filter_map(|(task, (score, published))| {
        let claimed = score.as_ref().filter(|score| !score.is(published, HALF))?.clone();
        Some(Difference { what: task_name(task), claimed, published })
    });
    let average = compared_average(claim, standing).filter(|average| {
        let fewer = claim.scores.contains(&None);
        let of_four = fewer && *standing != Standing::Unknown && average.is(mean_of_four(row), 2.0 * HALF);
        !average.is(row.average, HALF) && !of_four
    });
    let average =
        average.map(|average| Difference { what: "average", claimed: average.clone(), published: row.average });
    scores.chain(average).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::average::standing;
    use crate::claim::number::tests::number;
    use crate::published::all;

    fn claim(model: &str, average: &str, scores: &[&str]) -> Claim {
        let average = Some(average).filter(|average| !average.is_empty()).map(number);
        let mut claim = Claim { model: Some(model.to_owned()), average, ..Claim::default() };
        for (place, score) in claim.scores.iter_mut().zip(scores) {
            *place = Some(number(score));
        }
        claim
    }

    /// What was found, and the row's model.
    fn found(claim: &Claim) -> (&'static str, String) {
        let rows = all().unwrap();
        let standing = standing(claim);
        match Directory::new(&rows).find(claim, &standing) {
            Found::Fits(row) => ("fits", row.model.clone()),
            Found::Differs { row, whose } => {
                ("differs", format!("{} {}", row.model, whose.map_or("", |row| &row.model)))
            }
            Found::ByFigures(row) => ("by figures", row.model.clone()),
            Found::Misnamed(row) => ("misnamed", row.model.clone()),
            Found::Unknown => ("unknown", String::new()),
        }
    }

    const BASE: [&str; 6] = ["67.32", "87.33", "69.83", "44.92", "83.74", "54.06"];

    #[test]
    fn a_claim_holds_if_any_row_of_its_name_fits() {
        let is =
            |claim: Claim, kind: &str, model: &str| assert_eq!(found(&claim), (kind, model.to_owned()), "{claim:?}");
        is(claim("Mixtral-8x7B-v0.1", "68.47", &[]), "fits", "mistralai/Mixtral-8x7B-v0.1");
        is(claim("mistralai/mixtral-8x7b-v0.1", "65.8", &[]), "fits", "mistralai/Mixtral-8x7B-v0.1");
        is(claim("Mixtral 8x7B", "68.4", &[]), "fits", "mistralai/Mixtral-8x7B-v0.1");
        is(claim("firefly-mixtral-8x7b", "70.16", &[]), "fits", "YeungNLP/firefly-mixtral-8x7b-v0.1");
        is(claim("Mixtral-8x7B-v0.1", "68.50", &[]), "differs", "mistralai/Mixtral-8x7B-v0.1 ");
        is(
            claim("Llama2-70B-Chat", "67.87", &[]),
            "differs",
            "meta-llama/Llama-2-70b-chat-hf meta-llama/Llama-2-70b-hf",
        );
    }

    #[test]
    fn a_name_that_nobody_published_is_found_by_its_figures() {
        let is =
            |claim: Claim, kind: &str, model: &str| assert_eq!(found(&claim), (kind, model.to_owned()), "{claim:?}");
        is(claim("Llama2-65B-Chat", "67.87", &[]), "misnamed", "meta-llama/Llama-2-70b-hf");
        is(claim("Llama2-65B-Chat", "67.87", &BASE), "misnamed", "meta-llama/Llama-2-70b-hf");
        is(claim("somebody-13B", "", &BASE[..3]), "misnamed", "meta-llama/Llama-2-70b-hf");
        is(claim("Ours", "67.87", &BASE), "by figures", "meta-llama/Llama-2-70b-hf");
        is(claim("", "67.87", &BASE), "by figures", "meta-llama/Llama-2-70b-hf");
        is(claim("Ours", "67.87", &[]), "unknown", "");
        is(claim("Llama2-65B-Chat", "67.80", &[]), "unknown", "");
    }
}
