//! Which columns of a Parquet file are read, and whether their values can be.
//!
//! polars has a feature for each of its rarer types (dates, times, decimals, small integers), and none of them is on here:
//! such a column would end in an error without its name, or in a panic.

use anyhow::{Result, bail, ensure};
use polars::prelude::{ArrowDataType, ArrowSchema};

/// Places of the columns that are read: those named in `wanted`, or all.
pub fn chosen(schema: &ArrowSchema, wanted: Option<&[&str]>) -> Result<Vec<usize>> {
    let mut places = Vec::new();
    for (place, (name, field)) in schema.iter().enumerate() {
        if wanted.is_some_and(|wanted| !wanted.contains(&name.as_str())) {
            continue;
        }
        if let Some(unread) = unread(field.dtype()) {
            bail!(
                "column `{name}` has values of type {unread:?}, which are not read here: drop the column, or convert the \
                 file to JSON Lines"
            );
        }
        places.push(place);
    }
    let named = wanted.unwrap_or_default().join("`, `");
    ensure!(wanted.is_none() || !places.is_empty(), "it has none of the columns `{named}`");
    Ok(places)
}

/// The first type within `dtype` that is not read.
fn unread(dtype: &ArrowDataType) -> Option<&ArrowDataType> {
    let is_text = |dtype: &ArrowDataType| {
        matches!(dtype, ArrowDataType::Utf8 | ArrowDataType::LargeUtf8 | ArrowDataType::Utf8View)
    };
    match dtype {
        ArrowDataType::Null
        | ArrowDataType::Boolean
        | ArrowDataType::Int32
        | ArrowDataType::Int64
        | ArrowDataType::UInt32
        | ArrowDataType::UInt64
        | ArrowDataType::Float32
        | ArrowDataType::Float64 => None,
        ArrowDataType::List(item) | ArrowDataType::LargeList(item) => unread_within(item.dtype()),
        ArrowDataType::Struct(fields) => fields.iter().find_map(|field| unread_within(field.dtype())),
        ArrowDataType::Dictionary(_, values, _) if is_text(values) => None,
        other => (!is_text(other)).then_some(other),
    }
}

/// The same inside a list or a struct, where small integers are read.
fn unread_within(dtype: &ArrowDataType) -> Option<&ArrowDataType> {
    match dtype {
        ArrowDataType::Int8 | ArrowDataType::Int16 | ArrowDataType::UInt8 | ArrowDataType::UInt16 => None,
        other => unread(other),
    }
}

#[cfg(test)]
mod tests {
    use polars::prelude::{ArrowField, ArrowTimeUnit};

    use super::*;

    #[test]
    fn a_type_that_is_not_read_is_named_wherever_it_is() {
        let field = |name: &str, dtype| ArrowField::new(name.into(), dtype, true);
        let time = ArrowDataType::Timestamp(ArrowTimeUnit::Microsecond, None);
        let turn = |last| ArrowDataType::Struct(vec![field("content", ArrowDataType::Utf8View), field("last", last)]);
        let turns = |last| ArrowDataType::LargeList(Box::new(field("item", turn(last))));
        assert_eq!(unread(&turns(ArrowDataType::Int64)), None);
        assert_eq!(unread(&turns(ArrowDataType::Int8)), None);
        assert_eq!(unread(&turns(time.clone())), Some(&time));
        let item = Box::new(field("item", ArrowDataType::Float32));
        for dtype in [
            ArrowDataType::Int8,
            ArrowDataType::Int16,
            ArrowDataType::UInt8,
            ArrowDataType::UInt16,
            ArrowDataType::Float16,
            ArrowDataType::Date32,
            ArrowDataType::Time64(ArrowTimeUnit::Nanosecond),
            ArrowDataType::Duration(ArrowTimeUnit::Millisecond),
            ArrowDataType::Decimal(10, 2),
            ArrowDataType::BinaryView,
            ArrowDataType::FixedSizeList(item, 3),
        ] {
            assert_eq!(unread(&dtype), Some(&dtype));
        }
    }
}
