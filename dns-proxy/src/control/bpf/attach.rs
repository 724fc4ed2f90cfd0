//! The programs on a cgroup's hooks.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{MapData, ProgramArray},
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Program, ProgramError,
        cgroup_skb::CgroupSkbLink, cgroup_sock_addr::CgroupSockAddrLink,
        cgroup_sockopt::CgroupSockoptLink, links::FdLink,
    },
    sys::SyscallError,
};
use nix::libc;
use tracing::{debug, warn};

use super::{
    super::cgroup::{self, CgroupId},
    Bpf, BpfError, pins, take,
};

/// One program for each socket hook, by the name that it has in the object.
const PROGRAMS: [&str; 10] = [
    // The way back first: whoever is redirected must find it there.
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "getsockname4",
    "getsockname6",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
];

/// What stands on a hook under `--fail closed`.
struct Closed {
    /// The program that otherwise is there.
    hook: &'static str,
    /// The program that stays when the daemon dies.
    name: &'static str,
    /// Where it finds the other one while the daemon lives.
    live: &'static str,
}

const CLOSED: [Closed; 4] = [
    Closed { hook: "connect4", name: "closed_connect4", live: "LIVE_CONNECT4" },
    Closed { hook: "connect6", name: "closed_connect6", live: "LIVE_CONNECT6" },
    Closed { hook: "sendmsg4", name: "closed_sendmsg4", live: "LIVE_SENDMSG4" },
    Closed { hook: "sendmsg6", name: "closed_sendmsg6", live: "LIVE_SENDMSG6" },
];

/// The leak guard's program.
const GUARD: &str = "egress";
/// The program that lets glibc's early queries be captured.
const OPTIONS: &str = "setsockopt";

/// The programs attached to one cgroup, until this is dropped or, where they are pinned, detached.
#[derive(Debug)]
pub struct Attachment {
    cgroup: CgroupId,
    // Dropped first, and so detached first: the guard must not meet what is no longer redirected.
    _guard: Option<CgroupSkbLink>,
    // Never pinned: without the daemon nothing is captured.
    _options: Option<CgroupSockoptLink>,
    _links: Vec<CgroupSockAddrLink>,
    pinned: Option<PathBuf>,
}

/// Loads the programs into the kernel.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    for name in PROGRAMS {
        let refused = |source| BpfError::Program { name, source };
        program(ebpf, name)?.load().map_err(refused)?;
    }
    let refused = |source| BpfError::Program { name: GUARD, source };
    guard_program(ebpf)?.load().map_err(refused)
}

/// Loads the programs that stay under `--fail closed`, and shows them those that do not.
pub(super) fn load_closed(ebpf: &mut Ebpf) -> Result<Vec<ProgramArray<MapData>>, BpfError> {
    let load = |Closed { hook, name, live }: &Closed| {
        let refused = |source| BpfError::Program { name, source };
        program(ebpf, name)?.load().map_err(refused)?;
        let mut array: ProgramArray<MapData> = take(ebpf, live)?;
        let full = array.set(0, program(ebpf, hook)?.fd().map_err(refused)?, 0);
        full.map_err(|source| BpfError::Map { name: live, source })?;
        Ok(array)
    };
    CLOSED.iter().map(load).collect()
}

impl Bpf {
    /// Attaches every program to the cgroup at `dir`. They run beside other tools' programs
    /// (`BPF_F_ALLOW_MULTI` is implied by links) and die with the daemon, unless they are pinned.
    ///
    /// # Errors
    /// The cgroup is gone, or another tool holds it exclusively.
    pub fn attach(&mut self, dir: &Path) -> Result<Attachment, BpfError> {
        let failed = |source| BpfError::Cgroup { cgroup: dir.display().to_string(), source };
        let cgroup = cgroup::id(dir).map_err(failed)?;
        let file = File::open(dir).map_err(failed)?;
        let mut links = Vec::with_capacity(PROGRAMS.len());
        for name in PROGRAMS {
            let refused = |source| attach_error(dir, name, source);
            let closed = CLOSED.iter().find(|closed| closed.hook == name && self.pins.is_some());
            let program = program(&mut self.programs, closed.map_or(name, |closed| closed.name))?;
            let id = program.attach(&file, CgroupAttachMode::Single).map_err(refused)?;
            links.push(program.take_link(id).map_err(refused)?);
        }
        let mut guard = None;
        if self.guard.is_some() {
            let refused = |source| attach_error(dir, GUARD, source);
            let program = guard_program(&mut self.programs)?;
            let id = program
                .attach(&file, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)
                .map_err(refused)?;
            guard = Some(program.take_link(id).map_err(refused)?);
        }
        let options = self.attach_options(dir, &file)?;
        match &self.pins {
            None => {
                let (_guard, _options, _links) = (guard, options, links);
                Ok(Attachment { cgroup, _guard, _options, _links, pinned: None })
            }
            Some(pins) => {
                let dir = pins.attachment(cgroup)?;
                let pinned = pin(&dir, guard, links);
                if pinned.is_err() {
                    detach(&dir);
                }
                pinned?;
                let (_guard, _options, _links) = (None, options, Vec::new());
                Ok(Attachment { cgroup, _guard, _options, _links, pinned: Some(dir) })
            }
        }
    }
}

impl Bpf {
    /// Attaches the program that looks at socket options, if there is a guard to help and the kernel
    /// takes it, as 6.1 and newer do; glibc can do without.
    fn attach_options(
        &mut self,
        dir: &Path,
        cgroup: &File,
    ) -> Result<Option<CgroupSockoptLink>, BpfError> {
        let Some(Program::CgroupSockopt(program)) = self.programs.program_mut(OPTIONS) else {
            return Err(BpfError::Missing(OPTIONS));
        };
        if self.guard.is_none() {
            return Ok(None);
        }
        if program.fd().is_err()
            && let Err(error) = program.load()
        {
            debug!(%error, "glibc's first query in a new network namespace will be refused");
            return Ok(None);
        }
        let refused = |source| attach_error(dir, OPTIONS, source);
        let id = program.attach(cgroup, CgroupAttachMode::Single).map_err(refused)?;
        program.take_link(id).map(Some).map_err(refused)
    }
}

impl Attachment {
    /// The cgroup it is attached to.
    pub fn cgroup(&self) -> CgroupId {
        self.cgroup
    }

    /// Takes the programs off, also where they would stay without us.
    pub fn detach(self) {
        if let Some(dir) = &self.pinned {
            detach(dir);
        }
    }
}

/// Keeps links by pins.
fn pin(
    dir: &Path,
    guard: Option<CgroupSkbLink>,
    links: Vec<CgroupSockAddrLink>,
) -> Result<(), BpfError> {
    let links = PROGRAMS.into_iter().zip(links.into_iter().map(FdLink::try_from));
    let guard = guard.map(|link| (GUARD, FdLink::try_from(link)));
    for (name, link) in links.chain(guard) {
        let path = dir.join(name);
        let link = link.map_err(|_| BpfError::Missing("link"))?; // 5.7
        link.pin(&path).map_err(|error| pins::failed(&path)(io::Error::other(error)))?;
    }
    Ok(())
}

fn detach(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir) {
        warn!(%error, dir = %dir.display(), "programs not detached; remove the directory by hand");
    }
}

/// What the kernel means by it: who may load programs may attach them, unless somebody else forbids.
fn attach_error(dir: &Path, program: &'static str, source: ProgramError) -> BpfError {
    let forbidden = matches!(
        &source,
        ProgramError::SyscallError(SyscallError { io_error, .. })
            if io_error.raw_os_error() == Some(libc::EPERM)
    );
    if forbidden {
        return BpfError::Held { cgroup: dir.display().to_string(), program };
    }
    BpfError::Program { name: program, source }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, BpfError> {
    ebpf.program_mut(name)
        .ok_or(BpfError::Missing(name))?
        .try_into()
        .map_err(|source| BpfError::Program { name, source })
}

fn guard_program(ebpf: &mut Ebpf) -> Result<&mut CgroupSkb, BpfError> {
    match ebpf.program_mut(GUARD) {
        Some(Program::CgroupSkb(program)) => Ok(program),
        _ => Err(BpfError::Missing(GUARD)),
    }
}
