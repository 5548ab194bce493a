//! Every version, suite and package name that the tasks depend on: the one place to change when one moves.
//!
//! Owns names and numbers only. Never a host name: apt knows where packages come from.

/// The linker of BPF objects, from crates.io.
pub const BPF_LINKER: &str = "0.13.0";
/// The major version of LLVM that both Debian's `rustc-web` and the linker must use: bitcode of one is not
/// readable by an older other.
pub const LLVM_MAJOR: u32 = 22;
/// The checker of licences, advisories and sources, from crates.io.
pub const CARGO_DENY: &str = "0.20.2";
/// The finder of dependencies without a user, from crates.io.
pub const CARGO_MACHETE: &str = "0.9.2";
/// crictl and critest, built from Go modules; `xtask/go/critools/go.mod` requires the same.
pub const CRI_TOOLS: &str = "1.36.0";
/// Kubelet, API server and kubectl, built from Go modules; `xtask/go/kubernetes/go.mod` requires the same.
pub const KUBERNETES: &str = "1.36.3";
/// The kubelet of the next release, for a bench and the verdict matrix; `xtask/go/kubelet-1.37/go.mod` requires the same.
pub const NEXT_KUBELET: &str = "1.37.2";
/// Those of the releases before, for the verdict matrix; `xtask/go/kubelet-1.34/go.mod` and its like require the same.
pub const OLDER_KUBELETS: [&str; 2] = ["1.34.4", "1.35.4"];
/// helm, built from its Go module; `xtask/go/helm/go.mod` requires the same.
pub const HELM: &str = "4.3.1";
/// What makes deb and rpm, built from its Go module; `xtask/go/packages/go.mod` requires the same. Newer ones need modules that
/// could not be fetched when it was pinned.
pub const NFPM: &str = "2.45.2";
/// The Python of [`CLIENT_ROOT`]'s suite, for which packages are fetched.
pub const CLIENT_PYTHON: &str = "3.13";
/// Where Debian's etcd comes from: the suite of [`DEFAULT_ROOT`], whose C library it needs.
pub const ETCD_SUITE: &str = "trixie";
/// Where Debian's Prometheus comes from: the oldest suite that it has to run on.
pub const PROMETHEUS_SUITE: &str = "bookworm";

/// A second compiler with a ready-made `core` for the BPF machine, its clippy, and the LLVM the linker is built on.
pub const BPF_PACKAGES: &[&str] =
    &["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-clippy", "llvm-22-dev", "zlib1g-dev"];
/// What makes the roots in which containerd runs, and the static programs in them.
pub const ROOT_PACKAGES: &[&str] =
    &["mmdebstrap", "debian-archive-keyring", "busybox-static", "gcc", "libc6-dev", "iproute2"];
/// What makes and boots guests, beyond [`ROOT_PACKAGES`].
pub const GUEST_PACKAGES: &[&str] = &["qemu-system-x86", "e2fsprogs", "kmod"];
/// What links the image's programs: this machine's C library, and that of arm64 with its linker.
pub const IMAGE_PACKAGES: &[&str] = &["gcc", "libc6-dev", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];
/// What makes and boots guests of arm64, beyond [`GUEST_PACKAGES`].
pub const ARM64_GUEST_PACKAGES: &[&str] =
    &["qemu-system-arm", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];
/// What reads a package of the other kind, to check it.
pub const PACKAGES_PACKAGES: &[&str] = &["rpm"];
/// What links the kubectl plugin for Windows.
pub const WINDOWS_PACKAGES: &[&str] = &["gcc-mingw-w64-x86-64-posix"];

/// What makes clients of other languages: `protoc` with the types that all share, and the installer of Python's packages.
pub const CLIENT_PACKAGES: &[&str] = &["protobuf-compiler", "libprotobuf-dev", "python3-pip"];

/// A kernel to boot guests with: the newest cloud build of a series that the suites have, for the architecture of its name.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelSeries {
    /// Its name on the command line.
    pub name: &'static str,
    /// Where Debian keeps it. Old builds are dropped from there, so no exact version is written down.
    pub suites: &'static [&'static str],
    /// The packages that together are the kernel; `@` stands for the build.
    pub packages: &'static [&'static str],
}

/// The kernels that guests boot, oldest first.
pub const KERNELS: &[KernelSeries] = &[
    KernelSeries { name: "5.10", suites: &["bullseye", "bullseye-security"], packages: &["linux-image-@"] },
    KernelSeries { name: "6.1", suites: &["bookworm", "bookworm-security"], packages: &["linux-image-@"] },
    KernelSeries { name: "6.12", suites: &["trixie", "trixie-security"], packages: &["linux-image-@"] },
    KernelSeries { name: "6.12-arm64", suites: &["trixie", "trixie-security"], packages: &["linux-image-@"] },
    KernelSeries {
        name: "7.2",
        suites: &["trixie-backports"],
        packages: &["linux-binary-@", "linux-modules-@"],
    },
];

/// Who is process 1 of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// A script of our own that mounts and runs the job: fast, one owner of the cgroup tree (the job).
    Script,
    /// systemd, which owns the cgroup tree: for the systemd cgroup driver.
    Systemd,
}

/// A Debian tree with a container runtime: the root of guests, and of nodes on this machine's own kernel.
#[derive(Debug, PartialEq, Eq)]
pub struct RootSpec {
    /// Its name on the command line.
    pub name: &'static str,
    pub suite: &'static str,
    pub packages: &'static [&'static str],
    pub init: Init,
}

pub const EVERY_ROOT: &[&str] = &["containerd", "runc", "crun", "busybox-static", "kmod", "iproute2"];

/// The roots. containerd 1.6 is in bookworm, 1.7 in trixie, 2.x in the suite of the next release (sid breaks now and then).
pub const ROOTS: &[RootSpec] = &[
    RootSpec { name: "bookworm", suite: "bookworm", packages: &[], init: Init::Script },
    RootSpec { name: "trixie", suite: "trixie", packages: &[], init: Init::Script },
    // What pods need for a network of their own.
    RootSpec {
        name: CNI_ROOT,
        suite: "trixie",
        packages: &["containernetworking-plugins", "iptables"],
        init: Init::Script,
    },
    // Clients of the API in Python; what they are made of beyond Debian's comes with the job.
    RootSpec { name: CLIENT_ROOT, suite: "trixie", packages: &["python3", "libstdc++6"], init: Init::Script },
    // What reports processes, too, for `cargo xtask bench --peers`.
    RootSpec {
        name: PEERS_ROOT,
        suite: "trixie",
        packages: &["libbpf-tools", "bpftrace", "linux-perf"],
        init: Init::Script,
    },
    // A browser for the timeline's page, and a font: it has none of its own.
    RootSpec {
        name: BROWSER_ROOT,
        suite: "trixie",
        packages: &["chromium-headless-shell", "fonts-dejavu-core"],
        init: Init::Script,
    },
    // What the scenes `build` and `startup` of the demo run.
    RootSpec {
        name: DEMO_ROOT,
        suite: "trixie",
        packages: &["gcc", "libc6-dev", "make", "openjdk-21-jdk-headless"],
        init: Init::Script,
    },
    RootSpec { name: ARM64_ROOT, suite: "trixie", packages: &[], init: Init::Script },
    RootSpec { name: "forky", suite: "forky", packages: &[], init: Init::Script },
    RootSpec {
        name: SYSTEMD_ROOT,
        suite: "trixie",
        packages: &["systemd", "systemd-sysv", "dbus"],
        init: Init::Systemd,
    },
];

/// The guests that tests run in, as kernel and root: each kernel with containerd 1.7 or 2.x, and one with systemd as process 1.
/// Those whose tests take longest begin, so that all end at about the same time.
pub const GUESTS: &[(&str, &str)] = &[
    ("7.2", "forky"),
    ("6.12", "trixie-systemd"),
    ("6.1", "trixie"),
    ("5.10", "trixie"),
    ("6.12", "trixie"),
    ("6.12", DEMO_ROOT),
    ("6.12-arm64", ARM64_ROOT),
];

/// The kernel and the root that `vm` boots by default.
pub const DEFAULT_KERNEL: &str = "6.12";
/// See [`DEFAULT_KERNEL`].
pub const DEFAULT_ROOT: &str = "trixie";
pub const CNI_ROOT: &str = "trixie-cni";
pub const CLIENT_ROOT: &str = "trixie-python";
/// The root with other tools, made for the bench only: it is large.
pub const PEERS_ROOT: &str = "trixie-peers";
/// The root with a compiler and a JDK, made for two scenes of the demo and their tests only: it is large.
pub const DEMO_ROOT: &str = "trixie-demo";
/// The root of arm64, for the tests of `--long` only: emulating it is slow.
pub const ARM64_ROOT: &str = "trixie-arm64";
/// The roots that a whole setup leaves out: they are made when something is to run in them.
pub const ON_DEMAND: &[&str] = &[PEERS_ROOT, DEMO_ROOT, ARM64_ROOT];
pub const BROWSER_ROOT: &str = "trixie-browser";
/// The root whose process 1 is systemd.
pub const SYSTEMD_ROOT: &str = "trixie-systemd";

/// Free bytes that a complete setup needs in the cache.
pub const CACHE_BYTES: u64 = 10 << 30;
