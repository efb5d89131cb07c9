//! Random choices of a scenario: all from the run's seed, so that a run can be repeated.

/// A stream of numbers (SplitMix64) that depends on nothing but its seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is at least 1.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next_u64() % limit.max(1) as u64) as usize
    }

    /// `count` different items of `items`, in their order; all of them when there are fewer.
    pub fn subset(&mut self, items: &[u32], count: usize) -> Vec<u32> {
        let mut left = items.to_vec();
        let mut chosen: Vec<u32> =
            (0..count.min(items.len())).map(|_| left.swap_remove(self.below(left.len()))).collect();
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_choices() {
        let choose = |seed| Random::new(seed).subset(&[0, 1, 2, 3, 4, 5, 6, 7], 3);
        assert_eq!(choose(5), choose(5));
        assert_eq!(choose(5).len(), 3);
        assert!((0..20).any(|seed| choose(seed) != choose(5)));
        assert_eq!(Random::new(1).subset(&[4, 2], 9), [2, 4]);
    }
}
