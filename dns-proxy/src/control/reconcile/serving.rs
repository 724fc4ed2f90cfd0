//! The namespaces in service: put up, looked after, let go.

use std::{cell::LazyCell, process, time::Duration};

use dns_proxy_common::Listener;
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tracing::{debug, info, warn};

use super::{
    super::{
        bpf::Bpf,
        cgroup::CgroupId,
        namespace::Namespace,
        netlink::Changes,
        netns::{Netns, NetnsId},
    },
    Control, ControlError, LOOK, io_error,
};
use crate::{
    datapath::{gate::Gate, response::Room, worker::ListenerId},
    upstream::Outlet,
};

/// How long a namespace must have been without processes of the scope before it is let go: the list
/// of processes is read while they come and go.
const RELEASE_AFTER: Duration = Duration::from_millis(200);
/// How long after a change routes by device are looked at, together with what changes meanwhile: that
/// waits for the lock under which the host's interfaces change, which must not keep a new namespace
/// waiting.
const ROUTE_AFTER: Duration = Duration::from_millis(50);
/// How old routes by device may be before somebody looks whether they are still there, which the
/// monitors do not tell; and how many are looked at each time.
const ROUTES_AGE: Duration = Duration::from_secs(30);
/// As above.
const ROUTES_AT_ONCE: usize = 16;
/// How long a namespace that could not be served is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// One namespace in service.
pub(super) struct Served {
    pub(super) namespace: Namespace,
    pub(super) listener: ListenerId,
    pub(super) worker: usize,
    holder: Option<Holder>,
    /// Whether connections from before the redirection were looked for.
    pub(super) is_clean: bool,
    empty_since: Option<Instant>,
    /// When the routes by device were last looked at.
    routed_at: Instant,
    _monitor: Monitor,
}

/// Why a namespace is served in which no process of the scope was seen.
#[derive(Clone, Copy)]
pub(super) struct Holder {
    /// The cgroup that asked from there.
    pub(super) cgroup: CgroupId,
    /// A process that is in it with a thread, or that is not of the scope but whose namespace is used
    /// from there.
    pub(super) pid: u32,
}

/// Tells of each change of a namespace's links or addresses, as long as it lives.
struct Monitor(JoinHandle<()>);

impl Control {
    /// Puts the namespaces in service that processes of the scope are in and that are not served yet;
    /// and our own, the host's, from which processes may move into the scope at any moment.
    pub(super) fn serve_inhabited(&mut self) {
        let unserved = |id: &NetnsId| !self.namespaces.contains_key(id);
        let unserved: Vec<_> = self.census.inhabited().filter(unserved).collect();
        unserved.into_iter().for_each(|id| self.serve_inhabitant(id));
        if let Ok(host) = Netns::id_of(process::id()) {
            self.serve_process(host, process::id());
        }
    }

    /// Puts one of them in service.
    pub(super) fn serve_inhabitant(&mut self, id: NetnsId) {
        if let Some(pid) = self.census.process_in(id)
            && !self.serve_process(id, pid)
            // The process may be gone meanwhile, or elsewhere.
            && let Some(other) = self.census.process_still_in(id)
        {
            self.serve_process(id, other);
        }
    }

    /// Serves the namespace that a process is in; `false` if it is not in that one.
    fn serve_process(&mut self, id: NetnsId, pid: u32) -> bool {
        if self.namespaces.contains_key(&id) {
            return true;
        }
        let netns = Netns::of(pid).ok().filter(|netns| netns.id() == id);
        netns.map(|netns| self.serve(netns, None)).is_some()
    }

    /// Puts in service what has a name.
    pub(super) fn serve_named(&mut self) {
        let unserved = |id: &NetnsId| !self.namespaces.contains_key(id);
        for id in self.names.ids().filter(unserved).collect::<Vec<_>>() {
            let netns = self.names.get(id).and_then(|path| Netns::bound_to(path).ok());
            if let Some(netns) = netns.filter(|netns| netns.id() == id) {
                self.serve(netns, None);
                // Nobody was in it before us.
                if let Some(served) = self.namespaces.get_mut(&id) {
                    served.is_clean = true;
                }
            }
        }
    }

    /// Looks again what is reachable inside a namespace.
    pub(super) fn refresh(&mut self, id: NetnsId) {
        if let Some(served) = self.namespaces.get_mut(&id) {
            refresh(&mut self.bpf, &mut served.namespace);
        }
    }

    /// Looks at some namespaces, as many as there is time for, though nothing told of a change there.
    pub(super) fn look_at_namespaces(&mut self) {
        let begun = Instant::now();
        let mut old = 0;
        for _ in 0..self.round.len() {
            let Some(id) = self.round.pop_front().filter(|_| begun.elapsed() < LOOK) else {
                break;
            };
            let Some(served) = self.namespaces.get_mut(&id) else {
                continue;
            };
            self.round.push_back(id);
            refresh(&mut self.bpf, &mut served.namespace);
            if old < ROUTES_AT_ONCE && served.routed_at.elapsed() >= ROUTES_AGE {
                old += 1;
                self.route_soon(id);
            }
        }
    }

    /// Links or addresses of a namespace have changed.
    pub(super) fn follow(&mut self, id: NetnsId) {
        if self.namespaces.contains_key(&id) {
            self.refresh(id);
            self.route_soon(id);
        }
    }

    fn route_soon(&mut self, id: NetnsId) {
        if self.unrouted.is_empty() {
            self.route_at = Instant::now() + ROUTE_AFTER;
        }
        self.unrouted.insert(id);
    }

    /// Routes tokens by device where that may have become necessary.
    pub(super) fn route_devices(&mut self) {
        for id in self.unrouted.drain() {
            if let Some(served) = self.namespaces.get_mut(&id) {
                route_devices(&mut self.bpf, &mut served.namespace);
                served.routed_at = Instant::now();
            }
        }
    }

    /// Serves the namespace that the holder is in, if it is new and, where one is given, has the cookie.
    pub(super) fn serve_found(&mut self, id: NetnsId, holder: Holder, cookie: Option<u64>) {
        // The process may be gone meanwhile.
        if !self.namespaces.contains_key(&id)
            && let Ok(netns) = Netns::of(holder.pid)
            && cookie.is_none_or(|cookie| netns.cookie().is_ok_and(|own| own == cookie))
        {
            self.serve(netns, Some(holder));
        }
    }

    /// Puts a namespace in service. One that cannot be served stays refused; the rest go on.
    pub(super) fn serve(&mut self, netns: Netns, holder: Option<Holder>) {
        let id = netns.id();
        if self.unservable.get(&id).is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return;
        }
        self.is_shown = false;
        match self.put_in_service(netns, holder) {
            Ok(served) => {
                self.cookies.insert(served.namespace.cookie(), id);
                self.namespaces.insert(id, served);
                self.round.push_back(id);
                self.route_soon(id);
            }
            Err(error) => {
                warn!(%error, netns = id.0, "cannot serve this namespace; its DNS is refused");
                self.unservable.retain(|_, at| at.elapsed() < RETRY_AFTER);
                self.unservable.insert(id, Instant::now());
            }
        }
    }

    fn put_in_service(
        &mut self,
        netns: Netns,
        holder: Option<Holder>,
    ) -> Result<Served, ControlError> {
        let (namespace, sockets, addresses, changes) =
            Namespace::open(netns, self.port, &self.bpf).map_err(io_error("listeners"))?;
        // With `/` as the scope our own answers are looked at too.
        let exempt = self.bpf.exempt();
        let exempted = sockets.descriptors().try_for_each(|socket| exempt.exempt(socket));
        exempted.map_err(io_error("socket storage"))?;
        let cookie = namespace.cookie();
        let listener = ListenerId(self.next_listener);
        self.next_listener += 1;
        let worker = self.least_busy_worker();
        // Loopback has no path to break answers up; only the client's own limit counts.
        let room = Room::Datagram { path: u16::MAX };
        let outlet = Outlet::new(namespace.network());
        let gate = Gate::namespace(cookie, self.bpf.origins(), Box::new(addresses), outlet);
        self.workers[worker].serve(listener, sockets, gate, room);
        self.bpf
            .set_ready(cookie, namespace.listener())
            .inspect_err(|_| self.workers[worker].release(listener))?;
        info!(
            netns = namespace.id().0,
            port = namespace.port(),
            ipv6 = namespace.listener().families & Listener::V6 != 0,
            "namespace ready"
        );
        let _monitor = Monitor::start(changes, namespace.id(), self.changed.0.clone());
        Ok(Served {
            namespace,
            listener,
            worker,
            holder,
            is_clean: false,
            empty_since: None,
            routed_at: Instant::now(),
            _monitor,
        })
    }

    /// A namespace is served by one worker: its sockets need no copies, and workers share nothing.
    fn least_busy_worker(&self) -> usize {
        let mut load = vec![0_usize; self.workers.len()];
        self.namespaces.values().for_each(|served| load[served.worker] += 1);
        (0..load.len()).min_by_key(|&index| load[index]).unwrap_or(0)
    }

    /// An open listener would keep a dead container's namespace and its devices alive.
    pub(super) fn release_gone(&mut self) {
        let mut gone = Vec::new();
        let host = Netns::id_of(process::id()).ok();
        let everybody = LazyCell::new(Netns::of_all);
        for (id, served) in &mut self.namespaces {
            let is_wanted = self.census.process_in(*id).is_some() || self.names.get(*id).is_some();
            if is_wanted || Some(*id) == host {
                served.empty_since = None;
                continue;
            }
            // A new cgroup may have asked that then proved not to be of the scope, or is gone.
            served.holder = served.holder.filter(|holder| self.census.is_peopled(holder.cgroup));
            if let Some(holder) = &mut served.holder
                && !holder.is_in(*id)
            {
                // It may have been a visitor whose sockets stay; whoever lives there holds it.
                holder.pid = everybody.get(id).copied().unwrap_or(holder.pid);
            }
            if served.holder.is_some_and(|holder| holder.is_in(*id)) {
                served.empty_since = None;
            } else if served.empty_since.get_or_insert_with(Instant::now).elapsed() >= RELEASE_AFTER
            {
                gone.push(*id);
            }
        }
        gone.into_iter().for_each(|id| self.release(id));
    }

    fn release(&mut self, id: NetnsId) {
        let Some(served) = self.namespaces.get(&id) else {
            return;
        };
        let cookie = served.namespace.cookie();
        if let Err(error) = self.bpf.clear_ready(cookie) {
            // Its listener must not go before that.
            warn!(%error, netns = id.0, "cannot let go of this namespace; trying again");
            return;
        }
        for device in served.namespace.devices() {
            if let Err(error) = self.bpf.clear_device(device) {
                // Without an entry in the ready map nobody gets as far as this one.
                warn!(%error, netns = id.0, device = device.index, "entry left in a map");
            }
        }
        self.workers[served.worker].release(served.listener);
        self.namespaces.remove(&id);
        self.cookies.remove(&cookie);
        self.is_shown = false;
        info!(netns = id.0, "namespace released");
    }

    /// Breaks what was connected before it could be redirected. The kernel walks its whole table of
    /// TCP sockets for that, which takes milliseconds: nothing to do while somebody waits.
    pub(super) fn break_stale(&mut self, at_once: usize) {
        if !self.bpf.guards() {
            return; // then they may go on
        }
        let unclean = self.namespaces.values_mut().filter(|served| !served.is_clean);
        for served in unclean.take(at_once) {
            served.is_clean = true;
            let is_member = |cgroup| self.census.is_member(CgroupId(cgroup));
            match served.namespace.break_stale(is_member) {
                Ok(0) => {}
                Ok(broken) => {
                    info!(netns = served.namespace.id().0, broken, "stale connections broken");
                }
                Err(error) => {
                    warn!(
                        %error,
                        netns = served.namespace.id().0,
                        "cannot break connections from before the redirection; \
                         the leak guard refuses what they send"
                    );
                }
            }
        }
    }
}

impl Holder {
    fn is_in(self, id: NetnsId) -> bool {
        Netns::id_of(self.pid).is_ok_and(|now| now == id)
    }
}

impl Monitor {
    fn start(changes: Changes, id: NetnsId, to: mpsc::Sender<NetnsId>) -> Self {
        Self(tokio::spawn(async move {
            loop {
                changes.wait().await;
                if to.send(id).await.is_err() {
                    return;
                }
            }
        }))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn refresh(bpf: &mut Bpf, namespace: &mut Namespace) {
    if namespace.refresh()
        && let Err(error) = bpf.set_ready(namespace.cookie(), namespace.listener())
    {
        warn!(%error, netns = namespace.id().0, "cannot say what is reachable");
    }
}

/// Brings the routes by device up to date: an entry of the map goes before its route does, and comes
/// after it.
fn route_devices(bpf: &mut Bpf, namespace: &mut Namespace) {
    let netns = namespace.id().0;
    let change = match namespace.plan_devices() {
        Ok(change) => change,
        Err(error) => {
            warn!(%error, netns, "cannot list interfaces; sockets bound to new ones are refused");
            return;
        }
    };
    for device in &change.gone {
        if let Err(error) = bpf.clear_device(device) {
            warn!(%error, netns, device = device.index, "the guard must stop sockets bound to it");
        }
    }
    if let Err(error) = bpf.set_sources(namespace.cookie(), namespace.sources()) {
        warn!(%error, netns, "getsockname shows loopback");
    }
    for device in namespace.apply(&change) {
        debug!(netns, ?device, "device routed");
        if let Err(error) = bpf.set_device(device) {
            warn!(%error, netns, device = device.index, "sockets bound to it are refused");
        }
    }
}
