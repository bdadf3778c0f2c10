//! What is trained, before the first step: of an adapter A random and B zero, so that the model is still what it was; of
//! weights their own numbers.

use anyhow::{Result, ensure};

use super::recipe::{Full, Lora, Method};
use crate::model::adapter::target::Target;
use crate::model::adapter::{Adapter, LoraPair, Matrix, Whole};
use crate::model::config::ModelConfig;
use crate::model::names::{self, Linear};
use crate::random::Random;
use crate::weights::Checkpoint;

/// The linears that get a pair, in the order of the layers. A target or layer that the model does not have is an error.
pub fn linears(config: &ModelConfig, lora: &Lora) -> Result<Vec<(Target, Linear)>> {
    lora.check_layers(config.num_hidden_layers)?;
    let targets = &lora.targets;
    let mut chosen = Vec::new();
    for layer in (0..config.num_hidden_layers).filter(|&layer| lora.has_layer(layer)) {
        for linear in names::linears(config, layer) {
            let target = Target::of(&linear.module)?;
            if targets.contains(&target) {
                chosen.push((target, linear));
            }
        }
    }
    for target in targets {
        ensure!(
            chosen.iter().any(|(found, _)| found == target),
            "`[lora] targets` names `{target}`, which this model does not have (it has {})",
            available(config)?
        );
    }
    if config.mixture.is_some() {
        lora.check_joined()?;
    }
    Ok(chosen)
}

fn available(config: &ModelConfig) -> Result<String> {
    let mut targets: Vec<Target> =
        names::linears(config, 0).iter().map(|linear| Target::of(&linear.module)).collect::<Result<_>>()?;
    targets.sort_unstable();
    targets.dedup();
    Ok(targets.iter().map(|target| target.name()).collect::<Vec<_>>().join(", "))
}

/// What `method` trains of the model, as a run begins.
pub fn trained(checkpoint: &Checkpoint, config: &ModelConfig, method: Method, seed: u64) -> Result<Adapter> {
    match method {
        Method::Lora(lora) => adapter(config, lora, seed),
        Method::Full(full) => whole(checkpoint, config, full),
    }
}

/// The weights that are trained, in f32.
fn whole(checkpoint: &Checkpoint, config: &ModelConfig, full: &Full) -> Result<Adapter> {
    let whole = |(tensor, shape): (String, Vec<usize>)| {
        let values = checkpoint.tensor(&tensor, &shape)?.to_f32()?;
        let columns = shape.last().copied().unwrap_or(1);
        Ok(Whole { tensor, values: Matrix { rows: values.len() / columns, columns, values } })
    };
    let whole = full.tensors(config)?.into_iter().map(whole).collect::<Result<_>>()?;
    Ok(Adapter { pairs: Vec::new(), whole })
}

/// A drawn as PEFT draws it (`kaiming_uniform_` with `a = sqrt(5)`: uniform within 1 / sqrt(inputs)), from the stream that
/// the module's name has under `seed`; B zero.
pub fn adapter(config: &ModelConfig, lora: &Lora, seed: u64) -> Result<Adapter> {
    let pair = |(target, linear): (Target, Linear)| LoraPair {
        scale: lora.scale(target),
        a: uniform(lora.rank(target), linear.inputs, &mut Random::named(seed, &linear.module)),
        b: Matrix::zeros(linear.outputs, lora.rank(target)),
        module: linear.module,
    };
    Ok(Adapter { pairs: linears(config, lora)?.into_iter().map(pair).collect(), whole: Vec::new() })
}

fn uniform(rows: usize, columns: usize, random: &mut Random) -> Matrix {
    let bound = 1.0 / (columns as f64).sqrt();
    let values = (0..rows * columns).map(|_| ((2.0 * random.uniform() - 1.0) * bound) as f32).collect();
    Matrix { rows, columns, values }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_is_spread_evenly_within_its_bound() {
        let matrix = uniform(16, 400, &mut Random::named(42, "model.layers.0.self_attn.q_proj"));
        let (count, bound) = (matrix.values.len() as f64, 0.05);
        assert!(matrix.values.iter().all(|value| f64::from(value.abs()) <= bound));
        let mean = matrix.values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let variance = matrix.values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / count;
        // A uniform's variance is bound^2 / 3.
        assert!(mean.abs() < 0.002 && (variance / (bound * bound / 3.0) - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
