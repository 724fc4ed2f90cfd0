//! What the name of a cgroup says of who is in it: every runtime spells a container's id, and every
//! kubelet a pod's, into the last level of its path.
//!
//! ```text
//! docker/ID   system.slice/docker-ID.scope   machine.slice/libpod-ID.scope[/container]
//! kubepods/burstable/podUID/ID   kubepods-burstable-podUID.slice/cri-containerd-ID.scope
//! ```
//! So where a container is needs no word from its runtime, only who it is.

/// Octets of a container's id, in hexadecimal digits.
const ID_LEN: usize = 64;
/// Digits of a pod's UID, with and without dashes: that of a static pod is a digest.
const UID_LENS: [usize; 2] = [36, 32];

/// Who a cgroup is for, as far as its name tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named<'a> {
    /// A container with this id; and of which pod, where one level names both.
    Container {
        /// 64 hexadecimal digits.
        id: &'a str,
        /// The UID of its pod.
        pod: Option<String>,
    },
    /// All containers of the pod with this UID.
    Pod(String),
    /// Somebody else.
    Other,
}

impl<'a> Named<'a> {
    /// Reads the name of a cgroup whose parent has that name.
    pub(super) fn read(parent: &str, name: &'a str) -> Self {
        if let Some(id) = container_id(name)
            // Without systemd a pod of podman is a cgroup with nothing but an id for a name.
            && !(parent == "libpod_parent" && name == id)
        {
            let rest = &name[..name.find(id).unwrap_or(0)];
            // The spelling for systemd, taken for a path by a runtime that does without.
            let pod = rest.split(':').next().and_then(pod_uid);
            return Self::Container { id, pod };
        }
        pod_uid(name).map_or(Self::Other, Self::Pod)
    }
}

/// The id in `ID`, `docker-ID.scope`, `libpod-payload-ID`, `SLICE:cri-containerd:ID` and their like.
pub(super) fn container_id(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let at = name.len().checked_sub(ID_LEN)?;
    let (before, id) = (name.get(..at)?, name.get(at..)?);
    let is_id = id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    // What watches over a container is not in it.
    let is_monitor = before.ends_with("conmon-");
    let is_whole = before.is_empty() || before.ends_with(['-', ':']);
    (is_id && is_whole && !is_monitor).then_some(id)
}

/// `podUID`, `kubepods-burstable-podU_I_D.slice`.
fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) if slice.contains("kubepods") => slice.rsplit_once("-pod")?.1,
        Some(_) => return None,
        None => name.strip_prefix("pod")?,
    };
    let is_uid = uid.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b'-' | b'_'));
    (is_uid && UID_LENS.contains(&uid.len())).then(|| uid.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    /// What each level of a path is.
    fn levels(path: &str) -> String {
        let path =
            path.replace("ID", ID).replace("UUU", UID).replace("U_U", &UID.replace('-', "_"));
        let names: Vec<_> = path.split('/').collect();
        let parents = [""].into_iter().chain(names.iter().copied());
        let read = parents.zip(&names).map(|(parent, name)| match Named::read(parent, name) {
            Named::Container { id: ID, pod: None } => "C",
            Named::Container { id: ID, pod: Some(uid) } if uid == UID => "CP",
            Named::Pod(uid) if uid == UID || uid.len() == 32 => "P",
            Named::Other => "-",
            Named::Container { .. } | Named::Pod(_) => "?",
        });
        read.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn containers_and_pods_are_known_in_every_spelling() {
        let burstable = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_U.slice";
        let cases = [
            // Docker: both drivers, rootless, in Docker, with a parent of its own.
            ("docker/ID", "- C"),
            ("system.slice/docker-ID.scope", "- C"),
            (
                "user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
                "- - - - C",
            ),
            ("docker/ID/docker/ID", "- C - C"),
            ("my/parent/ID", "- - C"),
            ("docker/buildkit/0a1b2c3d4e5f6g7h8i9j0k1l2", "- - -"),
            // podman: systemd, cgroupfs, crun's own level, pods, units that split theirs, rootless.
            ("machine.slice/libpod-ID.scope", "- C"),
            ("machine.slice/libpod-ID.scope/container", "- C -"),
            ("machine.slice/libpod-conmon-ID.scope", "- -"),
            ("machine.slice/machine-libpod_pod_ID.slice/libpod-ID.scope", "- - C"),
            ("libpod_parent/libpod-ID", "- C"),
            ("libpod_parent/libpod-conmon-ID", "- -"),
            ("libpod_parent/ID/libpod-ID", "- - C"),
            ("system.slice/web.service/libpod-payload-ID", "- - C"),
            ("system.slice/web.service/runtime", "- - -"),
            (
                "user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
                "- - - - C",
            ),
            // Kubernetes: both drivers, containerd and CRI-O, guaranteed pods, static pods, kind.
            (&format!("{burstable}/cri-containerd-ID.scope"), "- - P C"),
            (&format!("{burstable}/crio-ID.scope"), "- - P C"),
            (&format!("{burstable}/crio-ID.scope/container"), "- - P C -"),
            (&format!("{burstable}/crio-conmon-ID.scope"), "- - P -"),
            (&format!("{burstable}/docker-ID.scope"), "- - P C"),
            ("kubepods.slice/kubepods-podU_U.slice/cri-containerd-ID.scope", "- P C"),
            ("kubepods/besteffort/podUUU/ID", "- - P C"),
            ("kubepods/podUUU/ID", "- P C"),
            ("kubepods/burstable/podUUU/crio-ID", "- - P C"),
            ("kubepods/burstable/pod0123456789abcdef0123456789abcdef/ID", "- - P C"),
            (
                "docker/ID/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_U.slice/ID",
                "- C - - P C",
            ),
            // A runtime for systemd under a kubelet without.
            (
                "system.slice/containerd.service/kubepods-burstable-podU_U.slice:cri-containerd:ID",
                "- - CP",
            ),
            // containerd's own client.
            ("default/ID", "- C"),
            ("system.slice/nerdctl-ID.scope", "- C"),
            // None of these.
            ("system.slice/podman.service", "- -"),
            ("system.slice/system-podman.slice", "- -"),
            ("system.slice/nginx.service", "- -"),
            ("user.slice/user-0.slice/session-1.scope", "- - -"),
            ("pods", "-"),
        ];
        for (path, expected) in cases {
            assert_eq!(levels(path), expected, "{path}");
        }
    }

    #[test]
    fn what_only_looks_like_an_id_is_none() {
        let upper = ID.to_uppercase();
        for name in ["", "ID0", "x", &upper, &ID[1..], &format!("x{ID}"), &format!("{ID}.service")]
        {
            assert_eq!(Named::read("docker", name), Named::Other, "{name}");
        }
        assert_eq!(Named::read("docker", "ä-podé.slice"), Named::Other);
    }
}
