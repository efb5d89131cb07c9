//! Putting the parts together: from a [`MachineSpec`] and a KVM descriptor to running threads.
//!
//! Next: `vcpu` is what the threads do, `control` how they are stopped.

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use ktstr_jail::GuestThreads;
use ktstr_proto::capture::WatchPoint;
use ktstr_proto::link::chain;
use ktstr_proto::registers::VcpuRegisters;
use ktstr_proto::topology::{TopologyError, numa::NumaError};
use ktstr_proto::vmm::VcpuStatistics;
use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CAP_X86_DISABLE_EXITS,
    KVM_MAX_CPUID_ENTRIES, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS,
    KVM_X86_DISABLE_EXITS_HLT, KVM_X86_DISABLE_EXITS_PAUSE, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::control::Control;
use super::devices::console::{self, Console};
use super::devices::ioapic::{Ioapic, PINS};
use super::devices::remote::{Remote, RemoteError};
use super::devices::serial::{PortState, Sink, Uart};
use super::devices::virtio::{MmioTransport, QUEUE_NOTIFY};
use super::devices::{self, Devices};
use super::io_thread::IoThread;
use super::memory::{Binding, GuestRam, RamError};
use super::port_ring::PortRing;
use super::state::{MachineState, MachineStateError};
use super::statistics::Source;
use super::vcpu::{Departure, Vcpu, VcpuError};
use super::x86_64::acpi::Description;
use super::x86_64::boot::{self, BootError, Entry};
use super::x86_64::cpuid;
use super::x86_64::layout::{self, LayoutError};
use crate::apic::ApicIds;
use crate::machine::{Event, Exit, Isolation, MachineError, MachineSpec, Ram, Running};
use crate::nodes::{self, Node};
use crate::snapshot::{SnapshotFile, SnapshotFileError};

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The shape has no APIC ids.
    #[error("number the CPUs")]
    Topology(#[from] TopologyError),
    /// The RAM has no layout.
    #[error("lay out guest memory")]
    Layout(#[from] LayoutError),
    /// The RAM cannot be divided.
    #[error("divide guest RAM among the NUMA nodes")]
    Nodes(#[from] NumaError),
    /// The RAM could not be had.
    #[error("get guest RAM")]
    Ram(#[from] RamError),
    /// The guest could not be put into memory.
    #[error("load the guest")]
    Boot(#[from] BootError),
    /// A vCPU could not be set up.
    #[error("set up a vCPU")]
    Vcpu(#[from] VcpuError),
    /// KVM speaks another language.
    #[error("KVM has API version {found}, this VMM needs {KVM_API_VERSION}")]
    ApiVersion {
        /// What it said.
        found: i32,
    },
    /// KVM lacks something.
    #[error("KVM on this host lacks {capability}; a newer kernel has it, or use `--accel tcg`")]
    Missing {
        /// What it lacks.
        capability: &'static str,
    },
    /// More CPUs than KVM takes.
    #[error("{wanted} vCPUs asked for, KVM on this host takes {limit}")]
    TooManyCpus {
        /// Asked for.
        wanted: u32,
        /// Possible.
        limit: usize,
    },
    /// A vCPU that waits would leave its host CPU.
    #[error(
        "exit suppression: KVM on this host lets {which} leave the guest (KVM_CAP_X86_DISABLE_EXITS; the module parameter mitigate_smt_rsb and old kernels forbid it)"
    )]
    Exits {
        /// The instructions.
        which: &'static str,
    },
    /// An ioctl failed.
    #[error("{action}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: vmm_sys_util::errno::Error,
    },
    /// A host resource could not be had.
    #[error("{action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A virtio device could not be built.
    #[error("build a virtio device")]
    Virtio(#[source] virtio_queue::Error),
    /// A device that another process serves has no front.
    #[error("attach a device that another process serves")]
    Remote(#[from] RemoteError),
    /// The snapshot's file.
    #[error("use the snapshot")]
    Snapshot(#[from] SnapshotFileError),
    /// The machine does not become what the snapshot holds.
    #[error("make the machine what the snapshot says")]
    Restore(#[from] MachineStateError),
}

impl StartError {
    /// Whether the snapshot is the reason.
    #[must_use]
    pub fn is_of_snapshot(&self) -> bool {
        match self {
            Self::Snapshot(error) => error.is_damage(),
            Self::Restore(error) => error.is_damage(),
            _ => false,
        }
    }

    /// Whether the host lacks something that the machine was to have of it.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Exits { .. }
                | Self::Ram(RamError::LargePages { .. } | RamError::Bind { .. })
                | Self::ApiVersion { .. }
                | Self::Missing { .. }
                | Self::TooManyCpus { .. }
        )
    }
}

fn kvm(action: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> StartError {
    move |source| StartError::Kvm { action, source }
}

fn host(action: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::Host { action, source }
}

/// A machine on KVM.
#[derive(Debug)]
pub struct KvmMachine {
    ram: Ram,
    /// Closing it would disconnect the interrupt lines.
    vm: Arc<VmFd>,
    devices: Arc<Devices>,
    control: Arc<Control>,
    doorbell: Arc<EventFd>,
    stop_io: Arc<AtomicBool>,
    vcpus: Vec<JoinHandle<()>>,
    counting: Vec<Source>,
    counted: Vec<VcpuStatistics>,
    io: Option<JoinHandle<()>>,
}

impl KvmMachine {
    /// Builds the machine and lets it run. `kvm_fd` is an open `/dev/kvm`.
    pub fn start(kvm_fd: OwnedFd, spec: MachineSpec) -> Result<Self, StartError> {
        Self::start_from(kvm_fd, spec, None, None)
    }

    /// The same, or from where a machine like it once stood: then nothing is loaded, RAM is a copy, so that
    /// whoever looks into it sees what the guest sees, and every part is as it was. `threads` is what those that
    /// work for the guest confine themselves to, in a confined process.
    pub fn start_from(
        kvm_fd: OwnedFd,
        spec: MachineSpec,
        snapshot: Option<SnapshotFile>,
        threads: Option<GuestThreads>,
    ) -> Result<Self, StartError> {
        let state = snapshot.as_ref().map(saved_state).transpose()?;
        let ids = ApicIds::new(spec.topology)?.with_absent(spec.absent_llcs)?;
        let regions = layout::ram_regions(spec.memory)?;
        // SAFETY: the descriptor is owned and given away here.
        let kvm_fd = unsafe { Kvm::from_raw_fd(kvm_fd.into_raw_fd()) };
        check(&kvm_fd, spec.topology.cpus())?;
        let vm = kvm_fd.create_vm().map_err(kvm("create the VM"))?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm("place KVM's identity map"))?;
        vm.set_tss_address(layout::KVM_TSS as usize).map_err(kvm("place KVM's task state segment"))?;
        if spec.isolation.is_some() {
            suppress_exits(&vm)?;
        }
        let vm = Arc::new(vm);
        let ioapic = create_interrupt_controllers(&vm, ids.need_x2apic())?;

        let nodes = nodes::divide(&spec.topology, &spec.numa, spec.memory)?;
        let bindings = spec.isolation.as_ref().map(|isolation| bindings(&nodes, isolation));
        let (guest_ram, ram) = GuestRam::new(regions, bindings.as_deref())?;
        let guest_ram = Arc::new(guest_ram);
        map_ram(&vm, &guest_ram)?;
        let virtio = usize::from(spec.console.is_some())
            + usize::from(spec.devices.disk.is_some())
            + spec.devices.networks.len();
        let description = Description {
            topology: spec.topology,
            numa: &spec.numa,
            nodes: &nodes,
            ids: &ids,
            ram: &guest_ram.regions,
            virtio,
        };
        let entry = match &snapshot {
            Some(snapshot) => {
                let memfd = ram.memfd.try_clone().map_err(host("duplicate the descriptor of guest RAM"))?;
                snapshot.fill(&memfd.into())?;
                None
            }
            None => Some(boot::load(&spec, &guest_ram, &description)?),
        };
        let vcpus = create_vcpus(&kvm_fd, &vm, &ids, &spec, entry)?;

        let control =
            Arc::new(Control::new(spec.topology.cpus()).map_err(host("create the event descriptor"))?);
        let doorbell = Arc::new(eventfd()?);
        let ports = state.as_ref().map(MachineState::ports);
        let (mut devices, console) = create_devices(&vm, spec, &control, &guest_ram, &ram, &doorbell, ports)?;
        devices.port_ring = collect_serial_writes(&vm, &vcpus[0])?;
        let ioapic = ioapic.map(|fresh| state.as_ref().and_then(MachineState::ioapic).unwrap_or(fresh));
        devices.ioapic = ioapic.map(|ioapic| (Mutex::new(ioapic), vm.clone()));
        if let Some(state) = state {
            MachineState::check(&devices)?;
            state.restore(&vm, &vcpus, devices.ioapic.as_ref().map(|(ioapic, _)| ioapic))?;
        }
        let devices = Arc::new(devices);
        let mut machine = Self {
            ram,
            vm,
            devices: devices.clone(),
            control,
            doorbell,
            stop_io: Arc::default(),
            vcpus: Vec::new(),
            counting: vcpus.iter().filter_map(Vcpu::statistics).collect(),
            counted: Vec::new(),
            io: None,
        };
        machine.spawn(vcpus, devices, console, &guest_ram, threads.as_ref())?;
        Ok(machine)
    }

    fn spawn(
        &mut self,
        vcpus: Vec<Vcpu>,
        devices: Arc<Devices>,
        console: Option<Console>,
        ram: &Arc<GuestRam>,
        threads: Option<&GuestThreads>,
    ) -> Result<(), StartError> {
        let confine = |control: &Control, threads: Option<GuestThreads>| match threads
            .map_or(Ok(()), |threads| threads.confine())
        {
            Ok(()) => true,
            Err(error) => {
                control.finish(Exit::InternalError { detail: chain(&error) });
                false
            }
        };
        let io = IoThread {
            control: self.control.clone(),
            devices: devices.clone(),
            console,
            doorbell: self.doorbell.clone(),
            stop: self.stop_io.clone(),
        };
        let narrow = threads.cloned();
        let spawned = std::thread::Builder::new().name("io".into()).spawn(move || {
            if confine(&io.control, narrow) {
                io.run();
            }
        });
        self.io = Some(spawned.map_err(host("start the device thread"))?);
        let total = vcpus.len();
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let departure =
                Departure { cpu: vcpu.number(), control: self.control.clone(), devices: devices.clone() };
            // The mapping must outlive the vCPU that runs in it.
            let (ram, narrow) = (ram.clone(), threads.cloned());
            let spawned =
                std::thread::Builder::new().name(format!("vcpu{}", vcpu.number())).spawn(move || {
                    let _ram = ram;
                    if confine(&departure.control, narrow) {
                        vcpu.run(&departure.control, &departure.devices);
                    }
                });
            match spawned {
                Ok(handle) => self.vcpus.push(handle),
                Err(source) => {
                    self.control.finish(Exit::Killed);
                    // The failed one has left through its `Departure`; the rest never existed.
                    for cpu in index + 1..total {
                        self.control.leave(cpu as u32);
                    }
                    return Err(StartError::Host { action: "start a vCPU thread", source });
                }
            }
        }
        Ok(())
    }

    /// What KVM has counted for each vCPU so far, while they run; empty where it does not count.
    #[must_use]
    pub fn counted_so_far(&self) -> Vec<VcpuStatistics> {
        self.counting.iter().filter_map(|source| source.read().ok()).collect()
    }

    fn stop_io_thread(&mut self) {
        self.stop_io.store(true, Ordering::SeqCst);
        let _ = self.doorbell.write(1);
        if let Some(io) = self.io.take() {
            let _ = io.join();
        }
    }

    fn join(&mut self) {
        for vcpu in self.vcpus.drain(..) {
            // A panic was turned into an exit by `Departure`.
            let _ = vcpu.join();
        }
        // They would keep the VM alive.
        self.counted.extend(self.counting.drain(..).filter_map(|source| source.read().ok()));
        self.stop_io_thread();
    }
}

impl Running for KvmMachine {
    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.control.event_fd()
    }

    fn next_event(&mut self) -> Option<Event> {
        let event = self.control.next_event();
        if matches!(event, Some(Event::Exited(_))) {
            // All vCPUs are gone: this does not wait for the guest, and the console's last bytes get out.
            self.join();
        }
        event
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.control.pause().map_err(|source| MachineError {
            action: "freeze the machine".into(),
            source: Some(Box::new(source)),
        })
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.control.resume();
        Ok(())
    }

    fn registers(&mut self) -> Result<Vec<VcpuRegisters>, MachineError> {
        self.control.registers().map_err(|source| MachineError {
            action: "read the vCPUs' registers".into(),
            source: Some(Box::new(source)),
        })
    }

    fn watch(&mut self, places: &[WatchPoint]) -> Result<(), MachineError> {
        if !self.vm.check_extension(Cap::SetGuestDebug) {
            let action = "watch guest memory for writes: KVM on this host sets no debug registers".into();
            return Err(MachineError { action, source: None });
        }
        self.control.watch(places);
        Ok(())
    }

    fn device_state(&mut self) -> Result<Vec<u8>, MachineError> {
        let save = || {
            MachineState::check(&self.devices)?;
            let vcpus = self.control.collect()?;
            MachineState::save(&self.vm, &self.devices, vcpus)?.encode()
        };
        save().map_err(|source: MachineStateError| MachineError {
            action: "take a snapshot of the machine".into(),
            source: Some(Box::new(source)),
        })
    }

    fn statistics(&mut self) -> Vec<VcpuStatistics> {
        std::mem::take(&mut self.counted)
    }

    fn kill(&mut self) {
        self.control.finish(Exit::Killed);
        self.join();
    }
}

impl Drop for KvmMachine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn saved_state(snapshot: &SnapshotFile) -> Result<MachineState, StartError> {
    Ok(MachineState::decode(&snapshot.state()?)?)
}

fn eventfd() -> Result<EventFd, StartError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("create an event descriptor"))
}

fn check(kvm_fd: &Kvm, cpus: u32) -> Result<(), StartError> {
    let found = kvm_fd.get_api_version();
    if found != KVM_API_VERSION as i32 {
        return Err(StartError::ApiVersion { found });
    }
    let needed = [
        (Cap::Irqchip, "in-kernel interrupt controllers (KVM_CAP_IRQCHIP)"),
        (Cap::Irqfd, "interrupts by descriptor (KVM_CAP_IRQFD)"),
        (Cap::Ioeventfd, "doorbells by descriptor (KVM_CAP_IOEVENTFD)"),
        (Cap::ImmediateExit, "race-free interruption (KVM_CAP_IMMEDIATE_EXIT)"),
        (Cap::UserMemory, "user memory (KVM_CAP_USER_MEMORY)"),
    ];
    for (cap, capability) in needed {
        if !kvm_fd.check_extension(cap) {
            return Err(StartError::Missing { capability });
        }
    }
    let limit = kvm_fd.get_max_vcpus();
    if cpus as usize > limit {
        return Err(StartError::TooManyCpus { wanted: cpus, limit });
    }
    Ok(())
}

/// KVM's own where they reach every CPU; else its local APICs in x2APIC mode and an I/O APIC of ours.
fn create_interrupt_controllers(vm: &VmFd, x2apic: bool) -> Result<Option<Ioapic>, StartError> {
    if !x2apic {
        vm.create_irq_chip().map_err(kvm("create the interrupt controllers"))?;
        return Ok(None);
    }
    let enable = |cap, arg| {
        let mut request = kvm_enable_cap { cap, ..Default::default() };
        request.args[0] = arg;
        vm.enable_cap(&request)
    };
    enable(KVM_CAP_SPLIT_IRQCHIP, PINS as u64).map_err(kvm("create the local interrupt controllers"))?;
    let long_ids = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    enable(KVM_CAP_X2APIC_API, long_ids.into()).map_err(kvm("give CPUs APIC ids above 254"))?;
    Ok(Some(Ioapic::default()))
}

/// Guest instructions that wait do so on the host CPU, which is the vCPU's alone.
fn suppress_exits(vm: &VmFd) -> Result<(), StartError> {
    let allowed = vm.check_extension_raw(KVM_CAP_X86_DISABLE_EXITS.into()).max(0) as u32;
    let wanted = [(KVM_X86_DISABLE_EXITS_HLT, "HLT"), (KVM_X86_DISABLE_EXITS_PAUSE, "PAUSE")];
    if let Some((_, which)) = wanted.iter().find(|(bit, _)| allowed & bit == 0) {
        return Err(StartError::Exits { which });
    }
    let mut request = kvm_enable_cap { cap: KVM_CAP_X86_DISABLE_EXITS, ..Default::default() };
    request.args[0] = wanted.iter().map(|(bit, _)| u64::from(*bit)).sum();
    vm.enable_cap(&request).map_err(kvm("keep waiting vCPUs in the guest"))
}

/// Where the memory of each guest node lies, and the host node it is to be on.
fn bindings(nodes: &[Node], isolation: &Isolation) -> Vec<Binding> {
    let bound = nodes.iter().zip(&isolation.nodes);
    bound.map(|(n, node)| Binding { file_offset: n.file_offset, len: n.len, node: *node }).collect()
}

fn map_ram(vm: &VmFd, ram: &GuestRam) -> Result<(), StartError> {
    for (slot, region) in ram.regions.iter().enumerate() {
        let pointer = ram.memory.get_host_address(GuestAddress(region.gpa.0));
        let userspace_addr = pointer.expect("every region of guest RAM is mapped") as u64;
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.gpa.0,
            memory_size: region.len,
            userspace_addr,
        };
        // SAFETY: the mapping has this length, and every vCPU thread keeps it alive.
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm("give guest RAM to KVM"))?;
    }
    Ok(())
}

fn create_vcpus(
    kvm_fd: &Kvm,
    vm: &VmFd,
    ids: &ApicIds,
    spec: &MachineSpec,
    entry: Option<Entry>,
) -> Result<Vec<Vcpu>, StartError> {
    let supported =
        kvm_fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm("ask KVM for its CPUID table"))?;
    let msrs = kvm_fd.get_msr_index_list().map_err(kvm("ask KVM which MSRs make up a vCPU"))?;
    let msrs: Arc<[u32]> = msrs.as_slice().into();
    let mut vcpus = Vec::new();
    for cpu in 0..spec.topology.cpus() {
        let mut table = cpuid::for_cpu(supported.as_slice(), ids, cpu);
        if spec.isolation.is_some() {
            cpuid::promise_time(&mut table);
        }
        vcpus.push(Vcpu::create(
            vm,
            cpu,
            ids.of(cpu),
            &table,
            entry.filter(|_| cpu == 0),
            ids.need_x2apic(),
            msrs.clone(),
        )?);
    }
    Ok(vcpus)
}

/// Lets KVM collect what is written to the transmit registers, if it can.
fn collect_serial_writes(vm: &VmFd, vcpu: &Vcpu) -> Result<Option<Mutex<PortRing>>, StartError> {
    if !vm.check_extension(Cap::CoalescedPio) {
        return Ok(None);
    }
    for port in [devices::COM1, devices::COM2] {
        let address = IoEventAddress::Pio(port.into());
        vm.register_coalesced_mmio(address, 1).map_err(kvm("collect the writes to a serial port"))?;
    }
    Ok(Some(Mutex::new(vcpu.map_port_ring()?)))
}

fn irq(vm: &VmFd, line: u32) -> Result<EventFd, StartError> {
    let fd = eventfd()?;
    vm.register_irqfd(&fd, line).map_err(kvm("connect an interrupt line"))?;
    Ok(fd)
}

/// The window at this place; what the guest rings there goes to the server.
fn front(
    vm: &VmFd,
    window: usize,
    remote: Remote,
    ram: &Arc<GuestRam>,
    line: EventFd,
) -> Result<MmioTransport, StartError> {
    let base = layout::VIRTIO_MMIO + window as u64 * layout::VIRTIO_MMIO_SIZE;
    for (queue, kick) in remote.kicks().iter().enumerate() {
        let address = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
        vm.register_ioevent(kick, &address, queue as u32).map_err(kvm("connect a doorbell"))?;
    }
    MmioTransport::remote(remote, ram.clone(), line).map_err(StartError::Virtio)
}

fn create_devices(
    vm: &VmFd,
    spec: MachineSpec,
    control: &Arc<Control>,
    ram: &Arc<GuestRam>,
    file: &Ram,
    doorbell: &Arc<EventFd>,
    ports: Option<&[PortState; 2]>,
) -> Result<(Devices, Option<Console>), StartError> {
    let com = |name, line, fd, state: Option<&PortState>| -> Result<_, StartError> {
        let (line, sink) = (irq(vm, line)?, Sink::new(name, fd, control.clone()));
        let uart = match state {
            Some(state) => {
                Uart::from_state(state, line, sink).map_err(|detail| MachineStateError::Port { detail })?
            }
            None => Uart::new(line, sink),
        };
        Ok(Mutex::new(uart))
    };
    let com1 = com("com1", layout::COM1_IRQ, Some(spec.com1), ports.map(|[first, _]| first))?;
    let com2 = com("com2", layout::COM2_IRQ, spec.com2, ports.map(|[_, second]| second))?;
    let mut virtio = Vec::new();
    if spec.console.is_some() {
        let address = IoEventAddress::Mmio(layout::VIRTIO_MMIO + QUEUE_NOTIFY);
        vm.register_ioevent(doorbell, &address, NoDatamatch).map_err(kvm("connect the doorbell"))?;
        let line = irq(vm, layout::VIRTIO_IRQS[0])?;
        let transport = MmioTransport::new(console::KIND, ram.clone(), line, doorbell.clone());
        virtio.push(Mutex::new(transport.map_err(StartError::Virtio)?));
    }
    let memfd = || file.memfd.try_clone().map_err(host("duplicate the descriptor of guest RAM"));
    if let Some((socket, _)) = spec.devices.disk {
        let line = irq(vm, layout::VIRTIO_IRQS[virtio.len()])?;
        let call = line.try_clone().map_err(host("duplicate an interrupt line"))?;
        let remote = Remote::disk(socket.into(), call, memfd()?)?;
        virtio.push(Mutex::new(front(vm, virtio.len(), remote, ram, line)?));
    }
    for (socket, config) in spec.devices.networks {
        let line = irq(vm, layout::VIRTIO_IRQS[virtio.len()])?;
        let call = line.try_clone().map_err(host("duplicate an interrupt line"))?;
        let remote = Remote::network(socket.into(), &config, call, memfd()?)?;
        virtio.push(Mutex::new(front(vm, virtio.len(), remote, ram, line)?));
    }
    Ok((Devices { com1, com2, virtio, ioapic: None, port_ring: None }, spec.console.map(Console::new)))
}
