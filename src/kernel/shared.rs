//! A slice that several threads write in places that do not overlap.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice handed out in parts.
pub struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are only given out by the unsafe method below, whose callers promise that they do not overlap.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Shared<'a, T> {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// The numbers at `range`.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice, as was just checked; the caller promises that nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// `rows` parts of `width` numbers, `step` from one to the next.
    ///
    /// # Safety
    /// As for [`Shared::part`], for each of them.
    pub unsafe fn strip(&self, first: usize, step: usize, rows: usize, width: usize) -> Strip<'_, T> {
        assert!(rows == 0 || (width <= step && first + (rows - 1) * step + width <= self.len));
        // SAFETY: inside the slice, as was just checked.
        Strip { start: unsafe { self.start.add(first) }, step, rows, width, lifetime: PhantomData }
    }
}

/// Rows that lie apart in a slice.
pub struct Strip<'a, T> {
    start: *mut T,
    step: usize,
    rows: usize,
    width: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<T> Strip<'_, T> {
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: rows do not overlap, and nobody else has them, as whoever made this promised.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.step), self.width) }
    }
}
