//! Which instructions this processor has, asked once.

use std::sync::LazyLock;

/// A level of instructions that kernels are written for. Those of one machine differ in speed; `Avx512` and `Avx2` give
/// the same bits (both fuse multiply and add, in the same order), the others differ in the last ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Any processor: products and sums rounded one by one.
    Portable,
    /// x86-64 with AVX2 and FMA: 8 numbers at a time.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL): 16 numbers at a time.
    Avx512,
    /// And its BF16 extension: pairs of bf16 numbers multiplied and added into f32.
    Avx512Bf16,
    /// And AMX: tiles of bf16 multiplied in one instruction (Intel's Xeons from Sapphire Rapids on).
    AmxBf16,
}

impl Isa {
    const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::AmxBf16];

    /// The fastest of this processor.
    pub fn best() -> Isa {
        static BEST: LazyLock<Isa> = LazyLock::new(|| {
            let of_use = |isa: &Isa| *isa != Isa::Avx512Bf16 || pairs_are_fast();
            Isa::supported().into_iter().rfind(of_use).expect("every processor has the portable level")
        });
        *BEST
    }

    /// All levels of this processor, each with more instructions than the one before.
    pub fn supported() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_supported()).collect()
    }

    /// How sums of products are rounded at this level, for a model's identity: levels of one name give the same bits.
    pub fn arithmetic(self, products_in_bf16: bool) -> &'static str {
        match (self, products_in_bf16) {
            (Isa::Portable, _) => "plain",
            (Isa::Avx2 | Isa::Avx512, _) | (Isa::Avx512Bf16 | Isa::AmxBf16, false) => "fused",
            (Isa::Avx512Bf16, true) => "bf16-pairs",
            (Isa::AmxBf16, true) => "bf16-tiles",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_supported(self) -> bool {
        let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = || {
            avx2()
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
        };
        match self {
            Isa::Portable => true,
            Isa::Avx2 => avx2(),
            Isa::Avx512 => avx512(),
            Isa::Avx512Bf16 => avx512() && is_x86_feature_detected!("avx512bf16"),
            Isa::AmxBf16 => Isa::Avx512Bf16.is_supported() && has_tiles(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_supported(self) -> bool {
        self == Isa::Portable
    }
}

/// Whether products of bf16 pairs beat f32. AMD's cores start a pair product (64 operations) as often as a multiply-add
/// (32), Intel's a quarter as often: a Sapphire Rapids Xeon does 82 GFLOP/s a core with pairs and 170 with f32
/// (`cargo bench --bench kernels`). Told by the maker, not by a measurement, so that no bit depends on a machine's load.
#[cfg(target_arch = "x86_64")]
fn pairs_are_fast() -> bool {
    let maker = std::arch::x86_64::__cpuid(0);
    [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn pairs_are_fast() -> bool {
    false
}

/// Whether there are tiles of bf16, and the system lets this process use them: it has to be asked once, for all threads (Linux,
/// `Documentation/arch/x86/xstate.rst`), and may refuse.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_tiles() -> bool {
    const REQUEST_PERMISSION: libc::c_long = 0x1023; // ARCH_REQ_XCOMP_PERM
    const TILE_DATA: libc::c_long = 18;
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24; // of leaf 7
    static ALLOWED: LazyLock<bool> = LazyLock::new(|| {
        let has = std::arch::x86_64::__cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES;
        // SAFETY: asks for a register state and touches no memory.
        has && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0
    });
    *ALLOWED
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn has_tiles() -> bool {
    false
}

/// Compiles a loop once for every level: the body is plain Rust that the compiler makes wide. `FUSED` says whether multiply
/// and add are one instruction (`math::multiply_add`), `ROUNDS` whether rounding to bf16 is (`Element::from_f32s`).
macro_rules! for_every_isa {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident $(<$element:ident: $bound:path>)? ($($argument:ident: $kind:ty),* $(,)?) $body:block) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name $(<$element: $bound>)? (isa: $crate::kernel::Isa, $($argument: $kind),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<const FUSED: bool, const ROUNDS: bool $(, $element: $bound)?>($($argument: $kind),*) {
                let _ = (FUSED, ROUNDS);
                $body
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512bf16 $(<$element: $bound>)? ($($argument: $kind),*) {
                body::<true, true $(, $element)?>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512 $(<$element: $bound>)? ($($argument: $kind),*) {
                body::<true, false $(, $element)?>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2 $(<$element: $bound>)? ($($argument: $kind),*) {
                body::<true, false $(, $element)?>($($argument),*)
            }

            match isa {
                // SAFETY: an `Isa` other than the portable one is only ever made for a processor that has it.
                #[cfg(target_arch = "x86_64")]
                $crate::kernel::Isa::AmxBf16 | $crate::kernel::Isa::Avx512Bf16 => unsafe { avx512bf16($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::kernel::Isa::Avx512 => unsafe { avx512($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::kernel::Isa::Avx2 => unsafe { avx2($($argument),*) },
                #[cfg(not(target_arch = "x86_64"))]
                $crate::kernel::Isa::AmxBf16 | $crate::kernel::Isa::Avx512Bf16 | $crate::kernel::Isa::Avx512 | $crate::kernel::Isa::Avx2 => body::<false, false $(, $element)?>($($argument),*),
                $crate::kernel::Isa::Portable => body::<false, false $(, $element)?>($($argument),*),
            }
        }
    };
}
pub(super) use for_every_isa;
