//! The most that a processor can do: multiply-adds on registers alone, and the clock that benches share.
#![allow(dead_code)] // each bench uses a part

use std::time::Instant;

use fireval::kernel::Isa;

const REPEATS: usize = 5;

/// Operations of one run of all threads, its wall seconds, and the processor seconds of all.
pub struct Peak {
    pub operations: f64,
    pub seconds: f64,
    pub processor: f64,
}

impl Peak {
    /// The best of some runs of the f32 multiply-add.
    pub fn f32() -> Peak {
        best(f32_operations)
    }

    /// The same of bf16 pairs, where the processor has them.
    pub fn pairs() -> Option<Peak> {
        #[cfg(target_arch = "x86_64")]
        if Isa::supported().contains(&Isa::Avx512Bf16) {
            return Some(best(bf16_operations));
        }
        None
    }

    /// Of what bf16 numbers are multiplied as here: tiles or pairs where they are fast, else f32.
    pub fn bf16() -> Peak {
        match Isa::best() {
            Isa::AmxBf16 => best(tile_operations),
            Isa::Avx512Bf16 => Peak::pairs().expect("the level has them"),
            Isa::Avx512 | Isa::Avx2 | Isa::Portable => Peak::f32(),
        }
    }

    /// GFLOP/s of one core.
    pub fn rate(&self) -> f64 {
        self.operations / self.processor / 1e9
    }
}

fn best(work: fn() -> f64) -> Peak {
    let run = |_| {
        let (begin, processor) = (Instant::now(), processor_seconds());
        // On threads of their own: what is done to tile registers is not for the kernels' threads.
        let operations = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..rayon::current_num_threads()).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().expect("nothing panics")).sum()
        });
        Peak { operations, seconds: begin.elapsed().as_secs_f64(), processor: processor_seconds() - processor }
    };
    (0..REPEATS).map(run).min_by(|a, b| a.processor.total_cmp(&b.processor)).expect("there are runs")
}

/// What all threads of this process have used so far.
pub fn processor_seconds() -> f64 {
    // SAFETY: the kernel fills a plain struct, whose zeros are valid too.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

const STEPS: usize = 10_000_000;
/// Independent sums, so that none waits for another.
const SUMS: usize = 24;

#[cfg(target_arch = "x86_64")]
fn f32_operations() -> f64 {
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
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::AmxBf16 => unsafe { wide() },
        // SAFETY: as above.
        Isa::Avx2 => unsafe { narrow() },
        Isa::Portable => portable_operations(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn f32_operations() -> f64 {
    portable_operations()
}

fn portable_operations() -> f64 {
    let mut sums = [1f32; 32];
    for _ in 0..STEPS {
        sums.iter_mut().for_each(|sum| *sum = *sum * 0.999 + 1e-9);
    }
    std::hint::black_box(sums);
    (STEPS * 32 * 2) as f64
}

#[cfg(target_arch = "x86_64")]
fn bf16_operations() -> f64 {
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

/// As many products of tiles, into four sums as a kernel's, whatever the registers hold.
#[cfg(target_arch = "x86_64")]
fn tile_operations() -> f64 {
    use std::arch::asm;
    #[repr(C, align(64))]
    struct Shape([u8; 64]);
    let mut shape = Shape([0; 64]);
    shape.0[0] = 1; // palette 1: registers of 16 rows of 64 bytes
    (0..8).for_each(|register| (shape.0[16 + 2 * register], shape.0[48 + register]) = (64, 16));
    // SAFETY: only called where the level is there; registers are zeroed before they are read.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &shape, options(nostack, readonly));
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {steps}",
            "jnz 2b",
            "tilerelease",
            steps = inout(reg) STEPS => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
    (STEPS * 4 * 16 * 16 * 32 * 2) as f64
}

#[cfg(not(target_arch = "x86_64"))]
fn tile_operations() -> f64 {
    unreachable!("tiles are of x86-64")
}
