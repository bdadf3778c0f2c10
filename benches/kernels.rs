//! Products against what the processor can do at most: a line of JSON a measurement.
//!
//!     cargo bench --bench kernels [-- --threads 1]
//!
//! The peak is measured in the same run: multiply-adds on registers alone. Rates are per second of processor time, so
//! that a machine that is busy with other work shows the same.

use fireval::kernel::product::{Block, Kernels, Rows, Term};
use fireval::kernel::{Element, Isa, Matrix, Numbers, matrix, nf4};
use half::bf16;

/// Inputs and outputs of a linear: SmolLM2-135M's, its head's, and Mixtral's.
const SHAPES: [(usize, usize); 5] = [(576, 1536), (1536, 576), (576, 49_152), (2048, 8192), (4096, 14_336)];
const ROWS: [usize; 3] = [48, 512, 2048];
const REPEATS: usize = 5;

fn main() {
    let threads = std::env::args().skip_while(|argument| argument != "--threads").nth(1);
    let threads: usize = threads.map_or(0, |text| text.parse().expect("--threads takes a number"));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the pool is made once");
    let peak_f32 = peak(f32_peak);
    report("peak f32", "registers", peak_f32, peak_f32);
    #[cfg(target_arch = "x86_64")]
    if Isa::best() == Isa::Avx512Bf16 {
        let peak_bf16 = peak(bf16_peak);
        report("peak bf16", "registers", peak_bf16, peak_bf16);
        for_shapes::<bf16>("bf16", peak_bf16);
    }
    for_shapes::<f32>("f32", peak_f32);
}

fn report(what: &str, shape: &str, rate: f64, peak: f64) {
    println!(
        "{{\"what\": \"{what}\", \"shape\": \"{shape}\", \"gflops\": {:.1}, \"of_peak\": {:.3}}}",
        rate,
        rate / peak
    );
}

fn for_shapes<E: Element>(name: &str, peak: f64) {
    let kernels = Kernels::<E>::new(Isa::best());
    for (inputs, outputs) in SHAPES {
        let values: Vec<f32> = (0..inputs * outputs).map(|index| (index % 251) as f32 / 125.0 - 1.0).collect();
        let brains: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
        // SAFETY: bf16 numbers are two bytes each, without padding.
        let brains = unsafe { std::slice::from_raw_parts(brains.as_ptr().cast::<u8>(), 2 * brains.len()) };
        let packed: Vec<u8> = (0..inputs * outputs / 2).map(|index| (index * 37 % 256) as u8).collect();
        let absmax = vec![0.5f32; inputs * outputs / nf4::BLOCK];
        let four_bits = Numbers::Nf4 { packed: &packed, absmax: nf4::Absmax::Plain(&absmax) };
        for (format, numbers) in
            [("f32", Numbers::F32(matrix::bytes_of(&values))), ("bf16", Numbers::Bf16(brains)), ("nf4", four_bits)]
        {
            let weight = Matrix { rows: outputs, columns: inputs, numbers, rounded_to_f16: false };
            for rows in ROWS {
                let x = vec![E::from_f32(0.5); rows * inputs];
                let best = (0..REPEATS).map(|_| time(&kernels, &x, rows, weight)).fold(f64::INFINITY, f64::min);
                let rate = 2.0 * (rows * inputs * outputs) as f64 / best / 1e9;
                report(&format!("{name} x {format}"), &format!("{rows} x {inputs} x {outputs}"), rate, peak);
            }
        }
    }
}

fn time<E: Element>(kernels: &Kernels<E>, x: &[E], rows: usize, weight: Matrix) -> f64 {
    let begin = processor_seconds();
    let term = Term { rows: Rows { numbers: x, step: weight.columns }, weight };
    kernels.multiply(rows, [&[term]], |block: Block<1>| {
        std::hint::black_box(&block.sums);
    });
    processor_seconds() - begin
}

/// What all threads of this process have used so far.
fn processor_seconds() -> f64 {
    // SAFETY: the kernel fills a plain struct, whose zeros are valid too.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// GFLOP/s of one core.
fn peak(work: fn() -> f64) -> f64 {
    (0..REPEATS)
        .map(|_| {
            let begin = processor_seconds();
            let operations: f64 = rayon::broadcast(|_| work()).iter().sum();
            operations / (processor_seconds() - begin) / 1e9
        })
        .fold(0.0, f64::max)
}

const STEPS: usize = 10_000_000;
/// Independent sums, so that none waits for another.
const SUMS: usize = 24;

#[cfg(target_arch = "x86_64")]
fn f32_peak() -> f64 {
    #[target_feature(enable = "avx512f")]
    fn wide() -> f64 {
        use std::arch::x86_64::*;
        let (a, b) = (_mm512_set1_ps(0.999), _mm512_set1_ps(1e-9));
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..STEPS {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
        }
        std::hint::black_box(sums);
        (STEPS * SUMS * 32) as f64
    }
    #[target_feature(enable = "avx2,fma")]
    fn narrow() -> f64 {
        use std::arch::x86_64::*;
        let (a, b) = (_mm256_set1_ps(0.999), _mm256_set1_ps(1e-9));
        let mut sums = [_mm256_set1_ps(1.0); 12];
        for _ in 0..STEPS {
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
        }
        std::hint::black_box(sums);
        (STEPS * 12 * 16) as f64
    }
    match Isa::best() {
        // SAFETY: the level is one this processor has.
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe { wide() },
        // SAFETY: as above.
        Isa::Avx2 => unsafe { narrow() },
        Isa::Portable => portable_peak(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn f32_peak() -> f64 {
    portable_peak()
}

fn portable_peak() -> f64 {
    let mut sums = [1f32; 32];
    for _ in 0..STEPS {
        sums.iter_mut().for_each(|sum| *sum = *sum * 0.999 + 1e-9);
    }
    std::hint::black_box(sums);
    (STEPS * 32 * 2) as f64
}

#[cfg(target_arch = "x86_64")]
fn bf16_peak() -> f64 {
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn wide() -> f64 {
        use std::arch::x86_64::*;
        // SAFETY: both types are 64 bytes of plain bits.
        let a: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(0x3f80_3f80)) };
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..STEPS {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, a, a));
        }
        std::hint::black_box(sums);
        (STEPS * SUMS * 64) as f64
    }
    // SAFETY: only called where the extension is there.
    unsafe { wide() }
}
