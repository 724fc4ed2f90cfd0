//! `cargo xtask dist`: what is given to users, in `target/dist`: a tarball, a Debian package, an
//! image, and their checksums.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    demo,
    ebpf_toolchain::command,
    run::{as_root, cargo, exists, finish, succeeds},
    sbom, setup,
};

/// Of the program `cargo deb`.
const CARGO_DEB: &str = "3.8.0";
/// Shells for which there are completions, and how their files are called.
const SHELLS: [(&str, &str); 3] =
    [("bash", "dns-proxy.bash"), ("zsh", "_dns-proxy"), ("fish", "dns-proxy.fish")];

/// What to make, all of it if nothing is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Product {
    /// A tarball with the program, manual pages, completions and what is in deploy/.
    Tar,
    /// A Debian package.
    Deb,
    /// A container image, by Docker or else Podman.
    Image,
}

/// Where everything is.
struct Dist {
    /// `target/dist`.
    dir: PathBuf,
    /// The program, linked statically.
    program: PathBuf,
    /// rustc's name for this kind of machine.
    target: String,
    source: Source,
}

/// What it is made from.
struct Source {
    /// Of the workspace.
    version: String,
    commit: String,
    /// When that was made, in seconds since 1970.
    time: String,
}

pub(crate) fn run(products: &[Product]) -> Result<()> {
    setup::run(setup::Report::Changes, setup::Purpose::Build)?;
    let wanted = |product| products.is_empty() || products.contains(&product);
    let dist = Dist::build()?;
    if wanted(Product::Tar) {
        dist.tarball()?;
    }
    if wanted(Product::Deb) {
        dist.deb()?;
    }
    if wanted(Product::Image) {
        dist.image()?;
    }
    dist.sum_up()
}

impl Dist {
    /// The program, and all files that go with it.
    fn build() -> Result<Self> {
        let source = Source::find()?;
        let target = host()?;
        let place = demo::target()?;
        finish(&mut static_build(&target, &place))?;
        let (dir, built) = (place.join("dist"), place.join(&target).join("release/dns-proxy"));
        // What an earlier version had would be packed again.
        let files = dir.join("files");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        for name in ["man", "completions"] {
            fs::create_dir_all(files.join(name))?;
        }
        let program = files.join("dns-proxy");
        fs::copy(&built, &program)?;
        if exists("strip") {
            finish(command("strip").arg(&program))?;
        }
        finish(Command::new(&program).arg("man").arg(files.join("man")))?;
        for (shell, file) in SHELLS {
            let script = Command::new(&program).args(["completion", shell]).output()?;
            ensure!(script.status.success(), "no completion for {shell}");
            fs::write(files.join("completions").join(file), script.stdout)?;
        }
        sbom::write(&files.join("dns-proxy.cdx.json"), &target)?;
        Ok(Self { dir, program, target, source })
    }

    /// The same from the same commit: names in order, no owners, one time.
    fn tarball(&self) -> Result<()> {
        let name = format!("dns-proxy-{}-{}", self.source.version, self.target);
        let tree = self.dir.join(&name);
        copy_tree(&self.dir.join("files"), &tree)?;
        copy_tree(Path::new("deploy"), &tree.join("deploy"))?;
        for file in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
            fs::copy(file, tree.join(file))?;
        }
        let mut tar = command("tar");
        tar.args([
            "--sort=name",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "--use-compress-program=gzip -9n",
        ]);
        tar.arg(format!("--mtime=@{}", self.source.time)).arg("--directory").arg(&self.dir);
        finish(
            tar.arg("--create")
                .arg("--file")
                .arg(self.dir.join(format!("{name}.tar.gz")))
                .arg(&name),
        )?;
        Ok(fs::remove_dir_all(tree)?)
    }

    fn deb(&self) -> Result<()> {
        let has = cargo("deb --version").stderr(Stdio::null()).output()?.stdout;
        if !String::from_utf8_lossy(&has).trim_end().ends_with(CARGO_DEB) {
            println!("missing  cargo-deb -> cargo install: makes the Debian package");
            let install = format!(
                "install cargo-deb --locked --force --quiet --no-default-features --version {CARGO_DEB}"
            );
            finish(cargo(&install).env_remove("CARGO_TARGET_DIR"))?;
        }
        let mut deb = cargo("deb --package dns-proxy --no-build --no-strip --quiet --target");
        deb.arg(&self.target).arg("--output").arg(&self.dir);
        // It takes the program from where cargo puts it.
        fs::copy(&self.program, demo::target()?.join(&self.target).join("release/dns-proxy"))?;
        finish(deb.env("SOURCE_DATE_EPOCH", &self.source.time))
    }

    /// Builds the Dockerfile, and keeps the image as a file that engines load.
    fn image(&self) -> Result<()> {
        const OWN_ENGINE: &str = include_str!("image.sh");
        let Source { version, commit, .. } = &self.source;
        let file = self.dir.join(format!("dns-proxy-{version}-image.tar"));
        if let Some(engine) = engine() {
            let tag = format!("dns-proxy:{version}");
            let mut build = command(&engine);
            build.args(["build", "--network", "host", "--tag", &tag, "--tag", "dns-proxy"]);
            build.arg("--build-arg").arg(format!("VERSION={version}"));
            build.arg("--build-arg").arg(format!("REVISION={commit}"));
            finish(build.arg("."))?;
            finish(
                command(&engine).args(["save", "--output"]).arg(&file).args([&tag, "dns-proxy"]),
            )?;
        } else {
            ensure!(
                exists("dockerd") && exists("debootstrap"),
                "no container engine answers: start Docker (or name its socket in DOCKER_HOST), \
                 install podman, or leave the image out (cargo xtask dist tar deb)"
            );
            println!("note     no container engine answers: one is started for this, and ended");
            let state = demo::target()?.join("image");
            let mut own = as_root("unshare");
            own.args(["--mount", "sh", "-c", OWN_ENGINE, "image.sh"]).arg(state);
            finish(own.args([version, commit]).arg(&file))?;
        }
        finish(command("gzip").args(["-9n", "--force"]).arg(&file))
    }

    /// Checksums, and a line for each product.
    fn sum_up(&self) -> Result<()> {
        let entries = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.path()));
        let mut products = entries.collect::<Result<Vec<_>>>()?;
        products.retain(|path| path.is_file());
        products.sort();
        let names = products.iter().filter_map(|path| path.file_name());
        let sums = command("sha256sum").args(names).current_dir(&self.dir).output()?;
        ensure!(sums.status.success(), "sha256sum failed");
        fs::write(self.dir.join("SHA256SUMS"), sums.stdout)?;
        println!("from commit {}:", self.source.commit);
        for product in products {
            println!(
                "{:>6} KiB  {}",
                fs::metadata(&product)?.len().div_ceil(1024),
                product.display()
            );
        }
        Ok(())
    }
}

impl Source {
    /// The commit, which is to be tagged with the version and to be all there is.
    fn find() -> Result<Self> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let commit = git(&["rev-parse", "HEAD"])?;
        let tags = git(&["tag", "--points-at", "HEAD"])?;
        if !tags.lines().any(|tag| tag == format!("v{version}")) {
            println!("note     this commit is not tagged v{version}: for trial only");
        }
        if !git(&["status", "--porcelain"])?.is_empty() {
            println!("note     there are changes that are not committed: for trial only");
        }
        let time = git(&["log", "-1", "--format=%ct"])?;
        Ok(Self { version, commit, time })
    }
}

/// Builds the daemon so that it runs on every Linux, also in an image with nothing else.
pub(crate) fn static_build(target: &str, place: &Path) -> Command {
    let mut build = cargo("build --release --locked --package dns-proxy --target");
    // Not where other builds of this target look: their flags are others.
    build.arg(target).arg("--target-dir").arg(place);
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    build
}

/// Where the host's packages are built for.
pub(crate) fn host() -> Result<String> {
    let version = command("rustc").arg("-vV").output().context("cannot run rustc")?;
    let version = String::from_utf8(version.stdout)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// An engine that answers.
fn engine() -> Option<String> {
    let answers = |engine: &&str| {
        let mut asked = command(engine);
        asked.arg("info").stdout(Stdio::null()).stderr(Stdio::null());
        exists(engine) && succeeds(&mut asked).unwrap_or(false)
    };
    // Another client than Debian's may come first in PATH.
    ["/usr/bin/docker", "docker"].into_iter().find(answers).map(ToOwned::to_owned)
}

fn git(arguments: &[&str]) -> Result<String> {
    let output = command("git").args(arguments).output().context("cannot run git")?;
    ensure!(
        output.status.success(),
        "git {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
