//! Birth and death: of the daemon, of namespaces, of commands run by `exec`; and who may come in
//! meanwhile.

mod daemon;
mod exec;
mod isolation;
mod namespaces;
