//! Options that say who is in the scope by what he is.

use std::{env, ffi::OsString, path::PathBuf};

use clap::{Args, ValueEnum};

use crate::control::{
    cgroup::Scope,
    discover::{
        Cluster, ClusterError, ImageName, Label, LabelSelector, Places, PodSelector, Preset,
        Selector, SelectorError, UnitName, container_name,
    },
    pattern::Glob,
};

/// Where engines have their sockets unless told otherwise.
const SOCKETS: [&str; 2] = ["/run/docker.sock", "/run/podman/podman.sock"];
/// What names a socket to the engines' own clients.
const HOSTS: [&str; 2] = ["DOCKER_HOST", "CONTAINER_HOST"];

/// Who is in the scope besides `--cgroup`, and where to ask for them. Everybody whom any of these
/// selects is.
#[derive(Clone, Debug, Args)]
pub struct SelectionArgs {
    /// What runs on this host by who runs it: all of it (`host`), Docker's or podman's containers, or
    /// the pods of this node. Repeatable.
    #[arg(long, value_name = "PRESET", env = "DNS_PROXY_SCOPE", value_delimiter = ',')]
    #[arg(help_heading = "Interception")]
    pub scope: Vec<PresetName>,

    /// systemd units and slices to intercept, wherever they are: `nginx.service`, `php*-fpm.service`,
    /// `user.slice`; without a suffix a service. Repeatable.
    #[arg(long, value_name = "NAME", env = "DNS_PROXY_UNIT", value_delimiter = ',')]
    #[arg(help_heading = "Interception")]
    pub unit: Vec<UnitName>,

    /// Containers of Docker, podman, containerd and CRI-O to intercept, by name, of today and to come;
    /// `*` stands for any text. Repeatable.
    #[arg(long, value_name = "NAME", env = "DNS_PROXY_CONTAINER", value_delimiter = ',')]
    #[arg(value_parser = name, help_heading = "Interception")]
    pub container: Vec<Glob>,

    /// The same by image: `nginx`, `nginx:1.27`, `ghcr.io/me/*`. Repeatable.
    #[arg(long, value_name = "IMAGE", env = "DNS_PROXY_CONTAINER_IMAGE", value_delimiter = ',')]
    #[arg(help_heading = "Interception")]
    pub container_image: Vec<ImageName>,

    /// The same by label. Repeatable.
    #[arg(long, value_name = "K[=V]", env = "DNS_PROXY_CONTAINER_LABEL", value_delimiter = ',')]
    #[arg(help_heading = "Interception")]
    pub container_label: Vec<Label>,

    /// Where to ask for containers [default: the sockets of Docker and podman that there are, and
    /// those that DOCKER_HOST and CONTAINER_HOST name]. Repeatable.
    #[arg(long, value_name = "PATH", env = "DNS_PROXY_CONTAINER_SOCKET", value_delimiter = ',')]
    #[arg(value_parser = socket, help_heading = "Interception")]
    pub container_socket: Vec<PathBuf>,

    /// Kubernetes pods of this node to intercept, by namespace; `*` stands for any text. With
    /// --pod-selector both must hold. Repeatable.
    #[arg(long, value_name = "NS", env = "DNS_PROXY_POD_NAMESPACE", value_delimiter = ',')]
    #[arg(value_parser = name, help_heading = "Interception")]
    pub pod_namespace: Vec<Glob>,

    /// The same by labels, as kubectl has them: `app=web`, `tier in (front,back),!canary`. Repeatable:
    /// any of several will do.
    #[arg(long, value_name = "LABELS", env = "DNS_PROXY_POD_SELECTOR")]
    #[arg(help_heading = "Interception")]
    pub pod_selector: Vec<LabelSelector>,

    /// How to ask Kubernetes [default: as a pod does, else as kubectl would].
    #[arg(long, value_name = "FILE", env = "DNS_PROXY_KUBECONFIG")]
    #[arg(help_heading = "Interception")]
    pub kubeconfig: Option<PathBuf>,

    /// What this node is called in Kubernetes [default: $NODE_NAME, else the host's name].
    #[arg(long, value_name = "NAME", env = "DNS_PROXY_NODE_NAME")]
    #[arg(help_heading = "Interception")]
    pub node_name: Option<String>,
}

/// `--scope`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PresetName {
    /// Everything.
    Host,
    /// Docker's containers.
    Docker,
    /// podman's containers.
    Podman,
    /// The pods of this node.
    Kubernetes,
}

impl SelectionArgs {
    /// Adds who is selected to a scope.
    pub fn add_to(&self, scope: &mut Scope) {
        for preset in &self.scope {
            let preset = match preset {
                PresetName::Host => Preset::Host,
                PresetName::Docker => Preset::Docker,
                PresetName::Podman => Preset::Podman,
                PresetName::Kubernetes => Preset::Kubernetes,
            };
            preset.add_to(scope);
        }
        let units = self.unit.iter().cloned().map(Selector::Unit);
        let names = self.container.iter().cloned().map(Selector::Name);
        let images = self.container_image.iter().cloned().map(Selector::Image);
        let labels = self.container_label.iter().cloned().map(Selector::Label);
        let pods = PodSelector {
            namespaces: self.pod_namespace.clone(),
            labels: self.pod_selector.clone(),
        };
        let pods = (pods != PodSelector::default()).then_some(Selector::Pods(pods));
        scope.selectors.extend(units.chain(names).chain(images).chain(labels).chain(pods));
    }

    /// Where to ask for them.
    ///
    /// # Errors
    /// Pods are selected, and there is no Kubernetes to ask.
    pub fn places(&self) -> Result<Places, ClusterError> {
        let wants_pods = !self.pod_namespace.is_empty() || !self.pod_selector.is_empty();
        let cluster = wants_pods
            .then(|| Cluster::find(self.kubeconfig.as_deref(), self.node_name.clone()))
            .transpose()?;
        let sockets = match self.container_socket.as_slice() {
            [] => default_sockets(|name| env::var_os(name)),
            given => given.to_vec(),
        };
        Ok(Places { sockets, cluster })
    }
}

fn default_sockets(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let named = HOSTS.iter().filter_map(|name| variable(name)?.into_string().ok());
    // Those of other hosts have no cgroups here.
    let named = named.filter_map(|host| host.strip_prefix("unix://").map(PathBuf::from));
    let mut sockets: Vec<_> = SOCKETS.iter().map(PathBuf::from).collect();
    for path in named {
        let is_usual = path.as_os_str() == "/var/run/docker.sock";
        if !is_usual && !sockets.contains(&path) {
            sockets.push(path);
        }
    }
    sockets
}

fn name(text: &str) -> Result<Glob, SelectorError> {
    container_name(text)
}

fn socket(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if path.starts_with('/') {
        return Ok(path.into());
    }
    Err("write the path of a Unix socket of this host, such as /run/docker.sock".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_of_engines_are_found_where_their_own_clients_look() {
        let with = |value: Option<&'static str>| {
            default_sockets(move |name| value.filter(|_| name == "DOCKER_HOST").map(Into::into))
        };
        assert_eq!(with(None).len(), 2);
        assert_eq!(with(Some("unix:///run/user/1000/docker.sock")).len(), 3);
        assert_eq!(with(Some("unix:///var/run/docker.sock")).len(), 2);
        assert_eq!(with(Some("tcp://10.0.0.1:2375")).len(), 2);
    }
}
