//! Which kernel this is, and what of it interception needs.

use nix::sys::utsname::uname;
use thiserror::Error;

/// The oldest that everything works on (`SO_NETNS_COOKIE` is 5.14's; 5.15 has long-term support).
const OLDEST: (u32, u32) = (5, 15);

/// Why this kernel will not do.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KernelError {
    /// Too old.
    #[error(
        "this is Linux {0}; interception needs {oldest_major}.{oldest_minor} or newer (--listen alone \
         works on any)", oldest_major = OLDEST.0, oldest_minor = OLDEST.1
    )]
    Old(String),
}

/// Looks before anything is loaded, which would fail with less to say.
///
/// # Errors
/// The kernel is too old.
pub fn check() -> Result<(), KernelError> {
    // A kernel that does not say what it is may be tried.
    let release = uname().ok().map(|name| name.release().to_string_lossy().into_owned());
    release.map_or(Ok(()), |release| judge(&release))
}

fn judge(release: &str) -> Result<(), KernelError> {
    match version(release) {
        Some(version) if version < OLDEST => Err(KernelError::Old(release.to_owned())),
        Some(_) | None => Ok(()),
    }
}

/// The first two numbers of a release, such as `6.1.0-56-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_named_and_odd_ones_are_tried() {
        for release in
            ["5.15.0-91-generic", "6.1.0-56-cloud-amd64", "6.18.44", "10.0", "custom", ""]
        {
            assert_eq!(judge(release), Ok(()), "{release}");
        }
        for release in ["5.14.21-150500.55-default", "5.10.0-46-cloud-amd64", "4.18.0-513.el8"] {
            assert_eq!(judge(release), Err(KernelError::Old(release.to_owned())));
        }
    }
}
