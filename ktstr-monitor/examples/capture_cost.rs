//! Times what a capture reads while the guest stands: `capture_cost VMCORE VMLINUX [ROUNDS]`.

use std::fs::File;
use std::time::Instant;

use ktstr_monitor::freeze::Freeze;
use ktstr_monitor::image::KernelImage;
use ktstr_monitor::kernel::{LiveKernel, Profile};
use ktstr_monitor::mem::GuestMem;
use ktstr_monitor::vmcore;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [core, kernel, rest @ ..] = &words[..] else {
        return Err("usage: capture_cost VMCORE VMLINUX [ROUNDS]".into());
    };
    let rounds: u32 = rest.first().map_or(Ok(3), |rounds| rounds.parse())?;
    let mut core = File::open(core)?;
    let layout = vmcore::open(&mut core)?;
    let mem = GuestMem::map(&core, layout)?;
    let profile = Profile::of(&KernelImage::read(File::open(kernel)?)?)?;
    let live = LiveKernel::locate(&profile, &mem)?;
    let freeze = Freeze::default();
    for _ in 0..rounds {
        let copied = freeze.touch(&profile, &live, &mem);
        let began = Instant::now();
        let captured = freeze.read(&profile, &live, &mem);
        let read = began.elapsed();
        let json = serde_json::to_string(&captured.node("cost"))?;
        println!("{copied:?}");
        println!("read {read:?}, {} bytes of JSON in {:?}", json.len(), began.elapsed() - read);
        freeze.end();
    }
    Ok(())
}
