//! Every entry that takes hostile bytes, fed with sound ones, damaged ones and any: nothing breaks.
//! `KTSTR_FUZZ_ROUNDS` says how many; `cargo xtask fuzz` looks for worse ones.

use std::time::Instant;

use crate::entries::{ENTRIES, seeds};

/// SplitMix64: the same bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// A seed with some of its bytes changed, or anything.
fn bytes(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = match random.below(8) {
        0 => (0..random.below(600)).map(|_| random.next() as u8).collect(),
        _ => seeds[random.below(seeds.len())].clone(),
    };
    for _ in 0..random.below(12) {
        if !bytes.is_empty() {
            let at = random.below(bytes.len());
            bytes[at] = [0, 1, 0x7f, 0xff, random.next() as u8][random.below(5)];
        }
    }
    if random.below(8) == 0 {
        bytes.truncate(random.below(bytes.len() + 1));
    }
    bytes
}

/// With `KTSTR_FUZZ_SEEDS` they are also written to `<there>/<target>/<number>`, for `cargo xtask fuzz`.
#[test]
fn seeds_are_taken() {
    let root = std::env::var_os("KTSTR_FUZZ_SEEDS").map(std::path::PathBuf::from);
    for (name, entry) in ENTRIES {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has seeds");
        for (nth, seed) in seeds.iter().enumerate() {
            entry(seed);
            if let Some(root) = &root {
                std::fs::create_dir_all(root.join(name)).unwrap();
                std::fs::write(root.join(name).join(nth.to_string()), seed).unwrap();
            }
        }
    }
}

#[test]
fn hostile_bytes_break_nothing() {
    let rounds = std::env::var("KTSTR_FUZZ_ROUNDS").ok().map_or(400, |rounds| rounds.parse().unwrap());
    for (name, entry) in ENTRIES {
        let seeds = seeds(name);
        let mut random = Random(7);
        let started = Instant::now();
        for round in 0..rounds {
            let input = bytes(&mut random, &seeds);
            let run = std::panic::AssertUnwindSafe(|| entry(&input));
            if std::panic::catch_unwind(run).is_err() {
                panic!("{name}, round {round}: {input:02x?}");
            }
        }
        println!("{name}: {rounds} inputs in {:.1} s", started.elapsed().as_secs_f64());
    }
}
