//! Another kernel, in a virtual machine by emulation: our own test programs run there, on the machine's
//! own libraries, and say how it went.
//!
//! Kernels are Debian's, of several releases; which of them there are is asked of a mirror, and what
//! was fetched stays in `target/tmp` for the next run.

use crate::artifacts::{profile_dir, program, tmp_dir};
use crate::clients::Libc;
use crate::leftovers::scratch_dir;
use crate::process::output;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Seconds that a machine may run; emulation is some twenty times slower, and the host is busy.
const LIMIT: &str = "540";
/// What our test programs start.
const TOOLS: [&str; 5] = ["ip", "dig", "nsenter", "ss", "find"];
/// What is not in the kernel itself.
const MODULES: [&str; 4] = ["veth", "inet_diag", "tcp_diag", "udp_diag"];
/// Fetches a kernel's packages and unpacks them; prints its name.
const FETCH: &str = include_str!("../vm/fetch.sh");
/// The first process.
const INIT: &str = include_str!("../vm/init.sh");

/// Where control groups are on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Version 2 at `/sys/fs/cgroup`.
    V2,
    /// Version 1, with version 2 beside it at `/sys/fs/cgroup/unified`.
    Hybrid,
    /// Version 1 alone.
    V1,
}

/// A kernel that was unpacked.
#[derive(Debug)]
pub struct Kernel {
    dir: PathBuf,
}

impl Kernel {
    /// Debian's newest of this series, such as `6.1`.
    pub fn fetch(series: &str) -> Result<Self> {
        let dir = tmp_dir()?.join("kernels");
        fs::create_dir_all(&dir)?;
        // One at a time; the others wait and find it.
        let lock = File::create(dir.join("lock"))?;
        lock.lock()?;
        let printed =
            output(Command::new("sh").args(["-e", "-c", FETCH, "fetch"]).arg(&dir).arg(series))
                .with_context(|| format!("fetch a kernel {series}"))?;
        Ok(Self { dir: dir.join(printed.trim()) })
    }

    /// Its release, as uname says it.
    pub fn release(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Starts it, runs a shell script as root and gives what the console showed; that the script fails is
    /// an error. `programs` are test programs of this build, `append` is for the kernel's command line.
    pub fn run(
        &self,
        cgroups: Cgroups,
        programs: &[&Path],
        append: &str,
        script: &str,
    ) -> Result<String> {
        let scratch = scratch_dir()?;
        let initrd = scratch.path().join("initrd");
        self.initrd(&scratch.path().join("root"), &initrd, cgroups, programs, script)?;
        let kernel = find(&self.dir, |name| name.starts_with("vmlinuz"))?;
        let mut qemu = Command::new("timeout");
        qemu.args([
            LIMIT,
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "1536",
            "-smp",
            "2",
        ]);
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
        ]);
        qemu.arg("-kernel").arg(kernel.first().context("no vmlinuz")?).arg("-initrd").arg(&initrd);
        qemu.args(["-append", &format!("console=ttyS0 panic=-1 quiet loglevel=3 {append}")]);
        let done = qemu.output().context("no qemu-system-x86_64? cargo xtask setup --full")?;
        let console = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(
            console.contains("GUEST-RC=0"),
            "{}: {}\n{console}{}",
            self.release(),
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(console)
    }

    fn initrd(
        &self,
        root: &Path,
        initrd: &Path,
        cgroups: Cgroups,
        programs: &[&Path],
        script: &str,
    ) -> Result<()> {
        for dir in
            ["bin", "dev", "etc", "modules", "proc", "run", "sys", "tmp", "t/debug/deps", "t/tmp"]
        {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))
            .context("busybox-static: cargo xtask setup")?;
        symlink("busybox", root.join("bin/sh"))?;
        fs::write(root.join("init"), INIT)?;
        fs::write(root.join("script"), script)?;
        fs::write(root.join("cgroups"), format!("{cgroups:?}"))?;
        for (file, text) in
            [("passwd", "root:x:0:0::/:/bin/sh\n"), ("resolv.conf", ""), ("nsswitch.conf", "")]
        {
            fs::write(root.join("etc").join(file), text)?;
        }
        let mut libraries = BTreeSet::new();
        for tool in TOOLS {
            let path = output(Command::new("sh").args(["-c", "command -v \"$0\"", tool]))?;
            let path = PathBuf::from(path.trim());
            libraries.extend(needs(&path));
            fs::copy(&path, root.join("bin").join(tool))?;
        }
        // The program under test is the one that users are given.
        let daemon = profile_dir()?.join("../dist/files/dns-proxy");
        fs::copy(daemon, root.join("t/debug/dns-proxy")).context("cargo xtask dist")?;
        let probe = program("dns-proxy-probe")?;
        for (program, to) in programs
            .iter()
            .map(|path| (*path, "t/debug/deps"))
            .chain([(probe.as_path(), "t/debug")])
        {
            libraries.extend(needs(program));
            let to = root.join(to).join(program.file_name().context("a file")?);
            output(Command::new("strip").arg("-o").arg(to).arg(program))?;
        }
        // There is no compiler in there.
        let client = Libc::Glibc.program()?;
        libraries.extend(needs(&client));
        fs::copy(&client, root.join("t/tmp").join(client.file_name().context("a file")?))?;
        for library in libraries {
            let to = root.join(library.strip_prefix("/")?);
            fs::create_dir_all(to.parent().context("a library is in a directory")?)?;
            fs::copy(&library, to)?;
        }
        for name in MODULES {
            let is =
                |file: &str| file.strip_prefix(name).is_some_and(|rest| rest.starts_with(".ko"));
            for module in find(&self.dir, is)? {
                let to = root.join("modules").join(module.file_name().unwrap_or_default());
                fs::copy(&module, &to)?;
                if to.extension().is_some_and(|extension| extension == "xz") {
                    output(Command::new("xz").arg("-d").arg(&to))?;
                }
            }
        }
        let pack =
            "cd \"$0\" && chmod 755 init && find . | cpio -o -H newc --quiet | gzip -1 >\"$1\"";
        output(Command::new("sh").args(["-c", pack]).arg(root).arg(initrd)).map(drop)
    }
}

/// The libraries of a program, and what loads them; none of a static one.
fn needs(program: &Path) -> Vec<PathBuf> {
    let listed = output(Command::new("ldd").arg(program)).unwrap_or_default();
    listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Files below a directory whose names are such.
fn find(dir: &Path, wanted: impl Fn(&str) -> bool + Copy) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(find(&entry.path(), wanted)?);
        } else if wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}
