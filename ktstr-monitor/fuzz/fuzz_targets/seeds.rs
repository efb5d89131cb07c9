//! Writes the seeds of every target to `DIR/<target>/<number>`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let root = PathBuf::from(std::env::args_os().nth(1).ok_or(std::io::ErrorKind::InvalidInput)?);
    for (name, _) in ktstr_monitor_fuzz::entries::ENTRIES {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir)?;
        for (nth, seed) in ktstr_monitor_fuzz::entries::seeds(name).iter().enumerate() {
            std::fs::write(dir.join(nth.to_string()), seed)?;
        }
    }
    Ok(())
}
