//! Inputs out of inputs: each a sample with a few changes, from a seed, so that a run can be repeated.
//!
//! What a target takes joins the samples, so that changes add up. Deliberately no coverage: that needs a compiler's help.

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

const CHANGES_MAX: u32 = 6;
const SAMPLES_MAX: usize = 4_096;
/// What an input may always grow to; a large sample's to twice its size.
const BYTES_MIN: usize = 1_024;
/// Numbers at the ends of something.
const EDGES: [u8; 9] = [0, 1, 2, 0x0a, 0x7f, 0x80, 0xc0, 0xfe, 0xff];

/// Makes inputs.
pub(crate) struct Mutator {
    random: StdRng,
    samples: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
    bytes_max: usize,
}

impl Mutator {
    /// From samples, and words that mean something in them.
    pub(crate) fn new(seed: u64, samples: Vec<Vec<u8>>, words: &[&str]) -> Self {
        let words = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let largest = samples.iter().map(Vec::len).max().unwrap_or_default();
        Self { random: StdRng::seed_from_u64(seed), samples, words, bytes_max: BYTES_MIN.max(largest * 2) }
    }

    /// The next input.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let mut input = self.sample();
        for _ in 0..self.random.random_range(0..=CHANGES_MAX) {
            self.change(&mut input);
        }
        input.truncate(self.bytes_max);
        input
    }

    /// Keeps an input that was taken, in the place of another when there are many.
    pub(crate) fn keep(&mut self, input: Vec<u8>) {
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(input);
        } else {
            let place = self.random.random_range(0..SAMPLES_MAX);
            self.samples[place] = input;
        }
    }

    fn sample(&mut self) -> Vec<u8> {
        let index = self.random.random_range(0..self.samples.len());
        self.samples[index].clone()
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.random.random_range(0..=input.len());
        let end = self.random.random_range(at..=input.len());
        match self.random.random_range(0..8) {
            0 if at < input.len() => input[at] ^= 1 << self.random.random_range(0..8),
            1 if at < input.len() => input[at] = self.random.random(),
            2 if at < input.len() => input[at] = EDGES[self.random.random_range(0..EDGES.len())],
            3 => drop(input.drain(at..end)),
            4 => {
                let copy = input[at..end].to_vec();
                drop(input.splice(at..at, copy));
            }
            5 if !self.words.is_empty() => {
                let word = self.words[self.random.random_range(0..self.words.len())].clone();
                drop(input.splice(at..at, word));
            }
            6 => {
                let other = self.sample();
                let from = self.random.random_range(0..=other.len());
                let to = self.random.random_range(from..=other.len());
                drop(input.splice(at..end, other[from..to].to_vec()));
            }
            _ => {
                let mut bytes = [0; 4];
                self.random.fill_bytes(&mut bytes);
                drop(input.splice(at..at, bytes));
            }
        }
    }
}
