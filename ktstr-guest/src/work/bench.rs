//! Parameters of the work types that are small benchmarks with threads of their own.

/// [`super::WorkType::Schbench`]: messengers wake worker threads, which think, work and ask for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchbenchConfig {
    /// Messenger threads.
    pub message_threads: u32,
    /// Worker threads of each messenger; 0 is one for each allowed CPU, shared out.
    pub worker_threads: u32,
    /// Size of a worker's matrices.
    pub cache_footprint_kib: u32,
    /// Matrix multiplications of a request.
    pub operations: u32,
    /// Thinking before a request's work, microseconds.
    pub sleep_usec: u64,
    /// Requests a second of each messenger; 0 is as many as the workers take.
    pub rps: u64,
}

/// [`super::WorkType::Taobench`]: fast threads serve hits from memory, slow threads fetch what is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaobenchConfig {
    /// Fast threads; 0 is one for each allowed CPU.
    pub client_threads: u32,
    /// Slow threads; 0 is as many as fast ones.
    pub slow_threads: u32,
    /// Size of the cache.
    pub cache_mib: u32,
    /// Requests that are hits, percent.
    pub hit_pct: u32,
    /// Time of a fetch, microseconds.
    pub slow_path_us: u64,
    /// Requests a second of each fast thread; 0 is as many as it can (closed loop).
    pub arrival_rate_hz: u64,
}

type Limits = Vec<(&'static str, u64, u64, u64)>;

impl SchbenchConfig {
    /// One messenger, a worker for each CPU, 256 KiB, five multiplications, 100 µs of thinking.
    pub const DEFAULT: Self = Self {
        message_threads: 1,
        worker_threads: 0,
        cache_footprint_kib: 256,
        operations: 5,
        sleep_usec: 100,
        rps: 0,
    };

    pub(super) fn limits(&self) -> Limits {
        vec![
            ("message_threads", self.message_threads.into(), 1, 256),
            ("worker_threads", self.worker_threads.into(), 0, 1024),
            ("cache_footprint_kib", self.cache_footprint_kib.into(), 1, 1 << 20),
            ("operations", self.operations.into(), 1, 1 << 20),
            ("rps", self.rps, 0, 1_000_000),
        ]
    }
}

impl Default for SchbenchConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TaobenchConfig {
    /// A fast and a slow thread for each CPU, 64 MiB, 90 % hits, 100 µs for a fetch, a closed loop.
    pub const DEFAULT: Self = Self {
        client_threads: 0,
        slow_threads: 0,
        cache_mib: 64,
        hit_pct: 90,
        slow_path_us: 100,
        arrival_rate_hz: 0,
    };

    pub(super) fn limits(&self) -> Limits {
        vec![
            ("client_threads", self.client_threads.into(), 0, 1024),
            ("slow_threads", self.slow_threads.into(), 0, 1024),
            ("cache_mib", self.cache_mib.into(), 1, 1 << 20),
            ("hit_pct", self.hit_pct.into(), 0, 100),
            ("arrival_rate_hz", self.arrival_rate_hz, 0, 1_000_000),
        ]
    }
}

impl Default for TaobenchConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}
