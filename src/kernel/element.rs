//! What activations and panels are made of: bf16 or f32. Sums are f32 in either case.

use half::bf16;

use super::{Numbers, math};

/// Numbers as they lie in memory.
pub fn bytes_of<E: Element>(values: &[E]) -> &[u8] {
    // SAFETY: an element is a plain number, and bytes need no alignment. (Both are little-endian on every target that
    // builds.)
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// A number that products are made of.
pub trait Element: Copy + Default + Send + Sync + PartialEq + std::fmt::Debug + 'static {
    /// Numbers in 32 bits.
    const GROUP: usize;

    fn from_f32(value: f32) -> Self;

    fn to_f32(self) -> f32;

    /// Numbers in memory, to be read as a matrix.
    fn numbers(values: &[Self]) -> Numbers<'_>;

    /// Numbers from their little-endian bytes.
    fn read(bytes: &[u8], out: &mut [Self]);
}

impl Element for f32 {
    const GROUP: usize = 1;

    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    fn numbers(values: &[f32]) -> Numbers<'_> {
        Numbers::F32(bytes_of(values))
    }

    #[inline(always)]
    fn read(bytes: &[u8], out: &mut [f32]) {
        out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(out, bytes)| *out = f32::from_le_bytes(*bytes));
    }
}

impl Element for bf16 {
    const GROUP: usize = 2;

    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        bf16::from_bits(math::to_bf16_bits(value))
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn numbers(values: &[bf16]) -> Numbers<'_> {
        Numbers::Bf16(bytes_of(values))
    }

    #[inline(always)]
    fn read(bytes: &[u8], out: &mut [bf16]) {
        out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(out, bytes)| *out = bf16::from_le_bytes(*bytes));
    }
}
