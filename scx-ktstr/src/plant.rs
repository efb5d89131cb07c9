//! `--plant`: loads the object of `bpf/plant.bpf.c` and runs its one program once.
//!
//! The object schedules nothing. What it planted stays in the kernel as long as the returned
//! skeleton lives. What the facts are is said in `bpf/plant.h`.

use std::mem::MaybeUninit;

use anyhow::{Context, Result, bail};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{OpenObject, ProgramInput, ProgramMut};

#[expect(
    clippy::allow_attributes,
    clippy::undocumented_unsafe_blocks,
    reason = "generated from the BPF object"
)]
mod bpf {
    include!(concat!(env!("OUT_DIR"), "/plant_skel.rs"));
}

pub use bpf::PlantSkel;
use bpf::PlantSkelBuilder;

/// `struct plant_args`, as words.
const ARGS_LEN: usize = 24;

/// Plants everything. The kernel must have arenas and cgroup storage.
pub fn plant(storage: &mut MaybeUninit<OpenObject>) -> Result<PlantSkel<'_>> {
    let open = PlantSkelBuilder::default().open(storage).context("opening the planting object")?;
    let skel = open.load().context("the kernel did not accept the planting programs")?;
    let cpus = libbpf_rs::num_possible_cpus().context("counting possible CPUs")?;
    let mut args = [0; ARGS_LEN];
    args[..4].copy_from_slice(&u32::try_from(cpus)?.to_le_bytes());
    run(&skel.progs.plant, Some(&mut args))?;
    run(&skel.progs.plant_in_cgroup, None)?;
    let word = |at: usize| args[at..].first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight));
    println!("scx-ktstr: planted task={:#x} first_node={:#x}", word(8), word(16));
    Ok(skel)
}

fn run(program: &ProgramMut<'_>, context: Option<&mut [u8]>) -> Result<()> {
    let input = ProgramInput { context_in: context, ..Default::default() };
    let output = program.test_run(input).with_context(|| format!("running {:?}", program.name()))?;
    if output.return_value != 0 {
        bail!("the planting program {:?} stopped at step {}", program.name(), output.return_value);
    }
    Ok(())
}
