//! Several tests at once: Holm's sequentially rejective correction (Scandinavian Journal of Statistics 6, 1979, pages 65 to
//! 70). With it the chance that any of the equal tasks is called different stays at the level, whatever their dependence.

/// Adjusted p values in the order of `values`: the k-th smallest of m times `m - k`, counted from 0, never below a smaller
/// one's and at most 1.
pub fn adjusted(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut adjusted = vec![1.0; values.len()];
    let mut largest = 0.0_f64;
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max(values[index] * (values.len() - rank) as f64).min(1.0);
        adjusted[index] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_tests_by_hand() {
        // 0.005 * 4, 0.01 * 3, 0.03 * 2, then 0.04 * 1 lifted to the one before.
        let found = adjusted(&[0.01, 0.04, 0.03, 0.005]);
        let expected = [0.03, 0.06, 0.06, 0.02];
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?}");
    }

    #[test]
    fn the_edges() {
        assert!(adjusted(&[]).is_empty());
        assert_eq!(adjusted(&[0.2]), [0.2]);
        assert_eq!(adjusted(&[0.5; 3]), [1.0; 3]);
        assert_eq!(adjusted(&[0.0, 1.0]), [0.0, 1.0]);
    }
}
