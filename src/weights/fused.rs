//! Phi-3 stores queries, keys and values in one tensor, and gate and up in another; here they are seen apart.
//!
//! The parts are ranges of whole rows in the order of the file (transformers' `Phi3Attention` and `Phi3MLP`), so that
//! nothing is copied and quantised rows stay whole.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::Entry;

const QUERIES_KEYS_VALUES: &str = ".self_attn.qkv_proj.weight";
const GATE_AND_UP: &str = ".mlp.gate_up_proj.weight";

/// The tensors of a checkpoint with Phi-3's fused ones as their parts; those of other families as they are.
pub(super) fn apart(entries: BTreeMap<String, Entry>, config: &Value) -> Result<BTreeMap<String, Entry>> {
    if config.get("model_type").and_then(Value::as_str) != Some("phi3") {
        return Ok(entries);
    }
    let parts = entries.into_iter().map(|(name, entry)| {
        let parts = parts(&name, &entry, config).with_context(|| format!("tensor `{name}`"))?;
        let is_cut = parts.is_some() && entry.absmax.is_some();
        ensure!(
            !is_cut,
            "tensor `{name}` is fused and in 4 bits, which does not open; take the unquantised checkpoint"
        );
        Ok(parts.unwrap_or_else(|| vec![(name, entry)]))
    });
    Ok(parts.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The parts of a fused tensor by their own names; `None` for one that is not fused.
pub(super) fn parts(name: &str, entry: &Entry, config: &Value) -> Result<Option<Vec<(String, Entry)>>> {
    if let Some(layer) = name.strip_suffix(QUERIES_KEYS_VALUES) {
        let (rows, (heads, key_value_heads)) = (rows(entry)?, heads(config)?);
        let all = heads + 2 * key_value_heads;
        ensure!(
            rows.is_multiple_of(all),
            "{rows} rows are no whole number for {all} heads of queries, keys and values"
        );
        let keys = rows / all * key_value_heads;
        let counts = [("q_proj", rows - 2 * keys), ("k_proj", keys), ("v_proj", keys)];
        return Ok(Some(ranges(&format!("{layer}.self_attn"), entry, &counts)));
    }
    let Some(layer) = name.strip_suffix(GATE_AND_UP) else { return Ok(None) };
    let rows = rows(entry)?;
    ensure!(rows.is_multiple_of(2), "{rows} rows do not divide into gate and up");
    Ok(Some(ranges(&format!("{layer}.mlp"), entry, &[("gate_proj", rows / 2), ("up_proj", rows / 2)])))
}

/// Rows that can be told apart: those of NF4 are not, their absmax run on from row to row.
fn rows(entry: &Entry) -> Result<usize> {
    ensure!(entry.absmax.is_none(), "fused and in NF4; take the checkpoint that is not quantised");
    let rows = entry.shape.first().copied().unwrap_or(0);
    ensure!(rows > 0 && entry.shape.len() == 2, "shape {:?} is not that of a matrix", entry.shape);
    Ok(rows)
}

fn heads(config: &Value) -> Result<(usize, usize)> {
    let count = |key: &str| config.get(key).and_then(Value::as_u64).filter(|count| (1..1 << 24).contains(count));
    let heads =
        count("num_attention_heads").ok_or_else(|| anyhow!("the configuration states no `num_attention_heads`"))?;
    Ok((heads as usize, count("num_key_value_heads").unwrap_or(heads) as usize))
}

fn ranges(module: &str, entry: &Entry, counts: &[(&str, usize)]) -> Vec<(String, Entry)> {
    let row_bytes = (entry.end - entry.start) / entry.shape[0];
    let mut start = entry.start;
    let mut part = |&(name, rows): &(&str, usize)| {
        let mut shape = entry.shape.clone();
        shape[0] = rows;
        let part = Entry { shape, start, end: start + rows * row_bytes, ..entry.clone() };
        start = part.end;
        (format!("{module}.{name}.weight"), part)
    };
    counts.iter().map(&mut part).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::weights::{Conversion, Format};

    fn entry(shape: &[usize]) -> Entry {
        let bytes = 4 * shape.iter().product::<usize>();
        Entry {
            file: 0,
            format: Ok(Format::F32),
            shape: shape.to_vec(),
            start: 100,
            end: 100 + bytes,
            conversion: Conversion::None,
            absmax: None,
        }
    }

    #[test]
    fn parts_are_consecutive_rows() {
        let config = json!({"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 1});
        let entries = BTreeMap::from([
            ("model.layers.0.self_attn.qkv_proj.weight".to_owned(), entry(&[12, 5])),
            ("model.layers.0.mlp.gate_up_proj.weight".to_owned(), entry(&[6, 5])),
        ]);
        let apart = apart(entries, &config).unwrap();
        let place = |name: &str| {
            let entry = &apart[&format!("model.layers.0.{name}.weight")];
            (entry.shape[0], entry.start, entry.end)
        };
        assert_eq!(place("self_attn.q_proj"), (8, 100, 260));
        assert_eq!(place("self_attn.k_proj"), (2, 260, 300));
        assert_eq!(place("self_attn.v_proj"), (2, 300, 340));
        assert_eq!(place("mlp.gate_proj"), (3, 100, 160));
        assert_eq!(place("mlp.up_proj"), (3, 160, 220));
    }

    #[test]
    fn rows_that_do_not_divide_are_refused() {
        let config = json!({"model_type": "phi3", "num_attention_heads": 4});
        let error = |name: &str, rows| {
            let entries = BTreeMap::from([(name.to_owned(), entry(&[rows, 5]))]);
            format!("{:#}", apart(entries, &config).unwrap_err())
        };
        assert!(error("model.layers.0.self_attn.qkv_proj.weight", 13).contains("qkv_proj"));
        assert!(error("model.layers.0.mlp.gate_up_proj.weight", 7).contains("gate_up_proj"));
    }
}
