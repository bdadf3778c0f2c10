//! Phi-3 stores queries, keys and values in one tensor, and gate and up in another; here they are seen apart.
//!
//! The parts are ranges of whole rows in the order of the file (transformers' `Phi3Attention` and `Phi3MLP`), so that
//! nothing is copied and quantised rows stay whole. In 4 bits the absmax run on across rows: there a part must begin with
//! a block of its own, and under double quantisation with a scale of its own, as those of published models do.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::nf4::{BLOCK, NESTED_BLOCK};
use super::{AbsmaxPlace, Entry, Extent};

const QUERIES_KEYS_VALUES: &str = ".self_attn.qkv_proj.weight";
const GATE_AND_UP: &str = ".mlp.gate_up_proj.weight";

/// The tensors of a checkpoint with Phi-3's fused ones as their parts; those of other families as they are.
pub(super) fn apart(entries: BTreeMap<String, Entry>, config: &Value) -> Result<BTreeMap<String, Entry>> {
    if config.get("model_type").and_then(Value::as_str) != Some("phi3") {
        return Ok(entries);
    }
    let parts = entries.into_iter().map(|(name, entry)| {
        let parts = parts(&name, &entry, config).with_context(|| format!("tensor `{name}`"))?;
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
        return ranges(&format!("{layer}.self_attn"), entry, &counts).map(Some);
    }
    let Some(layer) = name.strip_suffix(GATE_AND_UP) else { return Ok(None) };
    let rows = rows(entry)?;
    ensure!(rows.is_multiple_of(2), "{rows} rows do not divide into gate and up");
    ranges(&format!("{layer}.mlp"), entry, &[("gate_proj", rows / 2), ("up_proj", rows / 2)]).map(Some)
}

fn rows(entry: &Entry) -> Result<usize> {
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

fn ranges(module: &str, entry: &Entry, counts: &[(&str, usize)]) -> Result<Vec<(String, Entry)>> {
    let [all, columns] = [entry.shape[0], entry.shape[1]];
    let mut first = 0;
    let mut part = |&(name, rows): &(&str, usize)| {
        let bytes = |row: usize| entry.start + (entry.end - entry.start) * row / all;
        let numbers = first * columns..(first + rows) * columns;
        let absmax = entry.absmax.as_ref().map(|place| of_numbers(place, &numbers)).transpose();
        let absmax = absmax.with_context(|| format!("`{name}` in it"))?;
        let (start, end) = (bytes(first), bytes(first + rows));
        first += rows;
        let shape = vec![rows, columns];
        Ok((format!("{module}.{name}.weight"), Entry { shape, start, end, absmax, ..entry.clone() }))
    };
    counts.iter().map(&mut part).collect()
}

/// Where the absmax of some of a matrix's numbers lie.
fn of_numbers(place: &AbsmaxPlace, numbers: &Range<usize>) -> Result<AbsmaxPlace> {
    let within = |whole: &Extent, units: Range<usize>, width: usize| Extent {
        start: whole.start + width * units.start,
        end: whole.start + width * units.end,
        ..*whole
    };
    let units = |size: usize| -> Result<Range<usize>> {
        ensure!(
            numbers.start.is_multiple_of(size),
            "begins after {} numbers, amid {size} that share a scale in 4 bits; take the checkpoint that is not quantised",
            numbers.start
        );
        Ok(numbers.start / size..numbers.end.div_ceil(size))
    };
    Ok(match place {
        AbsmaxPlace::Plain(values) => AbsmaxPlace::Plain(within(values, units(BLOCK)?, 4)),
        AbsmaxPlace::Double { codes, scales, offset } => AbsmaxPlace::Double {
            codes: within(codes, units(BLOCK)?, 1),
            scales: within(scales, units(BLOCK * NESTED_BLOCK)?, 4),
            offset: *offset,
        },
    })
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
    fn parts_in_four_bits_have_absmax_of_their_own() {
        let config = json!({"model_type": "phi3", "num_attention_heads": 2, "num_key_value_heads": 1});
        let extent = |start, end| Extent { file: 1, start, end };
        let (codes, scales) = (extent(1000, 1000 + 1024), extent(3000, 3016));
        let cut = |columns: usize, absmax: AbsmaxPlace| {
            let (format, end) = (Ok(Format::Nf4), 100 + 512 * columns / 2);
            let entry = Entry { format, end, absmax: Some(absmax), ..entry(&[512, columns]) };
            apart(BTreeMap::from([("model.layers.0.self_attn.qkv_proj.weight".to_owned(), entry)]), &config)
        };
        // 65,536 numbers in 1,024 blocks under 4 scales: queries have the first half, keys and values a quarter each.
        let double = || AbsmaxPlace::Double { codes, scales, offset: 0.5 };
        let found = cut(128, double()).unwrap();
        let keys = &found["model.layers.0.self_attn.k_proj.weight"];
        assert_eq!((keys.shape.as_slice(), keys.start, keys.end), (&[128, 128][..], 100 + 16_384, 100 + 24_576));
        assert_eq!(keys.extents()[1..], [extent(1512, 1768), extent(3008, 3012)]);
        let plain = cut(128, AbsmaxPlace::Plain(extent(1000, 5096))).unwrap();
        assert_eq!(plain["model.layers.0.self_attn.v_proj.weight"].extents()[1..], [extent(4072, 5096)]);
        let error = format!("{:#}", cut(32, double()).unwrap_err());
        assert!(error.contains("`k_proj` in it: begins after 8192 numbers, amid 16384"), "{error}");
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
