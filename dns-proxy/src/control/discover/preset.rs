//! Scopes by one word: `--scope docker`.

use super::{
    super::{cgroup::Scope, pattern::CgroupPattern},
    selector::{Engine, Selector},
};

/// What runs on a host, by who runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Preset {
    /// Everything.
    Host,
    /// Docker's containers, and its engine, which asks for those on networks of their users.
    Docker,
    /// podman's containers, those of users who are not root as well.
    Podman,
    /// The pods of this node.
    Kubernetes,
}

impl Preset {
    /// Adds it to a scope.
    pub fn add_to(self, scope: &mut Scope) {
        let places = self.places().iter().map(|place| place.parse::<CgroupPattern>());
        scope.select.extend(places.map(|place| place.expect("a pattern in the source")));
        scope.selectors.extend(self.engine().map(Selector::Engine));
    }

    /// Where they are unless told otherwise, so that nobody needs to be asked for them.
    fn places(self) -> &'static [&'static str] {
        match self {
            Self::Host => &["/"],
            Self::Docker => {
                &["docker", "system.slice/docker-*.scope", "system.slice/docker.service"]
            }
            Self::Podman => &[
                "libpod_parent",
                "machine.slice/libpod-*.scope",
                "machine.slice/machine-libpod_pod_*.slice",
                "user.slice/user-*.slice/user@*.service/user.slice/libpod-*.scope",
                "user.slice/user-*.slice/user@*.service/user.slice/user-libpod_pod_*.slice",
            ],
            Self::Kubernetes => &[
                "kubepods",
                "kubepods.slice",
                "kubelet/kubepods",
                "kubelet.slice/kubelet-kubepods.slice",
            ],
        }
    }

    /// Whose containers are found wherever else they are.
    fn engine(self) -> Option<Engine> {
        match self {
            Self::Docker => Some(Engine::Docker),
            Self::Podman => Some(Engine::Podman),
            Self::Host | Self::Kubernetes => None,
        }
    }
}
