//! The pods of this node, by the Kubernetes API: a list, then a watch from where the list ends. Needs
//! leave to get, list and watch pods, and nothing else.
//!
//! A watch ends every few minutes and goes on from the last version that was heard of; only one that
//! is too old (410) takes a new list. While the server cannot be reached, what was heard last counts.

mod cluster;

use std::{collections::BTreeMap, io, time::Duration};

use hyper::StatusCode;
use serde::Deserialize;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tracing::{debug, info, warn};

pub use self::cluster::{Cluster, ClusterError};
use super::{
    Teller,
    http::{Connection, HttpError},
    inventory::{Change, Reach},
    selector::Pod,
};

/// How many pods come at once.
const PAGE: u32 = 500;
/// The most pages: a node has some hundred pods.
const MAX_PAGES: usize = 200;
/// How long the server keeps a watch open.
const WATCH: Duration = Duration::from_secs(290);
/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// When a connection on which nothing arrives is taken for dead.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// Between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// By these a static pod's cgroup is named, not by its UID.
const MIRROR: &str = "kubernetes.io/config.mirror";
const HASH: &str = "kubernetes.io/config.hash";

/// Why pods cannot be followed.
#[derive(Debug, Error)]
enum KubeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no connection within {CONNECT_LIMIT:?}")]
    Silent,
    #[error("{0}")]
    Http(#[from] HttpError),
    #[error("it says what we do not understand: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Said(String),
    #[error("what we have heard is too old to go on from")]
    Expired,
    #[error("a list without end")]
    Endless,
}

/// Follows the pods of this node for ever.
pub(super) async fn follow(cluster: Cluster, tell: Teller) {
    let mut pause = FIRST_PAUSE;
    // Where to go on from.
    let mut version: Option<String> = None;
    let mut is_lost = false;
    loop {
        match session(&cluster, &tell, &mut version).await {
            Ok(()) => {
                pause = FIRST_PAUSE;
                if std::mem::take(&mut is_lost) {
                    info!("Kubernetes answers again");
                }
                continue;
            }
            Err(KubeError::Expired) => {
                debug!("listing the pods anew");
                version = None;
            }
            Err(error) => {
                if !std::mem::replace(&mut is_lost, true) {
                    warn!(
                        %error, server = cluster.host,
                        "cannot follow the pods of this node{}; what is known of them counts on",
                        remedy(&error)
                    );
                }
                tell.tell(Change::Reach(Reach::Silent)).await;
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn remedy(error: &KubeError) -> &'static str {
    let KubeError::Http(error) = error else {
        return "";
    };
    match error.status() {
        Some(StatusCode::FORBIDDEN) => {
            " (give the service account a ClusterRole to get, list and watch pods)"
        }
        Some(StatusCode::UNAUTHORIZED) => " (its token or certificate is not accepted)",
        Some(_) | None => "",
    }
}

/// A list, if there is nothing to go on from, and one watch.
async fn session(
    cluster: &Cluster,
    tell: &Teller,
    version: &mut Option<String>,
) -> Result<(), KubeError> {
    let mut connection = connect(cluster).await?;
    let from = match version.clone() {
        Some(from) => from,
        None => {
            let (pods, from) = list(cluster, &mut connection).await?;
            info!(pods = pods.len(), node = cluster.node, "following the pods of this node");
            tell.tell(Change::AllPods(pods)).await;
            version.insert(from).clone()
        }
    };
    let path = format!(
        "{}&watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
        pods_of(&cluster.node),
        escape(&from),
        WATCH.as_secs()
    );
    let mut lines = connection.stream(&path).await.map_err(expired)?;
    tell.tell(Change::Reach(Reach::Heard)).await;
    while let Some(line) = lines.next().await? {
        let Event { kind, object } = serde_json::from_slice(&line)?;
        if kind == "ERROR" {
            let status: Status = serde_json::from_value(object)?;
            let is_old = status.code == StatusCode::GONE.as_u16();
            return Err(if is_old { KubeError::Expired } else { KubeError::Said(status.message) });
        }
        let object: Object = serde_json::from_value(object)?;
        if let Some(newer) = object.metadata.resource_version.clone() {
            *version = Some(newer);
        }
        match kind.as_str() {
            "ADDED" | "MODIFIED" => tell.tell(Change::PodHere(object.into())).await,
            "DELETED" => tell.tell(Change::PodGone(Pod::from(object).uid)).await,
            _ => {} // a bookmark, which is only the version
        }
    }
    Ok(())
}

async fn list(
    cluster: &Cluster,
    connection: &mut Connection,
) -> Result<(Vec<Pod>, String), KubeError> {
    let (mut pods, mut go_on) = (Vec::new(), String::new());
    for _ in 0..MAX_PAGES {
        let path = format!("{}&limit={PAGE}&continue={}", pods_of(&cluster.node), escape(&go_on));
        let page: List = serde_json::from_slice(&connection.get(&path).await.map_err(expired)?)?;
        pods.extend(page.items.into_iter().map(Pod::from));
        go_on = page.metadata.go_on.unwrap_or_default();
        if go_on.is_empty() {
            return Ok((pods, page.metadata.resource_version.unwrap_or_default()));
        }
    }
    Err(KubeError::Endless)
}

fn expired(error: HttpError) -> KubeError {
    if error.status() == Some(StatusCode::GONE) { KubeError::Expired } else { error.into() }
}

fn pods_of(node: &str) -> String {
    format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", escape(node))
}

/// What has a meaning of its own in a query.
fn escape(text: &str) -> String {
    let plain =
        |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_' | b'~');
    let octets = text.bytes().map(|octet| match plain(octet) {
        true => char::from(octet).to_string(),
        false => format!("%{octet:02X}"),
    });
    octets.collect()
}

async fn connect(cluster: &Cluster) -> Result<Connection, KubeError> {
    let connect = async {
        let stream = TcpStream::connect((cluster.host.as_str(), cluster.port)).await?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(
            &TcpKeepalive::new().with_time(DEAD_AFTER / 3).with_interval(DEAD_AFTER / 3),
        )?;
        socket.set_tcp_user_timeout(Some(DEAD_AFTER))?;
        let connector = TlsConnector::from(std::sync::Arc::clone(&cluster.tls));
        connector.connect(cluster.name.clone(), stream).await
    };
    let stream = timeout(CONNECT_LIMIT, connect).await.map_err(|_| KubeError::Silent)??;
    let host = match cluster.host.contains(':') {
        true => format!("[{}]:{}", cluster.host, cluster.port),
        false => format!("{}:{}", cluster.host, cluster.port),
    };
    Ok(Connection::new(stream, &host, cluster.token.read()?).await?)
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    #[serde(default)]
    items: Vec<Object>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    go_on: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    resource_version: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl From<Object> for Pod {
    fn from(Object { metadata }: Object) -> Self {
        let Metadata { name, namespace, uid, labels, mut annotations, .. } = metadata;
        let is_mirror = annotations.contains_key(MIRROR);
        let uid = annotations.remove(HASH).filter(|_| is_mirror).unwrap_or(uid);
        Self { uid, namespace, name, labels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_pod_is_known_by_what_its_cgroup_is_named_by() {
        let pod = |annotations: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"a","namespace":"b","uid":"u","annotations":{annotations}}}}}"#
            );
            Pod::from(serde_json::from_str::<Object>(&text).expect("well formed")).uid
        };
        assert_eq!(pod("{}"), "u");
        let hash = r#""kubernetes.io/config.hash":"h""#;
        assert_eq!(pod(&format!("{{{hash}}}")), "u");
        assert_eq!(pod(&format!(r#"{{{hash},"kubernetes.io/config.mirror":"h"}}"#)), "h");
    }

    #[test]
    fn names_of_nodes_are_escaped() {
        assert_eq!(escape("ip-10-0-0-1.ec2.internal"), "ip-10-0-0-1.ec2.internal");
        assert_eq!(escape("a=b&c"), "a%3Db%26c");
    }
}
