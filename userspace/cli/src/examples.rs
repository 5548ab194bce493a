//! The examples of the help and of the manual. A test parses each.

/// Of a command.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "events",
        &[
            ("kwitness events", "everything that happens from now on"),
            (
                "kwitness events -n prod -p web --kind oom,limit",
                "OOM kills and limit changes of the pods web*",
            ),
            ("kwitness events --since 1h --no-follow --utc", "the last hour, in UTC"),
            ("kwitness events -o json --kind exited", "for jq: one object per line"),
        ],
    ),
    (
        "ps",
        &[
            ("kwitness ps", "the containers of this node"),
            ("kwitness ps -n prod -l app=web -w", "as they change"),
            ("kwitness ps -a -o wide", "with sandboxes, programs, images and IDs"),
        ],
    ),
    (
        "verify",
        &[
            ("kwitness verify web-0", "all limits of a pod"),
            ("kwitness verify web-0 --memory 512Mi --wait 10s", "wait until a resize has taken effect"),
            ("kwitness verify web-0 --prove 5s", "does usage keep to the limits?"),
            ("kwitness verify --all -w", "the whole node, and every verdict that changes"),
        ],
    ),
    (
        "status",
        &[
            ("kwitness status", "is the daemon healthy?"),
            ("kwitness status -o wide", "with programs and counters"),
        ],
    ),
    (
        "timeline",
        &[
            ("kwitness timeline web-0", "the last hour of a pod, even if it is gone"),
            ("kwitness timeline prod/web-0 -o html > web-0.html", "a page for a browser"),
            ("kwitness timeline web-0 -o perfetto > web-0.pftrace", "for ui.perfetto.dev"),
            ("kwitness timeline --file incident.kwr", "the node, from a recording"),
        ],
    ),
    (
        "record",
        &[
            ("kwitness record -o node.kwr --zstd", "until Ctrl-C; run it again to continue"),
            ("kwitness record -o incident.kwr --since 1h --no-follow", "save what the daemon still has"),
            ("kwitness events --file incident.kwr --kind oom", "what happened then"),
            ("kwitness ps --file incident.kwr --at 2026-01-02T12:30:00Z", "the containers at that time"),
        ],
    ),
    (
        "bugtool",
        &[
            ("sudo kwitness bugtool", "status, doctor, kernel facts and the events of 30 minutes"),
            ("sudo kwitness bugtool --since 2h --logs --redact", "with the log, and without names"),
        ],
    ),
    (
        "demo",
        &[
            ("kwitness demo", "half a minute, on any machine"),
            ("kwitness demo --save incident.kwr", "the recording, for --file"),
        ],
    ),
    (
        "daemon",
        &[
            ("kwitness daemon", "with /etc/kwitness/config.toml, if it exists"),
            ("kwitness daemon --set log.level=\"debug\"", "with a setting of the file replaced"),
        ],
    ),
    (
        "cri-proxy",
        &[(
            "kwitness cri-proxy --runtime-endpoint /run/containerd/containerd.sock",
            "in front of containerd",
        )],
    ),
    (
        "doctor",
        &[
            ("sudo kwitness doctor", "what this node offers, and how to get what is missing"),
            ("sudo kwitness doctor -o wide", "with every hook that was tried, and why it was refused"),
        ],
    ),
    (
        "completion",
        &[
            ("kwitness completion bash > /etc/bash_completion.d/kwitness", "for all users"),
            ("kwitness completion zsh", "for zsh"),
        ],
    ),
    (
        "man",
        &[
            ("kwitness man --dir /usr/local/share/man", "install all pages"),
            ("kwitness man events", "print one"),
        ],
    ),
];

/// The examples of a command.
pub fn all(command: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let of = EXAMPLES.iter().find(|(name, _)| *name == command);
    of.into_iter().flat_map(|(_, examples)| examples.iter().copied())
}

/// For the help of a command.
pub fn of(command: &str) -> String {
    let width = all(command).map(|(line, _)| line.len()).max().unwrap_or_default();
    let lines: String = all(command).map(|(line, what)| format!("\n  {line:width$}  # {what}")).collect();
    format!("Examples:{lines}")
}

/// For the help of the program.
pub fn overview() -> String {
    let mut text = String::from(
        "Environment:\n  KWITNESS_SOCKET  the daemon's socket, where --socket is not given\n\nExit codes:\n",
    );
    for (code, meaning) in crate::exit::CODES {
        text += &format!("  {code:<4} {meaning}\n");
    }
    text
}
