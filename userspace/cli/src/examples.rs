//! The examples of the help and of the manual. A test parses each.

/// Of a command.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "events",
        &[
            ("kwitness events", "everything from now on"),
            ("kwitness events -n prod -p web --kind oom,limit", "of pods named web…"),
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
        "top",
        &[
            ("kwitness top", "who dies next? (? explains)"),
            ("kwitness top web-0", "of one pod"),
            ("kwitness top -n prod -l app=web --sort share", "of pods with a label"),
            ("kwitness top --once -o wide", "one table with everything"),
            ("kwitness top -o json -w", "for jq: a sample per line"),
            ("kwitness top --file node.kwr --at 30s", "recorded, 30 s before the end"),
        ],
    ),
    (
        "verify",
        &[
            ("kwitness verify web-0", "all limits of a pod"),
            ("kwitness verify web-0 --memory 512Mi --wait 10s", "wait for a resize"),
            ("kwitness verify web-0 --prove 5s", "does usage stay below?"),
            ("kwitness verify --all -w", "the node, as it changes"),
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
            ("kwitness timeline web-0", "even if it is gone"),
            ("kwitness timeline prod/web-0 -o html > web-0.html", "a page for a browser"),
            ("kwitness timeline web-0 -o perfetto > web-0.pftrace", "for ui.perfetto.dev"),
            ("kwitness timeline --file incident.kwr", "the node, recorded"),
        ],
    ),
    (
        "record",
        &[
            ("kwitness record -o node.kwr --zstd", "repeat to continue"),
            ("kwitness record -o node.kwr --usage 1m", "usage every minute"),
            ("kwitness record -o incident.kwr --since 1h --no-follow", "the past hour"),
            ("kwitness events --file incident.kwr --kind oom", "what happened then"),
            ("kwitness ps --file incident.kwr --at 30s", "30 s before its end"),
        ],
    ),
    (
        "bugtool",
        &[
            ("sudo kwitness bugtool", "all that a report needs"),
            ("sudo kwitness bugtool --since 2h --logs --redact", "with log, without names"),
        ],
    ),
    (
        "demo",
        &[
            ("kwitness demo", "15 seconds, on any machine"),
            ("kwitness demo --save incident.kwr", "the recording, for --file"),
        ],
    ),
    (
        "daemon",
        &[
            ("kwitness daemon", "with its configuration file"),
            ("kwitness daemon --set log.level=\"debug\"", "with one setting replaced"),
            ("kwitness daemon --standby", "once the other one has ended"),
        ],
    ),
    ("cri-proxy", &[("kwitness cri-proxy --runtime-endpoint /run/crio/crio.sock", "in front of CRI-O")]),
    (
        "export",
        &[
            ("kwitness export --otlp-endpoint http://127.0.0.1:4317", "all events"),
            ("kwitness export --kubernetes-events", "Kubernetes Events"),
        ],
    ),
    ("uninstall-pins", &[("sudo kwitness uninstall-pins", "once the last daemon has ended")]),
    (
        "guard",
        &[
            ("kwitness guard --policy guard.toml --dry-run", "what it selects"),
            ("sudo kwitness guard --policy guard.toml", "until Ctrl-C"),
            ("sudo kwitness guard --policy guard.toml --kubernetes", "raise through the API"),
            ("sudo kwitness guard status", "what it holds"),
        ],
    ),
    (
        "doctor",
        &[
            ("sudo kwitness doctor", "checks, and how to fix problems"),
            ("sudo kwitness doctor -o wide", "and why each hook was refused"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_fit_80_columns() {
        for (command, _) in EXAMPLES {
            for line in of(command).lines() {
                assert!(line.len() <= 80, "{command}: {line}");
            }
        }
    }
}
