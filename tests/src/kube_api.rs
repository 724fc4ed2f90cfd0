//! What a Kubernetes API server says of pods, over HTTPS: lists in pages, watches with bookmarks,
//! versions that expire (410), tokens that it does not know (401), and outages.
//!
//! Only as much of the API as a client may use that has leave to list and watch pods; of everything
//! else it says what the real one does (403).

use crate::netns::Netns;
use crate::pki::{Identity, Pki};
use crate::runtime::Runtime;
use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::crypto::ring;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

/// The bearer token that it knows.
const TOKEN: &str = "the-token-of-a-service-account";
/// How often a watch without news says how far it is.
const BOOKMARK: Duration = Duration::from_millis(200);
/// The most pods on a page, whatever a client asks for: so that a few make several pages.
const PAGE: usize = 2;

/// A running server.
#[derive(Debug)]
pub struct KubeApi {
    runtime: Runtime,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Counts changes; a change wakes all watches.
    changed: watch::Sender<u64>,
    acceptor: Arc<TlsConfig>,
}

struct TlsConfig(TlsAcceptor);

impl std::fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConfig")
    }
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    pods: BTreeMap<String, Stored>,
    /// Version, kind of event, the pod's node and JSON.
    history: Vec<(u64, &'static str, String, String)>,
    /// The oldest version from which a watch can go on.
    oldest: u64,
    /// Not to be reached.
    is_down: bool,
    requests: Vec<String>,
}

#[derive(Clone, Debug)]
struct Stored {
    node: String,
    json: String,
}

/// What there is to say of a pod.
#[derive(Clone, Copy, Debug)]
pub struct ApiPod<'a> {
    /// Its UID.
    pub uid: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Where it is.
    pub node: &'a str,
    /// Its label `app`.
    pub app: &'a str,
}

impl KubeApi {
    /// Starts one in the namespace; it is listening when this returns.
    pub fn start(netns: &Netns, address: SocketAddr, identity: &Identity) -> Result<Self> {
        let chain = [slice::from_ref(&identity.certificate), &identity.chain].concat();
        let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, identity.key())?;
        // The real one prefers h2, and speaks this to who does not offer it.
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (changed, _) = watch::channel(0);
        let server = Self {
            runtime: Runtime::inside(netns)?,
            address,
            state: Arc::default(),
            changed,
            acceptor: Arc::new(TlsConfig(TlsAcceptor::from(Arc::new(tls)))),
        };
        let listener = server.runtime.run(TcpListener::bind(address))?;
        let listener = listener.with_context(|| format!("listen on {address}"))?;
        let (state, changed) = (Arc::clone(&server.state), server.changed.subscribe());
        let acceptor = Arc::clone(&server.acceptor);
        server.runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if lock(&state).is_down {
                    continue; // it is closed at once
                }
                let (state, changed) = (Arc::clone(&state), changed.clone());
                let acceptor = Arc::clone(&acceptor);
                tokio::spawn(async move {
                    // An error is a client that is gone.
                    let _ = serve(stream, &acceptor.0, &state, changed).await;
                });
            }
        });
        Ok(server)
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self, pki: &Pki) -> Result<PathBuf> {
        self.kubeconfig_with(pki, TOKEN)
    }

    /// The same with another token.
    pub fn kubeconfig_with(&self, pki: &Pki, token: &str) -> Result<PathBuf> {
        let path = pki.dir().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: node\ncontexts:\n- name: node\n  \
             context:\n    cluster: kind\n    user: node\nclusters:\n- name: kind\n  cluster:\n    \
             certificate-authority: ca.pem\n    server: https://{}\nusers:\n- name: node\n  user:\n    \
             token: {token}\n",
            self.address
        );
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Adds or changes a pod.
    pub fn put(&self, pod: &ApiPod<'_>) {
        let ApiPod { uid, namespace, node, app } = pod;
        self.change(|state, version| {
            let json = format!(
                r#"{{"metadata":{{"name":"{app}-{uid}","namespace":"{namespace}","uid":"{uid}","resourceVersion":"{version}","labels":{{"app":"{app}"}}}},"spec":{{"nodeName":"{node}"}},"status":{{"phase":"Running"}}}}"#
            );
            let stored = Stored { node: (*node).to_owned(), json: json.clone() };
            let before = state.pods.insert((*uid).to_owned(), stored);
            let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
            state.history.push((version, kind, (*node).to_owned(), json));
        });
    }

    /// Removes a pod.
    pub fn remove(&self, uid: &str) {
        self.change(|state, version| {
            if let Some(Stored { node, json }) = state.pods.remove(uid) {
                state.history.push((version, "DELETED", node, json));
            }
        });
    }

    /// Forgets what has happened, as the real one does after some minutes: whoever watches from
    /// before is told that it is too late.
    pub fn expire(&self) {
        self.change(|state, version| {
            state.history.clear();
            state.oldest = version;
        });
    }

    /// Is not to be reached from now on, or is again.
    pub fn outage(&self, is_down: bool) {
        self.change(|state, _| state.is_down = is_down);
    }

    /// The paths that were asked for.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.state).requests.clone()
    }

    fn change(&self, change: impl FnOnce(&mut State, u64)) {
        let mut state = lock(&self.state);
        state.version += 1;
        let version = state.version;
        change(&mut state, version);
        drop(state);
        self.changed.send_replace(version);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers what comes over one connection, until the server goes down.
async fn serve(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    state: &Mutex<State>,
    mut changed: watch::Receiver<u64>,
) -> Result<()> {
    let mut stream = BufReader::new(acceptor.accept(stream).await?);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            let read = tokio::select! {
                read = stream.read_line(&mut line) => read?,
                () = down(state, &mut changed) => return Ok(()),
            };
            match line.trim_end() {
                _ if read == 0 => return Ok(()),
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("").to_owned();
        lock(state).requests.push(path.clone());
        let bearer = format!("Bearer {TOKEN}");
        let is_known = head.iter().any(|line| {
            line.split_once(": ").is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case("authorization") && value == bearer
            })
        });
        let (route, query) = path.split_once('?').unwrap_or((&path, ""));
        let query: BTreeMap<_, _> =
            query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let node = query.get("fieldSelector").and_then(|of| of.strip_prefix("spec.nodeName%3D"));
        match (is_known, route, node) {
            (false, ..) => document(&mut stream, 401, &status(401, "Unauthorized")).await?,
            (true, "/api/v1/pods", Some(node)) if query.contains_key("watch") => {
                let from = query.get("resourceVersion").and_then(|from| from.parse().ok());
                return follow(&mut stream, state, changed, node, from.unwrap_or(0)).await;
            }
            (true, "/api/v1/pods", Some(node)) => {
                let page = page(&lock(state), node, query.get("continue").copied().unwrap_or(""));
                document(&mut stream, 200, &page).await?;
            }
            _ => document(&mut stream, 403, &status(403, "forbidden")).await?,
        }
    }
}

async fn down(state: &Mutex<State>, changed: &mut watch::Receiver<u64>) {
    while !lock(state).is_down {
        if changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn page(state: &State, node: &str, after: &str) -> String {
    let of_node = state.pods.iter().filter(|(_, pod)| pod.node == node);
    let left: Vec<_> = of_node.filter(|(uid, _)| uid.as_str() > after).collect();
    let items: Vec<_> = left.iter().take(PAGE).map(|(_, pod)| pod.json.as_str()).collect();
    let go_on = if left.len() > PAGE { left[PAGE - 1].0.as_str() } else { "" };
    format!(
        r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{"resourceVersion":"{}","continue":"{go_on}"}},"items":[{}]}}"#,
        state.version,
        items.join(",")
    )
}

fn status(code: u16, message: &str) -> String {
    format!(
        r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","message":"{message}","code":{code}}}"#
    )
}

async fn document(stream: &mut (impl AsyncWrite + Unpin), code: u16, body: &str) -> Result<()> {
    let head = format!(
        "HTTP/1.1 {code} Status\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    Ok(stream.flush().await?)
}

/// One watch: what has happened since, then what happens, and now and then a bookmark.
async fn follow(
    stream: &mut (impl AsyncWrite + Unpin),
    state: &Mutex<State>,
    mut changed: watch::Receiver<u64>,
    node: &str,
    mut from: u64,
) -> Result<()> {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    loop {
        let mut lines = Vec::new();
        {
            let state = lock(state);
            if state.is_down {
                return Ok(());
            }
            if from < state.oldest {
                let gone = status(410, "too old resource version");
                lines.push(format!(r#"{{"type":"ERROR","object":{gone}}}"#));
            } else {
                let new = state
                    .history
                    .iter()
                    .filter(|(version, _, of, _)| *version > from && of == node);
                lines.extend(
                    new.map(|(_, kind, _, pod)| format!(r#"{{"type":"{kind}","object":{pod}}}"#)),
                );
                from = state.version;
            }
        }
        let is_over = lines.iter().any(|line| line.contains(r#""ERROR""#));
        for line in lines {
            chunk(stream, &format!("{line}\n")).await?;
        }
        if is_over {
            stream.write_all(b"0\r\n\r\n").await?;
            return Ok(stream.flush().await?);
        }
        if timeout(BOOKMARK, changed.changed()).await.is_err() {
            let bookmark = format!(
                r#"{{"type":"BOOKMARK","object":{{"kind":"Pod","metadata":{{"resourceVersion":"{from}"}}}}}}"#
            );
            chunk(stream, &format!("{bookmark}\n")).await?;
        } else {
            sleep(Duration::from_millis(1)).await; // several changes may come in one
        }
    }
}

async fn chunk(stream: &mut (impl AsyncWrite + Unpin), text: &str) -> Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await?;
    Ok(stream.flush().await?)
}
