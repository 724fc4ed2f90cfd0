//! The daemon's side, on the observer's thread: however busy it is, queries and the control plane are
//! not kept waiting.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};
use serde::Serialize;
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::spawn_local,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, error, warn};

use super::{COUNT_SECONDS, MAX_REQUEST, Refusal, Request};
use crate::{
    observe::hub::{Hub, Watcher},
    status::gather::Gatherer,
};

/// Connections at a time; further ones wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take for its request, and to take an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no control socket. The daemon does without.
#[derive(Debug, Error)]
pub enum ControlSocketError {
    /// Another daemon has it.
    #[error(
        "another dns-proxy listens at {} already; give this one a path of its own with --control, or \
         `--control off`",
        .0.display()
    )]
    Busy(PathBuf),
    /// The operating system refused.
    #[error("{}: {source}; name another place with --control, or `--control off`", path.display())]
    Io {
        /// What it is about.
        path: PathBuf,
        /// Its words.
        source: io::Error,
    },
}

/// The socket, which is gone when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    inode: u64,
    listener: StdListener,
}

impl ControlSocket {
    /// Opens it; it must be [served](ControlSocket::serve).
    ///
    /// # Errors
    /// Another daemon has the path, or nothing can be made there.
    pub fn open(path: &Path) -> Result<Self, ControlSocketError> {
        let failed = |source| ControlSocketError::Io { path: path.to_owned(), source };
        let listener = bind(path)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { path: path.to_owned(), inode, listener })
    }

    /// Answers for as long as it can.
    pub async fn serve(self, gatherer: &Arc<Gatherer>, hub: &Rc<Hub>) {
        let error = match self.listener.try_clone() {
            Ok(listener) => serve(listener, gatherer, hub).await,
            Err(error) => error,
        };
        error!(%error, "the control socket failed and is closed");
        // What else happens on this thread goes on.
        std::future::pending().await
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Somebody may have put another one there.
        let ours = |meta: fs::Metadata| meta.ino() == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(ours)
            && let Err(error) = fs::remove_file(&self.path)
        {
            debug!(%error, path = %self.path.display(), "control socket not removed");
        }
    }
}

/// Binds the path, on which a dead daemon may have left its socket.
fn bind(path: &Path) -> Result<StdListener, ControlSocketError> {
    let failed = |source| ControlSocketError::Io { path: path.to_owned(), source };
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    // One at a time, or two would take each other's for a dead one's.
    let file = File::open(dir).map_err(failed)?;
    let _turn = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))?;
    match StdStream::connect(path) {
        Ok(_) => return Err(ControlSocketError::Busy(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = StdListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Takes connections until that fails for good.
async fn serve(listener: StdListener, gatherer: &Arc<Gatherer>, hub: &Rc<Hub>) -> io::Error {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return io::ErrorKind::BrokenPipe.into();
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (gatherer, hub) = (Arc::clone(gatherer), Rc::clone(hub));
                spawn_local(async move {
                    let _place = place;
                    if let Err(error) = answer(stream, &gatherer, &hub).await {
                        debug!(%error, "control socket");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, or the client is gone: neither is the socket's end.
                warn!(%error, "cannot accept a connection on the control socket");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One connection: a request, and what answers it.
async fn answer(stream: UnixStream, gatherer: &Gatherer, hub: &Hub) -> io::Result<()> {
    // The file's mode says the same, but for the moment in which it is made.
    let uid = stream.peer_cred()?.uid();
    if uid != 0 && uid != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    let mut limited = (&mut stream).take(MAX_REQUEST);
    timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await??;
    let mut stream = stream.into_inner();
    match serde_json::from_slice(&line) {
        Ok(Request::Status {}) => say(&mut stream, &gatherer.status().await).await,
        Ok(Request::Count { seconds }) if COUNT_SECONDS.contains(&seconds) => {
            count(stream, gatherer, hub, Duration::from_secs_f64(seconds)).await
        }
        Ok(Request::Count { .. }) => {
            let error = format!("count for {COUNT_SECONDS:?} seconds");
            say(&mut stream, &Refusal { error }).await
        }
        Ok(Request::Watch { filter }) => watch(stream, &hub.watch(filter)).await,
        Err(error) => {
            let error = format!("not a request of this version ({error})");
            say(&mut stream, &Refusal { error }).await
        }
    }
}

/// Lines, for as long as the client takes them.
async fn watch(mut stream: UnixStream, watcher: &Watcher) -> io::Result<()> {
    let (mut gone, mut writer) = stream.split();
    loop {
        let mut nothing = [0];
        let lines = tokio::select! {
            lines = watcher.next() => lines,
            // It has nothing more to say but that it is gone.
            read = gone.read(&mut nothing) => match read? {
                0 => return Ok(()),
                _ => continue,
            },
        };
        timeout(PATIENCE, writer.write_all(&lines)).await??;
    }
}

/// Counts, one after the other, for as long as the client takes them.
async fn count(
    stream: UnixStream,
    gatherer: &Gatherer,
    hub: &Hub,
    period: Duration,
) -> io::Result<()> {
    let (mut gone, mut writer) = stream.into_split();
    let mut nothing = [0];
    let mut since = Instant::now();
    // At the beginning, so that whoever asks knows how it was, and that it has begun.
    let mut tally = hub.count();
    let mut took = Duration::ZERO;
    loop {
        hub.turn();
        let next = hub.count();
        let counted = std::mem::replace(&mut tally, next).take();
        let status = gatherer.status().await;
        say(&mut writer, &counted.end(took.as_secs_f64(), status)).await?;
        tokio::select! {
            () = sleep_until(since + period) => {}
            // It has nothing more to say but that it is gone.
            _ = gone.read(&mut nothing) => return Ok(()),
        }
        took = since.elapsed();
        since = Instant::now();
    }
}

/// One line.
async fn say(stream: &mut (impl AsyncWrite + Unpin), answer: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(PATIENCE, stream.write_all(&line)).await?
}
