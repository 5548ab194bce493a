//! The architectures for which kwitness is shipped, and what each is called: by Go and OCI, by Rust, by Debian.

use clap::ValueEnum;

/// What an image runs on, as Go and OCI name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Architecture {
    /// x86-64
    Amd64,
    /// aarch64
    Arm64,
}

impl Architecture {
    /// This machine's: xtask runs nowhere else.
    pub const HOST: Self = Self::Amd64;

    /// That of a guest's kernel or root: arm64 if its name says so.
    pub fn of(name: &str) -> Self {
        if name.ends_with("-arm64") { Self::Arm64 } else { Self::HOST }
    }

    /// Its name in OCI, in Go and in Debian.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Its name in the kernel, in QEMU and in rpm.
    pub fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// Its name in Rust, with the C library that the program has in it.
    pub fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// What links for it on this machine.
    pub fn linker(self) -> &'static str {
        match self {
            Self::Amd64 => "cc",
            Self::Arm64 => "aarch64-linux-gnu-gcc",
        }
    }

    /// Debian's package of the C library that it is linked with.
    pub fn libc_package(self) -> &'static str {
        match self {
            Self::Amd64 => "libc6-dev",
            Self::Arm64 => "libc6-dev-arm64-cross",
        }
    }
}
