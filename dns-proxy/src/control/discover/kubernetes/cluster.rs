//! Where the API server is and who we are to it: from inside a pod, or from a kubeconfig.

use std::{
    env, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use data_encoding::BASE64;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use thiserror::Error;
use yaml_rust2::{Yaml, YamlLoader};

/// What a pod is given.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The longest of the files.
const MAX_FILE: u64 = 1 << 20;

/// The API server, as this node's daemon sees it.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Name or address, and port.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) name: ServerName<'static>,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) token: Token,
    /// Whose pods.
    pub(super) node: String,
}

/// What shows who we are, unless a certificate does.
#[derive(Clone, Debug)]
pub(super) enum Token {
    None,
    Given(String),
    /// Replaced now and then.
    File(PathBuf),
}

/// Why there is no way to ask Kubernetes. Always the operator's to mend.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// Neither in a pod nor told where.
    #[error(
        "pods are selected, but there is no Kubernetes to ask: run in a pod with a service account, \
         or name a kubeconfig with --kubeconfig"
    )]
    Nowhere,
    /// Whose pods?
    #[error(
        "which node is this? name it with --node-name, in a pod by the environment variable \
         NODE_NAME from the field spec.nodeName"
    )]
    NoNode,
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// The operating system's words.
        source: io::Error,
    },
    /// A file that says something else than it should.
    #[error("{path}: {problem}")]
    Content {
        /// Which.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

impl Cluster {
    /// Finds it: the kubeconfig that is named, else what a pod is given, else the kubeconfig that
    /// other programs use.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn find(kubeconfig: Option<&Path>, node: Option<String>) -> Result<Self, ClusterError> {
        let node = node.or_else(|| env::var("NODE_NAME").ok()).filter(|name| !name.is_empty());
        let node = node.or_else(host_name).ok_or(ClusterError::NoNode)?;
        if let Some(path) = kubeconfig {
            return Self::of_kubeconfig(path, node);
        }
        if let (Ok(host), Ok(port)) =
            (env::var("KUBERNETES_SERVICE_HOST"), env::var("KUBERNETES_SERVICE_PORT"))
        {
            return Self::of_pod(Path::new(ACCOUNT), host, &port, node);
        }
        let named = env::var_os("KUBECONFIG").map(PathBuf::from);
        let usual = || env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
        match named.or_else(usual).filter(|path| path.is_file()) {
            Some(path) => Self::of_kubeconfig(&path, node),
            None => Err(ClusterError::Nowhere),
        }
    }

    fn of_pod(
        account: &Path,
        host: String,
        port: &str,
        node: String,
    ) -> Result<Self, ClusterError> {
        let bad = |problem: &str| content(Path::new("KUBERNETES_SERVICE_PORT"), problem);
        let port = port.parse().map_err(|_| bad("not a port"))?;
        let ca = account.join("ca.crt");
        let tls = tls(&ca, &read(&ca)?, None)?;
        let token = account.join("token");
        read(&token)?;
        let name = server_name(&host, &ca)?;
        Ok(Self { host, port, name, tls, token: Token::File(token), node })
    }

    fn of_kubeconfig(path: &Path, node: String) -> Result<Self, ClusterError> {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        let bad = |problem: &str| content(path, problem);
        let all = YamlLoader::load_from_str(&text).map_err(|error| bad(&error.to_string()))?;
        let config = all.first().ok_or_else(|| bad("empty"))?;
        let current =
            config["current-context"].as_str().ok_or_else(|| bad("no current-context"))?;
        let named = |list: &str, item: &str, name: &str| {
            let of = config[list].as_vec().into_iter().flatten();
            let mut of = of.filter(|entry| entry["name"].as_str() == Some(name));
            let found = of.next().map(|entry| entry[item].clone());
            found.ok_or_else(|| bad(&format!("no {item} `{name}` in {list}")))
        };
        let context = named("contexts", "context", current)?;
        let text = |yaml: &Yaml, key: &str| yaml[key].as_str().map(str::to_owned);
        let needed = |key: &str| text(&context, key).ok_or_else(|| bad(&format!("no {key}")));
        let cluster = named("clusters", "cluster", &needed("cluster")?)?;
        let user = named("users", "user", &needed("user")?)?;

        let server = text(&cluster, "server").ok_or_else(|| bad("no server"))?;
        let (host, port) = host_and_port(&server).ok_or_else(|| {
            bad(&format!("server `{server}`: only https://HOST[:PORT] can be used"))
        })?;
        if cluster["insecure-skip-tls-verify"].as_bool() == Some(true) {
            return Err(bad(
                "insecure-skip-tls-verify: the server must be authenticated; give its \
                            certificate-authority",
            ));
        }
        let blob = |yaml: &Yaml, key: &str| -> Result<Option<Vec<u8>>, ClusterError> {
            if let Some(data) = text(yaml, &format!("{key}-data")) {
                let data: String = data.split_whitespace().collect();
                let decoded = BASE64.decode(data.as_bytes());
                return decoded.map(Some).map_err(|error| bad(&format!("{key}-data: {error}")));
            }
            // Paths are from where the kubeconfig is.
            let near = path.parent().unwrap_or(Path::new(""));
            text(yaml, key).map(|file| read(&near.join(file))).transpose()
        };
        let ca = blob(&cluster, "certificate-authority")?
            .ok_or_else(|| bad("no certificate-authority"))?;
        let identity = match (blob(&user, "client-certificate")?, blob(&user, "client-key")?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            _ => None,
        };
        let token = match (text(&user, "token"), text(&user, "tokenFile")) {
            (Some(token), _) => Token::Given(token),
            (None, Some(file)) => Token::File(file.into()),
            (None, None) => Token::None,
        };
        if identity.is_none() && matches!(token, Token::None) {
            return Err(bad(
                "the user has neither a client-certificate nor a token; logins by other \
                            programs (exec) cannot be used, a service account's token can",
            ));
        }
        let name = text(&cluster, "tls-server-name");
        let name = server_name(name.as_deref().unwrap_or(&host), path)?;
        let tls = tls(path, &ca, identity)?;
        Ok(Self { host, port, name, tls, token, node })
    }
}

impl Token {
    /// What it is now.
    pub(super) fn read(&self) -> io::Result<Option<String>> {
        match self {
            Self::None => Ok(None),
            Self::Given(token) => Ok(Some(token.clone())),
            Self::File(path) => Ok(Some(fs::read_to_string(path)?.trim().to_owned())),
        }
    }
}

impl PartialEq for Cluster {
    fn eq(&self, other: &Self) -> bool {
        self.host == other.host && self.port == other.port && self.node == other.node
    }
}

impl Eq for Cluster {}

fn tls(
    path: &Path,
    ca: &[u8],
    identity: Option<(Vec<u8>, Vec<u8>)>,
) -> Result<Arc<ClientConfig>, ClusterError> {
    let bad = |problem: String| content(path, &problem);
    let pem = |text: &[u8]| {
        let all = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
        all.map_err(|error| bad(error.to_string()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in pem(ca)? {
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("no certificate of an authority".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key =
                PrivateKeyDer::from_pem_slice(&key).map_err(|error| bad(error.to_string()))?;
            let config = builder.with_client_auth_cert(pem(&certificate)?, key);
            config.map_err(|error| bad(error.to_string()))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// `https://HOST[:PORT]`, the host without brackets.
fn host_and_port(server: &str) -> Option<(String, u16)> {
    let authority = server.strip_prefix("https://")?.trim_end_matches('/');
    if authority.contains(['/', '@', '?']) || authority.is_empty() {
        return None;
    }
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        let port = port.strip_prefix(':').map_or(Some(443), |port| port.parse().ok())?;
        return Some((host.to_owned(), port));
    }
    match authority.split_once(':') {
        Some((host, port)) => Some((host.to_owned(), port.parse().ok()?)),
        None => Some((authority.to_owned(), 443)),
    }
}

fn server_name(host: &str, path: &Path) -> Result<ServerName<'static>, ClusterError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(ServerName::from(address));
    }
    ServerName::try_from(host.to_owned())
        .map_err(|_| content(path, &format!("`{host}` is no host")))
}

fn read(path: &Path) -> Result<Vec<u8>, ClusterError> {
    let failed = |source| ClusterError::File { path: path.display().to_string(), source };
    let len = fs::metadata(path).map_err(failed)?.len();
    if len > MAX_FILE {
        return Err(content(path, "too long for what it should be"));
    }
    fs::read(path).map_err(failed)
}

fn content(path: &Path, problem: &str) -> ClusterError {
    ClusterError::Content { path: path.display().to_string(), problem: problem.to_owned() }
}

/// What a kubelet calls its node unless told otherwise.
fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim().to_lowercase();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_https() {
        let cases = [
            ("https://10.0.0.1:6443", Some(("10.0.0.1", 6443))),
            ("https://api.example/", Some(("api.example", 443))),
            ("https://[fd00::1]:6443", Some(("fd00::1", 6443))),
            ("https://[fd00::1]", Some(("fd00::1", 443))),
            ("http://10.0.0.1", None),
            ("https://host/path", None),
            ("https://", None),
        ];
        for (server, expected) in cases {
            let found = host_and_port(server);
            let found = found.as_ref().map(|(host, port)| (host.as_str(), *port));
            assert_eq!(found, expected, "{server}");
        }
    }

    #[test]
    fn mistakes_in_a_kubeconfig_are_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("config");
        let head = "current-context: a\ncontexts: [{name: a, context: {cluster: c, user: u}}]\n";
        let cluster = "clusters: [{name: c, cluster: {server: \"https://h\", certificate-authority-data: \"AA==\"}}]\n";
        let cases = [
            ("a: [", "did not find"),
            ("x: 1", "no current-context"),
            (head, "no cluster `c` in clusters"),
            (&format!("{head}{cluster}"), "no user `u` in users"),
            (
                &format!("{head}{cluster}users: [{{name: u, user: {{exec: {{}}}}}}]"),
                "neither a client-certificate",
            ),
            (
                &format!("{head}{cluster}users: [{{name: u, user: {{token: t}}}}]"),
                "no certificate of an authority",
            ),
            (
                &format!(
                    "{head}clusters: [{{name: c, cluster: {{server: \"http://h\"}}}}]\nusers: [{{name: u, user: {{token: t}}}}]"
                ),
                "server `http://h`: only https://",
            ),
        ];
        for (text, expected) in cases {
            fs::write(&path, text).expect("written");
            let error =
                Cluster::find(Some(&path), Some("n".to_owned())).expect_err(text).to_string();
            assert!(error.contains(expected) && error.contains("config"), "{error}");
        }
    }
}
