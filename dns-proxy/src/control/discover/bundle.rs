//! Containers of containerd and CRI-O, by what they leave in /run for the runtime below them: the OCI
//! bundle of each, which is there before its cgroup is.
//!
//! Not their gRPC interfaces, whose clients weigh as much as the rest of the daemon: what Kubernetes
//! says of a container is in the bundle's annotations, and so are the labels of nerdctl's.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    inventory::{Change, SourceId},
    selector::{Container, Engine},
};
use crate::control::pattern::CgroupPattern;

/// They are no engine that can be asked: what there is is known.
pub(super) const SOURCE: SourceId = SourceId(usize::MAX);
/// Where containerd keeps bundles, in a directory for each of its namespaces: its own, and that of
/// distributions of Kubernetes which bring one along.
const CONTAINERD: [&str; 4] = [
    "/run/containerd/io.containerd.runtime.v2.task",
    "/run/k3s/containerd/io.containerd.runtime.v2.task",
    "/run/k0s/containerd/io.containerd.runtime.v2.task",
    "/var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task",
];
/// Docker's containers, of which Docker itself tells more.
const MOBY: &str = "moby";
/// Where CRI-O keeps them.
const CRIO: &str = "/run/containers/storage/overlay-containers";
/// The longest description of a container.
const MAX_CONFIG: u64 = 4 << 20;
/// The most containers.
const MAX_BUNDLES: usize = 16_384;
/// What annotations of Kubernetes begin with.
const CRI: &str = "io.kubernetes.cri.";
const CRIO_CRI: &str = "io.kubernetes.cri-o.";

/// All bundles that were seen.
#[derive(Debug, Default)]
pub(super) struct Bundles {
    containerd: Vec<PathBuf>,
    crio: Option<PathBuf>,
    /// By directory, with the container's id.
    known: HashMap<PathBuf, String>,
}

impl Bundles {
    /// Wherever there may be some.
    pub(super) fn everywhere() -> Self {
        let containerd = CONTAINERD.map(PathBuf::from).into();
        Self { containerd, crio: Some(CRIO.into()), known: HashMap::new() }
    }

    /// Nowhere: nobody wants to know.
    pub(super) fn nowhere() -> Self {
        Self::default()
    }

    /// What has changed since the last look.
    pub(super) fn look(&mut self) -> Vec<Change> {
        let mut found = Vec::new();
        for root in &self.containerd {
            for namespace in subdirectories(root) {
                if namespace.file_name().is_some_and(|name| name != MOBY) {
                    let bundles = subdirectories(&namespace).into_iter();
                    found.extend(bundles.map(|dir| (dir.clone(), dir, Engine::Containerd)));
                }
            }
        }
        if let Some(root) = &self.crio {
            let bundles = subdirectories(root).into_iter();
            found.extend(bundles.map(|dir| (dir.clone(), dir.join("userdata"), Engine::CriO)));
        }
        let now: HashSet<_> = found.iter().map(|(dir, _, _)| dir).collect();
        let gone = self.known.extract_if(|dir, _| !now.contains(dir));
        let mut changes: Vec<_> = gone.map(|(_, id)| Change::Gone(id)).collect();
        for (dir, bundle, engine) in found {
            let id = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Just made, it says nothing yet.
            if !self.known.contains_key(&dir)
                && self.known.len() < MAX_BUNDLES
                && let Some(container) = read(&bundle.join("config.json"), id, engine)
            {
                self.known.insert(dir, container.id.clone());
                changes.push(Change::Here(container));
            }
        }
        changes
    }
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

fn read(path: &Path, id: &str, engine: Engine) -> Option<Container> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(MAX_CONFIG).read_to_end(&mut text).ok()?;
    parse(&text, id, engine)
}

/// What a bundle says of its container; nothing if it is somebody else's, or not whole yet.
fn parse(text: &[u8], id: &str, engine: Engine) -> Option<Container> {
    let config: Config = serde_json::from_slice(text).ok()?;
    let mut labels = config.annotations.unwrap_or_default();
    let of = |labels: &BTreeMap<String, String>, key: &str| labels.get(key).cloned();
    let cri = |key: &str| of(&labels, &format!("{CRI}{key}"));
    let crio = |key: &str| of(&labels, &format!("{CRIO_CRI}{key}"));
    if engine == Engine::CriO && crio("ContainerType").is_none() {
        return None; // podman's, which keeps others there
    }
    let names = [cri("container-name"), of(&labels, "nerdctl/name")];
    let image = cri("image-name").or_else(|| crio("ImageName")).unwrap_or_default();
    // The labels that a kubelet gives, which the annotations of containerd have by other names.
    let given = [("namespace", "pod.namespace"), ("name", "pod.name"), ("uid", "pod.uid")];
    let pod = given.map(|(key, label)| (cri(&format!("sandbox-{key}")), label));
    let container = (cri("container-name"), "container.name");
    let more: Vec<_> = pod.into_iter().chain([container]).collect();
    // CRI-O passes on the labels themselves.
    let passed = crio("Labels").and_then(|labels| serde_json::from_str(&labels).ok());
    let passed: BTreeMap<String, String> = passed.unwrap_or_default();
    let mut names: Vec<_> = names.into_iter().flatten().collect();
    names.extend(passed.get("io.kubernetes.container.name").cloned());
    for (value, label) in more {
        if let Some(value) = value {
            labels.entry(format!("io.kubernetes.{label}")).or_insert(value);
        }
    }
    labels.extend(passed);
    let cgroup = config.linux.and_then(|linux| linux.cgroups_path);
    let cgroup =
        cgroup.filter(|path| !path.contains(id) || super::spelling::container_id(id).is_none());
    let cgroup = cgroup.and_then(|path| place(&path));
    Some(Container { engine, id: id.to_owned(), names, image, labels, cgroup })
}

/// The path that `cgroupsPath` means: itself, or for systemd `SLICE:PREFIX:NAME`.
fn place(cgroups_path: &str) -> Option<String> {
    let parts: Vec<_> = cgroups_path.split(':').collect();
    let path = match parts[..] {
        [slice, prefix, name] => {
            let slice = if slice.is_empty() { "system.slice" } else { slice };
            let unit: super::UnitName = slice.parse().ok()?;
            let dash = if prefix.is_empty() { "" } else { "-" };
            let home =
                if slice == "-.slice" { String::new() } else { format!("{}/{slice}", unit.home()) };
            format!("{home}/{prefix}{dash}{name}.scope")
        }
        _ => cgroups_path.to_owned(),
    };
    let path = CgroupPattern::literal(&path).to_string();
    (path != "/").then_some(path)
}

#[derive(Deserialize)]
struct Config {
    annotations: Option<BTreeMap<String, String>>,
    linux: Option<Linux>,
}

#[derive(Deserialize)]
struct Linux {
    #[serde(rename = "cgroupsPath")]
    cgroups_path: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn what_a_kubelet_says_of_a_container_is_in_its_bundle() {
        let config = format!(
            r#"{{"ociVersion":"1.0.2","annotations":{{
                "io.kubernetes.cri.container-type":"container",
                "io.kubernetes.cri.container-name":"nginx",
                "io.kubernetes.cri.image-name":"docker.io/library/nginx:1.27",
                "io.kubernetes.cri.sandbox-namespace":"shop",
                "io.kubernetes.cri.sandbox-name":"web-0",
                "io.kubernetes.cri.sandbox-uid":"01234567-89ab-cdef-0123-456789abcdef"}},
              "linux":{{"cgroupsPath":"kubepods-besteffort-pod0.slice:cri-containerd:{ID}"}}}}"#
        );
        let container = parse(config.as_bytes(), ID, Engine::Containerd).expect("well formed");
        assert_eq!((container.names[0].as_str(), container.cgroup), ("nginx", None));
        assert_eq!(container.image, "docker.io/library/nginx:1.27");
        assert_eq!(container.labels["io.kubernetes.pod.namespace"], "shop");
        assert_eq!(container.labels["io.kubernetes.container.name"], "nginx");
    }

    #[test]
    fn cri_o_passes_labels_on_and_podman_is_left_alone() {
        let config = r#"{"annotations":{
            "io.kubernetes.cri-o.ContainerType":"container",
            "io.kubernetes.cri-o.ImageName":"quay.io/me/app:1",
            "io.kubernetes.cri-o.Labels":
                "{\"io.kubernetes.container.name\":\"app\",\"io.kubernetes.pod.namespace\":\"shop\"}"}}"#;
        let container = parse(config.as_bytes(), ID, Engine::CriO).expect("well formed");
        assert_eq!(
            (container.names[0].as_str(), container.image.as_str()),
            ("app", "quay.io/me/app:1")
        );
        assert_eq!(container.labels["io.kubernetes.pod.namespace"], "shop");
        assert_eq!(parse(b"{\"annotations\":{}}", ID, Engine::CriO), None);
        assert_eq!(parse(b"{\"annot", ID, Engine::Containerd), None);
    }

    #[test]
    fn a_cgroup_of_any_name_is_found_where_the_bundle_says() {
        let cases = [
            ("/jobs/one", Some("jobs/one")),
            ("jobs/one", Some("jobs/one")),
            ("system.slice:job:one", Some("system.slice/job-one.scope")),
            (":job:one", Some("system.slice/job-one.scope")),
            ("a-b.slice::one", Some("a.slice/a-b.slice/one.scope")),
            ("-.slice:job:one", Some("job-one.scope")),
            ("/", None),
        ];
        for (path, expected) in cases {
            assert_eq!(place(path).as_deref(), expected, "{path}");
        }
        let config = br#"{"annotations":{"nerdctl/name":"job","tier":"x"},"linux":{"cgroupsPath":"/default/one"}}"#;
        let container = parse(config, "one", Engine::Containerd).expect("well formed");
        assert_eq!(container.cgroup.as_deref(), Some("default/one"));
        assert_eq!((container.names[0].as_str(), container.labels["tier"].as_str()), ("job", "x"));
    }

    #[test]
    fn bundles_are_told_of_when_they_come_and_go() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut bundles =
            Bundles { containerd: vec![root.path().to_owned()], ..Bundles::nowhere() };
        let bundle = root.path().join("k8s.io").join(ID);
        fs::create_dir_all(&bundle).expect("made");
        fs::create_dir_all(root.path().join("moby/other")).expect("made");
        fs::write(root.path().join("moby/other/config.json"), "{}").expect("written");
        assert_eq!(bundles.look(), []);
        fs::write(bundle.join("config.json"), "{}").expect("written");
        assert!(matches!(&bundles.look()[..], [Change::Here(c)] if c.id == ID));
        assert_eq!(bundles.look(), []);
        fs::remove_dir_all(&bundle).expect("removed");
        assert_eq!(bundles.look(), [Change::Gone(ID.to_owned())]);
    }
}
