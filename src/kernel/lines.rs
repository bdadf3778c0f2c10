//! Buffers that begin where a line of the cache does.

use std::ops::{Deref, DerefMut};

/// Bytes that memory is read by.
pub(super) const CACHE_LINE: usize = 64;

/// Numbers of which the first begins a line of the cache: a wide load of a row then touches one line, not two (with AMX that is
/// three times the speed).
pub struct Lines<T> {
    numbers: Vec<T>, // with room to skip to a line's begin
    len: usize,
}

impl<T> Default for Lines<T> {
    fn default() -> Lines<T> {
        Lines { numbers: Vec::new(), len: 0 }
    }
}

impl<T: Copy + Default> Lines<T> {
    /// The same numbers.
    pub fn copy(numbers: &[T]) -> Lines<T> {
        let mut lines = Lines::zeros(numbers.len());
        lines.copy_from_slice(numbers);
        lines
    }

    /// The first `count` numbers, of which there are more from here on if there were fewer. What they hold is of an earlier use.
    pub fn take(&mut self, count: usize) -> &mut [T] {
        if self.len < count {
            *self = Lines::zeros(count);
        }
        &mut self[..count]
    }

    /// Makes it at least so long, keeping what it holds; the rest is zeros.
    pub fn grow(&mut self, len: usize) {
        if self.len < len {
            let mut longer = Lines::zeros(len);
            longer[..self.len].copy_from_slice(self);
            *self = longer;
        }
    }

    /// Plain zeros, whose pages are made by the threads that write them.
    fn zeros(len: usize) -> Lines<T> {
        Lines { numbers: vec![T::default(); len + CACHE_LINE / size_of::<T>()], len }
    }
}

impl<T> Lines<T> {
    fn begin(&self) -> usize {
        if self.len == 0 { 0 } else { self.numbers.as_ptr().align_offset(CACHE_LINE) }
    }
}

impl<T> Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let begin = self.begin();
        &self.numbers[begin..begin + self.len]
    }
}

impl<T> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let begin = self.begin();
        &mut self.numbers[begin..begin + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_a_line_and_stay_when_more_come() {
        let mut numbers = Lines::<u16>::default();
        assert!(numbers.is_empty());
        for len in [1, 31, 33, 5000, 40] {
            numbers.grow(len);
            numbers[len - 1] = len as u16;
            assert!(numbers.as_ptr().addr().is_multiple_of(CACHE_LINE) && numbers.len() >= len);
        }
        assert_eq!([0, 30, 32, 4999].map(|at| numbers[at]), [1, 31, 33, 5000]);
        assert_eq!(numbers.take(7000).len(), 7000);
        assert_eq!((numbers.take(3).len(), numbers.len()), (3, 7000));
    }
}
