//! What is known of containers and pods, and what follows from it for a cgroup. Pure.

use std::collections::{HashMap, HashSet};

use super::{
    selector::{Container, Pod, Selector},
    spelling::Named,
};

/// Somebody who tells of containers: an index into the list of all who do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SourceId(pub usize);

/// Whether a source can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// There is none on this host, so it has no containers.
    Absent,
    /// It does not answer: who is new may be one of its own.
    Silent,
    /// It tells of all that it has.
    Heard,
}

/// What a source tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It can be asked, or not any more.
    Reach(Reach),
    /// A container that is new, or has changed.
    Here(Container),
    /// A container is no more.
    Gone(String),
    /// There is no container with this id.
    Denied(String),
    /// These are all containers that there are.
    All(Vec<Container>),
    /// A pod that is new, or has changed.
    PodHere(Pod),
    /// A pod is no more, by its UID.
    PodGone(String),
    /// These are all pods that there are.
    AllPods(Vec<Pod>),
}

/// What becomes of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the scope, with everything below it.
    Select,
    /// It is not; something below it may be.
    Pass,
    /// Nothing below it is either.
    Leave,
    /// Nobody knows yet.
    Undecided,
}

/// A cgroup, as the walk through the tree meets it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The name of its parent.
    pub parent: &'a str,
    /// Its own.
    pub name: &'a str,
    /// Where it is, from the root that the runtimes see, without a slash in front.
    pub path: &'a str,
}

impl Place<'_> {
    /// Whether its name is a container's or a pod's, so that more may appear beside it.
    pub(super) fn is_container(&self) -> bool {
        Named::read(self.parent, self.name) != Named::Other
    }
}

/// What becomes of a cgroup, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) verdict: Verdict,
    /// The selectors that select it.
    pub(super) by: Vec<usize>,
    /// The id of the container, or the UID of the pod, that it is of.
    pub(super) of: Option<String>,
}

/// What is known. It forgets who is gone once the cgroup is gone as well: until then it is what it
/// was.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    selectors: Vec<Selector>,
    reach: Vec<Reach>,
    containers: HashMap<String, Vec<(SourceId, Container)>>,
    denied: HashMap<String, HashSet<SourceId>>,
    pods: HashMap<String, Pod>,
    /// Ids of containers whose cgroup says so by its place alone.
    places: HashMap<String, String>,
    gone: HashSet<String>,
}

impl Inventory {
    /// Nothing is known yet of whom these select, by as many engines.
    pub(super) fn new(selectors: &[Selector], engines: usize) -> Self {
        let reach = vec![Reach::Silent; engines];
        Self { selectors: selectors.to_vec(), reach, ..Self::default() }
    }

    /// Takes in what a source tells.
    pub(super) fn apply(&mut self, source: SourceId, change: Change) {
        match change {
            Change::Reach(reach) => self.reach(source, reach),
            Change::Here(container) => self.add(source, container),
            Change::Gone(id) | Change::PodGone(id) => {
                self.gone.insert(id);
            }
            Change::Denied(id) => {
                self.denied.entry(id).or_default().insert(source);
            }
            Change::All(containers) => {
                let now: HashSet<_> = containers.iter().map(|container| &container.id).collect();
                let of_source = |all: &Vec<(SourceId, _)>| all.iter().any(|(of, _)| *of == source);
                let gone =
                    self.containers.iter().filter(|(id, all)| of_source(all) && !now.contains(id));
                self.gone.extend(gone.map(|(id, _)| id.clone()));
                containers.into_iter().for_each(|container| self.add(source, container));
                self.reach(source, Reach::Heard);
            }
            Change::PodHere(pod) => self.add_pod(pod),
            Change::AllPods(pods) => {
                let now: HashSet<_> = pods.iter().map(|pod| &pod.uid).collect();
                self.gone.extend(self.pods.keys().filter(|uid| !now.contains(uid)).cloned());
                pods.into_iter().for_each(|pod| self.add_pod(pod));
                self.reach(source, Reach::Heard);
            }
        }
    }

    /// Only those who know containers by their ids can deny one.
    fn reach(&mut self, source: SourceId, reach: Reach) {
        if let Some(of) = self.reach.get_mut(source.0) {
            *of = reach;
        }
    }

    fn add(&mut self, source: SourceId, container: Container) {
        self.gone.remove(&container.id);
        self.denied.remove(&container.id);
        if let Some(path) = &container.cgroup {
            self.places.insert(path.clone(), container.id.clone());
        }
        let all = self.containers.entry(container.id.clone()).or_default();
        all.retain(|(of, _)| *of != source);
        all.push((source, container));
    }

    fn add_pod(&mut self, pod: Pod) {
        self.gone.remove(&pod.uid);
        self.pods.insert(pod.uid.clone(), pod);
    }

    /// What becomes of a cgroup.
    pub(super) fn judge(&self, place: Place<'_>) -> Judgement {
        let of_unit = |selector: &Selector| matches!(selector, Selector::Unit(unit) if unit.matches(place.name));
        let by: Vec<_> = self.those(of_unit);
        if !by.is_empty() {
            return Judgement { verdict: Verdict::Select, by, of: None };
        }
        if let Some(id) = self.places.get(place.path) {
            return self.judge_container(id);
        }
        match Named::read(place.parent, place.name) {
            Named::Pod(uid) => {
                let judgement = self.judge_pod(&uid);
                match judgement.verdict {
                    Verdict::Leave => Judgement { verdict: Verdict::Pass, ..judgement },
                    Verdict::Select | Verdict::Pass | Verdict::Undecided => judgement,
                }
            }
            Named::Container { id, pod } => {
                let of_pod = pod.map(|uid| self.judge_pod(&uid));
                let of_pod = of_pod.filter(|judgement| judgement.verdict != Verdict::Leave);
                of_pod.unwrap_or_else(|| self.judge_container(id))
            }
            Named::Other => Judgement { verdict: Verdict::Pass, by: Vec::new(), of: None },
        }
    }

    fn judge_container(&self, id: &str) -> Judgement {
        let of = Some(id.to_owned());
        if !self.selectors.iter().any(Selector::is_of_containers) {
            return Judgement { verdict: Verdict::Leave, by: Vec::new(), of };
        }
        let Some(known) = self.containers.get(id) else {
            let denied = self.denied.get(id);
            let answered = |(index, reach): (usize, &Reach)| match reach {
                Reach::Absent => true,
                Reach::Silent => false,
                Reach::Heard => denied.is_some_and(|by| by.contains(&SourceId(index))),
            };
            let is_nobodys = self.reach.iter().enumerate().all(answered);
            let verdict = if is_nobodys { Verdict::Leave } else { Verdict::Undecided };
            return Judgement { verdict, by: Vec::new(), of };
        };
        self.conclude(of, |selector| known.iter().any(|(_, known)| selector.selects(known)))
    }

    fn judge_pod(&self, uid: &str) -> Judgement {
        let of = Some(uid.to_owned());
        if !self.selectors.iter().any(|selector| matches!(selector, Selector::Pods(_))) {
            return Judgement { verdict: Verdict::Leave, by: Vec::new(), of };
        }
        let Some(pod) = self.pods.get(uid) else {
            return Judgement { verdict: Verdict::Undecided, by: Vec::new(), of };
        };
        self.conclude(of, |selector| matches!(selector, Selector::Pods(pods) if pods.matches(pod)))
    }

    fn conclude(&self, of: Option<String>, selects: impl Fn(&Selector) -> bool) -> Judgement {
        let by = self.those(selects);
        let verdict = if by.is_empty() { Verdict::Leave } else { Verdict::Select };
        Judgement { verdict, by, of }
    }

    fn those(&self, selects: impl Fn(&Selector) -> bool) -> Vec<usize> {
        let all = self.selectors.iter().enumerate();
        all.filter(|(_, selector)| selects(selector)).map(|(index, _)| index).collect()
    }

    /// Forgets who is gone and has no cgroup either any more; `present` are those that have one.
    pub(super) fn forget(&mut self, present: &HashSet<&str>) {
        let over: HashSet<_> = self.gone.extract_if(|id| !present.contains(id.as_str())).collect();
        if !over.is_empty() {
            self.containers.retain(|id, _| !over.contains(id));
            self.pods.retain(|uid, _| !over.contains(uid));
            self.places.retain(|_, id| !over.contains(id));
        }
        self.denied.retain(|id, _| present.contains(id.as_str()));
    }

    /// All selectors.
    pub(super) fn selectors(&self) -> &[Selector] {
        &self.selectors
    }
}

#[cfg(test)]
mod tests {
    use super::{super::selector::Engine, *};

    const DOCKER: SourceId = SourceId(0);
    const PODMAN: SourceId = SourceId(1);

    fn id(n: u8) -> String {
        format!("{n:02x}").repeat(32)
    }

    fn container(n: u8, name: &str) -> Container {
        Container {
            engine: Engine::Docker,
            id: id(n),
            names: vec![name.to_owned()],
            image: String::new(),
            labels: [].into(),
            cgroup: None,
        }
    }

    fn pod(uid: &str, app: &str) -> Pod {
        let labels = [("app".to_owned(), app.to_owned())].into();
        let (namespace, name) = ("default".to_owned(), "x".to_owned());
        Pod { uid: uid.to_owned(), namespace, name, labels }
    }

    fn inventory(selectors: &[&str]) -> Inventory {
        let selectors: Vec<_> = selectors.iter().map(|text| text.parse().expect(text)).collect();
        Inventory::new(&selectors, 2)
    }

    /// Judges the cgroup at a path, the only one there is.
    fn judge(inventory: &mut Inventory, path: &str) -> Verdict {
        let mut names = path.rsplit('/');
        let (name, parent) = (names.next().unwrap_or(""), names.next().unwrap_or(""));
        let judgement = inventory.judge(Place { parent, name, path });
        inventory.forget(&judgement.of.iter().map(String::as_str).collect());
        judgement.verdict
    }

    #[test]
    fn an_unknown_container_is_undecided_until_everybody_denies_it() {
        let mut inventory = inventory(&["container:web"]);
        let path = format!("docker/{}", id(1));
        assert_eq!(judge(&mut inventory, &path), Verdict::Undecided);
        inventory.apply(PODMAN, Change::Reach(Reach::Absent));
        inventory.apply(DOCKER, Change::All(vec![]));
        assert_eq!(judge(&mut inventory, &path), Verdict::Undecided);
        inventory.apply(DOCKER, Change::Denied(id(1)));
        assert_eq!(judge(&mut inventory, &path), Verdict::Leave);
        inventory.apply(PODMAN, Change::Reach(Reach::Silent));
        assert_eq!(judge(&mut inventory, &path), Verdict::Undecided);
        inventory.apply(PODMAN, Change::Here(container(1, "web")));
        assert_eq!(judge(&mut inventory, &path), Verdict::Select);
    }

    #[test]
    fn a_container_is_what_it_was_until_its_cgroup_is_gone() {
        let mut inventory = inventory(&["container:web"]);
        let path = format!("docker/{}", id(1));
        inventory.apply(DOCKER, Change::All(vec![container(1, "web"), container(2, "db")]));
        assert_eq!(judge(&mut inventory, &path), Verdict::Select);
        inventory.apply(DOCKER, Change::Gone(id(1)));
        inventory.apply(DOCKER, Change::All(vec![container(2, "db")]));
        assert_eq!(judge(&mut inventory, &path), Verdict::Select);
        assert_eq!(judge(&mut inventory, &format!("docker/{}", id(2))), Verdict::Leave);
        assert!(!inventory.containers.contains_key(&id(1)));
        assert_eq!(judge(&mut inventory, &path), Verdict::Undecided);
    }

    #[test]
    fn a_container_that_is_renamed_is_judged_by_its_new_name() {
        let mut inventory = inventory(&["container:web"]);
        let path = format!("docker/{}", id(1));
        inventory.apply(DOCKER, Change::Here(container(1, "web")));
        assert_eq!(judge(&mut inventory, &path), Verdict::Select);
        inventory.apply(DOCKER, Change::Here(container(1, "other")));
        assert_eq!(judge(&mut inventory, &path), Verdict::Leave);
    }

    #[test]
    fn pods_are_selected_as_a_whole() {
        let uid = "01234567-89ab-cdef-0123-456789abcdef";
        let path = format!("kubepods/pod{uid}");
        let inside = format!("{path}/{}", id(1));
        let beside = format!(
            "a.service/kubepods-pod{}.slice:cri-containerd:{}",
            uid.replace('-', "_"),
            id(1)
        );
        let mut inventory = inventory(&["pods:/app=web"]);
        assert_eq!(judge(&mut inventory, &path), Verdict::Undecided);
        assert_eq!(judge(&mut inventory, &beside), Verdict::Undecided);
        inventory.apply(DOCKER, Change::AllPods(vec![pod(uid, "web")]));
        assert_eq!(judge(&mut inventory, &path), Verdict::Select);
        assert_eq!(judge(&mut inventory, &beside), Verdict::Select);
        inventory.apply(DOCKER, Change::PodHere(pod(uid, "db")));
        assert_eq!(judge(&mut inventory, &path), Verdict::Pass);
        assert_eq!(judge(&mut inventory, &inside), Verdict::Leave);
    }

    #[test]
    fn what_nobody_selects_is_not_asked_for() {
        let mut inventory = inventory(&["unit:nginx"]);
        assert_eq!(judge(&mut inventory, &format!("docker/{}", id(1))), Verdict::Leave);
        assert_eq!(judge(&mut inventory, "system.slice/nginx.service"), Verdict::Select);
        assert_eq!(judge(&mut inventory, "system.slice"), Verdict::Pass);
    }

    #[test]
    fn a_cgroup_without_an_id_is_found_by_its_place() {
        let mut inventory = inventory(&["container:job"]);
        let cgroup = Some("jobs/one".to_owned());
        inventory.apply(DOCKER, Change::Here(Container { cgroup, ..container(1, "job") }));
        assert_eq!(judge(&mut inventory, "jobs/one"), Verdict::Select);
        assert_eq!(judge(&mut inventory, "jobs"), Verdict::Pass);
    }
}
