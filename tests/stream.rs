//! Weights read layer by layer: the same bytes as the mapped ones whatever is asked for when, and every way to fail.

mod fixture;
mod tiny;

use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use fireval::random::Random;
use fireval::weights::stream::LayerStream;
use fireval::weights::writer::{Planned, Writer};
use fireval::weights::{Checkpoint, Dtype, Stored};
use fixture::fixture;
use serde_json::json;
use tiny::{dense_config, message, write_folder, write_gguf, write_json};

/// The tensors of each layer, then the others one by one.
fn groups(checkpoint: &Checkpoint) -> Vec<Vec<String>> {
    let (mut groups, mut others) = (Vec::new(), Vec::new());
    for name in checkpoint.names() {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        match layer {
            Some(layer) => {
                groups.resize(groups.len().max(layer + 1), Vec::new());
                groups[layer].push(name.to_owned());
            }
            None => others.push(vec![name.to_owned()]),
        }
    }
    groups.extend(others);
    groups
}

fn assert_equal(streamed: &Stored, mapped: &Stored, name: &str) {
    assert_eq!((streamed.format, &streamed.shape), (mapped.format, &mapped.shape), "{name}");
    assert!(streamed.bytes == mapped.bytes && streamed.absmax == mapped.absmax, "{name}");
}

/// Every tensor of every group, in order twice and then at random, against the mapped ones.
fn visit(path: &Path, slots: usize) {
    let checkpoint = Checkpoint::open(path).unwrap();
    let groups = groups(&checkpoint);
    let stream = LayerStream::new(&checkpoint, &groups, slots).unwrap();
    let mut random = Random::new(slots as u64);
    let in_order = (0..2 * groups.len()).map(|visit| visit % groups.len());
    let at_random = (0..30).map(|_| random.below(groups.len()));
    for index in in_order.chain(at_random) {
        let layer = stream.layer(index).unwrap();
        for name in &groups[index] {
            assert_equal(&layer.stored(name).unwrap(), &checkpoint.stored(name).unwrap(), name);
        }
    }
}

#[test]
fn folders_shards_and_nf4_are_streamed_as_they_are_mapped() {
    for slots in [1, 2, 3, 100] {
        for name in ["tiny-mixtral", "nf4-checkpoint/double", "nf4-checkpoint/plain"] {
            visit(&fixture(name), slots);
        }
    }
}

#[test]
fn gguf_rows_come_in_the_hubs_order() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &dense_config("llama"), Dtype::F32);
    let path = folder.path().join("model.gguf");
    write_gguf(&path, folder.path(), GgmlDType::Q8_0, |_| {});
    visit(&path, 2);
}

/// Four layers of one matrix of 3 MB, far enough apart that each is read by itself.
struct Large {
    folder: tempfile::TempDir,
    groups: Vec<Vec<String>>,
}

const ROWS: usize = 1000;
const COLUMNS: usize = 768;

impl Large {
    fn new() -> Large {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..4).map(|layer| format!("layer.{layer}")).collect();
        let plan = names.iter().map(|name| Planned {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: vec![ROWS, COLUMNS],
            nf4: false,
        });
        let mut writer = Writer::create(folder.path(), plan.collect(), u64::MAX).unwrap();
        for name in &names {
            writer.write(name, &tiny::weights(name, &[ROWS, COLUMNS])).unwrap();
        }
        writer.finish().unwrap();
        write_json(&folder.path().join("config.json"), &json!({}));
        Large { folder, groups: names.into_iter().map(|name| vec![name]).collect() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("model.safetensors")
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(self.folder.path()).unwrap()
    }

    fn cut(&self, bytes: u64) {
        File::options().write(true).open(self.file()).unwrap().set_len(bytes).unwrap();
    }
}

const MATRIX: u64 = (4 * ROWS * COLUMNS) as u64;

#[test]
fn memory_is_the_buffers_and_a_buffer_is_the_largest_group() {
    let large = Large::new();
    let checkpoint = large.open();
    let footprint = |groups: &[Vec<String>], slots| LayerStream::new(&checkpoint, groups, slots).unwrap().footprint();
    let one = footprint(&large.groups, 1);
    assert!((MATRIX as usize..MATRIX as usize + 4 * 4096).contains(&one), "{one}");
    assert_eq!(footprint(&large.groups, 3), 3 * one);
    assert_eq!(footprint(&large.groups, 9), 4 * one, "no more buffers than groups");
    let all = vec![large.groups.concat()];
    assert!(footprint(&all, 2) < 4 * one, "neighbours are read as one");
}

#[test]
fn a_file_cut_while_it_is_open_is_an_error_that_names_file_and_tensor() {
    let large = Large::new();
    let checkpoint = large.open();
    let stream = LayerStream::new(&checkpoint, &large.groups, 1).unwrap();
    for index in 0..4 {
        stream.layer(index).unwrap();
    }
    large.cut(2 * MATRIX + 5000);
    for _ in 0..2 {
        stream.layer(1).unwrap();
        for index in [2, 3] {
            let error = message(stream.layer(index).map(drop));
            assert!(error.contains("model.safetensors: ends at byte"), "{error}");
            assert!(error.contains(&format!("within tensor `layer.{index}`")), "{error}");
        }
    }
}

#[test]
fn what_has_been_read_stays_while_there_are_buffers() {
    let large = Large::new();
    let checkpoint = large.open();
    let expected = tiny::weights("layer.3", &[ROWS, COLUMNS]);
    let stream = LayerStream::new(&checkpoint, &large.groups, 4).unwrap();
    for index in 0..4 {
        stream.layer(index).unwrap();
    }
    large.cut(10);
    assert_eq!(stream.layer(3).unwrap().stored("layer.3").unwrap().to_f32().unwrap(), expected);
}

#[test]
fn a_file_that_vanishes_is_named_or_still_read_if_it_was_open() {
    let large = Large::new();
    let checkpoint = large.open();
    let stream = LayerStream::new(&checkpoint, &large.groups, 2).unwrap();
    std::fs::remove_file(large.file()).unwrap();
    for index in 0..4 {
        let layer = stream.layer(index).unwrap();
        let name = &large.groups[index][0];
        assert_equal(&layer.stored(name).unwrap(), &checkpoint.stored(name).unwrap(), name);
    }
    let error = message(LayerStream::new(&checkpoint, &large.groups, 2).map(drop));
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn buffers_are_held_once_and_given_back() {
    let large = Large::new();
    let checkpoint = large.open();
    let stream = LayerStream::new(&checkpoint, &large.groups, 2).unwrap();
    let (first, third) = (stream.layer(0).unwrap(), stream.layer(2).unwrap());
    assert!(message(stream.layer(1).map(drop)).contains("all buffers are held"));
    assert!(message(stream.layer(2).map(drop)).contains("held already"));
    assert!(message(stream.layer(4).map(drop)).contains("group 4 of 4"));
    drop(first);
    let second = stream.layer(1).unwrap();
    let values = |layer: &fireval::weights::stream::Layer, name: &str| layer.stored(name).unwrap().to_f32().unwrap();
    assert_eq!(values(&second, "layer.1"), tiny::weights("layer.1", &[ROWS, COLUMNS]));
    assert_eq!(values(&third, "layer.2"), tiny::weights("layer.2", &[ROWS, COLUMNS]));
    assert!(message(second.stored("layer.2")).contains("`layer.2` is not in the group"));
}

#[test]
fn what_cannot_be_streamed_is_refused_at_once() {
    let large = Large::new();
    let checkpoint = large.open();
    let refused = |groups: &[Vec<String>], slots| message(LayerStream::new(&checkpoint, groups, slots).map(drop));
    assert!(refused(&[vec!["layer.9".to_owned()]], 2).contains("tensor `layer.9` is missing"));
    assert!(refused(&[], 2).contains("no tensors to stream"));
    assert!(refused(&large.groups, 0).contains("needs a buffer"));
}
