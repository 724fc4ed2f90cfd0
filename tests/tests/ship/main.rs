//! What users are given, installed and run where they would: a Debian package under a real systemd, an
//! image under real engines, the program on other kernels. Slow, hence `cargo xtask test --full`,
//! which makes all of it first.

#![expect(clippy::print_stdout, reason = "figures that the run is to show")]

mod image;
mod kernels;
mod systemd;
