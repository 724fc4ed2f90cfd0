//! bpf(2), where the daemon's loader has not what the tests and the bench need: run counters, and
//! programs that do nothing, as of another tool.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;

/// Commands of bpf(2), and the kernel that has them.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8; // 4.10
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15; // 4.13
const BPF_LINK_CREATE: libc::c_long = 28; // 5.7
const BPF_ENABLE_STATS: libc::c_long = 32; // 5.8

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` and `BPF_CGROUP_INET4_CONNECT` (linux/bpf.h).
const CGROUP_SOCK_ADDR: u32 = 18;
const CONNECT4: u32 = 10;

/// The kernel counts runs while this lives, by a descriptor of ours: nobody's sysctl is touched.
#[derive(Debug)]
pub struct Counting {
    _stats: OwnedFd,
}

/// Runs of one program of this process.
#[derive(Clone, Debug)]
pub struct Runs {
    /// As the object calls it.
    pub name: String,
    id: u32,
    nanoseconds: u64,
    count: u64,
}

impl Runs {
    /// Nanoseconds for each.
    pub fn average(&self) -> f64 {
        self.nanoseconds as f64 / self.count as f64
    }
}

impl Counting {
    /// Begins.
    pub fn start() -> Result<Self> {
        const BPF_STATS_RUN_TIME: u64 = 0;
        let stats = made(BPF_ENABLE_STATS, &mut [BPF_STATS_RUN_TIME])?;
        Ok(Self { _stats: stats })
    }

    /// All programs' counters.
    pub fn read(&self) -> Result<Vec<Runs>> {
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc/self/fd")? {
            let path = entry?.path();
            if fs::read_link(&path).is_ok_and(|to| to == Path::new("anon_inode:bpf-prog")) {
                let fd = path.file_name().and_then(|name| name.to_str()).context("a number")?;
                all.push(runs(fd.parse()?)?);
            }
        }
        Ok(all)
    }

    /// What ran since then.
    pub fn since(&self, before: &[Runs]) -> Result<Vec<Runs>> {
        let mut ran = self.read()?;
        for runs in &mut ran {
            if let Some(before) = before.iter().find(|before| before.id == runs.id) {
                runs.nanoseconds -= before.nanoseconds;
                runs.count -= before.count;
            }
        }
        ran.retain(|runs| runs.count > 0);
        ran.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(ran)
    }
}

fn runs(fd: u32) -> Result<Runs> {
    // `struct bpf_prog_info` in words: the name (bytes 64 to 79), `run_time_ns`, `run_cnt` (5.1).
    let mut info = [0_u64; 26];
    let length = u32::try_from(size_of_val(&info))?;
    let mut attr = [words(fd, length), info.as_mut_ptr() as u64];
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).context("BPF_OBJ_GET_INFO_BY_FD")?;
    let name = info[8..10].iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0);
    let [_, _, _, _, id @ ..] = info[0].to_ne_bytes();
    Ok(Runs {
        name: String::from_utf8(name.collect())?,
        id: u32::from_ne_bytes(id),
        nanoseconds: info[24],
        count: info[25],
    })
}

/// Programs that do nothing, on the IPv4 hooks that ours are on: what is left of the cost then is
/// the kernel's own for calling anything there.
#[derive(Debug)]
pub struct Idle {
    programs: Vec<(OwnedFd, u32)>,
}

impl Idle {
    /// Loads them.
    pub fn new() -> Result<Self> {
        const CGROUP_SKB: u32 = 8;
        const EGRESS: u32 = 1;
        const SENDMSG4: u32 = 14;
        const RECVMSG4: u32 = 19;
        let hooks = [
            (CGROUP_SOCK_ADDR, CONNECT4, b"connect4"),
            (CGROUP_SOCK_ADDR, SENDMSG4, b"sendmsg4"),
            (CGROUP_SOCK_ADDR, RECVMSG4, b"recvmsg4"),
            (CGROUP_SKB, EGRESS, b"egress\0\0"),
        ];
        let loaded = hooks.map(|(kind, hook, name)| Ok((load(kind, hook, name)?, hook)));
        Ok(Self { programs: loaded.into_iter().collect::<Result<_>>()? })
    }

    /// Attaches them to a cgroup until what this returns is dropped.
    pub fn attach(&self, cgroup: &Path) -> Result<Vec<OwnedFd>> {
        let cgroup = File::open(cgroup)?;
        let link = |(program, hook): &(OwnedFd, u32)| {
            let (program, cgroup) = (program.as_raw_fd(), cgroup.as_raw_fd());
            let fds = words(u32::try_from(program)?, u32::try_from(cgroup)?);
            made(BPF_LINK_CREATE, &mut [fds, words(*hook, 0)]).context("BPF_LINK_CREATE")
        };
        self.programs.iter().map(link).collect()
    }
}

/// Whether another tool lets others in beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// No flags.
    Exclusive = 0,
    /// `BPF_F_ALLOW_MULTI`.
    Multi = 2,
}

/// Another tool's program on a cgroup's `connect4`, which lets everything pass.
#[derive(Debug)]
pub struct Foreign {
    program: OwnedFd,
    cgroup: File,
}

impl Foreign {
    /// Attaches one until this is dropped.
    pub fn attach(cgroup: &Path, sharing: Sharing) -> Result<Self> {
        let program = load(CGROUP_SOCK_ADDR, CONNECT4, b"foreign\0")?;
        let foreign = Self { program, cgroup: File::open(cgroup)? };
        foreign.call(BPF_PROG_ATTACH, sharing as u32).context("BPF_PROG_ATTACH")?;
        Ok(foreign)
    }

    fn call(&self, command: libc::c_long, flags: u32) -> Result<()> {
        let cgroup = u32::try_from(self.cgroup.as_raw_fd())?;
        let program = u32::try_from(self.program.as_raw_fd())?;
        bpf(command, &mut [words(cgroup, program), words(CONNECT4, flags)])?;
        Ok(())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It fails only if the cgroup is gone, and the program with it.
        let _ = self.call(BPF_PROG_DETACH, 0);
    }
}

/// Loads `return 1`, which lets everything pass.
fn load(kind: u32, hook: u32, name: &[u8; 8]) -> Result<OwnedFd> {
    /// `mov r0, 1` and `exit`: operation, registers, offset, immediate (RFC 9669 section 3).
    const ONE: [u8; 4] = 1_u32.to_ne_bytes();
    const PASS: [[u8; 8]; 2] =
        [[0xb7, 0, 0, 0, ONE[0], ONE[1], ONE[2], ONE[3]], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    // Program type and length, instructions, licence; log, kernel version and flags: nothing; name;
    // then `expected_attach_type` at byte 68.
    let (program, licence) = (PASS.as_ptr() as u64, c"GPL".as_ptr() as u64);
    let name = u64::from_ne_bytes(*name);
    let mut attr = [words(kind, 2), program, licence, 0, 0, 0, name, 0, words(0, hook)];
    made(BPF_PROG_LOAD, &mut attr).context("BPF_PROG_LOAD")
}

/// Two neighbouring fields of `union bpf_attr`.
fn words(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// A command that makes something.
fn made(command: libc::c_long, attr: &mut [u64]) -> Result<OwnedFd> {
    let fd = i32::try_from(bpf(command, attr)?)?;
    // SAFETY: the descriptor was just made and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf(command: libc::c_long, attr: &mut [u64]) -> nix::Result<libc::c_long> {
    // SAFETY: bpf(2) reads and writes the bytes of `attr`, where any are valid, and what they point
    // to: in this file buffers that outlive the call and are as long as said beside them.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    Errno::result(result)
}
