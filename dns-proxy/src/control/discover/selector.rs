//! Who is in the scope by what they are rather than by where: units, containers and pods. Pure.

use std::{collections::BTreeMap, fmt, str::FromStr};

use thiserror::Error;

use super::{
    super::pattern::Glob,
    labels::LabelSelector,
    unit::{UnitName, UnitNameError},
};

/// Who made a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Docker's engine.
    Docker,
    /// podman.
    Podman,
    /// containerd, by itself or for a kubelet.
    Containerd,
    /// CRI-O.
    CriO,
}

/// A container that somebody told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// By whom it was made.
    pub engine: Engine,
    /// Its id.
    pub id: String,
    /// Its names.
    pub names: Vec<String>,
    /// The image, as whoever started it named it.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where its cgroup is, if that is not named by its id.
    pub cgroup: Option<String>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The one that its cgroup is named by.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// One reason to be in the scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// `--unit`.
    Unit(UnitName),
    /// `--container`.
    Name(Glob),
    /// `--container-image`.
    Image(ImageName),
    /// `--container-label`.
    Label(Label),
    /// Every container of an engine, wherever it is.
    Engine(Engine),
    /// `--pod-namespace` and `--pod-selector`.
    Pods(PodSelector),
}

/// `nginx`, `nginx:1.27`, `ghcr.io/me/*`: without a tag or digest, any; without a registry, that of
/// Docker or this host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageName {
    name: Glob,
    version: Option<Glob>,
}

/// `KEY` or `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    key: String,
    value: Option<Glob>,
}

/// Pods of any of the namespaces, if any are named, that one of the selectors means, if there are any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodSelector {
    /// Names of namespaces.
    pub namespaces: Vec<Glob>,
    /// What labels they must have.
    pub labels: Vec<LabelSelector>,
}

/// Why a text selects nothing. Always the operator's to mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SelectorError {
    /// Of a container or an image.
    #[error("`{0}`: not a name; `*` stands for any text in one")]
    Name(String),
    /// `--container-label`.
    #[error("`{0}`: write KEY, or KEY=VALUE")]
    Label(String),
    /// `--unit`.
    #[error(transparent)]
    Unit(#[from] UnitNameError),
    /// What another daemon wrote.
    #[error("`{0}`: of no kind that we know")]
    Kind(String),
}

impl Selector {
    /// Whether it is about containers.
    pub fn is_of_containers(&self) -> bool {
        match self {
            Self::Name(_) | Self::Image(_) | Self::Label(_) | Self::Engine(_) => true,
            Self::Unit(_) | Self::Pods(_) => false,
        }
    }

    /// Whether it selects this container.
    pub fn selects(&self, container: &Container) -> bool {
        match self {
            Self::Name(name) => container.names.iter().any(|own| name.matches(own)),
            Self::Image(image) => image.matches(&container.image),
            Self::Label(label) => label.matches(&container.labels),
            Self::Engine(engine) => *engine == container.engine,
            Self::Unit(_) | Self::Pods(_) => false,
        }
    }

    /// Whether there can be somebody whom both select. May say yes where that is hard to tell.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(a), Self::Name(b)) => a.overlaps(b),
            (Self::Image(a), Self::Image(b)) => a.name.overlaps(&b.name),
            (Self::Engine(a), Self::Engine(b)) => a == b,
            (Self::Unit(a), Self::Unit(b)) => a.overlaps(b),
            (Self::Pods(a), Self::Pods(b)) => {
                let (a, b) = (&a.namespaces, &b.namespaces);
                a.is_empty() || b.is_empty() || a.iter().any(|a| b.iter().any(|b| a.overlaps(b)))
            }
            // A unit may have containers of its own, if podman runs in it.
            (_, _) => true,
        }
    }
}

impl ImageName {
    /// Whether an image is meant, however whoever started the container wrote it.
    pub fn matches(&self, image: &str) -> bool {
        let (name, version) = split_image(image);
        let short = short(name);
        let is_meant = self.name.matches(name) || self.name.matches(short);
        is_meant
            && self.version.as_ref().is_none_or(|wanted| {
                let (tag, digest) = version;
                let tag = if tag.is_empty() && digest.is_empty() { "latest" } else { tag };
                wanted.matches(tag) || wanted.matches(digest)
            })
    }
}

/// The name, its tag and its digest.
fn split_image(image: &str) -> (&str, (&str, &str)) {
    let (image, digest) = image.split_once('@').unwrap_or((image, ""));
    match image.rsplit_once(':') {
        // The port of a registry is no tag.
        Some((name, tag)) if !tag.contains('/') => (name, (tag, digest)),
        _ => (image, ("", digest)),
    }
}

/// Without what engines add: where an image is from that was named without a registry.
fn short(name: &str) -> &str {
    let name = name.strip_prefix("docker.io/").or_else(|| name.strip_prefix("localhost/"));
    let name = name.unwrap_or_default();
    name.strip_prefix("library/").unwrap_or(name)
}

impl FromStr for ImageName {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, (tag, digest)) = split_image(text);
        let name = if short(name).is_empty() { name } else { short(name) };
        let is_name = !name.is_empty() && !text.contains(char::is_whitespace);
        let version = [digest, tag].into_iter().find(|version| !version.is_empty()).map(Glob::new);
        is_name
            .then(|| Self { name: Glob::new(name), version })
            .ok_or_else(|| SelectorError::Name(text.to_owned()))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)?;
        match &self.version {
            Some(version) if version.to_string().contains(':') => write!(f, "@{version}"),
            Some(version) => write!(f, ":{version}"),
            None => Ok(()),
        }
    }
}

impl Label {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let found = labels.get(&self.key);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|value| value.matches(found)))
    }
}

impl FromStr for Label {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(Glob::new(value))),
            None => (text, None),
        };
        let is_key = !key.is_empty() && !key.contains(char::is_whitespace);
        is_key
            .then(|| Self { key: key.to_owned(), value })
            .ok_or_else(|| SelectorError::Label(text.to_owned()))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        self.value.as_ref().map_or(Ok(()), |value| write!(f, "={value}"))
    }
}

impl PodSelector {
    /// Whether a pod is meant.
    pub fn matches(&self, pod: &Pod) -> bool {
        let is_there = self.namespaces.iter().any(|namespace| namespace.matches(&pod.namespace));
        let is_labelled = self.labels.iter().any(|selector| selector.matches(&pod.labels));
        (is_there || self.namespaces.is_empty()) && (is_labelled || self.labels.is_empty())
    }
}

impl fmt::Display for PodSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespaces: Vec<_> = self.namespaces.iter().map(ToString::to_string).collect();
        let labels: Vec<_> = self.labels.iter().map(ToString::to_string).collect();
        write!(f, "{}/{}", namespaces.join(","), labels.join(";"))
    }
}

impl FromStr for PodSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let kind = || SelectorError::Kind(text.to_owned());
        let (namespaces, labels) = text.split_once('/').ok_or_else(kind)?;
        let labels = labels.split(';').filter(|selector| !selector.is_empty()).map(str::parse);
        let namespaces = namespaces.split(',').filter(|namespace| !namespace.is_empty());
        Ok(Self {
            namespaces: namespaces.map(Glob::new).collect(),
            labels: labels.collect::<Result<_, _>>().map_err(|_| kind())?,
        })
    }
}

/// The name of a container, for the command line.
///
/// # Errors
/// It is none.
pub fn container_name(text: &str) -> Result<Glob, SelectorError> {
    let is_name = !text.is_empty() && !text.contains(['/', ' ', '\t', '\n']);
    is_name.then(|| Glob::new(text)).ok_or_else(|| SelectorError::Name(text.to_owned()))
}

impl Engine {
    const ALL: [Self; 4] = [Self::Docker, Self::Podman, Self::Containerd, Self::CriO];
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit(unit) => write!(f, "unit:{unit}"),
            Self::Name(name) => write!(f, "container:{name}"),
            Self::Image(image) => write!(f, "container-image:{image}"),
            Self::Label(label) => write!(f, "container-label:{label}"),
            Self::Engine(engine) => write!(f, "containers-of:{engine}"),
            Self::Pods(pods) => write!(f, "pods:{pods}"),
        }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let kind = || SelectorError::Kind(text.to_owned());
        let (of, value) = text.split_once(':').ok_or_else(kind)?;
        Ok(match of {
            "unit" => Self::Unit(value.parse()?),
            "container" => Self::Name(container_name(value)?),
            "container-image" => Self::Image(value.parse()?),
            "container-label" => Self::Label(value.parse()?),
            "containers-of" => {
                let engine = Engine::ALL.into_iter().find(|engine| engine.to_string() == value);
                Self::Engine(engine.ok_or_else(kind)?)
            }
            "pods" => Self::Pods(value.parse()?),
            _ => return Err(kind()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Container {
        let labels = [("com.example.tier", "front"), ("encrypted", "")];
        Container {
            engine: Engine::Docker,
            id: "0a".repeat(32),
            names: vec!["web-1".to_owned()],
            image: "nginx:1.27".to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            cgroup: None,
        }
    }

    #[test]
    fn containers_are_selected_by_what_they_are() {
        let cases = [
            ("container:web-1", true),
            ("container:web-*", true),
            ("container:web", false),
            ("container-image:nginx", true),
            ("container-image:nginx:1.27", true),
            ("container-image:nginx:1.26", false),
            ("container-label:encrypted", true),
            ("container-label:encrypted=yes", false),
            ("container-label:com.example.tier=front", true),
            ("container-label:com.example.tier=f*", true),
            ("container-label:tier", false),
            ("containers-of:docker", true),
            ("containers-of:podman", false),
            ("unit:web-1", false),
            ("pods:/", false),
        ];
        for (text, expected) in cases {
            let selector: Selector = text.parse().expect(text);
            assert_eq!(selector.selects(&container()), expected, "{text}");
            let again: Selector = selector.to_string().parse().expect("as written");
            assert_eq!(again, selector, "{text}");
        }
    }

    #[test]
    fn an_image_is_the_same_however_it_is_written() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let cases = [
            ("nginx", "nginx", true),
            ("nginx", "docker.io/library/nginx:1.27", true),
            ("nginx", "localhost/nginx:local", true),
            ("nginx", "me/nginx", false),
            ("nginx", "ghcr.io/me/nginx", false),
            ("docker.io/library/nginx", "nginx:1", true),
            ("me/app", "docker.io/me/app:2", true),
            ("nginx:latest", "nginx", true),
            ("nginx:1", "nginx:1.27", false),
            ("nginx:1.*", "nginx:1.27", true),
            ("ghcr.io/me/*", "ghcr.io/me/app:1", true),
            ("registry:5000/app", "registry:5000/app:1", true),
            ("registry:5000/app:2", "registry:5000/app:1", false),
            (&format!("nginx@{digest}"), &format!("nginx:1@{digest}"), true),
            (&format!("nginx@{digest}"), "nginx:1", false),
        ];
        for (pattern, image, expected) in cases {
            let name: ImageName = pattern.parse().expect(pattern);
            assert_eq!(name.matches(image), expected, "{pattern} {image}");
        }
    }

    #[test]
    fn pods_are_selected_by_namespace_and_labels() {
        let pod = Pod {
            uid: String::new(),
            namespace: "shop".to_owned(),
            name: "cart-0".to_owned(),
            labels: [("app".to_owned(), "cart".to_owned())].into(),
        };
        let cases = [
            ("/", true),
            ("shop/", true),
            ("bank,shop/", true),
            ("sh*/", true),
            ("bank/", false),
            ("/app=cart", true),
            ("shop/app=cart", true),
            ("shop/app=bill;app in (cart)", true),
            ("bank/app=cart", false),
            ("shop/app!=cart", false),
        ];
        for (text, expected) in cases {
            let selector: PodSelector = text.parse().expect(text);
            assert_eq!(selector.matches(&pod), expected, "{text}");
            assert_eq!(selector.to_string().parse(), Ok(selector), "{text}");
        }
    }

    #[test]
    fn selectors_overlap_unless_they_cannot() {
        let cases = [
            ("container:a", "container:a", true),
            ("container:a", "container:b", false),
            ("container:a*", "container:ab", true),
            ("container:a", "container-label:x", true),
            ("container-image:a", "container-image:b", false),
            ("unit:a", "unit:b", false),
            ("pods:a/", "pods:b/", false),
            ("pods:a/", "pods:/x=y", true),
            ("containers-of:docker", "containers-of:podman", false),
        ];
        for (a, b, overlap) in cases {
            let [left, right] = [a, b].map(|text| text.parse::<Selector>().expect(text));
            assert_eq!(left.overlaps(&right), overlap, "{a} {b}");
            assert_eq!(right.overlaps(&left), overlap, "{b} {a}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for text in ["container:", "container:a/b", "container-image:", "container-label:=x", "a:b"]
        {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }
}
