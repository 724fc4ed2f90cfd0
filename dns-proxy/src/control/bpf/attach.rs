//! The programs on a cgroup's hooks.

use std::{fs::File, path::Path};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Program,
        cgroup_skb::CgroupSkbLink, cgroup_sock_addr::CgroupSockAddrLink,
    },
};

use super::{
    super::cgroup::{self, CgroupId},
    Bpf, BpfError,
};

/// One program for each socket hook, by the name that it has in the object.
const PROGRAMS: [&str; 8] = [
    // The way back first: whoever is redirected must find it there.
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
];

/// The leak guard's program.
const GUARD: &str = "egress";

/// The programs attached to one cgroup, until this is dropped.
#[derive(Debug)]
pub struct Attachment {
    cgroup: CgroupId,
    // Dropped first, and so detached first: the guard must not meet what is no longer redirected.
    _guard: Option<CgroupSkbLink>,
    _links: Vec<CgroupSockAddrLink>,
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

impl Bpf {
    /// Attaches every program to the cgroup at `dir`. They run beside other tools' programs
    /// (`BPF_F_ALLOW_MULTI` is implied by links) and die with the daemon.
    ///
    /// # Errors
    /// The cgroup is gone, or another tool holds it exclusively.
    pub fn attach(&mut self, dir: &Path) -> Result<Attachment, BpfError> {
        let failed = |source| BpfError::Cgroup { cgroup: dir.display().to_string(), source };
        let cgroup = cgroup::id(dir).map_err(failed)?;
        let file = File::open(dir).map_err(failed)?;
        let mut links = Vec::with_capacity(PROGRAMS.len());
        for name in PROGRAMS {
            let refused = |source| BpfError::Program { name, source };
            let program = program(&mut self.programs, name)?;
            let id = program.attach(&file, CgroupAttachMode::Single).map_err(refused)?;
            links.push(program.take_link(id).map_err(refused)?);
        }
        let mut guard = None;
        if self.guard.is_some() {
            let refused = |source| BpfError::Program { name: GUARD, source };
            let program = guard_program(&mut self.programs)?;
            let id = program
                .attach(&file, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)
                .map_err(refused)?;
            guard = Some(program.take_link(id).map_err(refused)?);
        }
        Ok(Attachment { cgroup, _guard: guard, _links: links })
    }
}

impl Attachment {
    /// The cgroup it is attached to.
    pub fn cgroup(&self) -> CgroupId {
        self.cgroup
    }
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
