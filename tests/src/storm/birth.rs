//! The ways in which a process finds itself in a network namespace that nobody has served yet.

use crate::container::Container;
use crate::process::output;
use crate::world::World;
use anyhow::{Result, bail};
use std::process::Command;
use std::thread;

/// How the one who asks came to be where it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    /// A container of a runtime that gives namespaces names, as Docker, podman and CNI do.
    Announced,
    /// A container of a runtime that does not, such as plain runc.
    Unannounced,
    /// The same where a pattern selects it by its name, which nobody has seen yet.
    Patterned,
    /// A process outside of the scope, in a namespace of its own, that moves into it.
    Moved,
    /// A process of a running service that enters another namespace (setns).
    Entered,
    /// A process of a running service that makes itself a namespace (unshare).
    Unshared,
    /// Two containers of a pod, in its namespace, at the same time.
    Pod,
}

impl Birth {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Announced,
        Self::Unannounced,
        Self::Patterned,
        Self::Moved,
        Self::Entered,
        Self::Unshared,
        Self::Pod,
    ];

    /// What it is called in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Announced => "container with a named namespace",
            Self::Unannounced => "container without",
            Self::Patterned => "container that a pattern names",
            Self::Moved => "moved into the scope",
            Self::Entered => "setns in a service",
            Self::Unshared => "unshare -n in a service",
            Self::Pod => "two containers of a pod",
        }
    }

    /// The scope, as the daemon is told.
    pub(super) fn scope(self, world: &World, service: &Container) -> Result<Vec<String>> {
        let pattern = |path: String| format!("--cgroup={path}");
        let all = world.cgroup().path()?;
        if self != Self::Patterned {
            return Ok(vec![pattern(all)]);
        }
        Ok(vec![pattern(service.cgroup().path()?), pattern(format!("{all}/new-*"))])
    }

    /// Lets the command be somebody's very first act, and gives what it printed.
    pub(super) fn run(
        self,
        world: &World,
        service: &Container,
        number: usize,
        words: &[String],
    ) -> Result<String> {
        let name = format!("new-{number}");
        match self {
            Self::Announced => {
                let newborn = world.newborn(&name)?;
                output(newborn.container.command(&words[0])?.args(&words[1..]))
            }
            Self::Unannounced | Self::Patterned => {
                let container = world.unannounced(&name)?;
                output(container.command(&words[0])?.args(&words[1..]))
            }
            Self::Moved => {
                let container = world.unannounced(&name)?;
                let procs = service.cgroup().dir().join("cgroup.procs");
                let mut moving = container.command_outside("sh");
                moving.args(["-c", "echo 0 > \"$0\"; exec \"$@\""]).arg(procs);
                output(moving.args(words))
            }
            Self::Entered => {
                let container = world.unannounced(&name)?;
                let mut entering = service.command("nsenter")?;
                entering.arg(format!("--net={}", container.netns().path()));
                output(entering.args(words))
            }
            Self::Unshared => {
                let script = "ip link set lo up; exec \"$0\" \"$@\"";
                let mut unsharing = service.command("unshare")?;
                output(unsharing.args(["-n", "sh", "-c", script]).args(words))
            }
            Self::Pod => {
                let pod = world.unannounced(&name)?;
                let other = pod.cgroup().child("other")?;
                let app = pod.cgroup().child("app")?;
                let commands =
                    [pod.command_in(&app, &words[0])?, pod.command_in(&other, &words[0])?];
                together(commands, &words[1..])
            }
        }
    }
}

/// Runs both at once; what the one printed, if the other printed the same.
fn together(commands: [Command; 2], args: &[String]) -> Result<String> {
    let printed = thread::scope(|scope| {
        let running = commands.map(|mut command| scope.spawn(move || output(command.args(args))));
        running.map(|running| running.join().expect("running a command does not panic"))
    });
    let [one, other] = printed;
    let (one, other) = (one?, other?);
    if one != other {
        bail!("one found\n{one}the other\n{other}");
    }
    Ok(one)
}
