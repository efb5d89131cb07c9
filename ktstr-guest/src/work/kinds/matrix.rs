//! Matrix multiplication as the work of a request.

use std::hint::black_box;

/// Three square matrices that fill a given size.
pub(super) struct Matrices {
    side: usize,
    cells: Vec<u64>,
}

/// Multiplications in one unit of work.
const PER_UNIT: u64 = 1024;

impl Matrices {
    /// As large as fits into `bytes`, at least 4 by 4.
    pub fn new(bytes: usize) -> Self {
        let side = (bytes / (3 * size_of::<u64>())).isqrt().max(4);
        Self { side, cells: (0..3 * side * side).map(|cell| cell as u64).collect() }
    }

    /// One multiplication of the first by the second into the third, of a part of its rows that changes
    /// from call to call and is at most 32 rows by 32 columns; units of work done.
    pub fn multiply(&mut self) -> u64 {
        let (side, square) = (self.side, self.side * self.side);
        let rows = side.min(32);
        let first = self.cells[0] as usize % side;
        for row in (0..rows).map(|row| (first + row) % side) {
            for column in 0..side.min(32) {
                let mut sum = 0u64;
                for k in 0..side {
                    sum = sum.wrapping_add(
                        self.cells[row * side + k].wrapping_mul(self.cells[square + k * side + column]),
                    );
                }
                self.cells[2 * square + row * side + column] = black_box(sum);
            }
        }
        self.cells[0] = self.cells[0].wrapping_add(rows as u64);
        ((rows * side.min(32) * side) as u64).div_ceil(PER_UNIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_multiplies_within_its_size() {
        let mut matrices = Matrices::new(3 * 8 * 64);
        assert_eq!(matrices.side, 8);
        let expected: u64 = (0..8).map(|k| matrices.cells[8 + k] * matrices.cells[64 + k * 8]).sum();
        assert_eq!(matrices.multiply(), 1);
        assert_eq!(matrices.cells[2 * 64 + 8], expected);
        assert_eq!(Matrices::new(0).side, 4);
    }
}
