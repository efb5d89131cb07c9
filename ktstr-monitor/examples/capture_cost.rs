//! Times what a capture reads while the guest stands: `capture_cost VMCORE VMLINUX [ROUNDS]`. The first round finds
//! memory untouched and room to be made, as in a guest that has just grown; each is compared with copying so
//! many bytes in one piece. CPU time is what a host without other work would need.

use std::fs::{self, File};
use std::time::{Duration, Instant};

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
    let largest = mem.layout().regions().iter().max_by_key(|region| region.len);
    let first = largest.ok_or("no memory")?.start;
    for _ in 0..rounds {
        let ran = cpu_time()?;
        let copied = freeze.touch(&profile, &live, &mem);
        let touched = cpu_time()? - ran;
        let (mut whole, floor) = (vec![1; copied.bytes], cpu_time()?);
        mem.read(first, &mut whole)?;
        println!("so many bytes in one piece: {:?} of CPU time", cpu_time()? - floor);
        let began = Instant::now();
        let captured = freeze.read(&profile, &live, &mem);
        let read = began.elapsed();
        let json = serde_json::to_string(&captured.node("cost"))?;
        println!("{copied:?}, {touched:?} of CPU time");
        println!("read {read:?}, {} bytes of JSON in {:?}", json.len(), began.elapsed() - read);
        freeze.end();
    }
    Ok(())
}

/// What this thread has run, by the scheduler's account.
fn cpu_time() -> Result<Duration, Box<dyn std::error::Error>> {
    let account = fs::read_to_string("/proc/thread-self/schedstat")?;
    let ran = account.split_whitespace().next().ok_or("an empty account")?;
    Ok(Duration::from_nanos(ran.parse()?))
}
