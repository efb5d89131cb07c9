//! Questions to a core file.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use ktstr_jail::JailSpec;
use ktstr_proto::capture::Question;

use crate::guest_kernel::GuestKernel;
use crate::image::KernelImage;
use crate::kernel::Profile;
use crate::mem::GuestMem;
use crate::vmcore;

/// Answers on standard output.
pub fn query(core: &Path, kernel: &Path, question: &Question, json: bool) -> Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let (mut core, kernel) = (open(core)?, open(kernel)?);
    // What a guest wrote is read by a confined process only, here too.
    let _confined = ktstr_jail::enter(&JailSpec::monitor()).context("cannot confine this process")?;
    let layout = vmcore::open(&mut core).context("the core file cannot be used")?;
    let mem = GuestMem::map(&core, layout).context("the core file cannot be mapped")?;
    let profile = Profile::of(&KernelImage::read(kernel)?).context("the kernel file cannot be used")?;
    let kernel = GuestKernel::find(&profile, &mem)
        .context("no such kernel runs in the core file: is it the right kernel file?")?;
    let (node, _) = kernel.answer(question)?;
    let shown = if json { serde_json::to_string(&node)? } else { node.text() };
    super::say(shown.trim_start_matches('\n'))?;
    Ok(())
}
