//! What runs the vCPUs: the host is asked, and the emulator found with its version.

use std::{env, path::PathBuf, process::Command, time::Duration};

use ktstr_proto::{
    Accel, AccelKind, Fds,
    run::Jail,
    vmm::{Emulator, Probe, VmmLink},
};

use super::PlanError;
use crate::{children::Child, known::Known, pack};

/// Emulators before this major version corrupt guests when several threads translate (DESIGN section 4).
pub(super) const SOUND_EMULATOR: u32 = 10;

/// Probes only when the answer matters, and says in one line what was chosen and why.
pub(super) fn choose_accelerator(
    wanted: Accel,
    jail: Jail,
    notes: &mut Vec<String>,
) -> Result<AccelKind, PlanError> {
    match wanted {
        Accel::Tcg => Ok(AccelKind::Tcg),
        Accel::Det => Ok(AccelKind::Det),
        Accel::Kvm | Accel::Auto => {
            let (usable, detail) = probe(jail)?;
            match (usable, wanted) {
                (true, _) => {
                    notes.push(format!("accelerator kvm: {detail}"));
                    Ok(AccelKind::Kvm)
                }
                (false, Accel::Kvm) => Err(PlanError::NoKvm { detail }),
                (false, _) => {
                    notes.push(format!("accelerator tcg, not kvm: {detail}"));
                    Ok(AccelKind::Tcg)
                }
            }
        }
    }
}

/// Asks a VMM process of its own, so that whatever the host's KVM does to it hurts nobody.
fn probe(jail: Jail) -> Result<(bool, String), PlanError> {
    let limit = Duration::from_secs(20);
    let mut vmm = Child::<VmmLink>::spawn("ktstr-vmm", &[], None, jail)?;
    let asked = vmm
        .channel
        .handshake("ktstr-orch", limit)
        .and_then(|_| vmm.channel.call(Probe, Fds::default(), limit, |_, _| ()));
    Ok(match asked {
        Ok((report, _)) => (report.usable, report.detail),
        Err(error) => (false, format!("the probe failed: {}", ktstr_proto::link::chain(&error))),
    })
}

pub(super) fn find_emulator(accel: AccelKind, known: &Known) -> Result<Emulator, PlanError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let program = pack::in_path("qemu-system-x86_64", &path).ok_or(PlanError::NoEmulator { accel })?;
    let program = program.canonicalize().unwrap_or(program);
    let unreadable = |said: String| PlanError::EmulatorVersion { program: program.clone(), said };
    let said = known.answer(&program, "--version", || {
        let output = Command::new(&program).arg("--version").output().map_err(|source| PlanError::File {
            action: "run",
            path: program.clone(),
            source,
        })?;
        let said = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        // What is no answer is not kept.
        if parse_version(&said).is_some() { Ok(said) } else { Err(unreadable(said)) }
    })?;
    let version = parse_version(&said).ok_or_else(|| unreadable(said))?;
    // The jail shows the system's library directories by itself.
    let firmware = ["/usr/share/qemu", "/usr/share/seabios"];
    let files = firmware.map(PathBuf::from).into_iter().filter(|dir| dir.is_dir()).collect();
    Ok(Emulator { program, version, files })
}

/// `QEMU emulator version 10.0.2 (Debian …)` → `(10, 0)`.
fn parse_version(said: &str) -> Option<(u32, u32)> {
    let version = said.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn sound_emulator_note(emulator: Option<&Emulator>) -> Option<String> {
    let emulator = emulator.filter(|e| e.version.0 < SOUND_EMULATOR)?;
    let (major, minor) = emulator.version;
    Some(format!(
        "emulator QEMU {major}.{minor} is older than {SOUND_EMULATOR}: guests run on one host thread, since several corrupt them"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulator_versions_are_read_as_distributions_print_them() {
        assert_eq!(
            parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)"),
            Some((10, 0))
        );
        assert_eq!(parse_version("QEMU emulator version 7.2.17"), Some((7, 2)));
        assert_eq!(parse_version("something else"), None);
    }
}
