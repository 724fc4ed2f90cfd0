//! Pods that are selected by what Kubernetes says of them: real cgroups where a kubelet puts them, and
//! an API server that comes, goes, forgets and says no.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    Capture, Container, Daemon, Runtimes, Stage, Zone, eventually,
    kube_api::{ApiPod, KubeApi},
    port53,
    runtimes::{CGROUP_ROOT, Contained},
    world::UPLINK,
};

const V4: &str = "8.8.8.8";
const NODE: &str = "node-1";
const WEB: &str = "01234567-89ab-cdef-0123-456789abcdef";
const DB: &str = "11234567-89ab-cdef-0123-456789abcdef";
const LATE: &str = "21234567-89ab-cdef-0123-456789abcdef";
const OTHER: &str = "31234567-89ab-cdef-0123-456789abcdef";
const LIMIT: Duration = Duration::from_secs(20);
const IN_TIME: Duration = Duration::from_millis(100);
const ROUNDS: usize = 5;
/// On the internet of the world.
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)), 6443);

/// A node, and who runs it.
struct Scene {
    stage: Stage,
    api: KubeApi,
}

impl Scene {
    fn new() -> Result<Self> {
        let stage = Stage::new()?;
        let identity = stage.pki.server(&[&API.ip().to_string()])?;
        let api = KubeApi::start(stage.world.internet(), API, &identity)?;
        Ok(Self { stage, api })
    }

    fn put(&self, uid: &str, app: &str) {
        self.api.put(&ApiPod { uid, namespace: "shop", node: NODE, app });
    }

    fn daemon(&self, selectors: &[&str]) -> Result<Daemon> {
        let mut args = self.stage.run_args(&[])?;
        args.push(format!(
            "--cgroup-root={CGROUP_ROOT}/{}/containers",
            self.stage.world.cgroup().path()?
        ));
        args.push(format!("--kubeconfig={}", self.api.kubeconfig(&self.stage.pki)?.display()));
        args.push(format!("--node-name={NODE}"));
        args.extend(selectors.iter().map(ToString::to_string));
        Daemon::start(&self.stage.world, &args)
    }

    /// A container of the pod, as containerd runs it where the kubelet has no systemd.
    fn container(
        &self,
        runtimes: &Runtimes<'_>,
        uid: &str,
        n: u8,
    ) -> Result<(Contained, Container)> {
        // The network plugin makes the network first; here it is that of an idle container.
        let network = self.stage.world.container(&format!("network-{uid}-{n}"))?;
        let id = format!("{n:02x}").repeat(32);
        let place = format!("kubepods/burstable/pod{uid}/{id}");
        Ok((runtimes.runc(network.netns(), &place, V4)?, network))
    }
}

/// What a container is told, or why it is not.
fn ask(runtimes: &Runtimes<'_>, container: &Contained) -> String {
    match container.run(runtimes, &["gai", "example.test"]) {
        Ok(found) if found.contains(&Zone::Encrypted.a().to_string()) => "encrypted".to_owned(),
        Ok(found) if found.contains(&Zone::Plaintext.a().to_string()) => "plaintext".to_owned(),
        other => format!("{other:?}"),
    }
}

fn becomes(runtimes: &Runtimes<'_>, container: &Contained, wanted: &str) -> Result<()> {
    let is = || ask(runtimes, container) == wanted;
    ensure!(eventually(LIMIT, is), "not {wanted}: {}", ask(runtimes, container));
    Ok(())
}

#[test]
fn pods_are_in_the_scope_by_their_labels() -> Result<()> {
    let scene = Scene::new()?;
    let runtimes = Runtimes::new(&scene.stage.world)?;
    // So many that the list has pages; and one of another node.
    for (uid, app) in [(WEB, "web"), (DB, "db"), ("a", "web"), ("b", "web")] {
        scene.put(uid, app);
    }
    scene.api.put(&ApiPod { uid: LATE, namespace: "shop", node: "other", app: "web" });
    let daemon = scene.daemon(&["--pod-selector=app in (web,api)", "--pod-namespace=shop"])?;
    daemon.wait_for_log("following the pods of this node pods=4", LIMIT)?;

    let uplink = Capture::on(scene.stage.world.host(), UPLINK)?;
    let (web, _network) = scene.container(&runtimes, WEB, 1)?;
    ensure!(ask(&runtimes, &web) == "encrypted");
    ensure!(port53(&uplink.stop()?).is_empty(), "plaintext of a selected pod");
    let (db, _network) = scene.container(&runtimes, DB, 2)?;
    ensure!(ask(&runtimes, &db) == "plaintext");
    let watches = scene.api.requests();
    let of_node = watches.iter().all(|path| path.contains("fieldSelector=spec.nodeName%3Dnode-1"));
    ensure!(of_node && watches.iter().any(|path| path.contains("watch=true")), "{watches:?}");
    Ok(())
}

/// The label of a pod that goes on asking changes.
#[test]
fn a_pod_whose_labels_change_is_in_or_out_at_once() -> Result<()> {
    let scene = Scene::new()?;
    let runtimes = Runtimes::new(&scene.stage.world)?;
    scene.put(DB, "db");
    let daemon = scene.daemon(&["--pod-selector=app=web"])?;
    daemon.wait_for_log("following the pods of this node", LIMIT)?;
    let (db, _network) = scene.container(&runtimes, DB, 2)?;
    becomes(&runtimes, &db, "plaintext")?;
    let mut uplink = Capture::on(scene.stage.world.host(), UPLINK)?;
    let _asking = db.spawn(&runtimes, &["sh", "-c", "while :; do gai example.test; done"])?;
    let mut seen = 0;
    let mut fresh = || -> Result<usize> {
        let now = port53(uplink.packets()?).len();
        Ok(now - std::mem::replace(&mut seen, now))
    };
    let (mut into, mut out_of) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ensure!(eventually(LIMIT, || fresh().is_ok_and(|new| new > 0)), "it does not ask");
        scene.put(DB, "web");
        let changed = Instant::now();
        let mut last = changed;
        while last.elapsed() < Duration::from_millis(300) {
            if fresh()? > 0 {
                last = Instant::now();
            }
            ensure!(changed.elapsed() < LIMIT, "it goes on in plaintext");
        }
        into.push(last - changed);
        scene.put(DB, "db");
        let changed = Instant::now();
        ensure!(eventually(LIMIT, || fresh().is_ok_and(|new| new > 0)), "it stays in");
        out_of.push(changed.elapsed());
    }
    for (which, times) in [("into", &mut into), ("out of", &mut out_of)] {
        times.sort();
        println!("{which} the scope within {times:?}");
        ensure!(times[times.len() / 2] < IN_TIME, "{which} the scope: {times:?}");
    }
    Ok(())
}

#[test]
fn what_is_known_of_pods_outlasts_an_outage() -> Result<()> {
    let scene = Scene::new()?;
    let runtimes = Runtimes::new(&scene.stage.world)?;
    scene.put(WEB, "web");
    scene.put(DB, "db");
    let daemon = scene.daemon(&["--pod-selector=app=web"])?;
    daemon.wait_for_log("following the pods of this node", LIMIT)?;
    let (web, _n1) = scene.container(&runtimes, WEB, 1)?;
    becomes(&runtimes, &web, "encrypted")?;

    scene.api.outage(true);
    daemon.wait_for_log("cannot follow the pods of this node", LIMIT)?;
    // Its containers may start anew, and so may those of pods that are not in the scope.
    let (again, _n2) = scene.container(&runtimes, WEB, 3)?;
    ensure!(ask(&runtimes, &again) == "encrypted");
    let (db, _n3) = scene.container(&runtimes, DB, 2)?;
    ensure!(ask(&runtimes, &db) == "plaintext");

    // Of those that are made meanwhile nobody knows whether they are in; it is safer to think so.
    let uplink = Capture::on(scene.stage.world.host(), UPLINK)?;
    scene.put(LATE, "web");
    let (late, _n4) = scene.container(&runtimes, LATE, 4)?;
    ensure!(ask(&runtimes, &late) == "encrypted");
    ensure!(port53(&uplink.stop()?).is_empty(), "plaintext of a pod that may be selected");
    scene.put(OTHER, "db");
    let (other, _n5) = scene.container(&runtimes, OTHER, 5)?;
    ensure!(ask(&runtimes, &other) == "encrypted");
    daemon.wait_for_log("nobody tells whose this container is", LIMIT)?;

    let uplink = Capture::on(scene.stage.world.host(), UPLINK)?;
    scene.api.outage(false);
    becomes(&runtimes, &other, "plaintext")?;
    let before = port53(&uplink.stop()?).len();
    let uplink = Capture::on(scene.stage.world.host(), UPLINK)?;
    ensure!(ask(&runtimes, &late) == "encrypted" && before > 0);
    ensure!(port53(&uplink.stop()?).is_empty(), "plaintext of a selected pod");
    Ok(())
}

#[test]
fn a_version_that_has_expired_takes_a_new_list() -> Result<()> {
    let scene = Scene::new()?;
    let runtimes = Runtimes::new(&scene.stage.world)?;
    let daemon = scene.daemon(&["--pod-selector=app=web"])?;
    daemon.wait_for_log("following the pods of this node pods=0", LIMIT)?;
    scene.put(WEB, "web");
    scene.api.expire();
    daemon.wait_for_log("following the pods of this node pods=1", LIMIT)?;
    let (web, _network) = scene.container(&runtimes, WEB, 1)?;
    becomes(&runtimes, &web, "encrypted")?;
    // A pod that is gone stays what it was as long as its cgroup is there.
    scene.api.remove(WEB);
    scene.api.expire();
    daemon.wait_for_log("following the pods of this node pods=0", LIMIT)?;
    ensure!(ask(&runtimes, &web) == "encrypted");
    Ok(())
}

#[test]
fn a_token_that_is_not_accepted_is_named() -> Result<()> {
    let scene = Scene::new()?;
    scene.api.kubeconfig(&scene.stage.pki)?;
    Runtimes::new(&scene.stage.world)?;
    let mut args = scene.stage.run_args(&[])?;
    let config = scene.api.kubeconfig_with(&scene.stage.pki, "another")?;
    args.extend([format!("--kubeconfig={}", config.display()), format!("--node-name={NODE}")]);
    args.push(format!("--cgroup-root={CGROUP_ROOT}/{}", scene.stage.world.cgroup().path()?));
    args.push("--pod-namespace=shop".to_owned());
    let daemon = Daemon::start(&scene.stage.world, &args)?;
    daemon.wait_for_log("its token or certificate is not accepted", LIMIT)
}
