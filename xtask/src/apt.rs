//! Debian's packages, installed without anything being started.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::{
    ebpf_toolchain::command,
    run::{as_root, exists, finish, succeeds},
};

/// Installs packages and what they depend on; the package lists are fetched only if they are
/// missing or out of date.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    ensure!(
        exists("apt-get"),
        "this machine has no apt-get: install by its own means what Debian calls {names}, and run this again"
    );
    if !packages.iter().all(|package| is_known(package)) {
        update()?;
    }
    for package in packages {
        ensure!(
            is_known(package),
            "apt knows no package {package}. On Debian 12 everything needed is in bookworm and \
             bookworm-security: are both in the apt sources?"
        );
    }
    if !try_install(packages)? {
        // The usual reason: the lists name versions that the mirror has replaced since.
        println!("update   apt's package lists, because they may be out of date");
        update()?;
        ensure!(try_install(packages)?, "apt-get could not install {names}; what it says is above");
    }
    Ok(())
}

/// Unpacks a package's files below `folder` and installs nothing: some would change how this machine
/// resolves names.
pub(crate) fn unpack(package: &str, folder: &Path) -> Result<()> {
    // A download that is cut short must not look like one that is there.
    let fresh = folder.with_extension("new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh)?;
    let mut download = command("apt-get");
    finish(
        download
            .args(["download", "-qq", "-o", "APT::Sandbox::User=root", package])
            .current_dir(&fresh),
    )?;
    let mut archives = fs::read_dir(&fresh)?.filter_map(|entry| Some(entry.ok()?.path()));
    let archive = archives.next().context("apt-get downloaded nothing")?;
    finish(command("dpkg").arg("--extract").arg(&archive).arg(&fresh))?;
    fs::rename(&fresh, folder)?;
    Ok(())
}

/// Whether apt has a version of this package to offer, going by the lists it has.
pub(crate) fn is_known(package: &str) -> bool {
    let output = command("apt-cache").args(["show", package]).stderr(Stdio::null()).output();
    output.is_ok_and(|output| !output.stdout.is_empty())
}

pub(crate) fn update() -> Result<()> {
    finish(as_root("apt-get").args(["update", "-qq"])).context("apt cannot fetch its package lists")
}

/// `--no-remove`: a package that conflicts with an installed one must not push it out.
fn try_install(packages: &[&str]) -> Result<bool> {
    // One shell, so that its traps clean up even after Ctrl-C. No daemon is started now
    // (policy-rc.d, where no administrator wrote one) and DNS servers and container engines not at
    // the next boot either (the mask): a second resolver on port 53, or a cache, would change how
    // this machine resolves names, and Docker how it routes. What was installed before is not touched.
    const SCRIPT: &str = r#"
        set -e
        export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes
        mask() {
            mkdir -p /etc/systemd/system
            for unit; do
                [ -e "/lib/systemd/system/$unit" ] || [ -e "/etc/systemd/system/$unit" ] ||
                    ln -sf /dev/null "/etc/systemd/system/$unit"
            done
        }
        for package; do
            case $package in
                unbound | dnsdist | stubby | nscd) mask "$package.service" ;;
                knot-resolver) mask kresd.target kres-cache-gc.service ;;
                docker.io) mask docker.service docker.socket containerd.service ;;
            esac
        done
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            trap 'rm -f "$policy"' EXIT
            trap 'exit 130' INT TERM HUP
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        apt-get install -qq -o Dpkg::Use-Pty=0 --no-install-recommends --no-remove "$@" >/dev/null
    "#;
    succeeds(as_root("sh").args(["-c", SCRIPT, "sh"]).args(packages))
}
