//! Values in BPF maps that a run keeps an eye on, and what became of them.

use serde::{Deserialize, Serialize};

/// How many samples of a value become one number, or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Aggregate {
    /// One value: its mean over the samples.
    Scalar,
    /// One counter: what it was last.
    ScalarCounter,
    /// One value per CPU: the mean over CPUs and samples as `…_avg`, the largest as `…_max`.
    PerCpu,
    /// One counter per CPU: the sum of what they were last.
    PerCpuCounter,
}

/// A value that is sampled while scenarios run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapWatch {
    /// The map's name, or the end of it.
    pub map: String,
    /// Where in it.
    pub path: String,
    /// What the samples become.
    pub aggregate: Aggregate,
    /// Last part of the metric's name.
    pub label: String,
}

/// A number that came of a [`MapWatch`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MapMetric {
    /// `MAP_LABEL`, with `_avg` and `_max` where there are two; the map's name without its section.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Samples it was made of.
    pub samples: u32,
}
