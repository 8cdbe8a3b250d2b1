//! Keys as real traffic has them: a few are hot.

use rand::{Rng, RngExt as _};

/// Draws from 0 to n - 1, where k comes up in proportion to 1 / (k + 1).
pub struct Zipf {
    /// Share of all draws that fall on a key or one before it.
    cumulated: Vec<f64>,
}

impl Zipf {
    /// A distribution over `n` keys.
    pub fn new(n: u32) -> Self {
        let mut sum = 0.0;
        let mut cumulated: Vec<f64> = (1..=n)
            .map(|k| {
                sum += 1.0 / f64::from(k);
                sum
            })
            .collect();
        cumulated.iter_mut().for_each(|share| *share /= sum);
        Self { cumulated }
    }

    /// The next key.
    pub fn draw(&self, random: &mut impl Rng) -> usize {
        let point: f64 = random.random();
        self.cumulated.partition_point(|share| *share < point).min(self.cumulated.len() - 1)
    }
}
