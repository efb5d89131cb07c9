//! Fetches Debian's cloud kernels through the host's own package client.
//!
//! The client works with private lists and an empty package status below the
//! store, so nothing on the host changes; mirror and keyring are those of the
//! host's configured sources, asked for other suites. What the client cannot
//! verify it refuses, and so do we. No mirror is written down here, nothing is
//! fetched any other way, and a host without such sources gets an error that
//! names the alternatives.
//!
//! `sources` finds the mirror, `client` runs apt, `offer` decides which
//! packages make a kernel, this file strings them together.

mod client;
mod control;
mod offer;
mod sources;

use std::ffi::OsString;

pub use client::ClientError;
pub use offer::{Offer, OfferError};
pub use sources::SourcesError;

use super::entry::{Metadata, Source, Store, StoreError};
use super::import::{ImportError, install_packages};
use client::Client;

/// Suites that carry kernels with sched_ext.
const SUITES: [&str; 2] = ["trixie-backports", "sid"];
/// First upstream version whose cloud flavour has sched_ext.
const SCHED_EXT_SINCE: [u32; 2] = [6, 16];

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The host's sources give no mirror.
    #[error(transparent)]
    Sources(#[from] SourcesError),
    /// The package client failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The mirror has no such kernel.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// What came cannot be used.
    #[error("cannot import the downloaded packages")]
    Import(#[from] ImportError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No series was named and the newest kernel turned out not to fit.
    #[error(
        "kernel {key} was fetched but has no sched_ext or no BTF; name a series: `ktstr kernel pull debian:SERIES`"
    )]
    Unfit {
        /// The entry.
        key: String,
    },
}

/// What a pull reports while it works.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A new step begins.
    Step(String),
    /// Part of the running transfer that is done, 0 to 100.
    Percent(f32),
}

/// A finished pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The entry.
    pub metadata: Metadata,
    /// It was in the cache already.
    pub cached: bool,
}

/// Fetches the newest cloud kernel of `series` (any with sched_ext when
/// `None`) into the store. `lookup` reads an environment variable.
pub fn pull(
    store: &Store,
    series: Option<&str>,
    lookup: impl Fn(&str) -> Option<OsString>,
    progress: &mut dyn FnMut(Event),
) -> Result<Pulled, PullError> {
    let client = Client::prepare(store, &SUITES, lookup)?;
    progress(Event::Step(format!("asking {} for kernels in {}", client.mirror(), SUITES.join(" and "))));
    client.update(progress)?;
    progress(Event::Step("reading the package lists".to_owned()));
    let offers = offer::complete(&client.kernel_packages()?, client.arch());
    let chosen = match series {
        Some(series) => offer::choose(&offers, |offer| offer.version.matches(series), Some(series))?,
        None => offer::choose(&offers, |offer| offer.version.at_least(&SCHED_EXT_SINCE), None)?,
    };
    let key = format!("debian-{}", chosen.version.release());
    let source = Source::Debian {
        suites: SUITES.iter().map(|s| (*s).to_owned()).collect(),
        packages: chosen.packages.iter().map(|p| format!("{}={}", p.name, p.version)).collect(),
    };
    if let Ok(metadata) = store.load(&key)
        && metadata.source == source
    {
        return Ok(Pulled { metadata, cached: true });
    }
    progress(Event::Step(format!(
        "downloading {} ({} MB)",
        chosen.version,
        chosen.size().div_ceil(1_000_000)
    )));
    let files = client.download(&chosen.packages, progress)?;
    progress(Event::Step(format!("unpacking {key}")));
    let metadata = install_packages(store, files.paths(), source, |_| key)?;
    if series.is_none() && !(metadata.sched_ext == Some(true) && metadata.btf) {
        return Err(PullError::Unfit { key: metadata.key });
    }
    Ok(Pulled { metadata, cached: false })
}
