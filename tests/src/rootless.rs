//! Podman as a user who is not root: containers in a user namespace, on a network that slirp4netns
//! carries over a TAP device.

use crate::process::output;
use crate::runtimes::{IMAGE, Runtimes};
use anyhow::Result;

/// The user, who exists on the host of this world only.
const UID: &str = "4321";
/// What that user needs: an entry in each of these files, and TAP devices. A mount hides the
/// machine's own.
const PREPARE: &str = r#"
    set -e
    mkdir -p /run/user/home /run/user/xdg
    for file in passwd group subuid subgid; do
        cp "/etc/$file" /run/user/
        mount --bind "/run/user/$file" "/etc/$file"
    done
    echo 'user:x:4321:4321::/run/user/home:/bin/sh' >>/etc/passwd
    echo 'user:x:4321:' >>/etc/group
    echo 'user:400000:65536' | tee -a /etc/subuid >>/etc/subgid
    mknod -m 666 /run/user/tun c 10 200
    mount --bind /run/user/tun /dev/net/tun
    printf '[storage]\ndriver = "vfs"\n' >/run/user/storage.conf
    chown -R 4321:4321 /run/user/home /run/user/xdg
"#;

/// A user's podman.
#[derive(Debug)]
pub struct Rootless<'a> {
    runtimes: &'a Runtimes<'a>,
}

impl<'a> Rootless<'a> {
    /// Prepares the host, and an image. All that it starts is in the cgroup of the engines.
    pub fn new(runtimes: &'a Runtimes<'a>) -> Result<Self> {
        output(runtimes.on_host("sh").args(["-c", PREPARE]))?;
        let rootless = Self { runtimes };
        let policy = "--signature-policy=/run/containers/policy.json";
        runtimes.import(&rootless.line(&["import", policy, "-", IMAGE]))?;
        Ok(rootless)
    }

    /// Starts a container by podman, with these options.
    pub fn container(&self, name: &str, options: &[&str]) -> Result<()> {
        let run = ["run", "-d", "--pull=never", "--network=slirp4netns", "--name", name];
        self.podman(&[&run, options, &[IMAGE, "sleep", "infinity"]].concat()).map(drop)
    }

    /// Runs podman.
    pub fn podman(&self, args: &[&str]) -> Result<String> {
        let line = self.line(args);
        output(self.runtimes.command(&line[0])?.args(&line[1..]).current_dir("/"))
    }

    fn line(&self, args: &[&str]) -> Vec<String> {
        let user = ["setpriv", "--reuid", UID, "--regid", UID, "--clear-groups"];
        let env = ["env", "HOME=/run/user/home", "XDG_RUNTIME_DIR=/run/user/xdg"];
        let more = ["TMPDIR=/run/user/home", "CONTAINERS_STORAGE_CONF=/run/user/storage.conf"];
        let podman = [&user[..], &env, &more, &["podman"], args].concat();
        podman.into_iter().map(str::to_owned).collect()
    }
}
