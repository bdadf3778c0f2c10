//! What activations and panels are made of: bf16 or f32. Sums are f32 in either case.

use half::bf16;

use super::{Numbers, math};

/// Numbers as they lie in memory.
pub fn bytes_of<E: Element>(values: &[E]) -> &[u8] {
    // SAFETY: an element is a plain number, and bytes need no alignment. (Both are little-endian on every target that
    // builds.)
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Numbers that loops round together, and that a softmax sums side by side: other lanes would be other bits.
pub const LANES: usize = 16;

/// A number that products are made of.
pub trait Element: Copy + Default + Send + Sync + PartialEq + std::fmt::Debug + 'static {
    /// Numbers in 32 bits.
    const GROUP: usize;

    fn from_f32(value: f32) -> Self;

    /// Several, with `ROUNDS` by the AVX-512 BF16 instruction for it, inside of a function that may use it. That makes numbers
    /// below 2^-126 0, as which the products of that level take them anyway.
    #[inline(always)]
    fn from_f32s<const ROUNDS: bool>(values: [f32; LANES]) -> [Self; LANES] {
        let mut out = [Self::default(); LANES];
        out.iter_mut().zip(values).for_each(|(out, value)| *out = Self::from_f32(value));
        out
    }

    fn to_f32(self) -> f32;

    /// Numbers in memory, to be read as a matrix.
    fn numbers(values: &[Self]) -> Numbers<'_>;

    /// Numbers from their little-endian bytes.
    fn read(bytes: &[u8], out: &mut [Self]);
}

/// `of` the numbers of `a` and `b`, as many as there are of both.
#[inline(always)]
pub fn fill<const ROUNDS: bool, E: Element>(out: &mut [E], a: &[f32], b: &[f32], of: impl Fn(f32, f32) -> f32) {
    let count = out.len().min(a.len()).min(b.len());
    let (out, out_rest) = out[..count].as_chunks_mut::<LANES>();
    let ((a, a_rest), (b, b_rest)) = (a[..count].as_chunks::<LANES>(), b[..count].as_chunks::<LANES>());
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        let mut values = [0f32; LANES];
        values.iter_mut().zip(a).zip(b).for_each(|((value, a), b)| *value = of(*a, *b));
        *out = E::from_f32s::<ROUNDS>(values);
    }
    out_rest.iter_mut().zip(a_rest).zip(b_rest).for_each(|((out, a), b)| *out = E::from_f32(of(*a, *b)));
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

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn from_f32s<const ROUNDS: bool>(values: [f32; LANES]) -> [bf16; LANES] {
        use std::arch::x86_64::{__m256bh, _mm512_cvtneps_pbh, _mm512_loadu_ps};
        if ROUNDS {
            // SAFETY: whoever asks for it has the instruction; sixteen numbers are what a register holds, and any bits are a bf16.
            return unsafe {
                let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(values.as_ptr()));
                std::mem::transmute::<__m256bh, [bf16; LANES]>(rounded)
            };
        }
        let mut out = [bf16::ZERO; LANES];
        out.iter_mut().zip(values).for_each(|(out, value)| *out = <bf16 as Element>::from_f32(value));
        out
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
