//! Random choices that stay the same for ever: fixed generator, fixed arithmetic.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of choices. `rand`'s own sampling may change between its versions, and a dataset's bytes must not, so the
/// few draws that are needed are made here from the generator's 64-bit words.
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    /// The stream for one purpose: streams that differ in `purpose`, `seed` or `number` have nothing in common.
    pub(super) fn new(purpose: &str, seed: u64, number: u64) -> Self {
        let key = blake3::hash(format!("{purpose} {seed} {number}").as_bytes());
        Self(ChaCha8Rng::from_seed(*key.as_bytes()))
    }

    /// A number below `bound`, each as likely as the others to one part in 2^64 / `bound`. 0 when `bound` is 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let word = u128::from(self.0.next_u64());
        ((word * bound as u128) >> 64) as usize
    }

    /// True with this probability. Always draws, so that a chance of 0 moves nothing else.
    pub(super) fn chance(&mut self, probability: f64) -> bool {
        let fraction = (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        fraction < probability
    }

    /// One of the items, or `None` of an empty slice.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    /// Every order equally likely (Durstenfeld 1964).
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_stream_depends_on_its_purpose_its_seed_and_its_number() {
        let first = |purpose, seed, number| Draw::new(purpose, seed, number).0.next_u64();
        assert_eq!(first("rows", 7, 1), first("rows", 7, 1));
        assert_ne!(first("rows", 7, 1), first("order", 7, 1));
        assert_ne!(first("rows", 7, 1), first("rows", 8, 1));
        assert_ne!(first("rows", 7, 1), first("rows", 7, 2));
    }

    #[test]
    fn numbers_below_a_bound_are_even() {
        let mut draw = Draw::new("test", 1, 0);
        let mut counts = [0_u32; 5];
        for _ in 0..50_000 {
            counts[draw.below(5)] += 1;
        }
        // Binomial: mean 10,000, standard deviation 89; five of them on either side.
        assert!(counts.iter().all(|count| (9_555..=10_445).contains(count)), "{counts:?}");
        assert_eq!(draw.below(0), 0);
        assert_eq!(draw.pick::<u8>(&[]), None);
    }

    #[test]
    fn a_chance_of_zero_never_happens_and_of_one_always() {
        let mut draw = Draw::new("test", 2, 0);
        assert!((0..1_000).all(|_| !draw.chance(0.0)));
        assert!((0..1_000).all(|_| draw.chance(1.0)));
    }

    #[test]
    fn shuffling_loses_nothing() {
        let mut items: Vec<u32> = (0..100).collect();
        Draw::new("test", 3, 0).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
