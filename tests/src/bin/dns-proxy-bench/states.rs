//! What may lie between an application and its nameserver: each state is put up, measured and taken
//! away again, over and over, in one network namespace.

use std::{collections::HashMap, net::Ipv4Addr, os::fd::OwnedFd, thread, time::Duration};

use anyhow::{Context as _, Result};
use dns_proxy::control::{
    bpf::{Attachment, Bpf, Events},
    cgroup::CgroupId,
};
use dns_proxy_common::{GuardMode, Listener, Policy};
use dns_proxy_tests::{Cgroup, Container, Daemon, Netns, Stage, bpf::Idle, process::output};

use crate::load::{LISTENER, Load};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No program of ours is attached anywhere.
    Nothing,
    /// The same, and the application asks the listener itself: the road without the redirection.
    Straight,
    /// Programs that do nothing are attached to the same hooks.
    Idle,
    /// Redirected, guard on: what `run --cgroup` does.
    Redirected,
    /// The same, three cgroups further down.
    Nested,
    /// Redirected, `--guard off`.
    Unguarded,
    /// The programs are attached, but this cgroup is not selected.
    NotSelected,
    /// The real daemon, with its own loader, attachment and listener.
    Daemon,
    /// A NAT rule of the namespace.
    Nft,
}

impl State {
    pub(crate) const ALL: [Self; 9] = [
        Self::Nothing,
        Self::Straight,
        Self::Idle,
        Self::Redirected,
        Self::Nested,
        Self::Unguarded,
        Self::NotSelected,
        Self::Daemon,
        Self::Nft,
    ];

    /// As the table calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Straight => "straight to listener",
            Self::Idle => "empty programs",
            Self::Redirected => "redirected, guard on",
            Self::Nested => "  3 cgroups deeper",
            Self::Unguarded => "redirected, guard off",
            Self::NotSelected => "attached, not selected",
            Self::Daemon => "by the running daemon",
            Self::Nft => "nft redirect",
        }
    }
}

/// Everything that the states need.
pub(crate) struct Stand {
    // Dropped in this order: the load before the cgroups that it is in.
    pub(crate) load: Load,
    idle: Idle,
    guarded: Loaded,
    unguarded: Loaded,
    nested: Vec<Cgroup>,
    other: Cgroup,
    app: Container,
    stage: Stage,
}

/// The kernel programs as the daemon loads them.
struct Loaded {
    bpf: Bpf,
    _events: Events,
}

/// What a state put up; dropping it takes it away.
pub(crate) enum Put {
    Nothing,
    Idle { _links: Vec<OwnedFd> },
    Attached { _programs: Attachment },
    Running { daemon: Daemon },
    Ruled { netns: Netns },
}

/// The nameserver's address; local to the namespace, so that with and without redirection the
/// packets go the same way, through `lo`, to the same kind of socket.
pub(crate) const NAMESERVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// How long a daemon that has just started is given to finish what it does then.
const SETTLE: Duration = Duration::from_millis(300);

const NFT_UP: &str = "add table ip bench; \
    add chain ip bench output { type nat hook output priority -100; }; \
    add rule ip bench output udp dport 53 redirect to :61053";
const NFT_DOWN: &str = "delete table ip bench";

impl Stand {
    /// Puts everything up that all states share. Needs a tokio runtime to be entered.
    pub(crate) fn new() -> Result<Self> {
        let stage = Stage::new()?;
        let app = stage.world.container("app")?;
        app.netns().ip(&["addr", "add", &format!("{NAMESERVER}/32"), "dev", "lo"])?;
        let other = stage.world.cgroup().child("other")?;
        let mut nested = vec![app.cgroup().child("1")?];
        for name in ["2", "3"] {
            nested.push(nested[nested.len() - 1].child(name)?);
        }
        let load = Load::start(app.netns())?;
        let guarded = Loaded::new(Some(GuardMode::On), &app)?;
        let unguarded = Loaded::new(None, &app)?;
        Ok(Self { load, idle: Idle::new()?, guarded, unguarded, nested, other, app, stage })
    }

    /// The host's end of the container's wire.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.app.addresses().v4.octets();
        [a, b, c, 1].into()
    }

    /// The host that the gateway is.
    pub(crate) fn host(&self) -> &Netns {
        self.stage.world.host()
    }

    /// Enters a state.
    pub(crate) fn put(&mut self, state: State) -> Result<Put> {
        let cgroup = match state {
            State::NotSelected => &self.other,
            State::Nested => self.nested.last().context("nested")?,
            State::Nothing
            | State::Straight
            | State::Idle
            | State::Redirected
            | State::Unguarded
            | State::Daemon
            | State::Nft => self.app.cgroup(),
        };
        self.load.enter(cgroup)?;
        // As with `system.slice/docker-*.scope`: attached a level above what is selected.
        let attach_to = self.stage.world.cgroup().dir();
        Ok(match state {
            State::Nothing | State::Straight => Put::Nothing,
            State::Idle => Put::Idle { _links: self.idle.attach(attach_to)? },
            State::Redirected | State::Nested | State::NotSelected => {
                Put::Attached { _programs: self.guarded.bpf.attach(attach_to)? }
            }
            State::Unguarded => Put::Attached { _programs: self.unguarded.bpf.attach(attach_to)? },
            State::Daemon => {
                let daemon = self.stage.daemon(&[&self.app])?;
                thread::sleep(SETTLE); // the other core may be half of ours
                Put::Running { daemon }
            }
            State::Nft => {
                let netns = self.app.netns().clone();
                output(netns.command("nft").arg(NFT_UP)).context("set up the nft rule")?;
                Put::Ruled { netns }
            }
        })
    }
}

impl Put {
    /// Takes it away, and fails if it cannot.
    pub(crate) fn take_away(self) -> Result<()> {
        match self {
            Self::Nothing | Self::Idle { .. } | Self::Attached { .. } => {}
            Self::Running { daemon } => drop(daemon.stop()?),
            Self::Ruled { netns } => drop(output(netns.command("nft").arg(NFT_DOWN))?),
        }
        Ok(())
    }
}

impl Loaded {
    fn new(guard: Option<GuardMode>, app: &Container) -> Result<Self> {
        let (mut bpf, events) = Bpf::load(guard, None, false)?;
        bpf.beat(u64::MAX)?; // for good
        let cgroup = CgroupId(app.cgroup().id()?);
        bpf.change_scope(&mut HashMap::from([(cgroup, Some(Policy::SelectAll))]))?;
        let listener = Listener { port_be: LISTENER.to_be(), families: Listener::V4 };
        bpf.set_ready(app.netns().cookie()?, listener)?;
        Ok(Self { bpf, _events: events })
    }
}
