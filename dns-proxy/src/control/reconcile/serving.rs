//! The namespaces in service: put up, looked after, let go.

use std::{
    cell::LazyCell, collections::HashMap, future::poll_fn, path::PathBuf, task::Poll,
    time::Duration,
};

use dns_proxy_common::Listener;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    super::{
        bpf::Bpf,
        namespace::Namespace,
        netns::{Netns, NetnsId},
    },
    Control, ControlError, io_error,
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
/// How long a namespace that could not be served is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// One namespace in service.
pub(super) struct Served {
    pub(super) namespace: Namespace,
    pub(super) listener: ListenerId,
    pub(super) worker: usize,
    /// A process that is in it with a thread, or that is not of the scope but whose namespace is
    /// used from there.
    held_by: Option<u32>,
    /// Whether connections from before the redirection were looked for.
    pub(super) is_clean: bool,
    empty_since: Option<Instant>,
}

impl Control {
    /// Puts in service what is inhabited, or has a name, and is not served yet.
    pub(super) fn serve_new(
        &mut self,
        inhabited: &HashMap<NetnsId, u32>,
        named: &HashMap<NetnsId, PathBuf>,
    ) {
        // The process may be gone meanwhile, or elsewhere; then the next round sees that.
        for (id, &pid) in inhabited {
            if !self.namespaces.contains_key(id)
                && let Ok(netns) = Netns::of(pid)
                && netns.id() == *id
            {
                self.serve(netns, None);
            }
        }
        for (id, path) in named {
            if !self.namespaces.contains_key(id)
                && let Ok(netns) = Netns::at(path)
                && netns.id() == *id
            {
                self.serve(netns, None);
                // Nobody was in it before us.
                if let Some(served) = self.namespaces.get_mut(id) {
                    served.is_clean = true;
                }
            }
        }
    }

    /// Looks again what is reachable inside these namespaces.
    pub(super) fn refresh(&mut self, which: impl Fn(&Namespace) -> bool) {
        for served in self.namespaces.values_mut().filter(|served| which(&served.namespace)) {
            refresh(&mut self.bpf, &mut served.namespace);
        }
    }

    /// Links or addresses of a namespace have changed.
    pub(super) fn follow(&mut self, id: NetnsId) {
        if let Some(served) = self.namespaces.get_mut(&id) {
            refresh(&mut self.bpf, &mut served.namespace);
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
            }
        }
    }

    /// Serves the namespace that `pid` is in, if it is new and, where one is given, has the cookie.
    pub(super) fn serve_found(&mut self, id: NetnsId, pid: u32, cookie: Option<u64>) {
        // The process may be gone meanwhile.
        if !self.namespaces.contains_key(&id)
            && let Ok(netns) = Netns::of(pid)
            && cookie.is_none_or(|cookie| netns.cookie().is_ok_and(|own| own == cookie))
        {
            self.serve(netns, Some(pid));
        }
    }

    /// Puts a namespace in service. One that cannot be served stays refused; the rest go on.
    pub(super) fn serve(&mut self, netns: Netns, held_by: Option<u32>) {
        let id = netns.id();
        if self.unservable.get(&id).is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return;
        }
        match self.put_in_service(netns, held_by) {
            Ok(served) => {
                self.namespaces.insert(id, served);
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
        held_by: Option<u32>,
    ) -> Result<Served, ControlError> {
        let (namespace, sockets, addresses) =
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
        Ok(Served { namespace, listener, worker, held_by, is_clean: false, empty_since: None })
    }

    /// A namespace is served by one worker: its sockets need no copies, and workers share nothing.
    fn least_busy_worker(&self) -> usize {
        let mut load = vec![0_usize; self.workers.len()];
        self.namespaces.values().for_each(|served| load[served.worker] += 1);
        (0..load.len()).min_by_key(|&index| load[index]).unwrap_or(0)
    }

    /// An open listener would keep a dead container's namespace and its devices alive.
    pub(super) fn release_gone(
        &mut self,
        inhabited: &HashMap<NetnsId, u32>,
        named: &HashMap<NetnsId, PathBuf>,
    ) {
        let mut gone = Vec::new();
        let everybody = LazyCell::new(Netns::of_all);
        for (id, served) in &mut self.namespaces {
            if served.held_by.is_some() && !served.is_held() {
                // It may have been a visitor whose sockets stay; whoever lives there holds it.
                served.held_by = everybody.get(id).copied();
            }
            if inhabited.contains_key(id) || named.contains_key(id) || served.is_held() {
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
            match served.namespace.break_stale(&self.members) {
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

impl Served {
    fn is_held(&self) -> bool {
        let id = self.namespace.id();
        self.held_by.is_some_and(|pid| Netns::id_of(pid).is_ok_and(|now| now == id))
    }
}

/// Waits until links or addresses change in some of the namespaces.
pub(super) async fn changed(namespaces: &HashMap<NetnsId, Served>) -> Vec<NetnsId> {
    poll_fn(|context| {
        let changed: Vec<_> = namespaces
            .iter()
            .filter(|(_, served)| served.namespace.poll_changed(context).is_ready())
            .map(|(id, _)| *id)
            .collect();
        if changed.is_empty() { Poll::Pending } else { Poll::Ready(changed) }
    })
    .await
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
