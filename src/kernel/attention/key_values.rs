//! What a head remembers of a sequence: keys and values in the layout that they are multiplied in.

use crate::kernel::isa::for_every_isa;
use crate::kernel::panel::{SIDE, lay_columns};
use crate::kernel::product::padded;
use crate::kernel::tile::WIDTH;
use crate::kernel::unit::TILE_DEPTH;
use crate::kernel::{Element, Isa, Lines};

/// One head's keys and values of a sequence's first `len` positions.
pub struct KeyValues<E> {
    pub(super) head_dim: usize,
    pub(super) len: usize,
    pub(super) keys: Lines<E>,   // (blocks, head_dim / GROUP, 64, GROUP)
    pub(super) values: Lines<E>, // (positions / GROUP, columns, GROUP)
}

impl<E: Element> KeyValues<E> {
    pub fn new(head_dim: usize) -> KeyValues<E> {
        KeyValues { head_dim, len: 0, keys: Lines::default(), values: Lines::default() }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything; heads are of this size from here on. The buffers stay.
    pub fn restart(&mut self, head_dim: usize) {
        (self.head_dim, self.len) = (head_dim, 0);
    }

    /// Forgets all but the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes room, so that no later push moves what is here.
    pub fn reserve(&mut self, capacity: usize) {
        self.keys.grow(capacity.div_ceil(WIDTH) * self.block_size());
        self.values.grow(capacity.div_ceil(TILE_DEPTH) * self.tile_size());
    }

    /// Bytes of `capacity` positions.
    pub fn bytes(head_dim: usize, capacity: usize) -> usize {
        let width = 4 / E::GROUP;
        let keys = capacity.next_multiple_of(WIDTH) * padded::<E>(head_dim);
        let values = capacity.next_multiple_of(TILE_DEPTH) * head_dim.next_multiple_of(WIDTH);
        (keys + values) * width
    }

    /// Appends positions: rows of head_dim, filled up to whole groups.
    pub fn extend(&mut self, isa: Isa, keys: &[E], values: &[E]) {
        let step = padded::<E>(self.head_dim);
        let (mut keys, mut values) = (keys, values);
        while !keys.is_empty() {
            let count = if self.len.is_multiple_of(SIDE) && keys.len() >= SIDE * step { SIDE } else { 1 };
            let (keys_now, values_now);
            (keys_now, keys) = keys.split_at(count * step);
            (values_now, values) = values.split_at(count * step);
            match count {
                1 => self.push(keys_now, values_now),
                _ => self.push_square(isa, keys_now, values_now),
            }
        }
    }

    /// Appends as many positions as a square of keys has, after a multiple of as many.
    fn push_square(&mut self, isa: Isa, keys: &[E], values: &[E]) {
        let (step, size) = (padded::<E>(self.head_dim), self.block_size());
        let (block, column) = (self.len / WIDTH * size, self.len % WIDTH);
        grow_to(&mut self.keys, block + size);
        lay_columns(isa, (keys, step), &mut self.keys[block + column * E::GROUP..], WIDTH);
        self.begin_tile();
        let (row_size, first) = (self.columns() * E::GROUP, self.len / E::GROUP);
        let rows = self.values[first * row_size..].chunks_exact_mut(row_size);
        for (row, values) in rows.zip(values.chunks_exact(E::GROUP * step)) {
            match values.split_at(step) {
                (value, []) => row[..step].copy_from_slice(value),
                (first, second) => pair_up(isa, first, second, row),
            }
        }
        self.len += SIDE;
    }

    /// Appends a position: head_dim filled up to whole groups.
    pub fn push(&mut self, key: &[E], value: &[E]) {
        let (block, column) = (self.len / WIDTH, self.len % WIDTH);
        let size = self.block_size();
        grow_to(&mut self.keys, (block + 1) * size);
        // Whole groups, whose size the compiler knows: two numbers are not worth a call.
        let slots = self.keys[block * size..].chunks_exact_mut(E::GROUP).skip(column).step_by(WIDTH);
        for (slot, numbers) in slots.zip(key.chunks_exact(E::GROUP)) {
            slot.copy_from_slice(numbers);
        }
        let row_size = self.columns() * E::GROUP;
        let (row, lane) = (self.len / E::GROUP, self.len % E::GROUP);
        self.begin_tile();
        let values = &mut self.values[row * row_size..][..row_size];
        for (slot, number) in values.chunks_exact_mut(E::GROUP).zip(value) {
            slot[lane] = *number;
        }
        self.len += 1;
    }

    /// Where a tile of values begins: zeros up to its end, since a weight of 0 does not silence a NaN of an earlier use.
    fn begin_tile(&mut self) {
        if self.len.is_multiple_of(TILE_DEPTH) {
            let first = self.len * self.columns();
            let tile = first..first + self.tile_size();
            grow_to(&mut self.values, tile.end);
            self.values[tile].fill(E::default());
        }
    }

    /// The values of a position.
    #[cfg(test)]
    pub fn value(&self, position: usize) -> Vec<E> {
        let row = &self.values[position / E::GROUP * self.columns() * E::GROUP..];
        (0..self.head_dim).map(|column| row[column * E::GROUP + position % E::GROUP]).collect()
    }

    fn block_size(&self) -> usize {
        padded::<E>(self.head_dim) * WIDTH
    }

    /// Numbers of the values of a whole tile's depth.
    fn tile_size(&self) -> usize {
        self.columns() * TILE_DEPTH
    }

    /// Columns of a row of values: whole panels.
    pub(super) fn columns(&self) -> usize {
        self.head_dim.next_multiple_of(WIDTH)
    }
}

/// Doubles a buffer that is too short.
fn grow_to<E: Element>(buffer: &mut Lines<E>, len: usize) {
    if buffer.len() < len {
        buffer.grow(len.max(2 * buffer.len()));
    }
}

for_every_isa! {
    /// Two rows, number beside number.
    fn pair_up<E: Element>(first: &[E], second: &[E], out: &mut [E]) {
        for ((out, first), second) in out.as_chunks_mut::<2>().0.iter_mut().zip(first).zip(second) {
            *out = [*first, *second];
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn many_are_as_one_by_one<E: Element>(head_dim: usize) {
        let step = padded::<E>(head_dim);
        let number = |index: usize| E::from_f32(if index % step < head_dim { (index % 251) as f32 } else { 0.0 });
        let (keys, values): (Vec<E>, Vec<E>) =
            (0..150 * step).map(|index| (number(index), number(index + step))).unzip();
        for isa in Isa::supported() {
            let (mut many, mut one_by_one) = (KeyValues::new(head_dim), KeyValues::new(head_dim));
            let mut at = 0;
            for count in [5, 11, 16, 1, 40, 0, 77] {
                let part = at * step..(at + count) * step;
                many.extend(isa, &keys[part.clone()], &values[part.clone()]);
                let rows = keys[part.clone()].chunks(step).zip(values[part].chunks(step));
                rows.for_each(|(key, value)| one_by_one.push(key, value));
                at += count;
                assert_eq!(many.len, at);
            }
            let filled = (at / WIDTH + 1) * many.block_size(); // beyond the last, new buffers are zeros
            assert!(many.keys[..filled] == one_by_one.keys[..filled], "keys of {head_dim}, {isa:?}");
            let filled = at.next_multiple_of(TILE_DEPTH) * many.columns();
            assert!(many.values[..filled] == one_by_one.values[..filled], "values of {head_dim}, {isa:?}");
        }
    }

    #[test]
    fn positions_come_one_by_one_or_many_at_once() {
        for head_dim in [64, 6, 33, 96] {
            many_are_as_one_by_one::<f32>(head_dim);
            many_are_as_one_by_one::<bf16>(head_dim);
        }
    }
}
