//! Products against what the processor can do at most: a line of JSON a measurement.
//!
//!     cargo bench --bench kernels [-- --threads 1]
//!
//! The peak is measured in the same run: multiply-adds on registers alone, and bf16 pairs or tiles beside them; bf16 products
//! are held against whichever of these they are made with. Rates are per second of processor time, so that a machine that is
//! busy with other work shows the same.

mod peak;

use fireval::kernel::product::{Block, Kernels, Rows, Term};
use fireval::kernel::{Element, Isa, Matrix, Numbers, bytes_of, nf4};
use half::bf16;
use peak::{Peak, processor_seconds};

/// Inputs and outputs of a linear: SmolLM2-135M's, its head's, and Mixtral's.
const SHAPES: [(usize, usize); 5] = [(576, 1536), (1536, 576), (576, 49_152), (2048, 8192), (4096, 14_336)];
const ROWS: [usize; 3] = [48, 512, 2048];
const REPEATS: usize = 5;
/// Operations of a repeat, at least: the system counts processor time in hundredths of a second.
const OPERATIONS: f64 = 2e10;

fn main() {
    let threads = std::env::args().skip_while(|argument| argument != "--threads").nth(1);
    let threads: usize = threads.map_or(0, |text| text.parse().expect("--threads takes a number"));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the pool is made once");
    let peak_f32 = Peak::f32().rate();
    report("peak f32", "registers", peak_f32, peak_f32);
    if let Some(pairs) = Peak::pairs() {
        report("peak bf16 pairs", "registers", pairs.rate(), peak_f32);
    }
    let peak_bf16 = Peak::bf16().rate();
    report("peak of what bf16 is multiplied as", "registers", peak_bf16, peak_f32);
    for_shapes::<bf16>("bf16", peak_bf16);
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
            [("f32", Numbers::F32(bytes_of(&values))), ("bf16", Numbers::Bf16(brains)), ("nf4", four_bits)]
        {
            let weight = Matrix { rows: outputs, columns: inputs, numbers, rounded_to_f16: false };
            for rows in ROWS {
                let x = vec![E::from_f32(0.5); rows * inputs];
                let best = (0..REPEATS).map(|_| time(&kernels, &x, rows, weight)).fold(f64::INFINITY, f64::min);
                let rate = operations(rows, weight) / best / 1e9;
                report(&format!("{name} x {format}"), &format!("{rows} x {inputs} x {outputs}"), rate, peak);
            }
        }
    }
}

fn time<E: Element>(kernels: &Kernels<E>, x: &[E], rows: usize, weight: Matrix) -> f64 {
    let term = Term::along(Rows { numbers: x, step: weight.columns }, weight);
    let times = (OPERATIONS / operations(rows, weight)).ceil();
    let begin = processor_seconds();
    for _ in 0..times as usize {
        kernels.multiply(rows, [&[term]], |block: Block<1>| {
            std::hint::black_box(&block.sums);
        });
    }
    (processor_seconds() - begin) / times
}

fn operations(rows: usize, weight: Matrix) -> f64 {
    2.0 * (rows * weight.columns * weight.rows) as f64
}
