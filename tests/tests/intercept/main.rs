//! The main job on the real kernel: what a container in the scope asks leaves the host inside TLS
//! only, and it notices nothing.

mod clients;
mod connections;
mod device;
mod guard;
mod ipv6;
mod raw;
mod routes;
mod scene;
mod scope;
mod shapes;
