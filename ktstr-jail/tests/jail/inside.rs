//! What the confined process cannot do, and what it still can.

use ktstr_jail::Role;

use crate::child::{Outcome, in_child, jailed, outcome, syscall};

const SELF_CONFINED: [Role; 3] = [Role::Vmm, Role::Monitor, Role::Device];
/// And that of emulators, here by a process that enters it instead of being born in it.
const ROLES: [Role; 4] = [Role::Vmm, Role::Monitor, Role::Device, Role::Emulator];

/// Translated code is executable memory; libraries set classes of threads and load filters of their own.
const OF_EMULATORS: [libc::c_long; 4] =
    [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_sched_setscheduler, libc::SYS_seccomp];

macro_rules! forbidden {
    ($($name:ident: $number:expr, [$($arg:expr),*];)*) => {
        $(
            #[test]
            fn $name() {
                for role in ROLES {
                    let found = jailed(role, || {
                        let mut args = [0_usize; 6];
                        let given = [$($arg as usize),*];
                        args[..given.len()].copy_from_slice(&given);
                        syscall($number, args)
                    });
                    let emulator = role == Role::Emulator;
                    let told = emulator && found == Outcome::Value(libc::ENOSYS);
                    let its_own = emulator && OF_EMULATORS.contains(&$number);
                    assert!(found == Outcome::Killed || told || its_own, "{role:?}: {found:?}");
                }
            }
        )*

        /// Each action and the system call it makes.
        const FORBIDDEN: &[(&str, &str)] = &[$((stringify!($name), stringify!($number)),)*];
    };
}

forbidden! {
    socket_inet: libc::SYS_socket, [libc::AF_INET, libc::SOCK_STREAM, 0];
    socket_unix: libc::SYS_socket, [libc::AF_UNIX, libc::SOCK_STREAM, 0];
    socket_vsock: libc::SYS_socket, [libc::AF_VSOCK, libc::SOCK_STREAM, 0];
    connect: libc::SYS_connect, [0, 0, 0];
    bind: libc::SYS_bind, [0, 0, 0];
    listen: libc::SYS_listen, [0, 0];
    ptrace: libc::SYS_ptrace, [libc::PTRACE_TRACEME, 0, 0, 0];
    read_of_foreign_memory: libc::SYS_process_vm_readv, [1, 0, 0, 0, 0, 0];
    write_to_foreign_memory: libc::SYS_process_vm_writev, [1, 0, 0, 0, 0, 0];
    foreign_descriptor: libc::SYS_pidfd_getfd, [0, 0, 0];
    mount: libc::SYS_mount, [0, 0, 0, 0, 0];
    umount: libc::SYS_umount2, [c"/".as_ptr(), 0];
    open_tree: libc::SYS_open_tree, [0, c"/".as_ptr(), 0];
    fsopen: libc::SYS_fsopen, [c"tmpfs".as_ptr(), 0];
    pivot_root: libc::SYS_pivot_root, [c"/".as_ptr(), c"/".as_ptr()];
    chroot: libc::SYS_chroot, [c"/".as_ptr()];
    chdir: libc::SYS_chdir, [c"/".as_ptr()];
    execve: libc::SYS_execve, [c"/bin/true".as_ptr(), 0, 0];
    execveat: libc::SYS_execveat, [0, c"".as_ptr(), 0, 0, libc::AT_EMPTY_PATH];
    kill_of_init: libc::SYS_kill, [1, 0];
    kill_of_everybody: libc::SYS_kill, [usize::MAX, 0];
    tgkill_of_others: libc::SYS_tgkill, [1, 1, 0];
    tkill: libc::SYS_tkill, [1, 0];
    queued_signal: libc::SYS_rt_sigqueueinfo, [1, 0, 0];
    fcntl_setown: libc::SYS_fcntl, [0, libc::F_SETOWN, 1];
    fcntl_setsig: libc::SYS_fcntl, [0, 10, libc::SIGKILL];
    unshare: libc::SYS_unshare, [libc::CLONE_NEWUSER];
    setns: libc::SYS_setns, [0, 0];
    process_by_clone: libc::SYS_clone, [libc::SIGCHLD, 0, 0, 0, 0];
    keyctl: libc::SYS_keyctl, [0, 0, 0, 0, 0];
    add_key: libc::SYS_add_key, [0, 0, 0, 0, 0];
    bpf: libc::SYS_bpf, [0, 0, 0];
    perf_event_open: libc::SYS_perf_event_open, [0, 0, usize::MAX, usize::MAX, 0];
    userfaultfd: libc::SYS_userfaultfd, [0];
    io_uring: libc::SYS_io_uring_setup, [1, 0];
    init_module: libc::SYS_init_module, [0, 0, 0];
    finit_module: libc::SYS_finit_module, [0, 0, 0];
    kexec_load: libc::SYS_kexec_load, [0, 0, 0, 0];
    reboot: libc::SYS_reboot, [0, 0, 0, 0];
    swapon: libc::SYS_swapon, [0, 0];
    sethostname: libc::SYS_sethostname, [c"x".as_ptr(), 1];
    settimeofday: libc::SYS_settimeofday, [0, 0];
    clock_settime: libc::SYS_clock_settime, [0, 0];
    setuid: libc::SYS_setuid, [0];
    setgid: libc::SYS_setgid, [0];
    setgroups: libc::SYS_setgroups, [0, 0];
    capset: libc::SYS_capset, [0, 0];
    seccomp_listener: libc::SYS_seccomp, [1, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER, 0];
    seccomp_strict: libc::SYS_seccomp, [0, 0, 0];
    unlinkat: libc::SYS_unlinkat, [0, c"/x".as_ptr(), 0];
    mkdirat: libc::SYS_mkdirat, [0, c"/x".as_ptr(), 0];
    mknodat: libc::SYS_mknodat, [0, c"/x".as_ptr(), 0, 0];
    linkat: libc::SYS_linkat, [0, c"/x".as_ptr(), 0, c"/y".as_ptr(), 0];
    symlinkat: libc::SYS_symlinkat, [c"/x".as_ptr(), 0, c"/y".as_ptr()];
    renameat2: libc::SYS_renameat2, [0, c"/x".as_ptr(), 0, c"/y".as_ptr(), 0];
    fchmod: libc::SYS_fchmod, [0, 0];
    fchown: libc::SYS_fchown, [0, 0, 0];
    open_by_handle: libc::SYS_open_by_handle_at, [0, 0, 0];
    openat2: libc::SYS_openat2, [0, c"/".as_ptr(), 0, 0];
    inotify: libc::SYS_inotify_init1, [0];
    fanotify: libc::SYS_fanotify_init, [0, 0];
    name_to_handle: libc::SYS_name_to_handle_at, [0, c"/".as_ptr(), 0, 0, 0];
    process_madvise: libc::SYS_process_madvise, [0, 0, 0, 0, 0];
    move_pages: libc::SYS_move_pages, [1, 0, 0, 0, 0, 0];
    shared_memory: libc::SYS_shmget, [0, 4096, 0];
    message_queue: libc::SYS_msgget, [0, 0];
    setpriority: libc::SYS_setpriority, [0, 0, 0];
    scheduler_class: libc::SYS_sched_setscheduler, [0, 0, 0];
    personality: libc::SYS_personality, [0];
    dumpable_again: libc::SYS_prctl, [libc::PR_SET_DUMPABLE, 1, 0, 0, 0];
    signal_with_parents_death: libc::SYS_prctl, [libc::PR_SET_PDEATHSIG, 0, 0, 0, 0];
    executable_memory: libc::SYS_mmap, [0, 4096, libc::PROT_READ | libc::PROT_EXEC, 0x22, usize::MAX, 0];
    made_executable: libc::SYS_mprotect, [0, 0, libc::PROT_EXEC];
}

/// docs/jail.md names them all, in this order, and no other.
#[test]
fn the_book_names_every_forbidden_action() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/jail.md");
    let page = std::fs::read_to_string(page).expect("docs/jail.md");
    let rows = |line: &str| {
        let (action, call) = line.strip_prefix("| ")?.strip_suffix("` |")?.split_once(" | `")?;
        Some((action.to_owned(), call.to_owned()))
    };
    let (_, list) = page.split_once("| action | system call |").expect("the list's head");
    let named: Vec<_> = list.lines().skip(2).map_while(rows).collect();
    let tried: Vec<_> = FORBIDDEN
        .iter()
        .map(|(name, number)| (name.replace('_', " "), number.replace("libc::SYS_", "")))
        .collect();
    let table: String = tried.iter().map(|(action, call)| format!("| {action} | `{call}` |\n")).collect();
    assert!(tried.len() >= 60 && named == tried, "docs/jail.md should list:\n{table}");
}

/// Refused with an error instead of death: a library that asks can go on.
#[test]
fn no_file_can_be_opened() {
    fn open_all() -> i32 {
        let paths = ["/etc/passwd", "/proc/self/status", "/dev/null", "/", ".", ".."];
        let opened = paths.into_iter().filter(|path| std::fs::File::open(path).is_ok());
        opened.count() as i32
    }
    for role in SELF_CONFINED {
        assert_eq!(jailed(role, open_all), Outcome::Value(0), "{role:?}");
    }
}

#[test]
fn clone3_is_unknown() {
    for role in SELF_CONFINED {
        let found = jailed(role, || syscall(libc::SYS_clone3, [0; 6]));
        assert_eq!(found, Outcome::Value(libc::ENOSYS), "{role:?}");
    }
}

#[test]
fn kvm_requests_are_the_vmms() {
    const KVM_RUN: usize = 0xae80;
    const KVM_CREATE_DEVICE: usize = 0xc00c_aee0;
    // An open descriptor that is no KVM: the filter is passed, the request makes no sense.
    assert_eq!(
        jailed(Role::Vmm, || syscall(libc::SYS_ioctl, [2, KVM_RUN, 0, 0, 0, 0])),
        Outcome::Value(libc::ENOTTY)
    );
    assert_eq!(
        jailed(Role::Vmm, || syscall(libc::SYS_ioctl, [2, KVM_CREATE_DEVICE, 0, 0, 0, 0])),
        Outcome::Killed
    );
    assert_eq!(
        jailed(Role::Monitor, || syscall(libc::SYS_ioctl, [2, KVM_RUN, 0, 0, 0, 0])),
        Outcome::Value(libc::ENOTTY)
    );
}

/// What a disk's server may do to a file, and what it may not.
#[test]
fn a_disk_cannot_grow_its_image() {
    const PUNCH_HOLE: usize = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as usize;
    // A descriptor that is not open: the filter is passed, the kernel refuses.
    let punch = || syscall(libc::SYS_fallocate, [usize::MAX, PUNCH_HOLE, 0, 4096, 0, 0]);
    assert_eq!(jailed(Role::Device, punch), Outcome::Value(libc::EBADF));
    assert_eq!(
        jailed(Role::Device, || syscall(libc::SYS_fallocate, [usize::MAX, 0, 0, 4096, 0, 0])),
        Outcome::Killed
    );
    assert_eq!(
        jailed(Role::Device, || syscall(libc::SYS_ftruncate, [usize::MAX, 4096, 0, 0, 0, 0])),
        Outcome::Killed
    );
    assert_eq!(
        jailed(Role::Monitor, || syscall(libc::SYS_pwrite64, [usize::MAX, 0, 0, 0, 0, 0])),
        Outcome::Killed
    );
    assert_eq!(jailed(Role::Device, || syscall(libc::SYS_memfd_create, [0, 0, 0, 0, 0, 0])), Outcome::Killed);
}

#[test]
fn descriptors_are_limited() {
    let found = jailed(Role::Monitor, || {
        let mut opened = Vec::new();
        // Far more than the limit, so that a missing limit ends the loop too.
        for _ in 0..5000 {
            // SAFETY: a number is passed; the descriptor is kept to its end by the process.
            match unsafe { libc::eventfd(0, 0) } {
                -1 => return i32::from(nix::errno::Errno::last() != nix::errno::Errno::EMFILE),
                fd => opened.push(fd),
            }
        }
        2
    });
    assert_eq!(found, Outcome::Value(0));
}

/// Allocation, threads, channels, time, hash maps, sockets that are open already.
#[test]
fn the_standard_library_still_works() {
    fn body() -> i32 {
        let (sender, receiver) = std::sync::mpsc::channel();
        let threads: Vec<_> = (0..4_u64)
            .map(|n| {
                let sender = sender.clone();
                std::thread::Builder::new()
                    .name(format!("probe-{n}"))
                    .spawn(move || {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                        let block = vec![n; 1 << 20];
                        sender.send(block.iter().sum::<u64>())
                    })
                    .expect("start a thread")
            })
            .collect();
        drop(sender);
        let sum: u64 = receiver.iter().sum();
        let joined = threads.into_iter().all(|thread| thread.join().is_ok_and(|sent| sent.is_ok()));
        let map: std::collections::HashMap<_, _> = (0..100).map(|n| (n, n)).collect();
        let cpus = std::thread::available_parallelism().is_ok();
        let expected = 6 * (1 << 20);
        i32::from(!(joined && sum == expected && map.len() == 100 && cpus))
    }
    for role in SELF_CONFINED {
        assert_eq!(jailed(role, body), Outcome::Value(0), "{role:?}");
    }
}

/// A panic must be seen as a panic: neither its message nor its backtrace may hit the filter.
#[test]
fn a_panic_stays_a_panic() {
    fn body() -> i32 {
        let trace = std::backtrace::Backtrace::force_capture().to_string();
        assert!(!trace.is_empty(), "a backtrace is captured");
        let caught = std::panic::catch_unwind(|| panic!("expected by the test"));
        i32::from(caught.is_ok())
    }
    for role in SELF_CONFINED {
        assert_eq!(jailed(role, body), Outcome::Value(0), "{role:?}");
    }
}

#[test]
fn abort_is_an_abort() {
    let found = jailed(Role::Vmm, || std::process::abort());
    assert!(
        matches!(
            found,
            Outcome::Other(nix::sys::wait::WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGABRT, _))
        ),
        "{found:?}"
    );
}

#[test]
fn a_process_with_threads_is_refused() {
    let release = std::sync::Arc::new(std::sync::Barrier::new(2));
    let other = release.clone();
    let thread = std::thread::spawn(move || other.wait());
    let refused = ktstr_jail::enter(&ktstr_jail::JailSpec::monitor());
    release.wait();
    thread.join().unwrap();
    assert!(
        matches!(refused, Err(ktstr_jail::JailError::ThreadsRunning { threads }) if threads > 1),
        "{refused:?}"
    );
}

/// A user namespace that allows no further ones stands in for a host that forbids them.
#[test]
fn forbidden_user_namespaces_are_explained() {
    let pid = in_child(|| {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).expect("a first user namespace");
        std::fs::write("/proc/self/setgroups", "deny").expect("setgroups");
        std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).expect("uid_map");
        std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).expect("gid_map");
        std::fs::write("/proc/sys/user/max_user_namespaces", "0").expect("forbid further ones");
        match ktstr_jail::enter(&ktstr_jail::JailSpec::vmm()) {
            Err(error @ ktstr_jail::JailError::UserNamespaceForbidden { .. }) => {
                i32::from(!error.to_string().contains("user.max_user_namespaces"))
            }
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(outcome(pid), Outcome::Value(0));
}

/// Threads that work for the guest have less than their process, and what they have works.
#[test]
fn threads_of_the_guest_are_confined_further() {
    let narrowed = |number: libc::c_long, args: [usize; 6]| {
        outcome(in_child(move || {
            let confined = ktstr_jail::enter(&ktstr_jail::JailSpec::vmm()).expect("the jail");
            let threads = ktstr_jail::GuestThreads::of(&confined).expect("the filter");
            let narrow = std::thread::spawn(move || {
                threads.confine().expect("the thread's filter");
                syscall(number, args)
            });
            narrow.join().expect("the thread")
        }))
    };
    let stack = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND;
    let (kvm_create_vm, kvm_create_vcpu) = (44545, 44609);
    for (number, args) in [
        (libc::SYS_clone, [stack as usize, 0, 0, 0, 0, 0]),
        (libc::SYS_memfd_create, [c"x".as_ptr() as usize, 0, 0, 0, 0, 0]),
        (libc::SYS_ioctl, [0, kvm_create_vm, 0, 0, 0, 0]),
        (libc::SYS_ioctl, [0, kvm_create_vcpu, 0, 0, 0, 0]),
        (libc::SYS_pidfd_send_signal, [0, 0, 0, 0, 0, 0]),
        (libc::SYS_pwrite64, [0, 0, 0, 0, 0, 0]),
        (libc::SYS_fcntl, [0, 3, 0, 0, 0, 0]),
        (libc::SYS_seccomp, [1, 0, 0, 0, 0, 0]),
        (libc::SYS_socket, [1, 1, 0, 0, 0, 0]),
    ] {
        assert_eq!(narrowed(number, args), Outcome::Killed, "{number} {args:x?}");
    }
    let nowhere = c"/".as_ptr() as usize;
    let looks = (libc::SYS_openat, [libc::AT_FDCWD as usize, nowhere, 0, 0, 0, 0], libc::ENOENT);
    let runs = (libc::SYS_ioctl, [usize::MAX, 44672, 0, 0, 0, 0], libc::EBADF);
    for (number, args, errno) in [looks, runs, (libc::SYS_getpid, [0; 6], 0)] {
        assert_eq!(narrowed(number, args), Outcome::Value(errno), "{number}");
    }
}

/// With capabilities, here those of a user namespace, the jail needs no user namespace of its own.
#[test]
fn privileged_processes_can_keep_their_user_namespace() {
    let pid = in_child(|| {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).expect("a user namespace");
        std::fs::write("/proc/self/setgroups", "deny").expect("setgroups");
        std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).expect("uid_map");
        std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).expect("gid_map");
        let spec = ktstr_jail::JailSpec::monitor().with_namespaces(ktstr_jail::Namespaces::OfRoot);
        ktstr_jail::enter(&spec).expect("enter without a further user namespace");
        i32::from(std::fs::File::open("/etc/passwd").is_ok())
    });
    assert_eq!(outcome(pid), Outcome::Value(0));
}
