//! `ktstr-orch run` serves one client on descriptor 3; `ktstr-orch serve --socket PATH` serves many.

use std::{path::PathBuf, process::ExitCode, sync::atomic::Ordering};

use anyhow::{Context, Result, bail};
use ktstr_orch::server::Server;
use ktstr_proto::Channel;

const USAGE: &str = "usage: ktstr-orch run
       ktstr-orch serve --socket PATH [--cpus N]

run    one client, already connected on descriptor 3 (started by tests and the ktstr command)
serve  many clients on a unix socket, queued while the host's CPUs are busy; clients find it
       through KTSTR_ORCH_SOCK=PATH";

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    match start(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ktstr-orch: {error:#}");
            ExitCode::from(4)
        }
    }
}

fn start(args: Vec<String>) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let host_cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    match words.as_slice() {
        ["run"] => {
            let mut server = Server::new(host_cpus)?;
            server.add_client(Channel::inherited("client")?)?;
            serve(server)
        }
        ["serve", "--socket", path] => listen(path, host_cpus),
        ["serve", "--socket", path, "--cpus", n] => {
            let cpus = n.parse().ok().filter(|n| *n > 0);
            listen(path, cpus.with_context(|| format!("--cpus {n}: give a number from 1 up"))?)
        }
        ["--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

fn listen(path: &str, cpus: u32) -> Result<()> {
    let mut server = Server::new(cpus)?;
    server.listen(PathBuf::from(path))?;
    println!("listening on {path}");
    serve(server)
}

/// Ends in order on SIGTERM and SIGINT: runs are cancelled, children reaped, the socket removed.
fn serve(mut server: Server) -> Result<()> {
    let (stop, waker) = server.stopper();
    let mut signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])
            .context("cannot watch for signals")?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            stop.store(true, Ordering::Relaxed);
            // Fails only when the loop has ended already.
            let _ = waker.wake();
        }
    });
    Ok(server.run()?)
}
