//! Where a forward pass spends its time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::forward::{Observer, Operation};
use crate::kernels::Kernels;
use crate::kernels::lines::{Arena, Line};
use crate::kernels::vector::Read;
use crate::pool::Pool;
use crate::{Error, Result};

/// Time and bytes of every operation of the passes that it observes.
#[derive(Clone, Debug)]
pub struct Profile {
    last: Instant,
    operations: BTreeMap<(Option<usize>, Operation), Cost>,
}

/// What an operation cost, all passes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Time that it took.
    pub time: Duration,
    /// Weights, keys and values that it read.
    pub bytes: usize,
}

impl Profile {
    /// Begins to measure: the first operation is timed from here on.
    pub fn start() -> Self {
        Self { last: Instant::now(), operations: BTreeMap::new() }
    }

    /// Begins a pass: the time since the last one is nobody's.
    pub fn resume(&mut self) {
        self.last = Instant::now();
    }

    /// What each operation of each layer cost; `None` is outside the layers.
    pub fn operations(&self) -> impl Iterator<Item = (Option<usize>, Operation, Cost)> {
        self.operations.iter().map(|((layer, operation), cost)| (*layer, *operation, *cost))
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.time += other.time;
        self.bytes += other.bytes;
    }
}

impl Observer for Profile {
    fn finished(&mut self, operation: Operation, layer: Option<usize>, bytes: usize) {
        let now = Instant::now();
        *self.operations.entry((layer, operation)).or_default() += Cost { time: now - self.last, bytes };
        self.last = now;
    }
}

/// Bytes that are read to find the limit: more than most caches hold.
const READ_BYTES: usize = 192 << 20;

/// Tasks that share the reading.
const READ_TASKS: usize = 64;

/// Bytes a second that this machine's memory gives to so many threads, the best of five. Weights that stay in a cache can be read
/// faster.
///
/// # Errors
/// [`Error::Threads`]
pub fn memory_speed(threads: usize) -> Result<f64> {
    let pool = Pool::new(threads).map_err(|source| Error::Threads { threads, source })?;
    let kernels = Kernels::best();
    let mut lines = Arena::default().lines(READ_BYTES / size_of::<Line>());
    // Memory that was never written is not there.
    pool.for_each(lines.chunks_mut(READ_BYTES / size_of::<Line>() / READ_TASKS).collect(), &|lines| {
        lines.iter_mut().for_each(|line| line.floats_mut().fill(1.0));
    });
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let started = Instant::now();
        pool.for_each(lines.chunks(READ_BYTES / size_of::<Line>() / READ_TASKS).collect(), &|lines: &[Line]| {
            std::hint::black_box(kernels.run(Read(lines)));
        });
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(READ_BYTES as f64 / best)
}
