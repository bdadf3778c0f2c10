//! AdamW's two running means of every matrix, in memory, or in a file where the budget asks for it: then a thread has those
//! of one matrix in hand at a time. The numbers are the same.

use std::borrow::Cow;
use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;

use crate::spill::Spill;

/// The running means of one tensor's gradient and of its square.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    pub mean: Vec<f32>,
    pub square: Vec<f32>,
}

/// Those of all an adapter's matrices, in their order.
#[derive(Debug)]
pub enum AllMoments {
    InMemory(Vec<Moments>),
    /// Of each matrix a record for the mean and one for the square.
    Spilled(Spill),
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Mean,
    Square,
}

impl Moments {
    pub fn zeros(len: usize) -> Moments {
        Moments { mean: vec![0.0; len], square: vec![0.0; len] }
    }

    fn half(&self, half: Half) -> &Vec<f32> {
        match half {
            Half::Mean => &self.mean,
            Half::Square => &self.square,
        }
    }
}

impl AllMoments {
    /// For matrices of so many numbers.
    pub fn zeros(lengths: impl Iterator<Item = usize>) -> AllMoments {
        AllMoments::InMemory(lengths.map(Moments::zeros).collect())
    }

    pub fn are_spilled(&self) -> bool {
        matches!(self, AllMoments::Spilled(_))
    }

    /// Puts them into a file in `folder`. `are_zeros`: as nothing has been learnt yet.
    pub fn spill(&mut self, folder: &Path, are_zeros: bool) -> Result<()> {
        let AllMoments::InMemory(held) = self else { return Ok(()) };
        let file = Spill::create(folder, "moments", held.iter().flat_map(|one| [one.mean.len(), one.square.len()]))?;
        if !are_zeros {
            for (index, moments) in held.iter().enumerate() {
                write(&file, index, moments)?;
            }
        }
        *self = AllMoments::Spilled(file);
        Ok(())
    }

    /// Of the matrix `index`.
    pub fn numbers(&self, index: usize, half: Half) -> Result<Cow<'_, [f32]>> {
        match self {
            AllMoments::InMemory(held) => Ok(Cow::Borrowed(held[index].half(half))),
            AllMoments::Spilled(file) => {
                let record = 2 * index + usize::from(half == Half::Square);
                let mut numbers = vec![0.0; file.numbers(record)];
                file.read(record, &mut numbers)?;
                Ok(Cow::Owned(numbers))
            }
        }
    }

    /// Goes over all of them with what belongs to each, side by side.
    pub fn change<T: Send>(&mut self, with: Vec<T>, change: impl Fn(usize, T, &mut Moments) + Sync) -> Result<()> {
        let with = with.into_par_iter().enumerate();
        match self {
            AllMoments::InMemory(held) => {
                with.zip(held).for_each(|((index, with), moments)| change(index, with, moments));
                Ok(())
            }
            AllMoments::Spilled(file) => with.try_for_each_init(Moments::default, |moments, (index, with)| {
                moments.mean.resize(file.numbers(2 * index), 0.0);
                moments.square.resize(file.numbers(2 * index + 1), 0.0);
                file.read(2 * index, &mut moments.mean)?;
                file.read(2 * index + 1, &mut moments.square)?;
                change(index, with, moments);
                write(file, index, moments)
            }),
        }
    }
}

fn write(file: &Spill, index: usize, moments: &Moments) -> Result<()> {
    file.write(2 * index, &moments.mean)?;
    file.write(2 * index + 1, &moments.square)
}
