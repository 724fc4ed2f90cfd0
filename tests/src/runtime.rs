//! A tokio runtime whose one thread lives in a network namespace, so that servers can live there.

use crate::netns::Netns;
use anyhow::{Context, Result};
use std::sync::mpsc;
use std::thread;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The runtime; dropping it ends all that runs in it.
#[derive(Debug)]
pub struct Runtime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Runtime {
    /// Starts one in the namespace.
    pub fn inside(netns: &Netns) -> Result<Self> {
        let netns = netns.clone();
        let (started, handle) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = netns
                .enter()
                .and_then(|()| Ok(Builder::new_current_thread().enable_all().build()?));
            // From here on the thread holds the namespace, so that its owner may let go.
            drop(netns);
            match runtime {
                Ok(runtime) => {
                    let _ = started.send(Ok(runtime.handle().clone()));
                    let _ = runtime.block_on(stopped);
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
        let handle = handle.recv().context("the runtime's thread died")??;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Starts a task inside.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.handle.spawn(task)
    }

    /// Runs a future inside and waits for what it gives.
    pub fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let (done, result) = mpsc::channel();
        self.spawn(async move {
            let _ = done.send(future.await);
        });
        result.recv().context("the task died")
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed already.
            let _ = thread.join();
        }
    }
}
