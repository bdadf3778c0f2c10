//! Dialogues as the model sees them in a step: several end to end, without padding.

use crate::model::packed::Packed;

pub use crate::dialogue::format::Example;

/// A micro-batch: the dialogues end to end, no padding, none seeing another, with the targets of all their rows.
pub fn pack(examples: &[&Example]) -> (Packed, Vec<Option<u32>>) {
    let sequences: Vec<&[u32]> = examples.iter().map(|example| example.ids.as_slice()).collect();
    (Packed::rows(&sequences), examples.iter().flat_map(|example| example.targets()).collect())
}

/// Groups dialogues so that none has more than `limit` tokens, in as few groups as first-fit decreasing finds (at most
/// 11/9 of the fewest, and 6/9 more; Dósa, 2007). A dialogue that is longer by itself is a group of its own.
///
/// Returns the indices of `examples`: each once, ascending in a group, groups by their first. The same examples give
/// the same groups.
pub fn packings(examples: &[Example], limit: usize) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<usize> = (0..examples.len()).collect();
    longest_first.sort_by_key(|&index| std::cmp::Reverse(examples[index].ids.len()));
    let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
    for index in longest_first {
        let tokens = examples[index].ids.len();
        match groups.iter_mut().find(|(taken, _)| taken + tokens <= limit) {
            Some((taken, group)) => {
                *taken += tokens;
                group.push(index);
            }
            None => groups.push((tokens, vec![index])),
        }
    }
    let mut groups: Vec<Vec<usize>> = groups.into_iter().map(|(_, group)| group).collect();
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups.sort_unstable();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn examples(lengths: &[usize]) -> Vec<Example> {
        lengths.iter().map(|&length| Example { ids: vec![7; length], learnt: vec![true; length] }).collect()
    }

    #[test]
    fn groups_are_filled_by_the_longest_first() {
        assert_eq!(packings(&examples(&[3, 6, 4, 7, 2]), 10), [vec![0, 3], vec![1, 2], vec![4]]);
        assert_eq!(packings(&examples(&[5, 12, 5]), 10), [vec![0, 2], vec![1]], "too long is alone");
        assert_eq!(packings(&[], 10), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn each_dialogue_is_in_one_group_within_the_limit() {
        let mut random = Random::new(1);
        let lengths: Vec<usize> = (0..500).map(|_| 1 + random.below(1024)).collect();
        let groups = packings(&examples(&lengths), 1024);
        let mut all = groups.concat();
        all.sort_unstable();
        assert_eq!(all, (0..500).collect::<Vec<_>>());
        let taken = |group: &Vec<usize>| group.iter().map(|&index| lengths[index]).sum::<usize>();
        assert!(groups.iter().all(|group| taken(group) <= 1024));
        let fewest = lengths.iter().sum::<usize>().div_ceil(1024);
        assert!(groups.len() <= fewest * 11 / 9 + 1, "{} groups where {fewest} is the least", groups.len());
    }
}
