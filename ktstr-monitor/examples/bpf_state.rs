//! Prints the BPF state of a stopped guest: `bpf_state RAM VMLINUX [--json] [MAP [PATH]]`, where RAM is
//! a file with the guest's memory from address 0 on.

use std::fs::File;

use ktstr_monitor::bpf::{BpfLayout, BpfState, MapAnswer, Reader, path::Path, query};
use ktstr_monitor::image::KernelImage;
use ktstr_monitor::kernel::{LiveKernel, Profile};
use ktstr_monitor::mem::{GuestMem, Layout};
use ktstr_monitor::render::{to_json, to_text};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let json = words.iter().any(|word| word == "--json");
    words.retain(|word| word != "--json");
    let [ram, kernel, asked @ ..] = &words[..] else {
        return Err("usage: bpf_state RAM VMLINUX [--json] [MAP [PATH]]".into());
    };
    let ram = File::open(ram)?;
    let mem = GuestMem::map(&ram, Layout::flat(ram.metadata()?.len())?)?;
    let profile = Profile::of(&KernelImage::read(File::open(kernel)?)?)?;
    let live = LiveKernel::locate(&profile, &mem)?;
    let layout = BpfLayout::of(profile.types());
    let reader = Reader::new(&profile, &live, live.view(&mem), &layout);
    let [name, rest @ ..] = asked else {
        let state = BpfState::read(&reader, Default::default());
        match json {
            true => println!("{}", state.to_json()),
            false => print!("{}", state.to_text()),
        }
        let (reads, bytes) = reader.spent();
        eprintln!("{reads} reads, {bytes} bytes");
        for missing in layout.absent() {
            eprintln!("absent: {missing}");
        }
        return Ok(());
    };
    let path = rest.first().map(|path| path.parse::<Path>()).transpose()?;
    match query(&reader, name, path.as_ref(), Default::default())?.ok_or("no such map")? {
        MapAnswer::Map(map) if json => println!("{}", map.to_json()),
        MapAnswer::Map(map) => print!("{}", map.to_text()),
        MapAnswer::Value(value) if json => println!("{}", to_json(&value)),
        MapAnswer::Value(value) => println!("{}", to_text(&value, 0)),
    }
    Ok(())
}
