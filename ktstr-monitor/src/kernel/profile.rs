//! What the kernel file tells before anything runs: symbols, types, and how to recognise the image.

use thiserror::Error;

use super::rq::RqLayout;
use super::scx::ScxLayout;
use super::state::StateLayouts;
use crate::addr::{Gpa, Kva};
use crate::btf::{BtfError, FieldMissing, KernelTypes};
use crate::image::KernelImage;
use crate::symbols::{SymbolError, Symbols};

/// Bytes of `linux_banner` compared to recognise the image in guest memory.
const MAX_BANNER: usize = 256;
/// A shorter one could be met by chance.
const MIN_BANNER: usize = 24;
/// No kernel supports more CPUs.
const MAX_CPUS: u64 = 8192;

/// Why a kernel file does not tell enough to watch that kernel.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// No symbols, or not the ones needed.
    #[error("the kernel's symbols are not usable")]
    Symbols(#[from] SymbolError),
    /// No types.
    #[error("the kernel's type information is not usable")]
    Btf(#[from] BtfError),
    /// The types lack something that nothing works without.
    #[error("the kernel's type information lacks a member the monitor depends on")]
    Field(#[from] FieldMissing),
    /// The version text by which the image is recognised is not there.
    #[error("the kernel file has no version text at `linux_banner`")]
    Banner,
    /// A symbol lies outside the image.
    #[error("the kernel symbol `{symbol}` lies outside the image")]
    Outside {
        /// The symbol.
        symbol: &'static str,
    },
    /// `NR_CPUS` cannot be right.
    #[error("the kernel's CPU masks have {bits} bits")]
    CpuMask {
        /// The size of `struct cpumask`.
        bits: u64,
    },
}

/// A symbol in the image with its address before any randomisation, virtual and physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Linked {
    pub(super) kva: Kva,
    pub(super) load: Gpa,
}

/// A kernel as its file describes it.
#[derive(Debug)]
pub struct Profile {
    symbols: Symbols,
    types: KernelTypes,
    pub(super) banner: Vec<u8>,
    pub(super) linux_banner: Linked,
    pub(super) text: Linked,
    pub(super) phys_base: Linked,
    pub(super) init_top_pgt: Linked,
    pub(super) page_offset_base: Kva,
    pub(super) pgdir_shift: Option<Kva>,
    pub(super) per_cpu_offset: Kva,
    pub(super) cpu_possible_mask: Kva,
    pub(super) cpu_online_mask: Kva,
    pub(super) nr_cpus: u64,
    /// Link address of the per-CPU `runqueues`.
    pub(super) runqueues: Kva,
    /// Link address of `scx_root`.
    pub(crate) scx_root: Option<Kva>,
    /// Mirror of `struct rq`.
    pub rq: RqLayout,
    /// Mirror of `struct scx_sched`.
    pub scx: ScxLayout,
    /// Mirrors of what a capture reads.
    pub state: StateLayouts,
}

impl Profile {
    /// Decodes symbols and types of `image`. Takes some tenths of a second.
    pub fn of(image: &KernelImage) -> Result<Self, ProfileError> {
        let types = KernelTypes::parse(image.section(".BTF").ok_or(BtfError::NoSection)?)?;
        Self::new(image, Symbols::of(image)?, types)
    }

    fn new(image: &KernelImage, symbols: Symbols, types: KernelTypes) -> Result<Self, ProfileError> {
        let linked = |symbol| {
            let kva = symbols.require(symbol)?;
            let load = image.load_address(kva).ok_or(ProfileError::Outside { symbol })?;
            Ok::<_, ProfileError>(Linked { kva, load })
        };
        let linux_banner = linked("linux_banner")?;
        let banner = image.at_kva(linux_banner.kva, MAX_BANNER).unwrap_or_default();
        let banner = banner.split(|&b| b == 0).next().unwrap_or_default().to_vec();
        if banner.len() < MIN_BANNER {
            return Err(ProfileError::Banner);
        }
        let nr_cpus = types.size_of("cpumask")?.saturating_mul(8);
        if !(64..=MAX_CPUS).contains(&nr_cpus) || nr_cpus % 64 != 0 {
            return Err(ProfileError::CpuMask { bits: nr_cpus });
        }
        Ok(Self {
            banner,
            linux_banner,
            text: linked("_text")?,
            phys_base: linked("phys_base")?,
            init_top_pgt: linked("init_top_pgt").or_else(|_| linked("swapper_pg_dir"))?,
            page_offset_base: symbols.require("page_offset_base")?,
            pgdir_shift: symbols.get("pgdir_shift"),
            per_cpu_offset: symbols.require("__per_cpu_offset")?,
            cpu_possible_mask: symbols.require("__cpu_possible_mask")?,
            cpu_online_mask: symbols.require("__cpu_online_mask")?,
            nr_cpus,
            runqueues: symbols.require("runqueues")?,
            scx_root: symbols.get("scx_root"),
            rq: RqLayout::of(&types)?,
            scx: ScxLayout::of(&types),
            state: StateLayouts::of(&types),
            symbols,
            types,
        })
    }

    /// The kernel's symbols, at link addresses.
    pub fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// The kernel's types.
    pub fn types(&self) -> &KernelTypes {
        &self.types
    }

    /// Link address of the per-CPU `runqueues`.
    pub(crate) fn runqueues(&self) -> Kva {
        self.runqueues
    }

    /// Link address of `__cpu_online_mask`.
    pub(crate) fn online_mask(&self) -> Kva {
        self.cpu_online_mask
    }

    /// The kernel's version text, as in `/proc/version`.
    pub fn version(&self) -> String {
        String::from_utf8_lossy(&self.banner).trim_end().to_owned()
    }
}
