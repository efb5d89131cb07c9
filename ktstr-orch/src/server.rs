//! The readiness loop: clients on one side, sessions on the other.
//!
//! `ktstr-orch run` is this loop with one client that is already connected and no listener;
//! `ktstr-orch serve` has a listener, admits sessions while their vCPUs fit the host's CPUs (one is
//! always admitted), and outlives its clients. A client that goes away cancels its runs.

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use ktstr_proto::{
    Channel, ChannelError, Fds,
    channel::Message,
    client::{Cancelled, ClientEvent, ClientLink, ClientReply, ClientRequest, Submitted},
    link::{ErrorCode, RemoteError, RequestFrame},
    run::RunId,
};
use mio::{Events, Interest, Poll, Token, Waker, unix::SourceFd};

use crate::{
    door::Door,
    judge::Stopped,
    plan::{Plan, PlanError, plan},
    session::{Asker, Session, State, pump},
};

/// A client that lets this much pile up is taken for dead.
const CLIENT_BACKLOG: usize = 64 << 20;
/// Observers of all runs together.
const MAX_OBSERVERS: usize = 256;

/// Why the loop cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A system call failed.
    #[error("{action} failed")]
    System {
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The socket path is taken.
    #[error("{path} is in use by another ktstr-orch; stop it or choose another path")]
    Taken {
        /// The path.
        path: PathBuf,
    },
    /// The only client is gone or talks nonsense.
    #[error(transparent)]
    Client(#[from] ChannelError),
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { action, source }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Wake,
    Listener,
    Client(usize),
    Vmm(usize),
    VmmEnd(usize),
    Monitor(usize),
    MonitorEnd(usize),
    Device(usize),
    DeviceEnd(usize),
    /// The socket in the directory of a run.
    RunListener(usize),
    Observer(usize),
}

/// Somebody who looks at one run and cannot change it.
struct Observer {
    channel: Channel<ClientLink>,
    known: bool,
    session: usize,
}

struct Client {
    channel: Channel<ClientLink>,
    known: bool,
}

struct Entry {
    session: Session,
    client: usize,
    /// Its vCPUs are counted against the host's CPUs.
    admitted: bool,
    registered: Vec<(Source, RawFd)>,
    /// Where observers come in, as long as the run lasts.
    door: Option<Door>,
    /// The run that this one looks into; its client is told of that one only.
    first: Option<Box<Session>>,
}

impl Entry {
    /// Whether the client means this one, or the one that it looks into.
    fn is(&self, run: &RunId) -> bool {
        let of_first = self.first.as_ref().is_some_and(|first| first.dir().id == *run);
        of_first || self.session.dir().id == *run
    }
}

type Planned = (usize, Result<Plan, PlanError>);

/// The orchestrator.
pub struct Server {
    poll: Poll,
    sources: BTreeMap<usize, Source>,
    next_token: usize,
    next_id: usize,
    listener: Option<(UnixListener, PathBuf)>,
    clients: BTreeMap<usize, Client>,
    sessions: BTreeMap<usize, Entry>,
    observers: BTreeMap<usize, Observer>,
    cpus: u32,
    waker: Arc<Waker>,
    plans: (mpsc::Sender<Planned>, mpsc::Receiver<Planned>),
    stop: Arc<std::sync::atomic::AtomicBool>,
}

impl Server {
    /// An empty loop; `cpus` is how many vCPUs may run at the same time.
    pub fn new(cpus: u32) -> Result<Self, ServeError> {
        let poll = Poll::new().map_err(system("epoll_create"))?;
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).map_err(system("eventfd"))?);
        Ok(Self {
            poll,
            sources: BTreeMap::from([(0, Source::Wake)]),
            next_token: 1,
            next_id: 1,
            listener: None,
            clients: BTreeMap::new(),
            sessions: BTreeMap::new(),
            observers: BTreeMap::new(),
            cpus,
            waker,
            plans: mpsc::channel(),
            stop: Arc::default(),
        })
    }

    /// What a signal handler sets and wakes to end the loop in order.
    pub fn stopper(&self) -> (Arc<std::sync::atomic::AtomicBool>, Arc<Waker>) {
        (self.stop.clone(), self.waker.clone())
    }

    /// Adds a client that is already connected.
    pub fn add_client(&mut self, channel: Channel<ClientLink>) -> Result<(), ServeError> {
        let id = self.new_id();
        self.register(Source::Client(id), channel.as_raw_fd())?;
        self.clients.insert(id, Client { channel, known: false });
        self.client_ready(id);
        Ok(())
    }

    /// Listens on a path; a socket nobody listens on any more is replaced.
    pub fn listen(&mut self, path: PathBuf) -> Result<(), ServeError> {
        if UnixStream::connect(&path).is_ok() {
            return Err(ServeError::Taken { path });
        }
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(system("removing the old socket")(e));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(system("bind"))?;
        listener.set_nonblocking(true).map_err(system("making the listener non-blocking"))?;
        self.register(Source::Listener, listener.as_raw_fd())?;
        self.listener = Some((listener, path));
        Ok(())
    }

    fn new_id(&mut self) -> usize {
        self.next_id += 1;
        self.next_id
    }

    fn register(&mut self, source: Source, fd: RawFd) -> Result<(), ServeError> {
        let token = self.next_token;
        self.next_token += 1;
        let interest = match source {
            Source::Client(_)
            | Source::Vmm(_)
            | Source::Monitor(_)
            | Source::Device(_)
            | Source::Observer(_) => Interest::READABLE | Interest::WRITABLE,
            _ => Interest::READABLE,
        };
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), Token(token), interest)
            .map_err(system("epoll_ctl"))?;
        self.sources.insert(token, source);
        Ok(())
    }

    /// Runs until told to stop, or until the last client is gone when there is no listener.
    pub fn run(&mut self) -> Result<(), ServeError> {
        let mut events = Events::with_capacity(64);
        self.settle()?;
        while !self.is_finished() {
            let timeout = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            match self.poll.poll(&mut events, timeout) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => other.map_err(system("epoll_wait"))?,
            }
            let ready: Vec<Source> =
                events.iter().filter_map(|e| self.sources.get(&e.token().0).copied()).collect();
            for source in ready {
                self.handle(source)?;
            }
            let now = Instant::now();
            for entry in self.sessions.values_mut() {
                entry.session.tick(now);
            }
            if self.stop.load(std::sync::atomic::Ordering::Relaxed) {
                self.cancel_all();
            }
            self.settle()?;
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        let stopped = self.stop.load(std::sync::atomic::Ordering::Relaxed);
        stopped || (self.listener.is_none() && self.clients.is_empty() && self.sessions.is_empty())
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.sessions.values().filter_map(|e| e.session.next_deadline()).min()
    }

    fn handle(&mut self, source: Source) -> Result<(), ServeError> {
        match source {
            Source::Wake => {
                while let Ok((id, plan)) = self.plans.1.try_recv() {
                    if let Some(entry) = self.sessions.get_mut(&id) {
                        entry.session.planned(plan);
                    }
                }
            }
            Source::Listener => self.accept()?,
            Source::Client(id) => self.client_ready(id),
            Source::Vmm(id) => self.with(id, Session::vmm_ready),
            Source::VmmEnd(id) => self.with(id, Session::vmm_ended),
            Source::Monitor(id) => self.with(id, Session::monitor_ready),
            Source::MonitorEnd(id) => self.with(id, Session::monitor_ended),
            Source::Device(id) => self.with(id, Session::device_ready),
            Source::DeviceEnd(id) => self.with(id, Session::device_ended),
            Source::RunListener(id) => self.admit_observers(id)?,
            Source::Observer(id) => self.observer_ready(id),
        }
        Ok(())
    }

    fn with(&mut self, id: usize, act: impl FnOnce(&mut Session)) {
        if let Some(entry) = self.sessions.get_mut(&id) {
            act(&mut entry.session);
        }
    }

    fn accept(&mut self) -> Result<(), ServeError> {
        while let Some((listener, _)) = &self.listener {
            match listener.accept() {
                Ok((socket, _)) => self.add_client(Channel::new(socket, "client")?)?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(system("accept")(e)),
            }
        }
        Ok(())
    }

    fn client_ready(&mut self, id: usize) {
        loop {
            let Some(client) = self.clients.get_mut(&id) else { return };
            match pump(&mut client.channel) {
                Ok(Some((message, _))) => {
                    if let Err(error) = self.client_message(id, message) {
                        tracing::warn!("dropping a client: {}", ktstr_proto::link::chain(&error));
                        return self.drop_client(id);
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!("client is gone: {}", ktstr_proto::link::chain(&error));
                    return self.drop_client(id);
                }
            }
        }
    }

    fn drop_client(&mut self, id: usize) {
        if let Some(client) = self.clients.remove(&id) {
            self.unregister(Source::Client(id), client.channel.as_raw_fd());
        }
        for entry in self.sessions.values_mut() {
            entry.session.forget_connection(id);
        }
        for entry in self.sessions.values_mut().filter(|e| e.client == id) {
            entry.session.stop(Stopped::Cancelled);
        }
    }

    fn client_message(&mut self, id: usize, message: Message<ClientLink>) -> Result<(), ChannelError> {
        let client = self.clients.get_mut(&id).expect("the caller has just read from it");
        match message {
            Message::Hello(_) => {
                // Introduce ourselves first, so that a refused peer learns whom it talked to.
                client.channel.queue_hello("ktstr-orch")?;
                client.channel.flush()?;
                client.channel.accept_hello(message)?;
                client.known = true;
                Ok(())
            }
            Message::Request(request) if client.known => self.request(id, request),
            _ => Err(ChannelError::Unexpected { peer: "client", what: "a frame that is no request".into() }),
        }
    }

    fn request(&mut self, id: usize, frame: RequestFrame<ClientRequest>) -> Result<(), ChannelError> {
        let asker = Asker { connection: id, request: frame.id };
        let result = match frame.request {
            ClientRequest::Query(query) => match self.run_of(query.run.as_ref()) {
                Ok(session) => return Ok(session.query(asker, query)),
                Err(refused) => Err(refused),
            },
            ClientRequest::TakeCapture(wanted) => match self.run_of(wanted.run.as_ref()) {
                Ok(session) => return Ok(session.capture(asker, &wanted)),
                Err(refused) => Err(refused),
            },
            ClientRequest::SetNumber(wanted) => match self.run_of(wanted.run.as_ref()) {
                Ok(session) => return Ok(session.set_number(asker, &wanted)),
                Err(refused) => Err(refused),
            },
            ClientRequest::Submit(submit) => self.submit(id, submit.0).map(ClientReply::Submit),
            ClientRequest::Cancel(cancel) => {
                let entry = self.sessions.values_mut().find(|e| e.is(&cancel.0) && e.client == id);
                match entry {
                    Some(entry) => {
                        entry.session.stop(Stopped::Cancelled);
                        Ok(ClientReply::Cancel(Cancelled))
                    }
                    None => Err(RemoteError {
                        code: ErrorCode::BadRequest,
                        message: format!("no run {} of this client is under way", cancel.0),
                    }),
                }
            }
        };
        let client = self.clients.get_mut(&id).expect("requests come from clients");
        client.channel.queue_reply(frame.id, result, Fds::default())?;
        client.channel.flush().map(drop)
    }

    fn submit(&mut self, client: usize, spec: ktstr_proto::run::RunSpec) -> Result<Submitted, RemoteError> {
        let infrastructure = |e: &dyn std::error::Error| RemoteError::new(ErrorCode::Infrastructure, e);
        spec.topology.checked().map_err(|e| RemoteError::new(ErrorCode::BadRequest, &e))?;
        spec.numa.check(&spec.topology).map_err(|e| RemoteError::new(ErrorCode::BadRequest, &e))?;
        spec.topology
            .possible_cpus(spec.absent_llcs)
            .map_err(|e| RemoteError::new(ErrorCode::BadRequest, &e))?;
        let session = Session::open(spec).map_err(|e| infrastructure(&e))?;
        Ok(self.enqueue(client, session, None))
    }

    fn enqueue(&mut self, client: usize, session: Session, first: Option<Box<Session>>) -> Submitted {
        let queued_behind = self.sessions.values().filter(|e| !e.admitted).count() as u32;
        let submitted = Submitted {
            run_id: session.dir().id.clone(),
            run_dir: session.dir().path.clone(),
            queued_behind,
        };
        let id = self.new_id();
        // Without a door the run is as good, only nobody can look in.
        let door = Door::open(&submitted.run_id);
        let door = door.inspect_err(|e| tracing::warn!("no socket for observers: {e}")).ok();
        let door = door.filter(|door| {
            let listening = self.register(Source::RunListener(id), door.listener.as_raw_fd());
            listening.inspect_err(|e| tracing::warn!("observers are not let in: {e}")).is_ok()
        });
        let entry = Entry { session, client, admitted: false, registered: Vec::new(), door, first };
        self.sessions.insert(id, entry);
        submitted
    }

    /// A run is over: what it showed goes to the run that it looked into, or it is looked into itself.
    fn conclude(&mut self, mut entry: Entry) {
        let client = entry.client;
        if let Some(mut first) = entry.first.take() {
            first.looked_into(Ok(&mut entry.session));
            return self.send(client, first.outbox);
        }
        let Some(second) = entry.session.second().cloned() else { return };
        let stopped = self.stop.load(std::sync::atomic::Ordering::Relaxed);
        if stopped || !self.clients.contains_key(&client) {
            entry.session.looked_into(Err("nobody waits for it any more".into()));
            return self.send(client, entry.session.outbox);
        }
        match Session::open(second) {
            Ok(second) => {
                let line =
                    "the scheduler crashed: running the test a second time, with probes on the crash path";
                self.send(client, vec![(ClientEvent::Notice(line.into()), Fds::default())]);
                self.enqueue(client, second, Some(Box::new(entry.session)));
                // It is admitted in the next round.
                let _ = self.waker.wake();
            }
            Err(error) => {
                entry.session.looked_into(Err(ktstr_proto::link::chain(&error)));
                self.send(client, entry.session.outbox);
            }
        }
    }

    fn cancel_all(&mut self) {
        for entry in self.sessions.values_mut() {
            entry.session.stop(Stopped::Cancelled);
        }
    }

    /// After every round: start what may start, watch new children, deliver, forget what is done.
    fn settle(&mut self) -> Result<(), ServeError> {
        self.admit();
        let ids: Vec<usize> = self.sessions.keys().copied().collect();
        for id in ids {
            self.watch(id)?;
            self.deliver(id);
            self.deliver_answers(id);
            if self.sessions.get(&id).is_some_and(|e| e.session.state() == State::Done) {
                self.close_door(id);
                if let Some(entry) = self.sessions.remove(&id) {
                    self.conclude(entry);
                }
            }
        }
        if self.listener.is_none() && self.sessions.is_empty() {
            // `run`: one conversation; once its run is over there is nothing to wait for but the last bytes.
            for client in self.clients.values_mut().filter(|c| c.known) {
                // The report must get out even when the client is slow to read.
                let _ = client.channel.drain(Duration::from_secs(5));
            }
        }
        Ok(())
    }

    fn admit(&mut self) {
        let running: u32 =
            self.sessions.values().filter(|e| e.admitted).map(|e| e.session.spec().topology.cpus()).sum();
        let mut free = self.cpus.saturating_sub(running);
        let mut none = running == 0;
        for (id, entry) in &mut self.sessions {
            if entry.admitted || entry.session.state() != State::Planning {
                continue;
            }
            let wanted = entry.session.spec().topology.cpus();
            if wanted > free && !none {
                break;
            }
            free = free.saturating_sub(wanted);
            none = false;
            entry.admitted = true;
            let (id, spec) = (*id, entry.session.spec().clone());
            let (sender, waker) = (self.plans.0.clone(), self.waker.clone());
            std::thread::spawn(move || {
                // Both fail only when the loop has ended, and then nobody waits for the plan.
                let _ = sender.send((id, plan(&spec)));
                let _ = waker.wake();
            });
        }
    }

    /// Keeps the registrations equal to the children the session has.
    fn watch(&mut self, id: usize) -> Result<(), ServeError> {
        let Some(entry) = self.sessions.get(&id) else { return Ok(()) };
        let session = &entry.session;
        let mut wanted: Vec<(Source, RawFd)> = Vec::new();
        if let Some(vmm) = session.vmm() {
            wanted.push((Source::Vmm(id), vmm.channel.as_raw_fd()));
            wanted.push((Source::VmmEnd(id), vmm.pidfd.as_raw_fd()));
        }
        if let Some(monitor) = session.monitor() {
            wanted.push((Source::Monitor(id), monitor.channel.as_raw_fd()));
            wanted.push((Source::MonitorEnd(id), monitor.pidfd.as_raw_fd()));
        }
        if let Some(device) = session.device() {
            wanted.push((Source::Device(id), device.channel.as_raw_fd()));
            wanted.push((Source::DeviceEnd(id), device.pidfd.as_raw_fd()));
        }
        let have = entry.registered.clone();
        for (source, fd) in have.iter().filter(|x| !wanted.contains(x)) {
            self.unregister(*source, *fd);
        }
        for (source, fd) in wanted.iter().filter(|x| !have.contains(x)) {
            self.register(*source, *fd)?;
        }
        if let Some(entry) = self.sessions.get_mut(&id) {
            entry.registered = wanted;
        }
        Ok(())
    }

    fn unregister(&mut self, source: Source, fd: RawFd) {
        // Descriptors that are closed already have left epoll by themselves.
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        self.sources.retain(|_, s| *s != source);
    }

    fn deliver(&mut self, id: usize) {
        let Some(entry) = self.sessions.get_mut(&id) else { return };
        if entry.first.is_some() {
            // What it says is in its directory; its report is taken when it is over.
            return entry.session.outbox.retain(|(event, _)| matches!(event, ClientEvent::Finished(_)));
        }
        let outbox = std::mem::take(&mut entry.session.outbox);
        let client = entry.client;
        self.send(client, outbox);
    }

    fn send(&mut self, client_id: usize, outbox: Vec<(ClientEvent, Fds)>) {
        let Some(client) = self.clients.get_mut(&client_id) else { return };
        let sent = outbox
            .into_iter()
            .try_for_each(|(event, fds)| client.channel.queue_event(&event, fds))
            .and_then(|()| client.channel.flush());
        if sent.is_err() || client.channel.backlog() > CLIENT_BACKLOG {
            self.drop_client(client_id);
        }
    }
}

/// Observers: who comes in through the socket of a run, sees that run, and changes nothing.
impl Server {
    fn admit_observers(&mut self, session: usize) -> Result<(), ServeError> {
        loop {
            let Some(door) = self.sessions.get(&session).and_then(|entry| entry.door.as_ref()) else {
                return Ok(());
            };
            match door.accept() {
                // More at a time is no audience but an attack on the run.
                Ok(socket) if self.observers.len() >= MAX_OBSERVERS => drop(socket),
                Ok(socket) => {
                    let Ok(channel) = Channel::new(socket, "observer") else { continue };
                    let id = self.new_id();
                    self.register(Source::Observer(id), channel.as_raw_fd())?;
                    self.observers.insert(id, Observer { channel, known: false, session });
                    self.observer_ready(id);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => {
                    tracing::warn!("an observer could not be let in: {e}");
                    return Ok(());
                }
            }
        }
    }

    fn observer_ready(&mut self, id: usize) {
        loop {
            let Some(observer) = self.observers.get_mut(&id) else { return };
            match pump(&mut observer.channel) {
                Ok(Some((message, _))) => {
                    if let Err(error) = self.observer_message(id, message) {
                        tracing::warn!("dropping an observer: {}", ktstr_proto::link::chain(&error));
                        return self.drop_observer(id);
                    }
                }
                Ok(None) => return,
                Err(_) => return self.drop_observer(id),
            }
        }
    }

    fn observer_message(&mut self, id: usize, message: Message<ClientLink>) -> Result<(), ChannelError> {
        let observer = self.observers.get_mut(&id).expect("the caller has just read from it");
        let session = observer.session;
        let frame = match message {
            Message::Hello(_) => {
                observer.channel.queue_hello("ktstr-orch")?;
                observer.channel.flush()?;
                observer.channel.accept_hello(message)?;
                observer.known = true;
                return Ok(());
            }
            Message::Request(frame) if observer.known => frame,
            _ => {
                let what = "a frame that is no request".to_owned();
                return Err(ChannelError::Unexpected { peer: "observer", what });
            }
        };
        let asker = Asker { connection: id, request: frame.id };
        match (frame.request, self.sessions.get_mut(&session)) {
            (ClientRequest::Query(query), Some(entry)) => entry.session.query(asker, query),
            (ClientRequest::TakeCapture(wanted), Some(entry)) => entry.session.capture(asker, &wanted),
            (ClientRequest::SetNumber(wanted), Some(entry)) => entry.session.set_number(asker, &wanted),
            _ => self.answer(asker, Err(refusal("observers ask, capture and write numbers into maps"))),
        }
        Ok(())
    }

    fn drop_observer(&mut self, id: usize) {
        if let Some(observer) = self.observers.remove(&id) {
            self.unregister(Source::Observer(id), observer.channel.as_raw_fd());
            if let Some(entry) = self.sessions.get_mut(&observer.session) {
                entry.session.forget_connection(id);
            }
        }
    }

    /// The run that a client means: by name, or the only one there is.
    fn run_of(&mut self, run: Option<&RunId>) -> Result<&mut Session, RemoteError> {
        let only = self.sessions.len() == 1;
        let meant = |entry: &&mut Entry| run.map_or(only, |run| entry.session.is(run));
        let found = self.sessions.values_mut().find(meant).map(|entry| &mut entry.session);
        found.ok_or_else(|| refusal("no such run is under way; name one by its id"))
    }

    fn deliver_answers(&mut self, id: usize) {
        let Some(entry) = self.sessions.get_mut(&id) else { return };
        for (asker, result) in entry.session.take_answers() {
            self.answer(asker, result);
        }
    }

    fn answer(&mut self, asker: Asker, result: Result<ClientReply, RemoteError>) {
        let id = asker.connection;
        let observer = self.observers.get_mut(&id).map(|observer| &mut observer.channel);
        let Some(channel) = observer.or_else(|| self.clients.get_mut(&id).map(|c| &mut c.channel)) else {
            return;
        };
        let sent = channel.queue_reply(asker.request, result, Fds::default()).and_then(|()| channel.flush());
        let behind = channel.backlog() > CLIENT_BACKLOG;
        if sent.is_err() || behind {
            // Whichever it is, the other one does nothing.
            self.drop_observer(id);
            if self.clients.contains_key(&id) {
                self.drop_client(id);
            }
        }
    }

    /// The run is over: its observers are told so by the end of the connection.
    fn close_door(&mut self, session: usize) {
        let inside: Vec<usize> =
            self.observers.iter().filter(|(_, o)| o.session == session).map(|(id, _)| *id).collect();
        for id in inside {
            if let Some(observer) = self.observers.get_mut(&id) {
                // A last answer gets out if the observer reads; nobody waits long for one who does not.
                let _ = observer.channel.drain(Duration::from_millis(200));
            }
            self.drop_observer(id);
        }
        if let Some(door) = self.sessions.get(&session).and_then(|entry| entry.door.as_ref()) {
            self.unregister(Source::RunListener(session), door.listener.as_raw_fd());
        }
    }
}

fn refusal(message: &str) -> RemoteError {
    RemoteError { code: ErrorCode::BadRequest, message: message.to_owned() }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.listener {
            // Another process may have removed it; what matters is that it is gone.
            let _ = std::fs::remove_file(path);
        }
    }
}
