//! The main job on the real kernel: what a container in the scope asks leaves the host inside TLS
//! only, and it notices nothing.

mod clients;
mod device;
mod guard;
mod scope;
mod shapes;
