//! Containers of Docker and podman, by the interface that both have: what there is, then what
//! happens, over a Unix socket.
//!
//! A container is told of when it is made, which is before it has a cgroup, let alone a process. One
//! that is met all the same before anybody told of it is asked for by its id: podman without a
//! service running knows of no events.

use std::{
    collections::BTreeMap,
    future::pending,
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::StatusCode;
use serde::Deserialize;
use thiserror::Error;
use tokio::{
    net::UnixStream,
    sync::{Semaphore, mpsc},
    time::{interval, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Teller,
    http::{Connection, HttpError, Lines},
    inventory::{Change, Reach},
    selector::{Container, Engine},
};

/// Between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often it is looked whether a socket has appeared.
const ABSENT_PAUSE: Duration = Duration::from_secs(1);
/// How often everything is listed anew although events tell what happens, and if they do not.
const RELIST: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_secs(2);
/// How much older than the list events may be; clocks of hosts are adjusted.
const OVERLAP: u64 = 2;
/// How many containers are asked for at a time.
const MAX_ASKED: usize = 16;
/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Why an engine cannot be followed.
#[derive(Debug, Error)]
enum EngineError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Http(#[from] HttpError),
    #[error("it says what we do not understand: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it has ended")]
    Ended,
}

/// Follows the engine behind a socket for ever; `asked` are ids of containers that somebody wants to
/// know of.
pub(super) async fn follow(path: PathBuf, mut asked: mpsc::Receiver<String>, tell: Teller) {
    let mut pause = FIRST_PAUSE;
    let mut was_told = false;
    loop {
        let Err(error) = session(&path, &mut asked, &tell, &mut pause).await;
        let is_absent = matches!(&error, EngineError::Io(e) if e.kind() == io::ErrorKind::NotFound);
        tell.tell(Change::Reach(if is_absent { Reach::Absent } else { Reach::Silent })).await;
        if !is_absent && pause == FIRST_PAUSE || !was_told {
            match is_absent {
                true => debug!(socket = %path.display(), "no container engine here yet"),
                false => warn!(
                    %error, socket = %path.display(),
                    "cannot follow this container engine; trying again"
                ),
            }
            was_told = true;
        }
        sleep(if is_absent { ABSENT_PAUSE } else { pause }).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Never {}

/// One connection's life; `pause` is the shortest again once it is up.
async fn session(
    path: &Path,
    asked: &mut mpsc::Receiver<String>,
    tell: &Teller,
    pause: &mut Duration,
) -> Result<Never, EngineError> {
    let mut connection = connect(path).await?;
    let engine = engine(&connection.get("/version").await?)?;
    // Events are asked for from before the list was made, so that none is missed between.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    tell.tell(Change::All(list(&connection.get(LIST).await?, engine)?)).await;
    info!(socket = %path.display(), %engine, "following the containers of this engine");
    *pause = FIRST_PAUSE;

    let filters = "%7B%22type%22%3A%5B%22container%22%5D%7D"; // {"type":["container"]}
    let events = format!("/events?since={}&filters={filters}", now.saturating_sub(OVERLAP));
    let mut opening = pin!(connect(path).await?.stream(&events));
    let mut lines: Option<Lines> = None;
    let mut has_events = true;
    let (mut relist, mut poll) = (interval(RELIST), interval(POLL));
    relist.tick().await;
    poll.tick().await;
    let inspector =
        Inspector { path: path.into(), engine, slots: Semaphore::new(MAX_ASKED).into() };
    loop {
        let is_opening = lines.is_none() && has_events;
        let line = async {
            match &mut lines {
                Some(lines) => lines.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            opened = &mut opening, if is_opening => match opened {
                Ok(opened) => lines = Some(opened),
                Err(error) if error.status().is_some() => {
                    warn!(
                        %error, socket = %path.display(),
                        "this container engine tells of no events; asking it every {POLL:?}"
                    );
                    has_events = false;
                }
                Err(error) => return Err(error.into()),
            },
            line = line => {
                let line = line?.ok_or(EngineError::Ended)?;
                let event: Event = serde_json::from_slice(&line)?;
                if event.is_of_container() {
                    event.tell(engine, tell, &inspector).await;
                }
            }
            id = asked.recv() => match id {
                Some(id) => inspector.inspect(id, tell.clone()),
                None => return Err(EngineError::Ended),
            },
            _ = relist.tick() => tell.tell(Change::All(relisted(path, engine).await?)).await,
            _ = poll.tick(), if !has_events => {
                tell.tell(Change::All(relisted(path, engine).await?)).await;
            }
        }
    }
}

/// Asks for single containers, each over a connection of its own: an engine may keep one waiting that
/// is being started.
struct Inspector {
    path: Arc<Path>,
    engine: Engine,
    slots: Arc<Semaphore>,
}

impl Inspector {
    fn inspect(&self, id: String, tell: Teller) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            return; // it will be asked for again
        };
        let (path, engine) = (Arc::clone(&self.path), self.engine);
        tokio::spawn(async move {
            let _slot = slot;
            match inspect(&path, engine, &id).await {
                Ok(container) => tell.tell(Change::Here(container)).await,
                Err(EngineError::Http(error)) if error.status() == Some(StatusCode::NOT_FOUND) => {
                    tell.tell(Change::Denied(id)).await;
                }
                Err(error) => debug!(%error, id, "cannot ask for a container"),
            }
        });
    }
}

/// All containers, also those that do not run.
const LIST: &str = "/containers/json?all=true";

async fn connect(path: &Path) -> Result<Connection, EngineError> {
    let stream = timeout(CONNECT_LIMIT, UnixStream::connect(path)).await;
    let stream = stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(Connection::new(stream, "localhost", None).await?)
}

async fn relisted(path: &Path, engine: Engine) -> Result<Vec<Container>, EngineError> {
    list(&connect(path).await?.get(LIST).await?, engine)
}

async fn inspect(path: &Path, engine: Engine, id: &str) -> Result<Container, EngineError> {
    let document = connect(path).await?.get(&format!("/containers/{id}/json")).await?;
    let Inspected { id, name, config } = serde_json::from_slice(&document)?;
    let (labels, names) = (config.labels.unwrap_or_default(), vec![bare(&name)]);
    Ok(Container { engine, id, names, image: config.image, labels, cgroup: None })
}

/// Which engine it is that has this interface.
fn engine(version: &[u8]) -> Result<Engine, serde_json::Error> {
    let version: Version = serde_json::from_slice(version)?;
    let is_podman = |component: &Component| component.name.starts_with("Podman");
    let is_podman = version.components.unwrap_or_default().iter().any(is_podman);
    Ok(if is_podman { Engine::Podman } else { Engine::Docker })
}

fn list(document: &[u8], engine: Engine) -> Result<Vec<Container>, EngineError> {
    let listed: Vec<Listed> = serde_json::from_slice(document)?;
    let container = |Listed { id, names, image, labels }| Container {
        engine,
        id,
        names: names.unwrap_or_default().iter().map(|name| bare(name)).collect(),
        image,
        labels: labels.unwrap_or_default(),
        cgroup: None,
    };
    Ok(listed.into_iter().map(container).collect())
}

/// Names have a slash in front, from when containers could be linked.
fn bare(name: &str) -> String {
    name.trim_start_matches('/').to_owned()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    components: Option<Vec<Component>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    names: Option<Vec<String>>,
    #[serde(default)]
    image: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: String,
    config: Config,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    image: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    action: String,
    actor: Option<Actor>,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes")]
    attributes: Option<BTreeMap<String, String>>,
}

impl Event {
    fn is_of_container(&self) -> bool {
        self.r#type.is_empty() || self.r#type == "container"
    }

    async fn tell(self, engine: Engine, tell: &Teller, inspector: &Inspector) {
        let Some(Actor { id, attributes }) = self.actor else {
            return;
        };
        match self.action.as_str() {
            "destroy" | "remove" => tell.tell(Change::Gone(id)).await,
            "create" => {
                // Names and labels in one, of which the former win; better than to wait. What is
                // asked for then says it rightly.
                let mut labels = attributes.unwrap_or_default();
                let names = labels.remove("name").into_iter().collect();
                let image = labels.remove("image").unwrap_or_default();
                inspector.inspect(id.clone(), tell.clone());
                let container = Container { engine, id, names, image, labels, cgroup: None };
                tell.tell(Change::Here(container)).await;
            }
            "rename" | "update" => inspector.inspect(id, tell.clone()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_tell_themselves_apart() {
        let docker =
            br#"{"Platform":{"Name":""},"Components":[{"Name":"Engine","Version":"20.10"}]}"#;
        let podman = br#"{"Components":[{"Name":"Podman Engine"},{"Name":"Conmon"}]}"#;
        assert_eq!(engine(docker).expect("well formed"), Engine::Docker);
        assert_eq!(engine(podman).expect("well formed"), Engine::Podman);
        assert!(engine(b"<html>").is_err());
    }

    #[test]
    fn lists_may_leave_out_what_there_is_none_of() {
        let listed =
            br#"[{"Id":"a","Names":["/web","/alias/web"],"Image":"nginx","Labels":{"k":"v"}},
            {"Id":"b","Names":null,"Labels":null,"State":"created"}]"#;
        let listed = list(listed, Engine::Docker).expect("well formed");
        assert_eq!(listed[0].names, ["web", "alias/web"]);
        assert_eq!(listed[0].labels["k"], "v");
        assert_eq!((listed[1].id.as_str(), listed[1].names.len()), ("b", 0));
    }
}
