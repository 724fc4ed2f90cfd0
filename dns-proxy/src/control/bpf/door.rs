//! The programs at the door of a listener's sockets.

use std::{io, os::fd::BorrowedFd};

use aya::{
    Ebpf,
    programs::{ProgramError, SocketFilter},
};

use super::{Bpf, BpfError};

/// Which socket of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// UDP.
    Datagram,
    /// TCP, listening; its connections inherit the door.
    Segment,
}

/// Loads the programs into the kernel.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    for name in [Door::Datagram, Door::Segment].map(Door::program) {
        let program = ebpf.program_mut(name).ok_or(BpfError::Missing(name))?;
        let filter: Result<&mut SocketFilter, ProgramError> = program.try_into();
        let loaded = filter.and_then(SocketFilter::load);
        loaded.map_err(|source| BpfError::Program { name, source })?;
    }
    Ok(())
}

impl Bpf {
    /// Closes a socket to all but what came through `lo` and, with a guard, from a socket that the
    /// programs watch over.
    ///
    /// # Errors
    /// It is no socket, or has a filter that is locked.
    pub fn close(&self, socket: BorrowedFd<'_>, door: Door) -> io::Result<()> {
        let program = self.programs.program(door.program());
        let filter = program.and_then(|program| <&SocketFilter>::try_from(program).ok());
        let filter = filter.ok_or(io::ErrorKind::NotFound)?;
        filter.attach(socket).map_err(io::Error::other)
    }
}

impl Door {
    /// Its name in the object.
    fn program(self) -> &'static str {
        match self {
            Self::Datagram => "datagram",
            Self::Segment => "segment",
        }
    }
}
