//! Writes a model's safetensors, in one file or in shards, tensor by tensor: no more than one is ever held.
//!
//! A safetensors header precedes the data, so all names and shapes are planned first and the tensors then come in that
//! order. Files get their final names at the end, the single file or the index last: a folder in which it exists is
//! complete.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::Dtype;
use super::bitsandbytes::{self, Part};
use super::folder::{INDEX, SINGLE};
use super::nf4::Nf4;

/// Bytes of a shard unless said otherwise: what transformers writes.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Written as NF4 with double quantisation, in the tensors that bitsandbytes makes of a matrix; `dtype` is then what
    /// it dequantises to.
    pub nf4: bool,
}

impl Planned {
    fn parts(&self) -> Vec<Part> {
        match self.nf4 {
            true => bitsandbytes::parts(&self.name, &self.shape),
            false => vec![Part {
                name: self.name.clone(),
                dtype: self.dtype.safetensors_name(),
                shape: self.shape.clone(),
                bytes: self.shape.iter().product::<usize>() * self.dtype.bytes(),
            }],
        }
    }

    fn bytes(&self) -> u64 {
        self.parts().iter().map(|part| part.bytes as u64).sum()
    }
}

/// A model being written.
pub struct Writer {
    folder: PathBuf,
    shards: Vec<Shard>,
    /// The shard being written, and how many of its tensors are.
    at: (usize, usize),
    open: Option<File>,
}

struct Shard {
    name: String,
    tensors: Vec<Planned>,
}

impl Shard {
    fn bytes(&self) -> u64 {
        self.tensors.iter().map(Planned::bytes).sum()
    }

    /// The length and the header, padded so that the data is aligned.
    fn header(&self) -> Vec<u8> {
        let mut fields = Map::new();
        fields.insert("__metadata__".to_owned(), json!({"format": "pt"})); // transformers insists on it
        let mut start = 0;
        for Part { name, dtype, shape, bytes } in self.tensors.iter().flat_map(Planned::parts) {
            let end = start + bytes;
            fields.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
            start = end;
        }
        let mut text = Value::Object(fields).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        [&(text.len() as u64).to_le_bytes()[..], &text].concat()
    }
}

impl Writer {
    /// Plans `tensors`, in this order, into shards of at most `shard_bytes` (a larger tensor gets its own) in `folder`.
    pub fn create(folder: &Path, tensors: Vec<Planned>, shard_bytes: u64) -> Result<Writer> {
        ensure!(!tensors.is_empty(), "{}: a model without tensors cannot be written", folder.display());
        let mut shards: Vec<Shard> = Vec::new();
        for tensor in tensors {
            match shards.last_mut() {
                Some(shard) if shard.bytes() + tensor.bytes() <= shard_bytes => shard.tensors.push(tensor),
                Some(_) | None => shards.push(Shard { name: String::new(), tensors: vec![tensor] }),
            }
        }
        let count = shards.len();
        for (index, shard) in shards.iter_mut().enumerate() {
            shard.name = match count {
                1 => SINGLE.to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
            };
        }
        Ok(Writer { folder: folder.to_owned(), shards, at: (0, 0), open: None })
    }

    /// Writes the next tensor of the plan, quantising it if it is planned so.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let planned = self.next(name)?;
        let count: usize = planned.shape.iter().product();
        ensure!(values.len() == count, "tensor `{name}`: {} values for {planned:?}", values.len());
        if planned.nf4 {
            let nf4 = Nf4::quantize(values, true).with_context(|| format!("tensor `{name}`"))?;
            return self.write_nf4(name, &nf4);
        }
        let bytes = planned.dtype.encode(values);
        self.append(&[bytes])
    }

    /// Writes the next tensor of the plan, which is quantised already.
    pub fn write_nf4(&mut self, name: &str, nf4: &Nf4) -> Result<()> {
        let planned = self.next(name)?;
        ensure!(planned.nf4, "tensor `{name}` is not planned as NF4");
        let count: usize = planned.shape.iter().product();
        ensure!(nf4.count == count, "tensor `{name}`: {} values for {planned:?}", nf4.count);
        let contents = bitsandbytes::contents(nf4, &planned.parts(), &planned.shape, planned.dtype);
        let contents = contents.with_context(|| format!("tensor `{name}`"))?;
        self.append(&contents)
    }

    /// The tensor that comes next, which must be `name`.
    fn next(&self, name: &str) -> Result<&Planned> {
        let (shard, tensor) = self.at;
        let planned = self.shards.get(shard).and_then(|shard| shard.tensors.get(tensor));
        let Some(planned) = planned.filter(|planned| planned.name == name) else {
            bail!("{}: tensor `{name}` is not the next one planned", self.folder.display());
        };
        Ok(planned)
    }

    /// The bytes of the next tensor's parts, at the end of its shard.
    fn append(&mut self, contents: &[Vec<u8>]) -> Result<()> {
        let (shard, tensor) = self.at;
        let path = self.temporary(shard);
        let place = || path.display().to_string();
        if tensor == 0 {
            let mut file = File::create(&path).with_context(place)?;
            file.write_all(&self.shards[shard].header()).with_context(place)?;
            self.open = Some(file);
        }
        let file = self.open.as_mut().expect("opened with the shard's first tensor");
        for bytes in contents {
            file.write_all(bytes).with_context(place)?;
        }
        if tensor + 1 < self.shards[shard].tensors.len() {
            self.at.1 += 1;
            return Ok(());
        }
        file.sync_all().with_context(place)?;
        self.open = None;
        self.at = (shard + 1, 0);
        Ok(())
    }

    /// Gives the files their names and returns them. Every planned tensor must have been written.
    pub fn finish(self) -> Result<Vec<PathBuf>> {
        if let Some(shard) = self.shards.get(self.at.0) {
            bail!("{}: tensor `{}` was not written", self.folder.display(), shard.tensors[self.at.1].name);
        }
        let mut files = Vec::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let path = self.folder.join(&shard.name);
            std::fs::rename(self.temporary(index), &path).with_context(|| path.display().to_string())?;
            files.push(path);
        }
        if self.shards.len() > 1 {
            let path = self.folder.join(INDEX);
            let temporary = self.folder.join(format!("{INDEX}.tmp"));
            std::fs::write(&temporary, format!("{:#}\n", self.index())).with_context(|| path.display().to_string())?;
            std::fs::rename(&temporary, &path).with_context(|| path.display().to_string())?;
            files.push(path);
        }
        Ok(files)
    }

    fn index(&self) -> Value {
        let total: u64 = self.shards.iter().map(Shard::bytes).sum();
        let map: Map<String, Value> = self
            .shards
            .iter()
            .flat_map(|shard| {
                let parts = shard.tensors.iter().flat_map(Planned::parts);
                parts.map(|part| (part.name, json!(shard.name)))
            })
            .collect();
        json!({"metadata": {"total_size": total}, "weight_map": map})
    }

    fn temporary(&self, shard: usize) -> PathBuf {
        self.folder.join(format!("{}.tmp", self.shards[shard].name))
    }
}

impl Drop for Writer {
    /// Removes what was not finished (after `finish` nothing is left under a temporary name).
    fn drop(&mut self) {
        for shard in 0..self.shards.len() {
            let _ = std::fs::remove_file(self.temporary(shard)); // it may never have been made
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str, dtype: Dtype, shape: &[usize]) -> Planned {
        Planned { name: name.to_owned(), dtype, shape: shape.to_vec(), nf4: false }
    }

    #[test]
    fn numbers_are_rounded_to_nearest_even() {
        // bf16 keeps 8 bits: 1 + 2^-8 lies midway between 1 and 1 + 2^-7 and goes to the even one, 1.
        assert_eq!(Dtype::BF16.encode(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]), [0x80, 0x3f, 0x82, 0x3f]);
        assert_eq!(Dtype::F16.encode(&[1.0 + 1.0 / 2048.0]), [0x00, 0x3c]);
        assert_eq!(Dtype::F32.encode(&[1.0]), [0, 0, 0x80, 0x3f]);
    }

    #[test]
    fn tensors_fill_shards_and_a_large_one_stands_alone() {
        let folder = tempfile::tempdir().unwrap();
        let plan = vec![
            planned("a", Dtype::F32, &[2]),
            planned("b", Dtype::F16, &[2]),
            planned("c", Dtype::F32, &[100]),
            planned("d", Dtype::BF16, &[1]),
        ];
        let mut writer = Writer::create(folder.path(), plan, 12).unwrap();
        for (name, count) in [("a", 2), ("b", 2), ("c", 100), ("d", 1)] {
            writer.write(name, &vec![1.5; count]).unwrap();
        }
        let files = writer.finish().unwrap();
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "model-00001-of-00003.safetensors",
                "model-00002-of-00003.safetensors",
                "model-00003-of-00003.safetensors",
                INDEX
            ]
        );
        let index: Value = serde_json::from_slice(&std::fs::read(&files[3]).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 8 + 4 + 400 + 2);
        assert_eq!(index["weight_map"]["b"], names[0]);
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let plan = vec![planned("a", Dtype::F32, &[1]), planned("b", Dtype::F32, &[1])];
        let mut writer = Writer::create(folder.path(), plan, 1000).unwrap();
        assert!(writer.write("b", &[1.0]).unwrap_err().to_string().contains("`b` is not the next"));
        writer.write("a", &[1.0]).unwrap();
        assert!(writer.write("b", &[1.0, 2.0]).is_err());
        assert!(writer.finish().unwrap_err().to_string().contains("`b` was not written"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
