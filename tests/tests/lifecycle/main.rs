//! Birth and death: of the daemon, of namespaces, of commands run by `exec`; and who may come in
//! meanwhile.

mod closed;
mod confined;
mod daemon;
mod exec;
mod first_query;
mod hang;
mod isolation;
mod namespaces;
mod rivals;
mod scale;
mod tokens;
